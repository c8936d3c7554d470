"""The random summaries keep what their docstrings promise, also for the vectors that are hardest for them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastercache.analysis.sketch import Coordinates, Projection, Tokens, projection_error

CPU = torch.device("cpu")


def hard_vectors(n: int) -> dict[str, Tensor]:
    """Gaussian noise; one massive channel of 64 (as attention outputs have); a constant; two spikes."""
    noise = torch.randn(n, generator=torch.Generator().manual_seed(0))
    channel = 0.01 * noise.clone()
    channel[::64] = 100.0
    spikes = torch.zeros(n)
    spikes[[5, n - 7]] = 3.0
    return {"noise": noise, "channel": channel, "constant": torch.ones(n), "spikes": spikes}


@pytest.mark.parametrize("kind", ["noise", "channel", "constant", "spikes"])
def test_squared_norms_are_unbiased_with_the_stated_variance(kind: str) -> None:
    """E ‖S d‖² = ‖d‖² and Var ‖S d‖² <= 2 / k ‖d‖⁴, over 300 draws of the projection."""
    n, k, draws = 4000, 128, 300
    d = hard_vectors(n)[kind]
    ratios = torch.stack([Projection(n, k, seed, CPU)(d).square().sum() / d.square().sum() for seed in range(draws)])
    allowed = math.sqrt(2 / k)
    assert abs(float(ratios.mean()) - 1) < 4 * allowed / math.sqrt(draws) + 1e-5
    assert float(ratios.std()) < 1.25 * allowed


def test_the_projection_is_linear_fixed_by_its_seed_and_keeps_every_element() -> None:
    n, k = 1000, 64
    project = Projection(n, k, 3, CPU)
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(project(a - 2 * b), project(a) - 2 * project(b), rtol=1e-4, atol=1e-4)
    assert torch.equal(project(a), Projection(n, k, 3, CPU)(a))
    assert not torch.equal(project(a), Projection(n, k, 4, CPU)(a))
    columns = torch.stack([project(row) for row in torch.eye(n)])
    assert (columns.abs().sum(1) == 1).all()  # each element lands in one place, with a sign
    assert 0.4 < float((columns.sum(1) > 0).float().mean()) < 0.6


def test_the_stated_error_is_that_of_a_distance() -> None:
    n, k = 20_000, 512
    d = torch.randn(n, generator=torch.Generator().manual_seed(0))
    errors = torch.stack([Projection(n, k, seed, CPU)(d).norm() / d.norm() - 1 for seed in range(200)])
    assert float(errors.std()) == pytest.approx(projection_error(k), rel=0.2)


def test_the_sample_mean_is_unbiased_and_never_takes_an_element_twice() -> None:
    n, size = 5000, 256
    d = torch.randn(n, generator=torch.Generator().manual_seed(0)).abs()
    means = torch.stack([Coordinates(n, size, seed, CPU)(d).mean() / d.mean() for seed in range(300)])
    assert abs(float(means.mean()) - 1) < 0.01
    assert float(means.std()) < 1.2 * 0.76 / math.sqrt(size)
    places = Coordinates(n, size, 0, CPU)(torch.arange(n, dtype=torch.float32))
    assert len(places.unique()) == size


def test_vectors_that_fit_are_kept_whole() -> None:
    x = torch.arange(10.0)
    for summary in (Projection(10, 16, 0, CPU), Coordinates(10, 16, 0, CPU)):
        assert summary.width == 10
        assert torch.equal(summary(x), x)


def test_a_draw_depends_on_its_seed_and_on_nothing_else() -> None:
    """So that what was recorded with an older version can be compared: signs, shifts and places by hand."""
    n, k, seed = 50, 8, 3
    x = torch.arange(1.0, n + 1)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (7 * k,), generator=generator, dtype=torch.int8).tolist()
    shifts = torch.randint(0, k, (7, 1), generator=generator, dtype=torch.int32).flatten().tolist()
    expected = [0.0] * k
    for place in range(n):
        row, column = divmod(place, k)
        target = (column + shifts[row]) % k
        expected[target] += float(x[place]) * (1.0 if signs[row * k + target] else -1.0)
    assert Projection(n, k, seed, CPU)(x).tolist() == expected
    drawn = torch.rand(k, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).tolist()
    places = [int((stretch + share) * n / k) for stretch, share in enumerate(drawn)]
    assert Coordinates(n, k, seed, CPU)(x).tolist() == [float(place + 1) for place in places]
    drawn = torch.rand(k, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64).tolist()
    edges = [stretch * n // k for stretch in range(k + 1)]
    chosen = [edges[s] + int(share * (edges[s + 1] - edges[s])) for s, share in enumerate(drawn)]
    assert Tokens(n, 1, k, seed, CPU).of(x[:, None]).tolist() == [float(place + 1) for place in chosen]
    fewer = Tokens(n, 1, k, seed, CPU).fewer(4)
    drawn = torch.rand(4, generator=torch.Generator().manual_seed(seed + 3), dtype=torch.float64).tolist()
    assert fewer.of(x[:, None]).tolist() == [float(chosen[2 * s + int(2 * share)] + 1) for s, share in enumerate(drawn)]
