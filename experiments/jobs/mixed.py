"""Runs that mix whole steps with steps of one branch or of a part of the layers, a few lines around `forward`.

A *mix* is a word of one letter a step:

    F  both branches are computed whole
    C  the conditional branch is computed; the unconditional one is not
    H  the first half of the blocks is computed for both branches; the others add what they added at the last F (held)
    Q  the first quarter of the blocks, likewise
    A  attention is computed; the feed-forwards are forecast from the last two F (Taylor of first order)
    M  feed-forwards are computed; attention is forecast
    .  nothing is computed

What the sampler is given at every letter but F is the best linear combination, over the search prompts, of all that is
known there: what the letter computed, the guided outputs of earlier steps, the differences between the branches at
earlier F, and the latent. The target is that of the planner (`tuner/planning/fitting.py`): what brings the run back to
the uncached one. So each kind of step gets the best linear stand-in that it can have, and a whole-step plan is a word
of F and `.` alone. Nothing of the runtime takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastercache.analysis.least_squares import ridge
from fastercache.analysis.trajectory import Floats, gram
from fastercache.experiments.jobs.by_hand import replaced
from fastercache.tuner.planning.fitting import RIDGE
from fastercache.tuner.planning.material import Material
from fastercache.tuner.setting import Setting

LETTERS = "FCHQAM."
WHOLE, SKIP = "F", "."
HISTORY = 5
"""Outputs of earlier steps that a combination may use, and as many differences between the branches."""


class _Stop(Exception):
    """Ends a generation once its calls are known."""


@dataclass(frozen=True)
class Branch:
    """One guidance branch of a prompt: the denoiser's arguments beside the latent, which are the same at every step."""

    arguments: dict[str, Any]
    timestep: Tensor


@dataclass(frozen=True)
class Prompt:
    """A prompt's two branches, and its uncached run: first latent, guided outputs and last latent."""

    conditional: Branch
    unconditional: Branch
    start: Tensor
    outputs: list[Tensor]
    end: Tensor


