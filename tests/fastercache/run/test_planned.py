"""What a plan says is what happens: decisions cell by cell, bytes held, and predictions that are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.policies.schedule import Code
from fastercache.run.memory import CacheTooLarge
from fastercache.zoo.specimen import Specimen


@pytest.fixture(scope="module")
def specimens() -> dict[str, Specimen]:
    return {name: zoo.build(name) for name in ("latte", "wan", "wan-2.2")}


FAMILIES = ("latte", "wan", "wan-2.2")
STATIC = {
    "both reuse the denoiser's output": fc.Compose(
        [fc.BranchReuse(interval=2, other_interval=1, start=0.0), fc.GuidanceReuse(interval=3, start=0.0)]
    ),
    "a forecast of both": fc.Compose(
        [
            fc.BranchReuse(interval=2, other_interval=3, start=0.0, stand_in=fc.Linear()),
            fc.GuidanceReuse(interval=4, start=0.0),
        ]
    ),
    "held differences": fc.Compose(
        [
            fc.BranchReuse(interval=3, other_interval=1, start=0.0),
            fc.GuidanceReuse(interval=2, start=0.0, stand_in=fc.Hold()),
        ]
    ),
    "stack in denoiser": fc.Compose(
        [fc.StaticInterval(sites="denoiser", interval=3), fc.StaticInterval(sites="stack", interval=2)]
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STATIC)
def test_what_ran_is_what_was_planned(specimens: dict[str, Specimen], family: str, name: str) -> None:
    s = specimens[family]
    with fc.attach(s.pipe, STATIC[name]) as session:
        planned = session.plan(**s.call(steps=8))
        s.generate(steps=8)
        trace = session.last
    table = fc.compile_policy(STATIC[name], trace.run)
    assert [site.name for site in table.sites] == [site.name for site in trace.sites]
    assert (table.codes == trace.codes).all(), (table.codes != trace.codes).nonzero()
    assert (trace.codes == fc.Code.REUSED).any()
    assert planned.exact and planned.per_step[:-1] == trace.bytes_per_step[:-1]


def test_a_step_of_two_transformers_belongs_to_the_one_its_timestep_says(specimens: dict[str, Specimen]) -> None:
    s = specimens["wan-2.2"]
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        s.generate(steps=8)
        run = session.last.run
    boundary = s.pipe.config.boundary_ratio * s.pipe.scheduler.config.num_train_timesteps
    assert [step.denoiser for step in run.steps] == [
        "transformer" if step.timestep >= boundary else "transformer_2" for step in run.steps
    ]
    assert {step.denoiser for step in run.steps} == {"transformer", "transformer_2"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "policy",
    [
        fc.FirstBlockCache(threshold=0.3),
        fc.TeaCache(threshold=0.5),
        fc.SeaCache(threshold=0.5),
        fc.EasyCache(threshold=0.5, relative=False),
        fc.DiCache(threshold=0.5, start=0.0),
        fc.AdaCache(),
        fc.AdaptiveGuidance(start=0.0),
    ],
    ids=lambda policy: policy.name,
)
def test_a_dynamic_policy_holds_no_more_than_its_bound(
    specimens: dict[str, Specimen], family: str, policy: fc.Policy
) -> None:
    s = specimens[family]
    with fc.attach(s.pipe, policy) as session:
        bound = session.plan(**s.call(steps=8))
        s.generate(steps=8)
        held = session.last.cached_bytes
    assert not bound.exact and 0 < held <= bound.peak
    with fc.attach(s.pipe, policy, max_cache_bytes=bound.peak - 1), pytest.raises(CacheTooLarge):
        s.generate(steps=8)


class Hoarder(fc.SitePolicy, fc.WatchingRule[list[Tensor]]):
    """Remembers everything and says that it remembers nothing."""

    name: ClassVar[str] = "hoarder"

    @property
    def query(self) -> str:
        return "stack"

    @property
    def signal(self) -> fc.Signal:
        return fc.Signal.INPUT

    @property
    def remembers(self) -> int:
        return 0

    def begin(self, site: fc.Site, branch: str, run: fc.Run) -> list[Tensor]:
        return []

    def reuse(self, state: list[Tensor], step: fc.Step, seen: Tensor | None) -> bool:
        assert seen is not None
        state.append(seen.clone())
        return False


def test_a_limit_is_not_passed_even_by_a_rule_that_says_too_little(specimens: dict[str, Specimen]) -> None:
    s = specimens["wan"]
    with fc.attach(s.pipe, Hoarder()) as session:
        limit = session.plan(**s.call(steps=8)).peak
    with (
        fc.attach(s.pipe, Hoarder(), max_cache_bytes=limit),
        pytest.raises(CacheTooLarge, match=r"hoarder held .* after step"),
    ):
        s.generate(steps=8)


class Bad(fc.Predictor):
    """Gives something that is no number at one step."""

    name: ClassVar[str] = "bad"
    value: ClassVar[float] = float("nan")

    def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
        value: Tensor = past[-1].value.clone()
        if now.step.index == 3:
            value.view(-1)[0] = self.value
        return value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("family", "sites"), [("latte", "temporal"), ("wan", "branch"), ("wan", "denoiser")])
def test_a_prediction_that_is_no_number_is_an_error(
    specimens: dict[str, Specimen], monkeypatch: pytest.MonkeyPatch, family: str, sites: str, value: float
) -> None:
    monkeypatch.setattr(Bad, "value", value)
    s = specimens[family]
    row = fc.Row(sites=sites, steps="CRCRCR")
    policy = fc.Schedule(rows=(row.model_copy(update={"predictor": Bad()}),))
    with fc.attach(s.pipe, policy), pytest.raises(fc.NotFinite, match=r"NaN or infinity at step 3 .*reused at"):
        s.generate(steps=6)
    assert torch.isfinite(s.generate(steps=6)).all()


def test_a_second_output_without_an_input_is_held_beside_a_difference() -> None:
    """EasyCache on LTX-2, by hand: the video is its input plus output less input, the sound the output itself, each of
    the last computed step. Every call is made all the same."""
    s = zoo.build("ltx-2")
    denoiser = s.pipe.transformer
    with fc.attach(s.pipe, fc.EasyCache(threshold=1.0, start=0.0)) as session:
        found = s.generate()
        codes = session.last.codes[0]
    reused = [set(codes[:, step].tolist()) == {int(Code.REUSED)} for step in range(codes.shape[1])]
    assert any(reused) and session.last.share() == sum(reused) / len(reused)
    forward, calls = denoiser.forward, iter(reused)
    kept: dict[str, Tensor] = {}

    def by_hand(*args: Any, **kwargs: Any) -> Any:
        video, audio = forward(*args, **kwargs)
        sample = kwargs["hidden_states"]
        if next(calls):
            return sample + kept["difference"], kept["audio"]
        kept.update(difference=video - sample, audio=audio)
        return video, audio

    denoiser.forward = by_hand
    try:
        expected = s.generate()
    finally:
        del denoiser.forward
    assert next(calls, None) is None  # one call a step
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
