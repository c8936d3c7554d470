"""What rules watch is what the model really computes there, and the right ones are asked for the right branches."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor

import fastercache as fc
from fastercache.run.signals import Watchtower
from fastercache.zoo import build
from fastercache.zoo.specimen import Specimen


class Watching(fc.SitePolicy, fc.WatchingRule[str]):
    """Notes every question and every lesson; reuses at odd steps once it has something."""

    name: ClassVar[str] = "watching"
    sites: str = "stack"
    wanted: fc.Signal | None = None
    scope: fc.Scope = fc.Scope.BRANCH
    reuses: bool = False
    _asked: list[tuple[int, str, Tensor | None]] = PrivateAttr(default_factory=list)
    _told: list[tuple[int, str, int]] = PrivateAttr(default_factory=list)

    @property
    def query(self) -> str:
        return self.sites

    @property
    def signal(self) -> fc.Signal | None:
        return self.wanted

    @property
    def decides(self) -> fc.Scope:
        return self.scope

    def begin(self, site: fc.Site, branch: str, run: fc.Run) -> str:
        return branch

    def reuse(self, state: str, step: fc.Step, seen: Tensor | None) -> bool:
        self._asked.append((step.index, state, None if seen is None else seen.clone()))
        return self.reuses and step.index % 2 == 1

    def update(self, state: str, step: fc.Step, value: Tensor) -> str:
        self._told.append((step.index, state, value.shape[0]))
        return state


@pytest.fixture(scope="module")
def latte() -> Specimen:
    return build("latte")


@pytest.fixture(scope="module")
def wan() -> Specimen:
    return build("wan")


def listen(specimen: Specimen, policy: Watching, steps: int = 3) -> Watching:
    with fc.attach(specimen.pipe, policy):
        specimen.generate(steps=steps)
    return policy


def captured(module: torch.nn.Module, specimen: Specimen, steps: int = 3) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of a module at each call of a bare run."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = kwargs.get("hidden_states", args[0] if args else None)
        seen.append((given.clone(), (output[0] if isinstance(output, tuple) else output).clone()))

    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        specimen.generate(steps=steps)
    finally:
        handle.remove()
    return seen


def test_the_modulated_input_is_what_the_first_attention_is_given(latte: Specimen, wan: Specimen) -> None:
    for specimen, attention in (
        (latte, latte.pipe.transformer.transformer_blocks[0].attn1),
        (wan, wan.pipe.transformer.blocks[0].attn1),
    ):
        for sites in ("stack", "stack[1:]"):
            policy = listen(specimen, Watching(sites=sites, wanted=fc.Signal.MODULATED_INPUT, scope=fc.Scope.CALL))
            expected = captured(attention, specimen)
            assert len(policy._asked) == len(expected)
            for (_, _, got), (given, _) in zip(policy._asked, expected, strict=True):
                assert got is not None and torch.equal(got, given)


def test_the_first_blocks_residual_and_the_probe_in_both_layouts(latte: Specimen, wan: Specimen) -> None:
    """Latte's second block sees the tokens in another layout; signals are in the first block's."""
    for specimen, block in (
        (latte, latte.pipe.transformer.transformer_blocks[0]),
        (wan, wan.pipe.transformer.blocks[0]),
    ):
        expected = captured(block, specimen)
        for sites in ("stack[1:]", "block[1:2]", "cross[1:]|ff[1:2]"):
            residual = listen(
                specimen, Watching(sites=sites, wanted=fc.Signal.FIRST_BLOCK_RESIDUAL, scope=fc.Scope.CALL)
            )
            by_step: dict[int, Tensor] = {}
            for i, _, got in residual._asked[:: len(residual._asked) // len(expected)]:
                assert got is not None
                by_step.setdefault(i, got)
            for i, got in by_step.items():
                given, output = expected[i * len(expected) // 3]
                torch.testing.assert_close(got, output - given, rtol=1e-4, atol=1e-5)
    probe = listen(wan, Watching(sites="stack[1:]", wanted=fc.Signal.PROBE, scope=fc.Scope.CALL))
    for (_, _, got), (_, output) in zip(probe._asked, captured(wan.pipe.transformer.blocks[0], wan), strict=True):
        assert got is not None and torch.equal(got, output)


@pytest.mark.parametrize(
    ("sites", "wanted"),
    [
        ("denoiser", fc.Signal.MODULATED_INPUT),
        ("branch", fc.Signal.FIRST_BLOCK_RESIDUAL),
        ("stack", fc.Signal.PROBE),
        ("stack[0:2]", fc.Signal.FIRST_BLOCK_RESIDUAL),
    ],
)
def test_a_signal_that_does_not_exist_at_a_site_is_an_error(latte: Specimen, sites: str, wanted: fc.Signal) -> None:
    with pytest.raises(fc.AttachError, match=f"signal '{wanted}' is not known at"):
        listen(latte, Watching(sites=sites, wanted=wanted))
    specimen_still_works = latte.generate(steps=2)
    assert torch.isfinite(specimen_still_works).all()


def test_who_is_asked(latte: Specimen, wan: Specimen) -> None:
    """By branch each with its rows; by call once with all rows; by the conditional branch once a step."""
    expected = {
        ("latte", fc.Scope.BRANCH): [("uncond", 1), ("cond", 1)],
        ("latte", fc.Scope.CALL): [("cond", 2)],
        ("latte", fc.Scope.COND): [("cond", 1)],
        ("wan", fc.Scope.BRANCH): [("cond", 1), ("uncond", 1)],
        ("wan", fc.Scope.CALL): [("cond", 1), ("uncond", 1)],
        ("wan", fc.Scope.COND): [("cond", 1)],
    }
    for (name, scope), questions in expected.items():
        specimen = {"latte": latte, "wan": wan}[name]
        policy = listen(specimen, Watching(wanted=fc.Signal.INPUT, scope=scope, sites="denoiser"))
        got = [
            (branch, 0 if signal is None else signal.shape[0]) for step, branch, signal in policy._asked if step == 1
        ]
        assert got == questions, (name, scope)
        assert [(b, n) for step, b, n in policy._told if step == 1] == questions, (name, scope)


def test_the_conditional_verdict_holds_for_every_branch(latte: Specimen, wan: Specimen) -> None:
    for specimen in (latte, wan):
        policy = Watching(wanted=fc.Signal.INPUT, scope=fc.Scope.COND, reuses=True)
        with fc.attach(specimen.pipe, policy) as session:
            specimen.generate(steps=4)
            codes = session.last.codes
        assert codes[0].tolist() == [[0, 1, 0, 1]] * 2


def test_a_relative_value_is_the_output_less_the_input(wan: Specimen) -> None:
    """At a reused step the denoiser gives its new input plus what it added at the last computed step."""
    policy = fc.Schedule(rows=(fc.Row(sites="denoiser", steps="CRC", predictor=fc.Relative()),))
    with fc.attach(wan.pipe, policy):
        seen = captured(wan.pipe.transformer, wan)
    inputs, outputs = [a for a, _ in seen[0::2]], [b for _, b in seen[0::2]]
    torch.testing.assert_close(outputs[1], inputs[1] + (outputs[0] - inputs[0]))


def test_input_and_output_must_have_one_shape_to_be_relative(latte: Specimen) -> None:
    with fc.attach(latte.pipe, fc.EasyCache()), pytest.raises(fc.AttachError, match="relative=False"):
        latte.generate(steps=3)


def test_an_aligned_predictors_signal_is_counted_as_cached(wan: Specimen) -> None:
    rows = (fc.Row(sites="stack[1:2]", steps="CCRC", predictor=fc.Aligned()),)
    held = []
    for predictor in (fc.Aligned(), fc.Linear()):
        with fc.attach(wan.pipe, fc.Schedule(rows=(rows[0].model_copy(update={"predictor": predictor}),))) as session:
            wan.generate(steps=4)
            assert session.last.bytes_per_step[:3] == session.plan().per_step[:3]
            held.append(session.last.cached_bytes)
    assert held[0] == 2 * held[1]


def test_the_first_block_is_watched_once_a_call(wan: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no site lies in the first block its hook is not laid out anew for each call, and handlers could pile up."""
    watched: list[int] = []
    original = Watchtower.watch

    def counting(self: Watchtower, *args: Any) -> Any:
        watched.append(1)
        return original(self, *args)

    monkeypatch.setattr(Watchtower, "watch", counting)
    for policy in (fc.FirstBlockCache(), fc.DiCache(), fc.TeaCache(coefficients=(1.0, 0.0))):
        watched.clear()
        with fc.attach(wan.pipe, policy) as session:
            wan.generate(steps=4)
            assert len(watched) == 4 * 2 == session.last.run.count * len(session.last.run.branches), policy.name


