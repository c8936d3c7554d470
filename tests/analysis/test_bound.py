"""A recording never holds more than its bound, and the sample of tokens that it keeps for that is near the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastercache.analysis.bound import Bound, Layout
from fastercache.analysis.measures import similarity
from fastercache.analysis.profile import Profile
from fastercache.analysis.record import Recorder, record
from fastercache.analysis.sketch import Tokens
from fastercache.analysis.tape import deck_bytes
from fastercache.experiments.jobs.memory import MIB, Shape
from fastercache.experiments.jobs.recording_size import counted, held, seconds
from fastercache.policies.errors import RecordingError
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Run, Site
from fastercache.run.trace import Observation
from tests.analysis.fakes import SITES, FakeSession, drifting, hash_of

STEPS = 8


def tokens_of(count: int, width: int, dtype: torch.dtype = torch.float32) -> Callable[[Site, str, int], Tensor]:
    """Values (1, count, width) that drift; tokens differ in size. The denoiser's are (1, 4, 2, 8, 8)."""
    shaped = drifting()

    def values(site: Site, branch: str, step: int) -> Tensor:
        if site.kind is not Kind.MODULE:
            return shaped(site, branch, step)
        generator = torch.Generator().manual_seed(hash_of(site.name, branch))
        a, b = torch.randn(2, 1, count, width, generator=generator)
        return ((a + step / 10 * b) * torch.linspace(0.5, 1.5, count)[None, :, None]).to(dtype)

    return values


def recording(session: FakeSession, max_bytes: int, sites: str | None = None, lags: int = 2) -> Recorder:
    return Recorder(session, sites, lags, 64, 64, 0, None, max_bytes, owned=False)


def profile_of(values: Callable[[Site, str, int], Tensor], max_bytes: int) -> tuple[Profile, int]:
    """A recording's profile, and the most bytes it held."""
    session = FakeSession(values)
    session.watch = WatchOf(session)  # type: ignore[method-assign]
    rec = recording(session, max_bytes)
    peak = counted(rec)
    session.go(STEPS)
    return rec.profile(), peak.most


class WatchOf:
    """`FakeSession.watch` whose watches can be closed, as a session's can."""

    def __init__(self, session: FakeSession) -> None:
        self._session, self._watch = session, session.watch

    def __call__(self, query: str, watcher: Any) -> Any:
        watch: Any = self._watch(query, watcher)
        own = self._session.watched[-1]
        watch._watcher = watcher
        watch.close = lambda: self._session.watched.remove(own)
        return watch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("limit", [1, 2, 4, 8])
def test_the_bound_is_never_exceeded_and_used(limit: int, dtype: torch.dtype) -> None:
    profile, most = profile_of(tokens_of(4000, 32, dtype), limit * MIB)
    assert most <= limit * MIB
    assert profile.info.max_bytes == limit * MIB
    if profile.info.tokens:
        assert most > 0.5 * limit * MIB  # no token is left out that would have had room
        assert set(profile.info.tokens) == {s.name for s in SITES if s.kind is Kind.MODULE}
    else:
        assert most > 4 * 3 * 4000 * 32 * dtype.itemsize  # four values at three steps


def test_a_sample_of_tokens_is_near_the_exact_value_and_says_how_near() -> None:
    values = tokens_of(4000, 32)
    profile, _ = profile_of(values, 2 * MIB)
    kept, count = profile.info.tokens[SITES[0].name]
    assert count == 4000 and 64 < kept < 2000
    for s, site in enumerate(SITES[:2]):
        for b, branch in enumerate((COND, UNCOND)):
            whole = [values(site, branch, t) for t in range(STEPS)]
            # Tokens differ by a factor of 0.5 to 1.5: the mean square of a token has a relative deviation below 0.6.
            rms = [float(v.square().mean().sqrt()) for v in whole]
            np.testing.assert_allclose(profile.rms[0, s, b], rms, rtol=4 * 0.6 / 2 / kept**0.5)
            for lag in (1, 2):
                expected = [[float(x) for x in similarity(whole[t - lag], whole[t])] for t in range(lag, STEPS)]
                for m, measure in ((1, "rel_l1"), (2, "rel_l2")):
                    found = profile.lag(site.name, measure, lag, branch)[0, 0, lag:]
                    np.testing.assert_allclose(found, [e[m] for e in expected], rtol=4 / kept**0.5)
                    assert not np.allclose(found, [e[m] for e in expected], rtol=1e-6)  # it is a sample
    assert profile.info.token_error is not None
    assert 0 < profile.info.token_error < 4 * 0.6 / 2 / kept**0.5


