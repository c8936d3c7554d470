"""Calibrated constants equal what the model's own values give; they drive their policies, and know their model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import fastercache as fc
from fastercache.analysis.calibrate import Calibration, calibrate, distances, regressions
from fastercache.analysis.profile import Component
from fastercache.policies.errors import ConfigMismatch, ConfigUnreadable, RecordingError
from fastercache.policies.measurements import Measure
from fastercache.policies.vocabulary import Kind, Role, Site
from fastercache.zoo import build
from fastercache.zoo.specimen import Specimen

STEPS = 7


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return build("latte")


@pytest.fixture(scope="module")
def values(specimen: Specimen) -> dict[tuple[str, str], list[torch.Tensor]]:
    """Every site's values of the two runs that are calibrated on, one after the other."""
    found: dict[tuple[str, str], list[torch.Tensor]] = {}

    def note(seen: fc.Observation) -> None:
        found.setdefault((seen.site.name, seen.branch), []).append(seen.value.float().clone())

    with fc.attach(specimen.pipe, fc.NoCache()) as session:
        session.watch("all|stack|denoiser", note)
        for seed in (0, 1):
            specimen.generate(steps=STEPS, seed=seed)
    return found


@pytest.fixture(scope="module")
def calibration(specimen: Specimen) -> Calibration:
    with calibrate(specimen.pipe, lags=3) as calibrator:
        for seed in (0, 1):
            specimen.generate(steps=STEPS, seed=seed)
    return calibrator.result()


def runs(values: Any, site: str, branch: str) -> list[list[torch.Tensor]]:
    all_of = values[site, branch]
    return [all_of[:STEPS], all_of[STEPS:]]


def test_ratios_are_mean_token_norm_ratios(calibration: Calibration, values: Any) -> None:
    for branch in ("cond", "uncond"):
        expected = np.zeros(STEPS)
        for run in runs(values, "stack", branch):
            norms = [v.norm(dim=-1) for v in run]
            expected += [1.0] + [float((norms[i] / norms[i - 1]).mean()) for i in range(1, STEPS)]
        np.testing.assert_allclose(calibration.ratios[branch], expected / 2, rtol=1e-4)


def test_curves_errors_and_regressions(calibration: Calibration, values: Any, specimen: Specimen) -> None:
    sites = fc.find_sites(specimen.pipe)
    groups = {role: [s.name for s in fc.select(role, sites)] for role in ("spatial", "temporal", "cross", "ff")}
    for lag in (1, 2, 3):
        for role, names in groups.items():
            for i in range(lag, STEPS):
                cells = [
                    float((run[i] - run[i - lag]).abs().mean() / run[i].abs().mean())
                    for name in names
                    for branch in ("cond", "uncond")
                    for run in runs(values, name, branch)
                ]
                assert calibration.curves[role][lag - 1][i] == pytest.approx(np.mean(cells), rel=1e-3)
        for i in range(lag, STEPS):
            four = [run for branch in ("cond", "uncond") for run in runs(values, "stack", branch)]
            older, newer = (torch.cat([r[j].double().flatten() for r in four]).numpy() for j in (i - lag, i))
            gain, offset = np.polyfit(older, newer, 1)
            assert calibration.gains[lag - 1][i] == pytest.approx(gain, rel=2e-2)
            assert calibration.offsets[lag - 1][i] == pytest.approx(offset, abs=2e-2 * abs(newer).mean())
        assert set(calibration.errors[lag - 1][:lag]) == {0.0}


def test_outputs_are_the_changes_of_the_denoisers_output(calibration: Calibration, values: Any) -> None:
    for run in (0, 1):
        both = [runs(values, "denoiser", b)[run] for b in ("cond", "uncond")]
        for i in range(1, STEPS):
            over = sum(float((v[i] - v[i - 1]).abs().mean()) for v in both)
            under = sum(float(v[i - 1].abs().mean()) for v in both)
            assert calibration.outputs[run][i - 1] == pytest.approx(over / under, rel=1e-4)


def test_inputs_are_what_teacache_sees(calibration: Calibration, specimen: Specimen) -> None:
    """With the identity and a huge threshold TeaCache's sum is the sum of these changes."""
    totals = []

    class Tea(fc.TeaCache):
        def judge(self, memo: Any, step: fc.Step, signal: Any) -> bool:
            super().judge(memo, step, signal)
            totals.append(memo.total)
            return False

    with fc.attach(specimen.pipe, Tea(threshold=1.0)):
        specimen.generate(steps=STEPS, seed=0)
    expected = list(calibration.inputs[0])
    assert totals[1 : STEPS - 1] == pytest.approx(expected[: STEPS - 2], rel=1e-4)


