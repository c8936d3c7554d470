"""A predictor that needs the denoiser's input besides past outputs: one fitted beforehand is the example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.policies.registry import AnyPredictor
from fastercache.testing.laws import Checker
from fastercache.zoo.specimen import Specimen

K = 2


class KeepsInput(fc.Predictor):
    """Keeps the denoiser's input beside each computed value, as a pair."""

    @property
    def needs(self) -> fc.Signal:
        return fc.Signal.INPUT

    def keep(self, value: Tensor, seen: Tensor | None) -> Any:
        return value, seen


class Fitted(KeepsInput):
    """F(step) = sum_p w_p(step) F_p + w_x(step) x(step) - 0.1 x(newest computed), the weights by step index."""

    name: ClassVar[str] = "fitted_here"

    @property
    def depth(self) -> int:
        return K

    def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
        assert now.seen is not None
        return stand_in([p.value[0] for p in past], now.step.index, now.seen, past[-1].value[1])


def stand_in(outputs: list[Tensor], step: int, x: Tensor, x_computed: Tensor) -> Tensor:
    if x.shape != outputs[0].shape:  # Latte's output has a variance beside each channel
        x, x_computed = (torch.cat([t, t], dim=1) for t in (x, x_computed))
    total = 0.02 * step * x - 0.1 * x_computed
    for p, output in enumerate(reversed(outputs)):
        total = total + (0.7 / (1 + p) + 0.01 * step) * output
    return total


class Planned(fc.SitePolicy, fc.StaticRule[None]):
    """Every second step of the denoiser's output."""

    name: ClassVar[str] = "planned_here"
    sites: str = "denoiser"
    stand_in: AnyPredictor = Fitted()

    @property
    def query(self) -> str:
        return self.sites

    def reuse(self, state: None, step: fc.Step) -> bool:
        return step.index in (2, 3, 5)

    def predictor(self, site: fc.Site, run: fc.Run) -> fc.Predictor:
        return self.stand_in


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registered for the length of a test."""
    from fastercache.policies import registry

    monkeypatch.setattr(registry, "_POLICIES", dict(registry._POLICIES))
    monkeypatch.setattr(registry, "_PREDICTORS", dict(registry._PREDICTORS))
    fc.register(Fitted)
    fc.register(Planned)
    yield


def by_hand(s: Specimen, reused: set[int], branches: tuple[str, ...]) -> Tensor:
    """The same run with nothing of ours: a few lines around each transformer's forward."""
    outputs: dict[tuple[int, str], list[Tensor]] = {}
    inputs: dict[tuple[int, str], Tensor] = {}
    step, calls = 0, 0
    modules = [m for m in (s.pipe.transformer, getattr(s.pipe, "transformer_2", None)) if m is not None]
    batched = s.name == "latte"

    def around(which: int, forward: Any) -> Any:
        def call(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal step, calls
            names = branches if batched else (branches[calls % len(branches)],)
            x = dict(zip(names, hidden_states.chunk(len(names)), strict=True))
            if step in reused and outputs.get((which, names[0])):
                parts = [stand_in(outputs[which, b][-K:], step, x[b], inputs[which, b]) for b in names]
                result = torch.cat(parts)
            else:
                result = forward(hidden_states, *args, **kwargs | {"return_dict": False})[0].clone()
                for b, part in zip(names, result.chunk(len(names)), strict=True):
                    outputs.setdefault((which, b), []).append(part)
                    inputs[which, b] = x[b].clone()
            calls += 1
            step += batched or calls % len(branches) == 0
            return (result,) if not kwargs.get("return_dict", True) else type("Output", (), {"sample": result})()

        return call

    originals = [m.forward for m in modules]
    for i, m in enumerate(modules):
        m.forward = around(i, m.forward)
    try:
        return s.generate(steps=7)
    finally:
        for m, forward in zip(modules, originals, strict=True):
            m.forward = forward


@pytest.mark.parametrize(
    ("family", "branches"),
    [("latte", ("uncond", "cond")), ("wan", ("cond", "uncond")), ("wan-2.2", ("cond", "uncond"))],
)
def test_it_gets_the_input_of_its_branch_in_batched_separate_and_two_expert_runs(
    family: str, branches: tuple[str, ...]
) -> None:
    s = zoo.build(family)
    expected = by_hand(s, {2, 3, 5}, branches)
    with fc.attach(s.pipe, Planned()) as session:
        plan = session.plan(**s.call(steps=7))
        output = s.generate(steps=7)
        trace = session.last
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert plan.exact and plan.per_step[:-1] == trace.bytes_per_step[:-1]
    assert (trace.codes == trace_codes(trace)).all()
    if family == "wan":
        one = output.numel() * output.element_size()  # one branch's value
        assert max(trace.bytes_per_step) == 2 * 2 * K * one, "two branches, outputs and inputs, K of each"


def trace_codes(trace: fc.Trace) -> Any:
    return fc.compile_policy(Planned(), trace.run).codes


@pytest.mark.parametrize("law", [4, 5, 7, 8, 9])
@pytest.mark.parametrize("family", ["latte", "wan-2.2"])
def test_the_laws_hold_for_it(family: str, law: int) -> None:
    verdict = Checker(Planned(), zoo.build(family)).check(law)
    assert verdict.passed is not False, verdict


def test_rows_of_the_computed_branch_when_guidance_predicts_the_other() -> None:
    """CFG-Cache leaves the unconditional rows out; what is kept beside the conditional output is its own input."""
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    class Noting(Fitted):
        name: ClassVar[str] = "noting"

        def keep(self, value: Tensor, seen_: Tensor | None) -> Any:
            assert seen_ is not None
            if not value.is_meta:
                seen.append((tuple(value.shape), tuple(seen_.shape)))
            return super().keep(value, seen_)

    fc.register(Noting)
    s = zoo.build("latte")
    policy = fc.Compose([Planned(stand_in=Noting()), fc.GuidanceReuse(interval=2, start=0.0)])
    with fc.attach(s.pipe, policy):
        s.generate(steps=7)
    assert seen and {value[0] for value, _ in seen} == {1, 2} and all(v[0] == x[0] for v, x in seen)


def test_a_difference_to_the_input_needs_one_shape() -> None:
    relative = fc.Relative()
    with pytest.raises(fc.AttachError, match="differ in shape"):
        relative.keep(torch.zeros(1, 4), torch.zeros(1, 5))
    assert torch.equal(relative.keep(torch.ones(1, 4), None), torch.ones(1, 4))  # an output without an input
    with pytest.raises(fc.InvalidPolicy, match="needs a signal of its own"):
        fc.Relative(inner=fc.Aligned())


def test_a_predictor_without_predict_cannot_be_made() -> None:
    class Nothing(fc.Predictor):
        name: ClassVar[str] = "nothing"

    with pytest.raises(fc.InvalidPolicy, match="Nothing must implement predict"):
        Nothing()  # type: ignore[abstract]