def test_the_token_error_is_that_of_the_root_mean_square() -> None:
    values = tokens_of(4000, 32)
    profile, _ = profile_of(values, 2 * MIB)
    errors = []
    for s, site in enumerate(SITES[:2]):
        for b, branch in enumerate((COND, UNCOND)):
            exact = [float(values(site, branch, t).square().mean().sqrt()) for t in range(STEPS)]
            errors += list(profile.rms[0, s, b] / exact - 1)
    assert profile.info.token_error == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-3)


def test_each_site_has_a_row_for_each_branch_and_the_guidance_difference_one_less() -> None:
    session = FakeSession(tokens_of(100, 4))
    for sites, rows in ((None, 7), ("spatial", 2), ("spatial|branch", 3)):
        rec = recording(session, MIB, sites)
        session.go(2)
        assert rec._bound is not None and rec._bound.rows == rows
        session.watched.clear()


def test_a_recording_that_fits_keeps_every_token_and_is_exact() -> None:
    profile, _ = profile_of(tokens_of(400, 32), 64 * MIB)
    assert profile.info.tokens == {} and profile.info.token_error is None


@pytest.mark.parametrize("limit", [1, 1000, 100_000])
def test_what_cannot_fit_is_refused_in_one_line(limit: int) -> None:
    session = FakeSession(tokens_of(4000, 64))
    recording(session, limit)
    with pytest.raises(RecordingError, match=rf"max_bytes={limit} leaves \d+ bytes .* raise max_bytes") as refused:
        session.go(STEPS)
    assert "\n" not in str(refused.value)


def test_an_output_too_large_to_compare_by_branch_is_refused() -> None:
    session = FakeSession(lambda site, branch, step: torch.zeros(1, 4, 8, 64, 64))
    recording(session, MIB, sites="denoiser")
    with pytest.raises(RecordingError, match="leave out the sites 'denoiser' and 'branch'"):
        session.go(STEPS)


def test_a_second_size_takes_the_place_of_the_first() -> None:
    """Both within one bound: what was held of the first size is dropped at its first value of the second."""
    count = [4000]
    session = FakeSession(lambda site, branch, step: tokens_of(count[0], 32)(site, branch, step))
    session.watch = WatchOf(session)  # type: ignore[method-assign]
    rec = recording(session, 4 * MIB)
    peak = counted(rec)
    session.go(STEPS)
    first = rec.profile()
    for count[0] in (2000, 4000):
        session.go(STEPS)
    assert peak.most <= 4 * MIB
    profile = rec.profile()
    assert profile.runs == 3
    np.testing.assert_allclose(profile.lag_l1[2], first.lag_l1[0], rtol=0.05)
    exact = [float(tokens_of(2000, 32)(SITES[0], COND, t).abs().mean()) for t in range(STEPS)]
    np.testing.assert_allclose(profile.l1[1, 0, 0], exact, rtol=0.1)


