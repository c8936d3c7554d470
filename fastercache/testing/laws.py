"""The nine laws, each a function of a policy and a subject that returns a verdict.

Every law runs the real pipeline; laws 4 and 5 run its denoiser in a loop of their own, which can call it batched or
once per branch and can feed each branch something else.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastercache.attachment import attach, denoisers_of, find_sites
from fastercache.model.families import Guidance
from fastercache.policies.base import Policy
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.methods.static_interval import NoCache
from fastercache.policies.schedule import Code, compile_policy
from fastercache.policies.vocabulary import COND, Kind
from fastercache.policies.wrappers import WarmUp
from fastercache.run.memory import MemoryPlan
from fastercache.run.store import tensors_in
from fastercache.run.trace import Trace
from fastercache.session import Session
from fastercache.testing.loop import Captured, Incompatible
from fastercache.testing.report import Verdict
from fastercache.testing.subject import Planted, capturing, counting, failing, held_bytes, same, state_of, weighing
from fastercache.tuned import TunedConfig
from fastercache.zoo.specimen import Specimen


class Own(NamedTuple):
    """A policy's own run, weighed: the only one of its session.

    Attributes:
        output, trace: its latents and decisions.
        memory: what the run was told to hold before it began.
        guidance: how the pipeline calls its denoiser.
        held: bytes found at the end of each step; left: those found after the run.
        state: what the pipeline and its modules hold after the session.
    """

    output: Tensor
    trace: Trace
    memory: MemoryPlan
    guidance: Guidance
    held: list[int]
    left: int
    state: dict[str, Any]


class Uncached(NamedTuple):
    """What a run without reuse showed.

    Attributes:
        captured: the calls of the first denoiser, or why the branches of a call cannot be told apart.
        kinds: of its sites.
        coupled: whether its branches are told by their place in one call.
        steps: of the run; image-to-image takes fewer than asked for.
        alike: whether all calls have arguments of the same shapes, but for their rows: no branch's text is longer.
    """

    captured: Captured | Incompatible
    kinds: list[str]
    coupled: bool
    steps: int
    alike: bool


class Checker:
    """Runs laws on one policy and one specimen.

    Made once: the bare output, the policy's own run, on which laws 3, 7, 8 and 9 look, and the run whose arguments the
    loops of laws 4 and 5 are given.
    """

    def __init__(self, policy: Policy, specimen: Specimen) -> None:
        self.policy, self.specimen = policy, specimen
        self.bare = specimen.generate()
        self.untouched = state_of(specimen)  # after a run, since pipelines set attributes of their own in one

    def attach(self, policy: Policy | Path | None = None) -> Session:
        return attach(self.specimen.pipe, self.policy if policy is None else policy)

    def check(self, law: int) -> Verdict:
        """The verdict on one law; an error on the way is a broken law."""
        laws = (
            self.law_1, self.law_2, self.law_3, self.law_4, self.law_5, self.law_6, self.law_7, self.law_8, self.law_9,
        )  # fmt: skip
        try:
            return laws[law - 1]()
        except Exception as error:
            return Verdict(law, False, f"{type(error).__name__}: {error}")

    def reused(self) -> float:
        """Share of the policy's decisions that were reuses, in one run."""
        return self.own.trace.share()

    @cached_property
    def own(self) -> Own:
        """The policy's own run."""
        with self.attach() as session:
            with weighing(self.specimen, session) as held:
                output = self.specimen.generate()
            trace, memory, left = session.last, session.plan(), held_after(session)
            guidance: Guidance = session.guidance if len(trace.run.branches) > 1 else "none"
        return Own(output, trace, memory, guidance, held, left, state_of(self.specimen))

    def law_1(self) -> Verdict:
        """Without reuse nothing changes, whatever is hooked."""
        for policy in (
            NoCache(sites="|".join(self.uncached.kinds)),
            WarmUp(inner=self.policy, steps=1000),
            *([off] if (off := self.policy.switched_off()) is not None else []),
        ):
            with self.attach(policy) as session:
                output = self.specimen.generate()
            if not same(output, self.bare):
                return Verdict(1, False, f"{policy.name}: {_far(output, self.bare)}")
            if session.last.share() > 0:
                return Verdict(1, False, f"{policy.name} reused {session.last.share():.0%} of its decisions")
        return Verdict(1, True)

    def law_2(self) -> Verdict:
        """Nothing of one run reaches the next."""
        s = self.specimen
        tried, impossible = variants(s), {}
        alone: dict[str, Tensor | FasterCacheError] = {}
        for name, overrides in variants(s).items():
            try:
                alone[name] = self._outcome_alone(overrides)
            except Exception as error:
                if not self._fails_bare(overrides, error):
                    raise
                impossible[name] = f"not with {name}, where the pipeline itself raises {type(error).__name__}"
                del tried[name]
        with self.attach() as session:
            first = s.generate()
            if not same(s.generate(), first):
                return Verdict(2, False, "the second run differs from the first")
            for after in sorted({1, s.steps // 2 * len(session.last.run.branches)}):
                raised = True
                try:
                    with failing(s, after):
                        s.generate()
                    raised = False  # every later call of that block was reused
                except Planted:
                    pass
                if raised and not same(s.generate(), first):
                    return Verdict(2, False, "the run after one that raised differs")
            for name, overrides in tried.items():
                here = outcome(s, overrides)
                if not agree(here, alone[name]):
                    return Verdict(2, False, f"a run with {name} in a used session: {_far(here, alone[name])}")
                if not same(s.generate(), first):
                    return Verdict(2, False, f"the run after one with {name} differs")
        return Verdict(2, True, "; ".join(impossible.values()))

    def _fails_bare(self, overrides: dict[str, Any], error: Exception) -> bool:
        """Whether the bare pipeline raises the same error in such a run: it cannot be made at all."""
        try:
            self.specimen.generate(**overrides)
        except Exception as own:
            return type(own) is type(error) and str(own) == str(error)
        return False

    def _outcome_alone(self, overrides: dict[str, Any]) -> Tensor | FasterCacheError:
        with self.attach():
            return outcome(self.specimen, overrides)

    def law_3(self) -> Verdict:
        """A detached pipeline is the pipeline as it was."""
        now = self.own.state
        changed = sorted(k for k in now.keys() | self.untouched.keys() if now.get(k, k) != self.untouched.get(k, k))
        if changed:
            return Verdict(3, False, f"left behind or changed: {', '.join(changed[:3])}")
        if not same(self.specimen.generate(), self.bare):
            return Verdict(3, False, "the detached pipeline's output differs")
        return Verdict(3, True)

    def law_4(self) -> Verdict:
        """The same policy, batched and with separate calls, gives the same latents within float tolerance."""
        captured = self.uncached.captured
        if isinstance(captured, Incompatible):
            return Verdict(4, None, str(captured))
        if len(captured.calls) < 2:
            return Verdict(4, None, "the run has one branch")
        if captured.order[0] != COND and captured.style == "separate" and self._guides(captured):
            return Verdict(4, None, "the unconditional call comes first, so its prediction uses the step before")
        if self.uncached.coupled:
            return Verdict(4, None, "perturbed attention tells its branches by their place in one call")
        results = {}
        for style in ("batched", "separate"):
            with captured.attach(self.settled, style) as session:
                try:
                    results[style] = captured.run(session, style=style, steps=self.uncached.steps)
                except Incompatible as reason:
                    return Verdict(4, None, str(reason))
        for branch, outputs in results["batched"].items():
            a, b = torch.stack(outputs).float(), torch.stack(results["separate"][branch]).float()
            worst = float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))
            if worst > 1e-3:
                return Verdict(4, False, f"branch {branch} differs by {worst:.1e} of its largest value")
        return Verdict(4, True)

    def law_5(self) -> Verdict:
        """Shifting one branch's input leaves the other branch's outputs alone, bit for bit."""
        captured = self.uncached.captured
        if isinstance(captured, Incompatible):
            return Verdict(5, None, str(captured))
        if len(captured.calls) < 2:
            return Verdict(5, None, "the run has one branch")
        others = [b for b in captured.calls if b != COND]
        for watched in captured.calls:
            with captured.attach(self.settled) as session:
                if watched != COND and self._guides(captured):
                    continue  # its prediction is made of the conditional output, by definition
                moved = {b: 0.5 for b in (*others, COND) if b != watched}
                before = captured.run(session, style=captured.style, steps=self.uncached.steps, drive=watched)
                after = captured.run(
                    session, style=captured.style, steps=self.uncached.steps, drive=watched, shift=moved
                )
            if not all(map(same, before[watched], after[watched])):
                return Verdict(5, False, f"branch {watched} changes with the input of the other")
        return Verdict(5, True)

    def law_6(self) -> Verdict:
        """The trace's FLOPs are those of the real run."""
        with self.attach() as session:
            self.specimen.generate()  # the first run also counts each input shape once
            with counting(self.specimen) as counts:
                self.specimen.generate()
            told = session.last.total_flops
        if told != sum(counts):
            return Verdict(6, False, f"the trace says {told}, the counter {sum(counts)}")
        return Verdict(6, True)

    def law_7(self) -> Verdict:
        """A run does what its table says, cell by cell, and its schedule replays it."""
        trace = self.own.trace
        strayed = unplanned(self.policy, trace)
        if strayed:
            return Verdict(7, False, f"{strayed} did something else than its table says")
        with self.attach() as session:
            session.use(trace.schedule())
            replay = self.specimen.generate()
        if not same(self.own.output, replay):
            return Verdict(7, False, _far(replay, self.own.output))
        if decisions(trace) != decisions(session.last):
            return Verdict(7, False, "the replayed decisions differ")
        return Verdict(7, True)

    def law_8(self) -> Verdict:
        """The exported file does what the policy does."""
        own = self.own
        config = TunedConfig.describe(
            self.specimen.pipe, self.policy, steps=own.trace.run.count, guidance_scale=None, guidance=own.guidance
        )
        with tempfile.TemporaryDirectory() as folder, self.attach(config.save(Path(folder) / "tuned.json")):
            applied = self.specimen.generate()
        return Verdict(8, same(own.output, applied), "" if same(own.output, applied) else _far(applied, own.output))

    def law_9(self) -> Verdict:
        """The bytes found by walking references are those reported, at every step, and those told before the run."""
        own = self.own
        told, reported = own.memory, own.trace.bytes_per_step
        if self.uncached.alike:  # what is told is of a run whose calls are all as large as its first
            if told.exact and told.per_step != reported:
                return Verdict(9, False, f"told {told.per_step} before the run, reported {reported}")
            if max(reported, default=0) > told.peak:
                return Verdict(9, False, f"told at most {told.peak} bytes before the run, reported {reported}")
        if own.held[: own.trace.run.count - 1] != own.trace.bytes_per_step[:-1]:
            return Verdict(9, False, f"held {own.held}, reported {own.trace.bytes_per_step}")
        if own.left:
            return Verdict(9, False, f"{own.left} bytes are still held after the run")
        return Verdict(9, True)

    @cached_property
    def uncached(self) -> Uncached:
        """The run whose arguments the loops of laws 4 and 5 are given."""
        with attach(self.specimen.pipe, NoCache(sites="denoiser")) as session:
            with capturing(self.specimen) as calls:
                self.specimen.generate()
            run, told = session.last.run, session.inspect()
        (_, first), *_ = denoisers_of(self.specimen.pipe)
        given = [call for module, call in calls if module is first]
        kinds = sorted({str(site.kind) for site in run.sites})
        captured: Captured | Incompatible
        try:
            captured = Captured.of(first, told, given)
        except Incompatible as reason:
            captured = reason
        shapes = {
            (type(module), tuple(t.shape[1:] for t in tensors_in([*args, *kwargs.values()])))
            for module, (args, kwargs) in calls
        }
        alike = len(shapes) == len({kind for kind, _ in shapes})
        return Uncached(captured, kinds, told.coupled, run.count, alike)

    def _guides(self, captured: Captured) -> bool:
        """Whether the policy predicts one branch from another."""
        sites = find_sites(captured.denoiser)
        return any(site.kind is Kind.BRANCH for site in self.policy.claims(sites))

    @cached_property
    def settled(self) -> Policy:
        """The policy for runs of the captured loop; a dynamic one frozen, so that only values are compared."""
        if self.policy.static:
            return self.policy
        captured, steps = self.uncached.captured, self.uncached.steps
        assert isinstance(captured, Captured)  # laws 4 and 5 look first
        with captured.attach(self.policy) as session:
            captured.run(session, style=captured.style, steps=steps)
            return session.last.schedule()


