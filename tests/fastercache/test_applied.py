"""What a session runs and what is promised of it: a policy, a config or a plan of a dial, and what was allowed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache.applied import Applied
from fastercache.picking import Pick
from fastercache.policies.errors import AttachError, ConfigMismatch
from fastercache.policies.vocabulary import Run
from fastercache.tuned import UNCOVERED, OtherConditions, TunedConfig
from fastercache.zoo.specimen import Specimen
from tests.fastercache.test_picking import CERTIFICATE, made

LATENT = (4, 4, 8, 8)
RUN = Run.of(6)


def applied(pipe: Any, source: Any, before: Applied | None = None, pick: Pick | None = None, **more: Any) -> Applied:
    return Applied.of(pipe, source, before, pick=pick or Pick(), **more)


def test_where_a_difference_was_allowed_nothing_is_promised(tiny_latte: Any) -> None:
    config = made(tiny_latte, certificate=CERTIFICATE)
    assert applied(tiny_latte, config).promised is config
    allowed = applied(tiny_latte, config, allow={"scheduler"})
    assert allowed.promised is None and allowed.config is config and allowed.allow == {"scheduler"}
    assert applied(tiny_latte, fc.NoCache()).promised is None
    with fc.attach(tiny_latte, config) as session:
        assert session.tuned is config
    with fc.attach(tiny_latte, config, allow={"steps"}) as session:
        assert session.tuned is None and session.policy == config.policy
        session.use(config)
        assert session.tuned is None, "what was allowed is so for what is used later"


def test_a_plan_is_picked_from_the_dial_that_was_applied_before(tiny_latte: Any, tmp_path: Path) -> None:
    plans = (made(tiny_latte, (0, 1, 2, 4)), made(tiny_latte, (0, 3)))
    configs = [plan.model_copy(update={"measured": _measured(i)}) for i, plan in enumerate(plans)]
    dial = fc.Dial.of(configs, [{"psnr": (40.0 - i,)} for i in range(2)], {"psnr": ">="})
    first = applied(tiny_latte, dial, pick=Pick(speedup=1.5))
    assert first.dial is dial and first.policy == plans[0].policy
    second = applied(tiny_latte, None, first, pick=Pick(speedup=2.5))
    assert second.dial is dial and second.policy == plans[1].policy
    policy = applied(tiny_latte, fc.NoCache(), second)
    assert policy.dial is dial and policy.config is None and policy.policy == fc.NoCache()
    assert applied(tiny_latte, plans[0], policy).dial is dial
    assert applied(tiny_latte, plans[0]).dial is None
    with pytest.raises(AttachError, match="no dial to pick from"):
        applied(tiny_latte, None, applied(tiny_latte, fc.NoCache()))
    with pytest.raises(AttachError, match="found the policy no_cache"):
        applied(tiny_latte, fc.NoCache(), first, pick=Pick(speedup=2.0))
    with pytest.raises(AttachError, match=r"write NoCache\(\)"):
        applied(tiny_latte, fc.NoCache)
    with pytest.raises(AttachError, match="found int"):
        applied(tiny_latte, 3)
    path = plans[1].save(tmp_path / "tuned.json")
    assert applied(tiny_latte, path).config == applied(tiny_latte, str(path)).config == plans[1]


def _measured(index: int) -> Any:
    from fastercache.tuned import Measured, Results

    found = Measured(
        prompts=1,
        quality={"psnr": 40.0 - index},
        speedup_flops=1.5 + index,
        seconds=0.1,
        cached_bytes=7,
        hardware="test",
    )
    return Results(search=found)


def check(one: Applied, pipe: Any, run: Run = RUN, latent: tuple[int, ...] = LATENT, guidance: Any = "batched") -> None:
    one.check_run(pipe, pipe, run, latent, guidance, {"guidance_scale": 4.0})


def test_a_run_is_compared_with_what_the_config_was_made_for(tiny_latte: Any) -> None:
    tuned = TunedConfig.describe(
        tiny_latte, fc.NoCache(), steps=6, guidance_scale=4.0, guidance="batched", latent=LATENT
    )
    one = applied(tiny_latte, tuned)
    check(one, tiny_latte)
    alone = Run.of(6, branches=("cond",))
    with pytest.raises(ConfigMismatch, match="guidance"):
        check(one, tiny_latte, alone)
    with pytest.raises(ConfigMismatch, match="steps"):
        check(one, tiny_latte, Run.of(7))
    check(applied(tiny_latte, tuned, allow={"steps"}), tiny_latte, Run.of(7))
    planned = applied(tiny_latte, made(tiny_latte), allow={"steps"})
    with pytest.raises(ConfigMismatch, match="made for 6 steps, this run has 7"):
        check(planned, tiny_latte, Run.of(7))
    schedule = tuned.model_copy(update={"policy": fc.Schedule(rows=(fc.Row(sites="denoiser", steps="CRCRCR"),))})
    with pytest.raises(ConfigMismatch, match="made for 6 steps, this run has 5"):
        check(applied(tiny_latte, schedule, allow={"steps"}), tiny_latte, Run.of(5))
    check(applied(tiny_latte, fc.NoCache()), tiny_latte, Run.of(7), guidance="separate")


def test_each_difference_is_said_once(tiny_latte: Any) -> None:
    tuned = TunedConfig.describe(
        tiny_latte, fc.NoCache(), steps=6, guidance_scale=4.0, guidance="batched", latent=LATENT
    )
    one = applied(tiny_latte, tuned)
    said = []
    for latent in (LATENT, (4, 4, 8, 9), (4, 4, 8, 9), (4, 4, 9, 9), (4, 4, 8, 9)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check(one, tiny_latte, latent=latent)
        said.append([str(w.message) for w in caught if issubclass(w.category, OtherConditions)])
    assert [len(lines) for lines in said] == [0, 1, 0, 1, 0]
    assert "4 x 4 x 8 x 9" in said[1][0] and "4 x 4 x 9 x 9" in said[3][0]


def test_a_certificate_is_quoted_of_a_run_like_those_that_it_is_about(latte: Specimen) -> None:
    policy = fc.StaticInterval(sites="denoiser")
    with fc.attach(latte.pipe, policy) as session:
        latte.generate(steps=2)
        latent, guidance = session.last.latent, session.guidance
    config = TunedConfig.describe(
        latte.pipe, policy, steps=2, guidance_scale=None, guidance=guidance, latent=latent, certificate=CERTIFICATE
    )
    with fc.attach(latte.pipe, config) as session:
        latte.generate(steps=2)
        assert session.summary().endswith(f"s; {CERTIFICATE.words}")
        with pytest.warns(OtherConditions):
            latte.generate(steps=2, **latte.resized)
        assert session.summary().endswith(f"s; {UNCOVERED}")
    with fc.attach(latte.pipe, config, allow={"scheduler"}) as session:
        latte.generate(steps=2)
        assert session.summary().endswith(" s")
