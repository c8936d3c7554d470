"""A deck by itself: the bytes it holds, which values belong on it, and the statistics of sampled tokens by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastercache.analysis import tape
from fastercache.analysis.sketch import Tokens, width_of
from fastercache.analysis.tape import Deck, _stretches, chunk_of, deck_bytes

CPU = torch.device("cpu")


def deck(
    value: Tensor, kept: int, rows: int = 3, steps: int = 5, lags: int = 2, sketch: int = 64, sample: int = 32
) -> Deck:
    width = width_of(value)
    tokens = Tokens(value.numel() // width, width, kept, 0, CPU)
    return Deck(rows, steps, value, tokens, lags=lags, sketch=sketch, sample=sample, seed=0)


def held(one: Deck) -> int:
    """Bytes of every tensor that a deck, its summaries and its tokens hold."""
    owners = (one, one.projection, one.sample, one.tokens)
    found = [part for owner in owners for part in vars(owner).values()]
    tensors = [part for part in [*found, *one._ring] if isinstance(part, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lags", "sketch", "sample"), [(2, 64, 32), (1, 100, 300), (3, 700, 512)])
def test_a_deck_holds_what_was_foreseen(dtype: torch.dtype, lags: int, sketch: int, sample: int) -> None:
    """All tokens are kept here, and a value of 600 elements that is no longer than a sample is not sampled."""
    value = torch.randn(1, 150, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    one = deck(value, 150, lags=lags, sketch=sketch, sample=sample)
    for step in range(5):
        for row in range(3):
            one.put(row, step, value)
        one.settle(step)
    most, needed = deck_bytes(3, 5, 150, 4, value.element_size(), lags=lags, sketch=sketch, sample=sample)
    assert most - held(one) == 8 * 150 + (8 * sample if sample >= 600 else 0)
    assert needed == 4 * 3 * 600  # the rows as float32
    sampled = deck(value, 50, lags=lags, sketch=sketch, sample=100)
    for step in range(lags + 1):
        sampled.put(0, step, value)
    foreseen = deck_bytes(3, 5, 50, 4, value.element_size(), lags=lags, sketch=sketch, sample=100)[0]
    assert foreseen == held(sampled) and sampled.tokens.index is not None


def test_a_value_as_long_as_a_summary_is_not_summarised() -> None:
    """One longer takes a padded working copy, with an index and a sign for each of its elements."""
    whole, summarised = (deck_bytes(1, 1, n, 1, 4, lags=1, sketch=64, sample=8)[0] for n in (64, 65))
    assert summarised - whole == 2 * 4 + 8 + 4 + 128 * (4 + 5)  # an element more: in the ring, as a token, in a copy


def test_as_many_rows_are_reduced_at_once_as_make_half_a_million_elements() -> None:
    for rows, numel, expected in ((8, 1 << 19, 1), (8, 1 << 17, 4), (3, 1 << 17, 3), (8, 1 << 21, 1), (5, 0, 5)):
        assert chunk_of(rows, numel) == expected


@given(st.sets(st.integers(0, 20), min_size=1).map(sorted), st.integers(1, 5))
def test_stretches_have_no_gaps_and_are_as_long_as_they_may_be(rows: list[int], size: int) -> None:
    expected: list[list[int]] = []
    for row in rows:
        if expected and expected[-1][-1] == row - 1 and len(expected[-1]) < size:
            expected[-1].append(row)
        else:
            expected.append([row])
    assert list(_stretches(rows, size)) == [(one[0], one[-1] + 1) for one in expected]


def test_a_value_of_another_size_type_or_token_belongs_elsewhere() -> None:
    value = torch.zeros(2, 6, 4)
    whole, sampled = deck(value, 12), deck(value, 5)
    assert (
        whole.fits(value) and whole.fits(torch.zeros(48)) and sampled.fits(value) and sampled.fits(torch.zeros(12, 4))
    )
    assert not whole.fits(value.double()) and not whole.fits(torch.zeros(2, 6, 5)) and not whole.fits(torch.zeros(47))
    assert not sampled.fits(torch.zeros(48)) and not sampled.fits(torch.zeros(6, 8)) and not sampled.fits(value.half())


def test_what_waits_is_a_copy_of_the_sample_with_the_mean_square_of_all() -> None:
    value = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    for kept in (12, 5):
        one = deck(value, kept)
        one.put(1, 0, value)
        found = one.waiting(1, 0)
        assert found is not None and one.waiting(0, 0) is None and one.waiting(1, 1) is None
        kept_value, square = found
        assert torch.equal(kept_value, one.tokens.of(value)) and kept_value.numel() == kept * 4
        assert (square is None) == (kept == 12)
        if square is not None:
            assert float(square) == pytest.approx(float(value.square().mean()))
        assert not one.recorded(1)
        one.settle(0)
        assert one.recorded(1) and not one.recorded(0)
        one.put(1, 0, value + 1.0)  # a second one for the same step replaces the first
        one.settle(0)
        assert one.close([1])[0].l1[0] == pytest.approx(float(one.tokens.of(value + 1.0).abs().mean()))


def test_statistics_of_sampled_tokens_are_those_of_these_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(1, 40, 3, generator=generator) for _ in range(5)]
    one = deck(values[0], 15, rows=1, lags=2)
    for step, value in enumerate(values):
        one.put(0, step, value)
        one.settle(step)
    found = one.close([0])[0]
    kept = [one.tokens.of(value).double().numpy() for value in values]
    np.testing.assert_allclose(found.l1, [np.abs(x).mean() for x in kept], rtol=1e-6)
    np.testing.assert_allclose(found.rms, [np.sqrt(np.mean(x**2)) for x in kept], rtol=1e-6)
    for lag in (1, 2):
        apart = [np.abs(kept[t] - kept[t - lag]).mean() for t in range(lag, 5)]
        assert np.isnan(found.lag_l1[:lag, lag - 1]).all()
        np.testing.assert_allclose(found.lag_l1[lag:, lag - 1], apart, rtol=1e-5)
        square = [np.sqrt(np.mean((kept[t] - kept[t - lag]) ** 2)) for t in range(lag, 5)]
        np.testing.assert_allclose(found.lag_rms[lag:, lag - 1], square, rtol=1e-5)
    whole = [float(value.double().square().mean().sqrt()) for value in values]
    np.testing.assert_allclose(found.token_check, found.rms / np.array(whole) - 1.0, atol=1e-6)
    assert found.check.shape == (1 + 2 + 2 + 2, 2), "a value of 45 elements is longer than the sample of 32"
    estimated = torch.pdist(torch.stack([one.sample(torch.from_numpy(x).float()) for x in kept[:2]]), p=1.0) / 32
    assert found.check[0, 0] == pytest.approx(float(estimated) / found.lag_l1[1, 0] - 1.0, abs=1e-5)


# -- tokens ------------------------------------------------------------------------------------------------------------
def test_tokens_are_told_apart_by_their_numbers_alone() -> None:
    """What is shown and compared is how they were drawn, not which came out."""
    tokens = Tokens(100, 3, 10, 0, CPU)
    assert "index" not in repr(tokens) and tokens == Tokens(100, 3, 10, 0, CPU) != Tokens(100, 3, 10, 1, CPU)
    assert tokens.numel == 30 and not tokens.whole and Tokens(100, 3, 100, 0, CPU).whole
    assert tokens.fewer(10) is tokens and tokens.fewer(11) is tokens and tokens.fewer(9).kept == 9


def test_a_token_lies_along_the_last_axis() -> None:
    assert [width_of(torch.zeros(shape)) for shape in ((7,), (2, 3), (2, 3, 5), ())] == [1, 3, 5, 1]


@pytest.mark.parametrize(("count", "kept"), [(10, 3), (7, 7), (100, 9)])
def test_one_token_of_each_stretch_is_drawn_wherever_it_lies(count: int, kept: int) -> None:
    """Over many seeds every token comes out, and of each of the equal stretches one."""
    value = torch.arange(float(count))[:, None]
    seen: set[float] = set()
    edges = [stretch * count // kept for stretch in range(kept + 1)]
    for seed in range(100):
        found = Tokens(count, 1, kept, seed, CPU).of(value).tolist()
        assert all(low <= place < high for place, (low, high) in zip(found, itertools.pairwise(edges), strict=True))
        seen |= set(found)
    assert seen == set(value.flatten().tolist())


def test_a_sample_of_all_tokens_keeps_what_it_keeps_of_a_sample() -> None:
    value = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    whole = Tokens(30, 2, 30, 5, CPU)
    fewer = whole.fewer(8)
    assert fewer.kept == 8 and torch.equal(whole.shrunk(whole.of(value), fewer), fewer.of(value))
    assert torch.equal(whole.shrunk(whole.of(value), whole), value.flatten())
    assert whole.mean_square(value) is None
    square = fewer.mean_square(value)
    assert square is not None and float(square) == pytest.approx(float(value.square().mean()))


@pytest.mark.parametrize("kept", [40, 15])
@pytest.mark.parametrize("together", [1 << 19, 30])
def test_rows_closed_together_have_each_its_own_values_at_the_steps_where_it_was_there(
    monkeypatch: pytest.MonkeyPatch, kept: int, together: int
) -> None:
    """Three of five rows at every step, one at three steps, one at none; in the order asked for, in pieces or not."""
    monkeypatch.setattr(tape, "_CACHED", together)  # of 25 elements a row: one at a time
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(5, 5, 40, 3, generator=generator) * torch.arange(1.0, 6.0)[:, None, None, None]
    there = {0: [0, 1, 2, 3, 4], 1: [1, 2, 4], 3: [0, 1, 2, 3, 4], 4: [0, 1, 2, 3, 4]}
    one = deck(values[0, 0], kept, rows=5, lags=2, sketch=200, sample=200)
    for step in range(5):
        for row, steps in there.items():
            if step in steps:
                one.put(row, step, values[row, step])
        one.settle(step)
    order = [4, 1, 0, 3]
    for row, found in zip(order, one.close(order), strict=True):
        flat = torch.stack([one.tokens.of(value) for value in values[row]]).double().numpy()
        steps = there[row]
        missing = [step for step in range(5) if step not in steps]
        expected = np.full((5, 5), np.nan)
        expected[np.ix_(steps, steps)] = (flat @ flat.T / flat.shape[1])[np.ix_(steps, steps)]
        np.testing.assert_allclose(found.gram, expected, rtol=1e-5, atol=1e-5)
        apart = np.abs(flat[:, None] - flat[None]).mean(-1)  # step j standing in for step i
        relative = apart / np.abs(flat).mean(-1)[:, None]
        relative[missing, :] = relative[:, missing] = np.nan
        np.testing.assert_allclose(found.matrices[..., 1], relative, rtol=1e-5, atol=1e-6)
        assert len(found.token_check) == (0 if kept == 40 else len(steps))
        whole = values[row].flatten(1).square().mean(1).sqrt().numpy()[steps]
        if kept == 15:
            np.testing.assert_allclose(found.token_check, found.rms[steps] / whole - 1.0, rtol=1e-4, atol=1e-6)