@dataclass(frozen=True)
class Known:
    """What one run has computed by a step; every tuple has the newest first.

    Attributes:
        latent: x_k. behind: what the last latent is off by so far, x*_n - x_n. outputs: guided outputs with the
            latents that they were computed from. differences: unconditional less conditional outputs at F.
        parts: by branch and module, its values at the last two F, each with its step.
    """

    latent: Tensor
    behind: Tensor
    outputs: tuple[tuple[Tensor, Tensor], ...] = ()
    differences: tuple[Tensor, ...] = ()
    parts: dict[tuple[bool, str], tuple[tuple[int, Tensor], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ran:
    """Prompts run under a mix.

    Attributes:
        mix: its word. ends: last latents. weights: of each combination, in the order of the steps.
        errors: (P,) mean squared error of each last latent. at: the state of all runs before each step, and the number
            of combinations by then.
    """

    mix: str
    ends: list[Tensor]
    weights: list[Floats]
    errors: Floats
    at: list[tuple[list[Known], int]]

    @property
    def score(self) -> float:
        """Mean over prompts of the logarithm of the error: smaller is better."""
        return float(np.log(self.errors + 1e-14).mean())


class Mixer:
    """Runs mixes of one pipeline whose sampler is x_{k+1} = a_k x_k + b_k F_k, with classifier-free guidance.

    Args:
        setting: the pipeline and its call. material: the recorded prompts.
    """

    def __init__(self, setting: Setting, material: Material) -> None:
        self.denoiser: nn.Module = setting.pipe.transformer
        self.guidance = float(setting.call["guidance_scale"])
        self.response = material.sampler.response
        if self.response.kind != "memoryless":
            raise ValueError(f"mixes are run on a sampler without memory, this one is {self.response.kind}")
        self._blocks, self._kinds = _parts(self.denoiser)
        self._held: frozenset[str] = frozenset()
        self._taken: dict[str, Tensor] = {}
        self._given: Callable[[str], Tensor] | None = None
        self.prompts = [
            Prompt(
                *_branches(setting, case), run.reference.latents[0], run.reference.outputs, run.reference.latents[-1]
            )
            for case, run in zip(material.cases, material.runs, strict=True)
        ]

    @property
    def steps(self) -> int:
        return self.response.steps

    @property
    def begun(self) -> tuple[Prompt, Known]:
        """The first prompt after two F."""
        prompt = self.prompts[0]
        known = Known(prompt.start, torch.zeros_like(prompt.end, dtype=torch.float64))
        with self.wrapped():
            return prompt, self._whole(prompt, self._whole(prompt, known, 0), 1)

    # -- the denoiser ------------------------------------------------------------------------------------------------
    def left_out(self, letter: str) -> frozenset[str]:
        """Names of the modules that a letter does not compute."""
        count = len(self._blocks)
        if letter in "HQ":
            first = count // (2 if letter == "H" else 4)
            return frozenset(self._blocks[first:])
        return frozenset(
            name for name, kind in self._kinds.items() if kind == {"A": "mlp", "M": "attention"}.get(letter)
        )

    @contextmanager
    def wrapped(self) -> Iterator[None]:
        """Lets modules be taken from and replaced while it lasts."""
        modules = dict(self.denoiser.named_modules())
        with ExitStack() as stack:
            for name in (*self._blocks, *self._kinds):
                instead = self._around(name, modules[name].forward)
                stack.enter_context(replaced(modules[name], "forward", instead))
            yield

    def _around(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        block = name in self._blocks

        def instead(*args: Any, **kwargs: Any) -> Any:
            if name in self._held:
                assert self._given is not None
                value = self._given(name)
                return args[0] + value if block else value
            output = forward(*args, **kwargs)
            self._taken[name] = output - args[0] if block else output
            return output

        return instead

    def computed(self, prompt: Prompt, known: Known, step: int, letter: str, conditional: bool) -> tuple[Tensor, Any]:
        """One branch's output and, at F, what the modules gave."""
        branch = prompt.conditional if conditional else prompt.unconditional
        self._held = self.left_out(letter)

        def stand_in(name: str) -> Tensor:
            values = known.parts[conditional, name]
            (newest, value), (older, before) = values[0], values[-1]
            if name in self._blocks or newest == older:
                return value
            return value + (value - before) * ((step - newest) / (newest - older))

        self._given, self._taken = stand_in, {}
        time = torch.full_like(branch.timestep, self.response.times[step])
        with torch.no_grad():
            output = self.denoiser(hidden_states=known.latent, timestep=time, **branch.arguments)[0]
        return output[:, : known.latent.shape[1]], self._taken

    # -- runs --------------------------------------------------------------------------------------------------------
    def run(
        self,
        mix: str,
        prompts: Sequence[int],
        weights: Sequence[Floats] | None = None,
        begun: Ran | None = None,
    ) -> Ran:
        """Run prompts under a mix, with given weights or with those that are fitted on the way.

        Args:
            begun: a run of the same prompts with a like beginning, which is not run again.
        """
        chosen = [self.prompts[i] for i in prompts]
        if len(mix) != self.steps or mix[0] != WHOLE or set(mix) - set(LETTERS):
            raise ValueError(f"a mix has {self.steps} letters of {LETTERS} and begins with F: {mix}")
        runs = [Known(p.start, torch.zeros_like(p.end, dtype=torch.float64)) for p in chosen]
        at: list[tuple[list[Known], int]] = []
        found = list(weights or ())
        first, serving = 0, 0
        if begun is not None and weights is None:
            first = shared(begun.mix, mix)
            at = begun.at[:first]
            if first:
                runs, serving = begun.at[first]
                found = begun.weights[:serving]
        with self.wrapped():
            for k in range(first, self.steps):
                at.append((runs, serving))
                letter = mix[k]
                if letter == WHOLE:
                    runs = [self._whole(p, known, k) for p, known in zip(chosen, runs, strict=True)]
                    continue
                features = [self._features(p, known, k, letter) for p, known in zip(chosen, runs, strict=True)]
                if letter != SKIP or mix[k - 1] != SKIP:
                    serving += 1
                    if weights is None:
                        end = (
                            k + 1
                            if letter != SKIP
                            else next((j for j in range(k, self.steps) if mix[j] != SKIP), self.steps)
                        )
                        found.append(self._solved(chosen, runs, features, k, end))
                outputs = [_combined(found[serving - 1], parts) for parts in features]
                runs = [
                    self._used(p, known, k, output, computed=letter != SKIP)
                    for p, known, output in zip(chosen, runs, outputs, strict=True)
                ]
        ends = [known.latent for known in runs]
        errors = np.array([float((e - p.end).double().square().mean()) for e, p in zip(ends, chosen, strict=True)])
        return Ran(mix, ends, found, errors, at)

    def _whole(self, prompt: Prompt, known: Known, step: int) -> Known:
        values, parts = {}, dict(known.parts)
        for conditional in (True, False):
            values[conditional], taken = self.computed(prompt, known, step, WHOLE, conditional)
            for name, value in taken.items():
                parts[conditional, name] = ((step, value), *known.parts.get((conditional, name), ()))[:2]
        output = values[False] + self.guidance * (values[True] - values[False])
        differences = (values[False] - values[True], *known.differences)[:HISTORY]
        return self._used(prompt, replace(known, parts=parts, differences=differences), step, output, computed=True)

    def _features(self, prompt: Prompt, known: Known, step: int, letter: str) -> list[Tensor]:
        """What may be combined; the first is what a combination is drawn to."""
        past = [output for output, _ in known.outputs]
        if letter == SKIP:
            return [*past, known.outputs[0][1]]
        value, _ = self.computed(prompt, known, step, WHOLE if letter == "C" else letter, True)
        if letter == "C":
            held = value + (1.0 - self.guidance) * known.differences[0]
            return [held, value, *known.differences[1:], *past[:2], known.latent]
        other, _ = self.computed(prompt, known, step, letter, False)
        return [other + self.guidance * (value - other), *past, known.latent]

    def _solved(
        self, prompts: Sequence[Prompt], runs: Sequence[Known], features: Sequence[list[Tensor]], start: int, end: int
    ) -> Floats:
        """Least squares over all prompts to what brings the last latent back, served from `start` to before `end`."""
        impulse = self.response.impulse[start:end]
        size = len(features[0])
        total: Floats = np.zeros((size + 1, size + 1))
        for prompt, known, parts in zip(prompts, runs, features, strict=True):
            ahead = sum(
                (h * prompt.outputs[m].double() for m, h in zip(range(start, end), impulse.tolist(), strict=True)),
                known.behind,
            )
            total += gram([*parts, ahead / float(impulse.sum())])
        change = np.eye(size)  # the differences of neighbours are less alike than the outputs themselves
        for i in range(1, size - 1):
            change[i, i - 1] = -1.0
        rest = total[:size, -1] - total[:size, 0]
        solution = ridge(change @ total[:size, :size] @ change.T, change @ rest, RIDGE)
        found: Floats = solution @ change
        found[0] += 1.0
        return found

    def _used(self, prompt: Prompt, known: Known, step: int, output: Tensor, *, computed: bool) -> Known:
        h, a, b = (float(row[step]) for row in (self.response.impulse, self.response.scale, self.response.gain))
        outputs = ((output, known.latent), *known.outputs)[:HISTORY] if computed else known.outputs
        behind = known.behind + h * (prompt.outputs[step].double() - output.double())
        return replace(known, latent=a * known.latent + b * output, behind=behind, outputs=outputs)


def shared(one: str, other: str) -> int:
    """The number of steps that two mixes begin alike with, up to the end of the last combination that is the same."""
    same = next((k for k, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    while 0 < same < len(one) and one[same - 1] == SKIP:  # this stretch may end elsewhere
        same -= 1
    return min(same, len(one) - 1)


def _combined(weights: Floats, parts: Sequence[Tensor]) -> Tensor:
    return sum((float(w) * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(parts[0]))


def _parts(denoiser: nn.Module) -> tuple[list[str], dict[str, str]]:
    """Names of the blocks in the order in which they run, and of their attentions and feed-forwards with the kind."""
    lists = [
        name for name, module in denoiser.named_children() if isinstance(module, nn.ModuleList) and "blocks" in name
    ]
    depth = len(list(denoiser.get_submodule(lists[0]).children()))
    blocks = [f"{name}.{i}" for i in range(depth) for name in lists]
    kinds = {}
    for block in blocks:
        for name, _ in denoiser.get_submodule(block).named_children():
            if name.startswith("attn"):
                kinds[f"{block}.{name}"] = "attention"
            elif name.startswith("ff"):
                kinds[f"{block}.{name}"] = "mlp"
    return blocks, kinds


def _branches(setting: Setting, case: Any) -> tuple[Branch, Branch]:
    """The conditional and the unconditional branch of a prompt, read off the calls of its first step."""
    pipe, seen = setting.pipe, []
    forward = pipe.transformer.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return forward(*args, **kwargs)

    def ended(*args: Any, **kwargs: Any) -> Any:
        raise _Stop

    with replaced(pipe.transformer, "forward", noted), replaced(pipe.scheduler, "step", ended), suppress(_Stop):
        setting.generate(case)
    if len(seen) == 1:  # both branches in one call, the unconditional one first
        seen = [_half(seen[0], 1), _half(seen[0], 0)]
    branches = []
    for kwargs in seen:
        rest = {key: value for key, value in kwargs.items() if key not in ("hidden_states", "timestep")}
        branches.append(Branch(rest | {"return_dict": False}, kwargs["timestep"]))
    conditional, unconditional = branches
    return conditional, unconditional


def _half(kwargs: dict[str, Any], row: int) -> dict[str, Any]:
    return {k: v[row : row + 1] if isinstance(v, Tensor) and v.ndim and len(v) == 2 else v for k, v in kwargs.items()}


def decoded(setting: Setting, case: Any, end: Tensor) -> Tensor:
    """The video `(F, 3, H, W)` of a last latent, by the pipeline's own decoding."""
    pipe = setting.pipe
    forward = pipe.transformer.forward
    answer: list[Any] = []

    def once(*args: Any, **kwargs: Any) -> Any:
        if not answer:
            answer.append(forward(*args, **kwargs))
        return answer[0]

    with replaced(pipe.transformer, "forward", once), replaced(pipe.scheduler, "step", lambda *_, **__: (end,)):
        return setting.generate(case)