def decisions(trace: Trace) -> dict[str, list[list[int]]]:
    """What was decided, by site: policies may claim the same sites in another order."""
    return {site.name: codes.tolist() for site, codes in zip(trace.sites, trace.codes, strict=True)}


def unplanned(policy: Policy, trace: Trace) -> str:
    """The first site where a static policy's run strayed from its table; empty if none did. A module that the model
    never calls is passed over."""
    if not policy.static:
        return ""
    table = compile_policy(policy, trace.run)
    for site, planned, ran in zip(table.sites, table.codes, trace.codes, strict=True):
        if (planned != ran).any() and (ran != Code.UNREACHED).any():
            return site.name
    return ""


def variants(specimen: Specimen) -> dict[str, dict[str, Any]]:
    """Runs of another shape: name -> overrides."""
    found = {
        "another resolution": specimen.resized,
        "another number of steps": {"steps": specimen.steps + 3},
        "two prompts": {"prompts": 2},
        "two samples of a prompt": specimen.doubled,
        "guidance switched off": specimen.unguided,
    }
    return {name: overrides for name, overrides in found.items() if overrides}


def outcome(specimen: Specimen, overrides: dict[str, Any]) -> Tensor | FasterCacheError:
    """What a call gives: latents, or the error by which the policy refuses it."""
    try:
        return specimen.generate(**overrides)
    except FasterCacheError as error:
        return error


def agree(a: Tensor | FasterCacheError, b: Tensor | FasterCacheError) -> bool:
    """Equal latents, or the same refusal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same(a, b)
    return type(a) is type(b) and str(a) == str(b)


def held_after(session: Session) -> int:
    """Bytes still held by a session whose run is over."""
    return held_bytes(session.inspect().holders)


def _far(a: Any, b: Any) -> str:
    """How far two outcomes are apart, in words."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return (
            f"{a if isinstance(a, Exception) else 'latents'} instead of {b if isinstance(b, Exception) else 'latents'}"
        )
    if a.shape != b.shape:
        return f"shape {tuple(a.shape)} instead of {tuple(b.shape)}"
    return f"differs by up to {float((a.float() - b.float()).abs().max()):.1e}"