def test_the_polynomial_is_the_least_squares_fit(calibration: Calibration) -> None:
    x, y = np.concatenate(calibration.inputs), np.concatenate(calibration.outputs)
    fitted = fc.TeaCache.calibrated(calibration, degree=2).coefficients
    np.testing.assert_allclose(fitted, np.polyfit(x, y, 2), rtol=1e-9)
    with pytest.raises(RecordingError, match="record more runs"):
        fc.TeaCache.calibrated(calibration, degree=12)


@pytest.mark.parametrize("steps", [STEPS, 5, 12])
def test_every_calibrated_policy_runs_also_at_other_step_counts(
    calibration: Calibration, specimen: Specimen, steps: int
) -> None:
    policies = [
        fc.TeaCache.calibrated(calibration, degree=1, threshold=1.0),
        fc.MagCache.calibrated(calibration, threshold=1.0),
        fc.SmoothCache.calibrated(calibration, alpha=1.0),
        fc.SmoothCache.calibrated(calibration, roles="spatial|ff", alpha=1.0),
        fc.ERTACache.calibrated(calibration, threshold=1.0),
    ]
    for policy in policies:
        assert fc.load_policy(fc.dump(policy)) == policy
        with fc.attach(specimen.pipe, policy) as session:
            output = specimen.generate(steps=steps)
        assert torch.isfinite(output).all() and session.last.share() > 0, policy.name
    with pytest.raises(RecordingError, match="no curve of 'joint'"):
        fc.SmoothCache.calibrated(calibration, roles="joint")


def test_it_round_trips_and_knows_its_model(calibration: Calibration, specimen: Specimen, tmp_path: Path) -> None:
    path = calibration.save(tmp_path / "latte.json")
    assert Calibration.load(path) == calibration
    calibration.check(specimen.pipe)
    with pytest.raises(ConfigMismatch, match="measured on the model"):
        calibration.check(build("cogvideox").pipe)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ConfigUnreadable, match="cut off"):
        Calibration.load(path)
    with pytest.raises(ConfigUnreadable, match="there is no calibration"):
        Calibration.load(tmp_path / "none.json")
    path.write_text("{}")
    with pytest.raises(ConfigUnreadable, match="no calibration"):
        Calibration.load(path)


def test_nothing_recorded_is_an_error(specimen: Specimen) -> None:
    with calibrate(specimen.pipe) as calibrator:
        pass
    with pytest.raises(RecordingError, match="no complete run"):
        calibrator.result()


def test_separate_guidance_calibrates_too() -> None:
    wan = build("wan")
    with calibrate(wan.pipe, lags=9) as calibrator:
        wan.generate(steps=5)
    found = calibrator.result()
    assert len(found.errors) == len(found.gains) == len(found.curves["cross"]) == 4, "steps are at most 4 apart"
    assert (
        set(found.ratios) == {"cond", "uncond"} and found.steps == 5 and set(found.curves) == {"spatial", "cross", "ff"}
    )


def test_two_denoisers_are_each_compared_with_themselves() -> None:
    """Wan 2.2: the first runs steps 0 to b - 1, the second the rest; constants at each step are those of the one that
    runs there, and every calibrated method then reuses in both."""
    s = build("wan-2.2")
    with calibrate(s.pipe, lags=2) as calibrator:
        values: dict[tuple[str, str], list[Any]] = {}
        calibrator.session.watch(
            "stack", lambda o: values.setdefault((o.site.denoiser, o.branch), []).append(o.value.float().clone())
        )
        s.generate()
        calibration = calibrator.result()
    first = len(values["transformer", "cond"])
    assert 0 < first < calibration.steps
    assert len(calibration.inputs[0]) == len(calibration.outputs[0]) == calibration.steps - 2
    assert calibration.ratios["cond"][0] == calibration.ratios["cond"][first] == 1.0
    old, new = values["transformer_2", "cond"][:2]
    norms = [v.norm(dim=-1) for v in (old, new)]
    assert calibration.ratios["cond"][first + 1] == pytest.approx(float((norms[1] / norms[0]).mean()), rel=1e-4)
    assert calibration.errors[0][first] == 1.0 > calibration.errors[0][first + 1]
    over = [
        (b - a).abs().mean() / b.abs().mean() for a, b in (values["transformer_2", x][:2] for x in ("cond", "uncond"))
    ]
    assert calibration.errors[0][first + 1] == pytest.approx(float(sum(over) / 2), rel=1e-3)
    for policy in (
        fc.MagCache.calibrated(calibration, threshold=1.0, retention=0.0),
        fc.ERTACache.calibrated(calibration, threshold=1.0, start=0.0),
    ):
        with fc.attach(s.pipe, policy) as session:
            s.generate()
            reused = {
                site.denoiser: bool((c == fc.Code.REUSED).any())
                for site, c in zip(session.last.sites, session.last.codes, strict=True)
            }
        assert reused == {"transformer": True, "transformer_2": True}, policy.name


