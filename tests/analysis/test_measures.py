"""Measures between tensors: their denominators, their limits, and the exactness of their bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastercache.analysis import measures
from fastercache.policies.errors import MeasurementError


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(shape, generator=generator)
    return a, 1.7 * a + 0.3 * torch.randn(shape, generator=generator)


def test_each_measure_equals_its_formula_and_divides_by_the_second_argument() -> None:
    a, b = pair(2, 3, 5)
    x, y = a.double().numpy().ravel(), b.double().numpy().ravel()
    assert float(measures.cosine(a, b)) == pytest.approx(x @ y / np.sqrt(x @ x * (y @ y)), rel=1e-5)
    assert float(measures.relative_l1(a, b)) == pytest.approx(np.abs(x - y).mean() / np.abs(y).mean(), rel=1e-5)
    assert float(measures.relative_l2(a, b)) == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y), rel=1e-5)
    assert float(measures.relative_l1(b, a)) != pytest.approx(float(measures.relative_l1(a, b)), rel=0.1)


def test_one_minus_cosine_keeps_its_precision_for_nearly_equal_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4096, generator=generator)
    b = a + 1e-4 * torch.randn(4096, generator=generator)
    x, y = a.double(), b.double()
    exact = 1 - float(x @ y / (x.norm() * y.norm()))
    found = measures.from_norms(
        (x - y).abs().mean(), (a - b).norm().double(), y.abs().mean(), a.double().norm(), b.double().norm()
    )
    assert 1 - float(found[0]) == pytest.approx(exact, rel=1e-3)


def test_zero_tensors_have_defined_measures() -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    assert measures.similarity(zero, zero).tolist() == [1.0, 0.0, 0.0]
    assert measures.similarity(zero, one).tolist() == [0.0, 1.0, 1.0]
    assert measures.similarity(one, zero).tolist() == [0.0, float("inf"), float("inf")]


def test_nan_is_not_hidden() -> None:
    assert measures.similarity(torch.tensor([1.0, torch.nan]), torch.ones(2)).isnan().all()


def test_bands_separate_what_changed() -> None:
    """A change that is constant over the frame is all in the low band, a checkerboard all in the high one."""
    _, b = pair(1, 4, 8, 8)
    checker = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1.0
    for change, band, other in ((torch.ones(8, 8), 1, 2), (checker, 2, 1)):
        found = measures.band_similarity(b + change, b)
        assert found.shape == (3, 3)
        torch.testing.assert_close(found[0], measures.similarity(b + change, b))
        assert found[band, 2] > 0.1
        assert found[other, 2] < 1e-5


def test_batched_measures_are_those_of_each_entry() -> None:
    a, b = pair(4, 3, 6, 8)
    torch.testing.assert_close(
        measures.similarity(a, b, batched=True),
        torch.stack([measures.similarity(x, y) for x, y in zip(a, b, strict=True)]),
    )
    each = torch.stack([measures.band_similarity(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(measures.band_similarity(a, b, batched=True), each)


def test_a_radius_that_covers_everything_leaves_no_high_band() -> None:
    a, b = pair(2, 6, 6)
    found = measures.band_similarity(a, b, radius=100)
    torch.testing.assert_close(found[1], found[0])


def test_other_shapes_and_names_are_refused() -> None:
    with pytest.raises(MeasurementError, match=r"\(3,\) and \(4,\)"):
        measures.cosine(torch.ones(3), torch.ones(4))
    with pytest.raises(MeasurementError, match=r"\.\.\., H, W"):
        measures.band_similarity(torch.ones(3), torch.ones(3))
    with pytest.raises(MeasurementError, match="did you mean 'rel_l1'"):
        measures.measure_of("rel_1")


def test_what_is_opposite_and_what_is_parallel() -> None:
    """Rounding takes no cosine out of [-1, 1]."""
    for seed in range(100):
        a = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        opposite, parallel = measures.similarity(-a, a), measures.similarity(1.7 * a, a)
        assert opposite.tolist() == pytest.approx([-1.0, 2.0, 2.0], abs=1e-6) and float(opposite[0]) >= -1.0
        assert parallel.tolist() == pytest.approx([1.0, 0.7, 0.7], abs=1e-6) and float(parallel[0]) <= 1.0
    assert {name: one.identical for name, one in measures.MEASURES.items()} == dict(
        zip(measures.ORDER, measures.similarity(a, a).tolist(), strict=True)
    )


def test_the_low_band_is_a_fifth_of_the_shorter_side() -> None:
    a, b = pair(3, 12, 20)
    torch.testing.assert_close(measures.band_similarity(a, b), measures.band_similarity(a, b, radius=2))
    assert not torch.allclose(measures.band_similarity(a, b), measures.band_similarity(a, b, radius=3))
    frame = measures.band_similarity(a[0], b[0])
    torch.testing.assert_close(measures.band_similarity(a, b, batched=True)[0], frame)
    with pytest.raises(MeasurementError, match=r"found \(12, 20\) and \(12, 20\)"):
        measures.band_similarity(a[0], b[0], batched=True)
    with pytest.raises(MeasurementError, match="one shape"):
        measures.band_similarity(a, b[:2])