@pytest.mark.usefixtures("own_registry")
def test_a_signal_made_of_others_is_their_function_and_its_bytes_are_known(wan: Specimen) -> None:
    """What it is made of is captured for it, and what a predictor keeps of it has the size that was planned."""

    @fc.register_signal("token_mean", of=(fc.Signal.MODULATED_INPUT, fc.Signal.INPUT))
    def token_mean(modulated: Tensor, x: Tensor) -> Tensor:
        return modulated.mean(1) + x.flatten(1).mean(1, keepdim=True)

    policy = listen(wan, Watching(sites="stack", wanted=token_mean, scope=fc.Scope.CALL))
    attention = captured(wan.pipe.transformer.blocks[0].attn1, wan)
    inputs = captured(wan.pipe.transformer, wan)
    assert len(policy._asked) == len(attention) == len(inputs)
    for (_, _, got), (given, _), (x, _) in zip(policy._asked, attention, inputs, strict=True):
        assert got is not None
        torch.testing.assert_close(got, given.mean(1) + x.flatten(1).mean(1, keepdim=True))

    class Keeps(fc.Hold):
        name: ClassVar[str] = "keeps"

        @property
        def needs(self) -> fc.Signal:
            return token_mean

        def keep(self, value: Tensor, seen: Tensor | None) -> Any:
            return value, seen

        def predict(self, past: Any, now: fc.Now) -> Tensor:
            assert now.seen is not None and now.seen.shape == past[-1].value[1].shape
            value: Tensor = past[-1].value[0]
            return value

    with fc.attach(wan.pipe, fc.StaticInterval(sites="stack", interval=2, stand_in=Keeps())) as session:
        wan.generate(steps=4)
        width = wan.pipe.transformer.config.num_attention_heads * wan.pipe.transformer.config.attention_head_dim
        assert session.last.bytes_per_step == session.plan().per_step
        held = session.last.cached_bytes
    with fc.attach(wan.pipe, fc.StaticInterval(sites="stack", interval=2)) as session:
        wan.generate(steps=4)
        assert held - session.last.cached_bytes == 2 * width * 4, "a number a channel, for each of two branches"
