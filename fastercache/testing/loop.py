"""A sampling loop of one's own around a pipeline's denoiser, batched or with one call per branch.

The denoiser's arguments are captured from one call of the real pipeline; only its main input changes from step to
step. The loop is what laws 4 and 5 are checked on: it can call either way, and feed each branch something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastercache.attachment import attach
from fastercache.model.families import Guidance
from fastercache.model.layout import UNSLICED, flatten_output
from fastercache.model.rows import RowAxes, branch_rows, positional_names
from fastercache.policies.base import Policy
from fastercache.policies.errors import BranchUnknown
from fastercache.policies.vocabulary import COND, Branch
from fastercache.run.inspection import Inspection
from fastercache.session import Session

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Incompatible(Exception):
    """The branches' arguments cannot share one batched call."""


@dataclass(frozen=True)
class Captured:
    """One step's arguments of a denoiser, per branch."""

    denoiser: nn.Module
    calls: dict[Branch, Arguments]
    groups: tuple[tuple[Branch, ...], ...]  # the branches of each of the pipeline's calls of a step, in row order
    style: Guidance

    @property
    def order(self) -> tuple[Branch, ...]:
        return tuple(b for group in self.groups for b in group)

    @classmethod
    def of(cls, denoiser: nn.Module, told: Inspection, calls: Sequence[Arguments]) -> Captured:
        """From the calls of a run's first step, as the pipeline made them; `told` of a session in which it was made.

        Raises:
            Incompatible: where the branches of a call cannot be told apart.
        """
        by_branch: dict[Branch, Arguments] = {}
        for group, call in zip(told.groups, calls, strict=False):
            try:
                parts = [branch_rows(denoiser.forward, *call, [i], len(group)) for i in range(len(group))]
            except BranchUnknown as error:
                raise Incompatible(str(error)) from error
            by_branch.update(zip(group, parts, strict=True))
        return cls(denoiser, by_branch, told.groups, told.guidance)

    def attach(self, policy: Policy, style: Guidance | None = None) -> Session:
        """A session on the bare denoiser for runs of this loop in a style, by default the pipeline's own."""
        style = style or self.style
        if len(self.calls) <= 2:
            return attach(self.denoiser, policy, guidance=style)
        every = self.order if style == "batched" else (COND, *(b for b in self.order if b != COND))
        whole = style == "batched" and len(self.groups) == 1
        return attach(self.denoiser, policy, guidance="batched" if whole else "separate", branches=every)

    def run(
        self,
        session: Session,
        *,
        style: Guidance,
        steps: int = 6,
        drive: Branch | None = None,
        shift: dict[Branch, float] | None = None,
    ) -> dict[Branch, list[Tensor]]:
        """The outputs of every branch at every step.

        Args:
            style: `batched`, `separate` or `none`.
            drive: the branch whose output moves the latents; by default both, as guidance combines them.
            shift: what is added to each branch's input, so that the branches see different latents.
        """
        order = tuple(b for b in session.inspect().expected if b in self.calls)  # as the session expects them
        x = _stacked(main_input(*self.calls[COND])).clone()
        outputs: dict[Branch, list[Tensor]] = {branch: [] for branch in order}
        session.start([float(t) for t in torch.linspace(999, 0, steps).tolist()])
        with torch.no_grad():
            for _ in range(steps):
                fed = {b: _fed(self.calls[b], x + (shift or {}).get(b, 0.0)) for b in order}
                for branch, output in self._step(session, fed, order, style).items():
                    outputs[branch].append(output)
                now = {b: outputs[b][-1] for b in order}
                if drive is not None or len(order) == 1:
                    direction = now[drive or COND]
                else:
                    others = [now[b] for b in order if b != COND]
                    direction = now[COND] + sum((2.0 * (now[COND] - o) for o in others), torch.zeros(()))
                x = x - 0.1 * _like(direction, x)
        return outputs

    def _step(
        self, session: Session, fed: dict[Branch, Arguments], order: tuple[Branch, ...], style: Guidance
    ) -> dict[Branch, Tensor]:
        """One step's outputs: `batched` means as many branches in a call as the pipeline's own calls have."""
        groups: Sequence[tuple[Branch, ...]] = [(b,) for b in order]
        if style == "batched":
            groups = self.groups if len(self.groups[0]) > 1 else [order]
        outputs: dict[Branch, Tensor] = {}
        for group in groups:
            args, kwargs = joined_calls(self.denoiser.forward, [fed[b] for b in group])
            with session.branch(*group) if len(groups) > 1 and len(order) > 2 else nullcontext():
                output = _output(self.denoiser(*args, **kwargs))
            outputs.update(zip(group, output.chunk(len(group)), strict=True))
        return outputs


