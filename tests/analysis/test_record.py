"""A recording's statistics equal those of the values themselves, exactly or within the stated error."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastercache as fc
from fastercache.analysis.measures import band_similarity, similarity
from fastercache.analysis.profile import Profile
from fastercache.analysis.record import Recorder, record
from fastercache.policies.errors import NoSiteMatched, RecordingError
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Run
from fastercache.run.trace import Observation
from tests.analysis.fakes import SITES, FakeSession, drifting

STEPS = 9


def recorder(
    session: FakeSession, sites: str | None = None, lags: int = 3, width: int = 2048, raw: Path | None = None
) -> Recorder:
    return Recorder(session, sites, lags, width, width, 0, raw, owned=False)


def test_norms_and_lags_are_exact_and_divide_by_the_replaced_step() -> None:
    session = FakeSession(drifting())
    rec = recorder(session)
    session.go(STEPS)
    profile = rec.profile()
    for s, site in enumerate(SITES[:3]):
        for b, branch in enumerate((COND, UNCOND)):
            values = [session.values(site, branch, t) for t in range(STEPS)]
            l1, rms = [float(v.abs().mean()) for v in values], [float(v.square().mean().sqrt()) for v in values]
            np.testing.assert_allclose(profile.l1[0, s, b], l1, rtol=1e-5)
            np.testing.assert_allclose(profile.rms[0, s, b], rms, rtol=1e-5)
            for lag in (1, 2, 3):
                for m, measure in enumerate(("cosine", "rel_l1", "rel_l2")):
                    found = profile.lag(site.name, measure, lag, branch)[0, 0]
                    assert np.isnan(found[:lag]).all()
                    expected = [float(similarity(values[t - lag], values[t])[m]) for t in range(lag, STEPS)]
                    np.testing.assert_allclose(found[lag:], expected, rtol=1e-4)


def test_the_full_matrix_is_within_the_stated_error_and_exact_near_its_diagonal() -> None:
    session = FakeSession(drifting(numel=40_000))
    rec = recorder(session)
    session.go(STEPS)
    profile = rec.profile()
    assert profile.info.projection_error == pytest.approx(1 / 64)
    values = [session.values(SITES[0], COND, t) for t in range(STEPS)]
    exact = torch.stack([torch.stack([similarity(values[j], values[i]) for j in range(STEPS)]) for i in range(STEPS)])
    near = np.abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS))) <= 3
    for m, measure in enumerate(("cosine", "rel_l1", "rel_l2")):
        found, expected = profile.matrix("spatial", measure), exact[..., m].numpy()
        np.testing.assert_allclose(found[near], expected[near], atol=1e-6, rtol=1e-4)
        distance = (1 - expected if measure == "cosine" else expected)[~near]
        error = (found - expected)[~near] / distance
        assert 0 < np.abs(error).max() < (4 * profile.info.projection_error) * (2 if measure == "cosine" else 1)
    assert profile.info.check is not None
    assert 0 < profile.info.check["rel_l2"] < 3 * profile.info.projection_error
    assert 0 < profile.info.check["rel_l1"] < 0.05


def test_short_values_are_kept_without_error() -> None:
    session = FakeSession(drifting(numel=1500))
    rec = recorder(session, lags=1)
    session.go(STEPS)
    profile = rec.profile()
    assert profile.info.check is None
    values = [session.values(SITES[1], UNCOND, t) for t in range(STEPS)]
    expected = [float(similarity(values[0], v)[1]) for v in values]
    np.testing.assert_allclose(profile.matrix("temporal", "rel_l1", UNCOND)[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_the_gram_matrix_gives_the_error_of_any_linear_predictor() -> None:
    """What predictability needs: mean (2 F_5 − F_4 − F_6)² from one recording, here for the line through two steps."""
    session = FakeSession(drifting(numel=1500))
    rec = recorder(session)
    session.go(STEPS)
    coefficients = np.zeros(STEPS)
    coefficients[[4, 5, 6]] = [-1, 2, -1]
    f = [session.values(SITES[0], COND, t).double() for t in (4, 5, 6)]
    expected = float((2 * f[1] - f[0] - f[2]).square().mean())
    gram = rec.profile().gram[0, 0]
    assert coefficients @ gram @ coefficients == pytest.approx(expected, rel=1e-3)


def test_guidance_similarity_is_conditional_for_unconditional_by_band() -> None:
    session = FakeSession(drifting())
    rec = recorder(session)
    session.go(STEPS)
    profile = rec.profile()
    assert profile.guidance.shape == (1, 2, STEPS, 3, 3)
    assert np.isnan(profile.guidance[0, 0]).all()
    for t in range(STEPS):
        cond, uncond = (session.values(SITES[2], b, t) for b in (COND, UNCOND))
        np.testing.assert_allclose(profile.guidance[0, 1, t], band_similarity(cond, uncond).numpy(), rtol=1e-4)


def test_packed_tokens_have_no_bands_and_the_profile_says_so() -> None:
    shaped = drifting()
    session = FakeSession(lambda site, branch, step: shaped(site, branch, step).reshape(1, -1, 4))
    rec = recorder(session)
    session.go(2)
    profile = rec.profile()
    assert not profile.info.bands
    assert np.isnan(profile.guidance[0, 1, :, 1:]).all()
    assert not np.isnan(profile.guidance[0, 1, :, 0]).any()


def test_runs_are_averaged_with_their_spread() -> None:
    seed = [0]
    session = FakeSession(lambda site, branch, step: drifting(numel=1500, seed=seed[0])(site, branch, step))
    single = []
    for which in (0, 1, 2):
        seed[0] = which
        rec = recorder(session)
        session.go(STEPS)
        single.append(rec.profile())
        session.watched.clear()
    rec = recorder(session)
    for seed[0] in (0, 1, 2):
        session.go(STEPS)
    together = rec.profile()
    assert together.runs == 3
    matrices = np.stack([p.matrix_mean for p in single])[:, :3]
    np.testing.assert_allclose(together.matrix_mean[:3], matrices.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(together.matrix_std[:3], matrices.std(0, ddof=1), rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(together.gram[:3], np.mean([p.gram for p in single], axis=0)[:3], rtol=1e-6)
    np.testing.assert_array_equal(together.lag_l1[1], single[1].lag_l1[0])


def test_an_interrupted_run_is_left_out_and_counted() -> None:
    session = FakeSession(drifting(numel=100))
    rec = recorder(session)
    session.go(STEPS, stop=4)
    with pytest.raises(RecordingError, match=r"no complete run.*1 did not reach their last step"):
        rec.profile()
    session.go(STEPS)
    session.go(STEPS, stop=8)
    profile = rec.profile()
    assert (profile.runs, profile.info.discarded) == (1, 2)
    clean = FakeSession(drifting(numel=100))
    alone = recorder(clean)
    clean.go(STEPS)
    same(profile, alone.profile())


def same(one: Profile, other: Profile, run: int = 0) -> None:
    """Whether a run of the first is the only one of the second, in every array that is kept by run."""
    for name in ("l1", "rms", "lag_l1", "lag_rms", "guidance"):
        np.testing.assert_array_equal(getattr(one, name)[run], getattr(other, name)[0], err_msg=name)
    if one.runs == 1:
        for name in ("gram", "matrix_mean", "matrix_std"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert (one.info.values, one.info.predicted) == (other.info.values, other.info.predicted)


@pytest.mark.parametrize("skip", [(), (0,), (2,), (0, 1, 2), (1, 2, 3), (3, 5), (5,), (0, 1, 2, 3, 4, 5)])
def test_a_run_shows_nothing_of_the_run_before(skip: tuple[int, ...]) -> None:
    """The module sites are not reached at some steps, or at none, of the second run; what is drawn differs too."""
    seed = [0]
    session = FakeSession(lambda site, branch, step: drifting(numel=300, seed=seed[0])(site, branch, step))
    rec = recorder(session, width=64)
    session.go(6)
    seed[0] = 1
    session.go(6, skip=skip)
    session.go(6)
    together = rec.profile()
    for place, missing in ((1, skip), (2, ())):
        clean = FakeSession(session.values)
        alone = recorder(clean, width=64)
        clean.go(6, skip=missing)
        expected = alone.profile()
        for name in ("l1", "rms", "lag_l1", "lag_rms"):
            found, right = getattr(together, name)[place], getattr(expected, name)[0]
            np.testing.assert_array_equal(np.isnan(found), np.isnan(right), err_msg=name)
            np.testing.assert_allclose(found, right, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(together.guidance[place], expected.guidance[0], rtol=1e-5)
    assert np.isnan(together.l1[1, :2][..., list(skip)]).all() and np.isfinite(together.l1[2, :3]).all()


def test_guidance_is_not_compared_across_runs() -> None:
    """A run that ends within its first step leaves a conditional output; the next begins with the unconditional."""
    seed = [0]
    session = FakeSession(lambda site, branch, step: drifting(seed=seed[0])(site, branch, step))
    rec = recorder(session, sites="denoiser")
    session.go(3, stop=1)
    seed[0] = 1
    session.go(3)
    for t, found in enumerate(rec.profile().guidance[0, 1]):
        cond, uncond = (session.values(SITES[2], b, t) for b in (COND, UNCOND))
        np.testing.assert_allclose(found, band_similarity(cond, uncond).numpy(), rtol=1e-4)


def test_an_interrupted_run_of_reused_values_is_not_counted() -> None:
    session = FakeSession(drifting(numel=100))
    rec = recorder(session, sites="spatial|denoiser")
    session.go(3)
    session.go(3, stop=2, code=Code.REUSED)
    session.go(3, stop=1)
    info = rec.profile().info
    assert (info.values, info.predicted, info.discarded, info.runs) == (12, 0, 2, 1)
    assert rec.runs == 1


def test_runs_with_other_branches_need_another_recording() -> None:
    session = FakeSession(drifting(numel=100))
    recorder(session)
    session.go(4)
    ((sites, observe),) = session.watched
    run = Run.of(4, (COND,), SITES)
    with pytest.raises(RecordingError, match="with branches cond, uncond, a run of 4 steps with cond needs"):
        observe(Observation(sites[0], run.steps[0], COND, torch.zeros(100), Code.COMPUTED, run))


def test_a_session_that_is_attached_takes_no_further_settings() -> None:
    with pytest.raises(RecordingError, match="guidance cannot be changed"):
        record(fc.Session.__new__(fc.Session), guidance="none")
    for name in ("sketch", "sample", "max_bytes", "lags"):
        with pytest.raises(RecordingError, match=f"{name} must be at least 1, found 0"):
            record(None, **{name: 0})


def test_a_site_that_is_not_reached_leaves_nan_and_lags_count_steps_not_calls() -> None:
    session = FakeSession(drifting(numel=3000))
    rec = recorder(session, lags=3)
    session.go(6, skip=(2,))
    profile = rec.profile()
    values = [session.values(SITES[0], COND, t) for t in range(6)]
    assert np.isnan(profile.l1[0, 0, 0, 2])
    assert np.isnan(profile.matrix("spatial", "rel_l2")[2]).all()
    lag1, lag2 = (profile.lag("spatial", "rel_l1", k)[0, 0] for k in (1, 2))
    assert np.isnan(lag1[[0, 2, 3]]).all()
    assert np.isnan(lag2[[0, 1, 2, 4]]).all()
    assert lag2[3] == pytest.approx(float(similarity(values[1], values[3])[1]), rel=1e-4)
    assert lag1[4] == pytest.approx(float(similarity(values[3], values[4])[1]), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_are_compared_in_float32(dtype: torch.dtype) -> None:
    session = FakeSession(drifting(dtype=dtype))
    rec = recorder(session)
    session.go(STEPS)
    a, b = (session.values(SITES[0], COND, t).float() for t in (3, 4))
    found = [float(rec.profile().lag("spatial", m)[0, 0, 4]) for m in ("cosine", "rel_l1", "rel_l2")]
    np.testing.assert_allclose(found, similarity(a, b).tolist(), rtol=1e-4)


def test_runs_under_inference_mode_and_without_can_alternate() -> None:
    session = FakeSession(drifting(numel=3000))
    rec = recorder(session)
    with torch.inference_mode():
        session.go(3)
    session.go(3)
    with torch.inference_mode():
        session.go(3)
    profile = rec.profile()
    np.testing.assert_array_equal(profile.lag_l1[0], profile.lag_l1[1])
    np.testing.assert_array_equal(profile.lag_l1[0], profile.lag_l1[2])


def test_values_of_a_loop_with_gradients_are_recorded_without_their_graph() -> None:
    plain = FakeSession(drifting(numel=3000))
    graph = FakeSession(lambda *key: plain.values(*key).requires_grad_() * 1.0)
    profiles = []
    for session in (plain, graph):
        rec = recorder(session, width=64)
        session.go(STEPS)
        profiles.append(rec.profile())
        held = [t for deck in rec._decks for t in [*vars(deck).values(), *deck._ring] if isinstance(t, torch.Tensor)]
        assert held and not any(t.requires_grad for t in held)
    for name in ("lag_l1", "gram", "guidance"):
        np.testing.assert_array_equal(getattr(profiles[0], name), getattr(profiles[1], name))


def test_memory_does_not_grow_with_the_size_of_values_times_steps() -> None:
    def held(steps: int, numel: int) -> int:
        session = FakeSession(drifting(numel=numel))
        rec = recorder(session, sites="spatial", lags=2, width=64)
        session.go(steps)
        rec.profile()
        (deck,) = rec._decks
        assert deck.rows == 2
        tensors = [t for t in vars(deck).values() if isinstance(t, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    per_step = held(21, 20_000) - held(20, 20_000)
    assert per_step == held(21, 2_000) - held(20, 2_000) == 2 * 4 * (2 * 64 + 3 + 2 * 2)


def test_runs_of_another_length_need_another_recording() -> None:
    session = FakeSession(drifting(numel=100))
    recorder(session)
    session.go(4)
    with pytest.raises(RecordingError, match=r"runs of 4 steps .* a run of 5 steps"):
        session.go(5)


def test_predicted_values_are_counted() -> None:
    session = FakeSession(drifting(numel=100))
    rec = recorder(session, sites="spatial")
    session.go(3)
    session.go(3, code=Code.REUSED)
    info = rec.profile().info
    assert (info.values, info.predicted) == (12, 6)


def test_raw_values_are_written_step_by_step(tmp_path: Path) -> None:
    session = FakeSession(drifting(numel=100))
    rec = recorder(session, sites="temporal", raw=tmp_path / "raw")
    session.go(3)
    session.go(3)
    rec.close()
    files = sorted(p.relative_to(tmp_path / "raw").as_posix() for p in (tmp_path / "raw").rglob("*.safetensors"))
    assert files == [f"run{r:03d}/step{t:03d}.safetensors" for r in range(2) for t in range(3)]
    found = load_file(tmp_path / "raw/run001/step002.safetensors")
    assert sorted(found) == ["blocks.1.attn1|cond", "blocks.1.attn1|uncond"]
    torch.testing.assert_close(found["blocks.1.attn1|cond"], session.values(SITES[1], COND, 2), rtol=0, atol=0)
    with pytest.raises(RecordingError, match="not empty"):
        recorder(session, raw=tmp_path / "raw")


def test_bad_requests_are_named() -> None:
    session = FakeSession(drifting())
    with pytest.raises(NoSiteMatched, match="tempral"):
        recorder(session, sites="tempral")
    with pytest.raises(RecordingError, match="lags must be at least 1, found 0"):
        record(session, lags=0)


# -- on a real pipeline ----------------------------------------------------------------------------------------------
def call(latte: Any, seed: int = 0) -> torch.Tensor:
    result: torch.Tensor = latte.generate(steps=4, seed=seed)
    return result


def test_recording_a_pipeline_changes_nothing_and_leaves_nothing(latte: Any) -> None:
    bare = call(latte)
    with record(latte.pipe) as rec:
        assert torch.equal(call(latte), bare)
        call(latte, seed=1)
    assert torch.equal(call(latte), bare)
    profile = rec.profile()
    assert profile.runs == 2
    assert {name for name, _ in profile.groups()} == {"spatial", "temporal", "denoiser", "branch"}
    assert profile.info.model is not None and profile.info.model.kind == "LatteTransformer3DModel"
    assert profile.info.scheduler is not None and len(profile.info.scheduler.fingerprint) == 64
    for name in ("spatial", "temporal", "denoiser", "branch"):
        lag = profile.lag(name, "rel_l1")
        assert np.isnan(lag[..., 0]).all()
        assert np.isfinite(lag[..., 1:]).all()
    assert np.isfinite(profile.guidance[:, 1]).all()


def test_recorded_values_are_those_that_the_modules_return(latte: Any) -> None:
    seen: list[torch.Tensor] = []
    module = latte.pipe.transformer.transformer_blocks[0].attn1
    handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out.detach().clone()))
    call(latte)
    handle.remove()
    with record(latte.pipe, sites="spatial[0:1]") as rec:
        call(latte)
    uncond = [v[: len(v) // 2] for v in seen]  # Latte's batch is [uncond, cond]
    found = rec.profile().lag("spatial", "rel_l1", 1, UNCOND)[0, 0, 1:]
    expected = [float(similarity(a, b)[1]) for a, b in pairwise(uncond)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_attached_session_stays_attached_and_its_predictions_are_counted(latte: Any) -> None:
    with fc.attach(latte.pipe, fc.StaticInterval(sites="spatial", interval=2)) as session:
        with record(session, sites="spatial|denoiser") as rec:
            call(latte)
        assert session.attached
        call(latte)
    profile = rec.profile()
    assert profile.runs == 1
    assert 0 < profile.info.predicted < profile.info.values
    assert profile.info.policy["policy"] == "static_interval"
    lag = profile.lag("spatial", "rel_l1")[0]
    assert (lag[:, [1, 3]] == 0).all()  # held values equal the ones they were held from
    assert (lag[:, 2] > 0).all()


def test_a_pipeline_that_fails_leaves_the_recording_usable(latte: Any) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("stop here")

    with record(latte.pipe) as rec:
        with pytest.raises(RuntimeError, match="stop here"):
            latte.generate(steps=4, seed=0, callback_on_step_end=fail)
        call(latte)
    profile = rec.profile()
    assert (profile.runs, profile.info.discarded) == (1, 1)


def test_sites_of_every_kind_can_be_recorded(latte: Any) -> None:
    with record(latte.pipe, sites="all|block|stack|stack[1:3]|denoiser|branch") as rec:
        call(latte)
    profile = rec.profile()
    kinds = {site.kind for site in profile.sites}
    assert kinds == set(Kind)
    assert np.isfinite(profile.matrix("stack[1:3]", "rel_l2")).all()


def test_without_a_second_branch_the_usual_sites_are_recorded_without_it(tiny_latte: Any) -> None:
    call = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False, "num_inference_steps": 3}
    with record(tiny_latte) as rec:
        tiny_latte("a", guidance_scale=1.0, output_type="latent", **call)
    profile = rec.profile()
    assert profile.branches == (COND,)
    assert {site.kind for site in profile.sites} == {Kind.MODULE, Kind.DENOISER}
    assert np.isfinite(profile.l1).all()
    with pytest.raises(NoSiteMatched, match="no second guidance branch"), record(tiny_latte, "branch"):
        tiny_latte("a", guidance_scale=1.0, output_type="latent", **call)
