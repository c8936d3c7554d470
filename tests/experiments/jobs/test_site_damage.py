"""Random schedules of branches and modules: what is drawn is run, and the prediction is exact where it can be."""

from __future__ import annotations

import numpy as np
import pytest

import fastercache as fc
from fastercache import zoo
from fastercache.analysis import record
from fastercache.analysis.injection import inject
from fastercache.analysis.sampling import record_trajectory
from fastercache.analysis.trajectory_profile import TrajectoryProfile
from fastercache.experiments.jobs.site_damage import BRANCHES, Drawn, drawn, groups_of, of_branches, of_modules
from fastercache.policies.schedule import Code, compile_policy
from fastercache.policies.vocabulary import Kind, Run
from fastercache.zoo.specimen import Specimen

STEPS = 6


@pytest.fixture(scope="module")
def latte() -> Specimen:
    return zoo.build("latte")


def test_a_schedule_computes_half_of_the_steps_at_the_sites_that_were_drawn(latte: Specimen) -> None:
    every = fc.find_sites(latte.pipe)
    modules = [site for site in every if site.kind is Kind.MODULE]
    rng = np.random.default_rng(0)
    some = [drawn(rng, level, modules, STEPS) for level in ("branch", "module") for _ in range(20)]  # type: ignore[arg-type]
    assert {one.what for one in some} == {"", *BRANCHES} and {one.order for one in some} == {0, 1}
    for one in some:
        table = compile_policy(one.policy(STEPS), Run.of(STEPS, sites=every))
        assert len(one.computed) == STEPS // 2 and one.computed[0] == 0
        if one.sites:
            assert {site.name for site in table.sites} == set(one.sites)
        reused = np.flatnonzero((table.codes == Code.REUSED).any(axis=(0, 1)))
        assert sorted({*reused, *one.computed}) == list(range(STEPS)) and not {*reused} & {*one.computed}


@pytest.mark.parametrize("what", BRANCHES)
def test_one_branch_held_at_the_last_step_does_what_is_predicted(latte: Specimen, what: str) -> None:
    """Nothing follows it, so the sampler's part is all there is."""
    with record_trajectory(latte.pipe) as recorder:
        clean = latte.generate(steps=STEPS)
    one = Drawn(what=what, computed=tuple(range(STEPS - 1)), order=0)
    with fc.attach(latte.pipe, one.policy(STEPS)):
        cached = latte.generate(steps=STEPS)
    profile = TrajectoryProfile.of(recorder.recordings, latte.pipe)
    denoiser = groups_of("branch", latte.pipe)
    noise = inject(latte.pipe, lambda: latte.generate(steps=STEPS), denoiser, (STEPS - 1,))
    found = of_branches(profile, [one], {"noise": noise})
    true = float((cached - clean).double().square().mean())
    for name in ("sampler", "growth", "noise"):  # the difference moves the last latent by little more than rounding
        assert found[name][0] == pytest.approx(true, rel=0.7 if what == "branch" else 5e-3), name


def test_modules_held_at_one_step_do_what_injection_of_that_says(latte: Specimen) -> None:
    modules = [site for site in fc.find_sites(latte.pipe) if site.role is fc.Role.SPATIAL]
    with record(latte.pipe, "|".join(site.name for site in modules)) as recorder:
        clean = latte.generate(steps=STEPS)
    groups = {"spatial": modules}
    hold = inject(latte.pipe, lambda: latte.generate(steps=STEPS), groups, (3,), error="hold")
    computed = tuple(step for step in range(STEPS) if step != 3)
    one = Drawn(sites=tuple(site.name for site in modules), computed=computed, order=0)
    with fc.attach(latte.pipe, one.policy(STEPS)):
        cached = latte.generate(steps=STEPS)
    true = float((cached - clean).double().square().mean())
    assert of_modules(recorder.profile(), [one], {"hold": hold})["hold"][0] == pytest.approx(true, rel=0.3)
    every = (site.role for site in fc.find_sites(latte.pipe) if site.kind is Kind.MODULE)
    assert list(groups_of("module", latte.pipe)) == [str(role) for role in dict.fromkeys(every)]