def main_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | list[Tensor]:
    """What a call is to denoise: a tensor of all rows, or a list with one tensor for each, as Z-Image is given."""
    named = [kwargs[key] for key in ("hidden_states", "sample", "x") if key in kwargs]
    for value in (*named, *args, *kwargs.values()):
        if isinstance(value, Tensor) or (isinstance(value, list) and value and isinstance(value[0], Tensor)):
            return value
    raise TypeError("the denoiser was called without any tensor")


def _stacked(value: Tensor | list[Tensor]) -> Tensor:
    return value if isinstance(value, Tensor) else torch.stack(value)


def _output(result: Any) -> Tensor:
    """The first thing a denoiser returned; a list of the rows as one tensor."""
    if not isinstance(result, Tensor):
        first = next(iter(result.values() if isinstance(result, dict) else result))
        if isinstance(first, list):
            return torch.stack(first)
    found = flatten_output(result)[0]
    if found is None:
        raise TypeError("the denoiser returned no tensor")
    return found.clone()


def _like(direction: Tensor, x: Tensor) -> Tensor:
    """A denoiser output brought to its input's shape: extra channels dropped, missing ones zero."""
    if direction.ndim != x.ndim:
        direction = direction.reshape(x.shape) if direction.numel() == x.numel() else direction.flatten()[: x.numel()]
        return direction.reshape(x.shape)
    common = tuple(slice(0, min(a, b)) for a, b in zip(direction.shape, x.shape, strict=True))
    result = torch.zeros_like(x)
    result[common] = direction[common].to(x.dtype)
    return result


def _fed(call: Arguments, x: Tensor) -> Arguments:
    """The same call with another main input."""
    args, kwargs = call
    old = main_input(args, kwargs)
    new = x if isinstance(old, Tensor) else list(x)
    return tuple(new if a is old else a for a in args), {k: new if v is old else v for k, v in kwargs.items()}


def joined_calls(forward: Any, calls: Sequence[Arguments]) -> Arguments:
    """One call of `forward` with the rows of several, in their order: the inverse of `branch_rows`.

    Raises:
        Incompatible: where the calls have other arguments, or of other shapes, or differ in one that has no rows.
    """
    args, kwargs = calls[0]
    if any(set(c[1]) != set(kwargs) for c in calls):
        raise Incompatible("the branches are called with other arguments, so that they cannot share a call")
    axes = RowAxes(args, kwargs)
    names = positional_names(forward, len(args))
    joined = tuple(_join([c[0][i] for c in calls], name, axes) for i, name in enumerate(names))
    return joined, {k: _join([c[1][k] for c in calls], k, axes) for k in kwargs}


def _join(values: list[Any], name: str, axes: RowAxes) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        axis = axes.axis(first, name)
        if any(v.shape != first.shape for v in values):
            raise Incompatible("the branches' arguments differ in shape, so that they cannot share a call")
        if axis is not None:
            return torch.cat(values, dim=axis)
        if any(not torch.equal(v, first) for v in values):
            raise Incompatible(f"the branches differ in {name}, which has no rows, so that they cannot share a call")
        return first
    if axes.one_per_row(first):
        return [row for value in values for row in value]
    if isinstance(first, (tuple, list)):
        tensors = all(isinstance(v, Tensor) for v in first)
        if len(first) == axes.batch and not tensors and name not in UNSLICED:
            return type(first)(item for value in values for item in value)
        items = [_join([v[i] for v in values], name, axes) for i in range(len(first))]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    if isinstance(first, dict):
        return {k: _join([x[k] for x in values], k, axes) for k in first}
    return first