def test_a_value_that_is_always_zero_is_told(latte: Specimen) -> None:
    handle = latte.pipe.transformer.proj_out.register_forward_hook(lambda m, a, o: torch.zeros_like(o))
    with calibrate(latte.pipe, lags=2) as calibrator:
        latte.generate()
    handle.remove()
    with pytest.raises(fc.RecordingError, match="no relative change of"):
        calibrator.result()


def test_a_run_of_one_step_is_too_short(latte: Specimen) -> None:
    with calibrate(latte.pipe, lags=2) as calibrator:
        latte.generate(steps=1)
    with pytest.raises(fc.RecordingError, match="found 1 step, expected 2 or more"):
        calibrator.result()


def test_two_steps_are_enough(latte: Specimen) -> None:
    with calibrate(latte.pipe) as calibrator:
        latte.generate(steps=2)
    found = calibrator.result()
    assert found.steps == 2 and len(found.errors) == len(found.gains) == 1 and found.offsets[0][0] == 0.0
    assert found.measured_for(()) and not found.further
    with pytest.raises(RecordingError, match="this calibration lacks what magcache measures"):
        found.own("magcache")


class Made:
    """Stands in for a profile of two sites, one branch and 5 steps, whose values are (sites 2, steps 5, elements 30).

    The last two steps belong to another denoiser: nothing is known across.
    """

    sites = tuple(Site(f"blocks.{n}.attn1", Kind.MODULE, Role.SPATIAL, n, (0, 1)) for n in (0, 1))
    branches, info, run = ("cond",), SimpleNamespace(lags=3), SimpleNamespace(count=5)

    def __init__(self) -> None:
        self.values = np.random.default_rng(0).normal(size=(2, 5, 30)).cumsum(axis=1)
        self.values[:, 1] = 2.0  # constant over the elements, so there is no line through it
        self.gram = np.einsum("ste,sue->stu", self.values, self.values)[:, None] / 30
        self.gram[..., :3, 3:], self.gram[..., 3:, :3] = np.nan, np.nan

    def lag(self, query: str, measure: str, lag: int, branch: str) -> Any:
        """(runs 1, sites 2, steps 5)"""
        assert (query, measure, branch) == ("spatial", "rel_l1", "cond")
        found = np.full((1, 2, 5), np.nan)
        for step in range(lag, 5):
            if (step < 3) == (step - lag < 3):
                change = np.abs(self.values[:, step] - self.values[:, step - lag]).mean(axis=1)
                found[0, :, step] = change / np.abs(self.values[:, step]).mean(axis=1)
        return found


def test_distances_and_regressions_of_chosen_values() -> None:
    profile: Any = Made()
    values = profile.values
    means = values.mean(axis=(0, 2))
    curves, (gains, offsets) = distances(profile, "spatial"), regressions(profile, "spatial", means)
    assert len(curves) == len(gains) == len(offsets) == 3
    for lag in (1, 2, 3):
        for step in range(5):
            at = lag - 1, step
            found = (curves[at[0]][step], gains[at[0]][step], offsets[at[0]][step])
            if step < lag:
                assert found == (0.0, 0.0, 0.0), at
            elif (step < 3) != (step - lag < 3):
                assert found == (1.0, 1.0, 0.0), at
            else:
                older, newer = values[:, step - lag].ravel(), values[:, step].ravel()
                assert found[0] == pytest.approx(np.mean(profile.lag("spatial", "rel_l1", lag, "cond")[0, :, step]))
                expected = np.polyfit(older, newer, 1) if np.ptp(older) else (1.0, newer.mean() - older.mean())
                assert found[1:] == pytest.approx(tuple(expected)), at
    profile.info.lags = 9
    assert len(distances(profile, "spatial")) == len(regressions(profile, "spatial", means)[0]) == 4


def test_a_broken_off_run_leaves_nothing_in_the_constants(latte: Specimen) -> None:
    """Between two whole runs: neither its values nor comparisons with them."""

    def fail(pipe: Any, step: int, *_: Any, **__: Any) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return {}

    found = []
    for broken in (False, True):
        with calibrate(latte.pipe, lags=2) as calibrator:
            for seed in (0, 1):
                latte.generate(steps=4, seed=seed)
                if broken:
                    with pytest.raises(KeyboardInterrupt):
                        latte.generate(steps=4, seed=5, callback_on_step_end=fail)
        found.append(calibrator.result())
    assert found[1] == found[0] and found[0].runs == 2 and len(found[0].inputs) == len(found[0].outputs) == 2