def test_a_value_that_changes_its_size_within_a_run_is_refused() -> None:
    session = FakeSession(lambda site, branch, step: tokens_of(100 + step // 3, 32)(site, branch, step))
    recording(session, 4 * MIB)
    with pytest.raises(RecordingError, match="another size at step 3 of one run"):
        session.go(STEPS)


def test_sites_first_reached_later_find_room() -> None:
    """As of a second transformer: half of the sites appear in the middle of the run."""
    values = tokens_of(4000, 32)
    session = FakeSession(values)
    session.watch = WatchOf(session)  # type: ignore[method-assign]
    rec = recording(session, 2 * MIB, sites="spatial|temporal")
    peak = counted(rec)
    ((sites, observe),) = session.watched
    session.watched.clear()
    run = Run.of(STEPS, sites=SITES)
    for step in run.steps:
        for branch in (UNCOND, COND):
            site = sites[step.index >= STEPS // 2]
            observe(Observation(site, step, branch, values(site, branch, step.index), Code.COMPUTED, run))
    profile = rec.profile()
    assert peak.most <= 2 * MIB
    assert set(profile.info.tokens) == {site.name for site in sites}
    assert np.isfinite(profile.lag("spatial", "rel_l1")[0, 0, 1 : STEPS // 2]).all()
    assert np.isfinite(profile.lag("temporal", "rel_l1")[0, 0, STEPS // 2 + 1 :]).all()


def test_a_sample_of_a_sample_keeps_the_same_tokens() -> None:
    value = torch.arange(1000.0)[:, None].expand(1000, 3).contiguous()
    tokens = Tokens(1000, 3, 100, 0, value.device)
    fewer = tokens.fewer(40)
    torch.testing.assert_close(tokens.shrunk(tokens.of(value), fewer), fewer.of(value), rtol=0, atol=0)
    assert len(set(fewer.of(value).tolist())) == 40
    strata = torch.arange(100) * 10
    assert ((tokens.of(value).view(100, 3)[:, 0] >= strata) & (tokens.of(value).view(100, 3)[:, 0] < strata + 10)).all()


# -- at real size, without storage -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("layers", "max_bytes"), [(2, 300 * MIB), pytest.param(30, 4 * 2**30, marks=pytest.mark.slow)])
def test_cogvideox_2b_stays_below_its_bound(layers: int, max_bytes: int) -> None:
    """Attention outputs of 65 MiB, 60 of them in the whole model: three of each, with two lags, would be 11 GiB."""
    found = held(Shape(layers=layers), max_bytes)
    assert found.tokens == 17_550
    assert 0.6 * max_bytes < found.held <= max_bytes
    fit = max_bytes / (2 * layers * 3 * 1920 * 2)  # tokens whose three values alone would fill it
    assert 500 < found.kept < fit < found.tokens / 2


def test_without_a_bound_it_would_not_fit() -> None:
    """The measure sees the values: with room for all of them it counts five of each."""
    found = held(Shape(layers=1), 100 * 2**30)
    assert found.kept == found.tokens == 17_550
    assert found.held > 5 * 2 * 17_550 * 1920 * 2


def test_the_time_of_a_value_is_measured_at_two_sizes() -> None:
    assert all(seconds(tokens, 32, 2, 64 * MIB) > 0 for tokens in (64, 256))


def test_the_default_is_stated_and_max_bytes_checked(latte: Any) -> None:
    with pytest.raises(RecordingError, match="max_bytes must be at least 1, found 0"):
        record(latte.pipe, max_bytes=0)
    with record(latte.pipe) as rec:
        latte.generate(steps=3)
    assert rec.profile().info.max_bytes == 4 * 2**30


def test_a_value_that_must_be_copied_to_be_read_takes_that_copy() -> None:
    """Of 8 MiB, a value of 4 MiB that is copied leaves room for half of what there was."""
    value = torch.zeros(1024, 1024)
    kept = []
    for turned in (False, True):
        bound = Bound(8 * MIB, 1, 4, lags=1, sketch=8, sample=8, seed=0)
        tokens = bound.tokens(value.T if turned else value, "a")
        layout = Layout(tokens.count, tokens.width, value.dtype, value.device)
        kept.append(bound.fit({layout: (1, 4, "a")}, [])[layout])
    most = [sum(deck_bytes(1, 4, count, 1024, 4, lags=1, sketch=8, sample=8)) for count in kept]
    assert 7 * MIB < most[0] <= 8 * MIB and 3 * MIB < most[1] <= 4 * MIB
