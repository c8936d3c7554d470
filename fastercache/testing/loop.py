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
from fastercache.model.branches import BranchFinder
from fastercache.model.families import Guidance
from fastercache.model.layout import UNSLICED, flatten_output, leading_tensor, take_rows
from fastercache.policies.base import Policy
from fastercache.policies.vocabulary import COND, Branch
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
    def of(cls, denoiser: nn.Module, finder: BranchFinder, calls: Sequence[Arguments]) -> Captured:
        """From the calls of a run's first step, as the pipeline made them; `finder` knows that run's branches."""
        by_branch: dict[Branch, Arguments] = {}
        for group, call in zip(finder.groups, calls, strict=False):
            lead = leading_tensor(*call).shape[0]
            by_branch.update({b: _rows(call, lead, i, len(group)) for i, b in enumerate(group)})
        return cls(denoiser, by_branch, finder.groups, finder.guidance)

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
        order = tuple(b for b in session._denoisers[0].branches.order if b in self.calls)  # as the session expects them
        x = leading_tensor(*self.calls[COND]).clone()
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
            args, kwargs = _joined([fed[b] for b in group])
            with session.branch(*group) if len(groups) > 1 and len(order) > 2 else nullcontext():
                output = _output(self.denoiser(*args, **kwargs))
            outputs.update(zip(group, output.chunk(len(group)), strict=True))
        return outputs


def _output(result: Any) -> Tensor:
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
    old = leading_tensor(args, kwargs)
    return tuple(x if a is old else a for a in args), {k: x if v is old else v for k, v in kwargs.items()}


def _rows(call: Arguments, lead: int, part: int, of: int) -> Arguments:
    args, kwargs = call
    return take_rows(args, lead, [part], of), take_rows(kwargs, lead, [part], of)


def _joined(calls: Sequence[Arguments]) -> Arguments:
    lead = leading_tensor(*calls[0]).shape[0]
    if any(set(c[1]) != set(calls[0][1]) for c in calls):
        raise Incompatible("the branches are called with other arguments, so that they cannot share a call")
    args = tuple(_join([c[0][i] for c in calls], lead) for i in range(len(calls[0][0])))
    kwargs = {k: v if k in UNSLICED else _join([c[1][k] for c in calls], lead) for k, v in calls[0][1].items()}
    return args, kwargs


def _join(values: list[Any], lead: int) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        if first.ndim == 0 or first.shape[0] != lead:
            return first
        if any(v.shape[1:] != first.shape[1:] for v in values):
            raise Incompatible("the branches' arguments differ in shape, so that they cannot share a call")
        return torch.cat(values)
    if isinstance(first, (tuple, list)) and len(first) == lead and not all(isinstance(v, Tensor) for v in first):
        return type(first)(item for value in values for item in value)
    if isinstance(first, (tuple, list)):
        return type(first)(_join([v[i] for v in values], lead) for i in range(len(first)))
    if isinstance(first, dict):
        return {k: v if k in UNSLICED else _join([x[k] for x in values], lead) for k, v in first.items()}
    return first