BARE: dict[str, Any] = {
    "steps": 3, "runs": 1, "inputs": ((0.1, 0.2),), "outputs": ((0.3, 0.4),), "curves": {}, "gains": ((0.0, 1.0, 1.0),),
    "ratios": {"cond": (1.0, 2.0, 4.0), "uncond": (1.0, 3.0, 8.0)}, "errors": ((0.0, 0.1, 0.2),),
}  # fmt: skip


def test_one_ratio_a_step_is_the_mean_over_branches() -> None:
    assert Calibration(**BARE).mean_ratios == (1.0, 2.5, 6.0)
    assert Calibration(**BARE | {"ratios": {"cond": (1.0, 2.0, 4.0)}}).mean_ratios == (1.0, 2.0, 4.0)


def test_what_policies_measure_themselves_is_kept_and_asked_for_by_name(tmp_path: Path) -> None:
    curves = ((0.0, 1.0, 2.0),)

    class One:
        name, measures = "one", {"a": None, "b": None}

    one: Any = One
    plain = Calibration(**BARE)
    half = plain.model_copy(update={"further": {"one": {"a": curves}}})
    whole = plain.model_copy(update={"further": {"one": {"a": curves, "b": curves}, "two": {}}})
    assert [known.measured_for([one]) for known in (plain, half, whole)] == [False, False, True]
    assert whole.own("one") == {"a": curves, "b": curves}
    for known in (plain, whole):
        path = known.save(tmp_path / "kept.json")
        assert Calibration.load(path) == known and ('"further"' in path.read_text()) is (known is whole)
    with pytest.raises(RecordingError, match="lacks what three measures"):
        whole.own("three")


class Two(fc.StaticInterval):
    """A policy with two measures of its own, of unlike sites."""

    name: ClassVar[str] = "two"
    measures: ClassVar[Any] = {
        "change": Measure("denoiser", lambda newer, older: float((newer - older).abs().mean())),
        "level": Measure("stack", lambda newer, older: float(newer.abs().max()) / float(older.abs().max())),
    }

    @classmethod
    def calibrated(cls, measured: Any, **fields: Any) -> Two:
        return cls(**fields)


def test_every_measure_of_a_policy_is_taken_at_its_own_sites(latte: Specimen) -> None:
    values: dict[str, list[torch.Tensor]] = {}
    with calibrate(latte.pipe, [Two], lags=2) as calibrator:
        calibrator.session.watch(
            "stack|denoiser",
            lambda seen: values.setdefault(f"{seen.site.name} {seen.branch}", []).append(seen.value.clone()),
        )
        latte.generate(steps=3)
    found = calibrator.result()
    assert found.measured_for([Two]) and not calibrate_plain(found).measured_for([Two])
    for name, site in (("change", "denoiser"), ("level", "stack")):
        compared = Two.measures[name].compare
        rows = [values[f"{site} {branch}"] for branch in ("cond", "uncond")]
        for lag, curve in enumerate(found.own("two")[name], start=1):
            expected = [0.0 if i < lag else np.mean([compared(row[i], row[i - lag]) for row in rows]) for i in range(3)]
            assert curve == pytest.approx(expected)


def calibrate_plain(found: Calibration) -> Calibration:
    """The same without what policies measure themselves."""
    return found.model_copy(update={"further": {}})


def test_constants_know_their_model_and_their_scheduler(tiny_latte: Any) -> None:
    from fastercache.analysis.record import identity_of
    from fastercache.tuned import scheduler_identity

    scheduler = scheduler_identity(tiny_latte)
    assert scheduler is not None
    own = {
        "model": identity_of(tiny_latte),
        "scheduler": Component(kind=scheduler.kind, fingerprint=scheduler.fingerprint),
    }
    Calibration(**BARE).check(tiny_latte)
    Calibration(**BARE, **own).check(tiny_latte)
    Calibration(**BARE, **own).check(tiny_latte.transformer)  # which has no scheduler
    for name, part in own.items():
        assert part is not None
        for change in ({"kind": "Other"}, {"fingerprint": "0" * 64}):
            other = own | {name: part.model_copy(update=change)}
            with pytest.raises(ConfigMismatch, match=f"measured on the {name}"):
                Calibration(**BARE, **other).check(tiny_latte)
