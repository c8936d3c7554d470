"""What one run did at each site, branch and step, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastercache.policies.base import Predictor
from fastercache.policies.notebook import Framed
from fastercache.policies.schedule import Code, Schedule, Table
from fastercache.policies.vocabulary import Branch, Run, Site, Step


@dataclass(frozen=True, slots=True)
class Observation:
    """One site's value at one step in one branch, as `Session.watch` reports it.

    `value` holds this branch's rows: a module's output, the residual of a block or stack, the denoiser's output, or a
    branch's difference to the conditional output. `code` says whether it was computed or predicted.
    """

    site: Site
    step: Step
    branch: Branch
    value: Tensor
    code: Code
    run: Run


@dataclass(repr=False)
class Trace(Framed):
    """The record of one run; it grows while the run goes on, and `complete` says whether it reached its last step.

    Attributes:
        run: steps, branches and sites of the run.
        sites: the sites the policy claimed.
        cells: per site, per branch, one byte per step: a `Code`. Read them as an array through `codes`.
        predictors: per site, what stood in for it.
        policy: the policy in serialised form.
        flops: computed floating point operations of the denoiser, per step, as torch's flop counter counts them.
        flops_full: the same if nothing had been reused.
        cached_bytes: the most bytes that were cached at the end of any step.
        bytes_per_step: bytes cached at the end of each step.
        seconds: wall time from the first denoiser call to the end of the last step, FLOP counting excluded.
        counting_seconds: wall time spent counting FLOPs, which each session does once per input shape.
        reached: steps that ended.
        calls: denoiser calls made.
        latent: shape of the denoiser's main input without its batch axis; it follows resolution and frames.
    """

    run: Run
    sites: tuple[Site, ...]
    cells: list[list[bytearray]]
    predictors: tuple[Predictor, ...]
    policy: dict[str, Any]
    flops: list[int] = field(default_factory=list)
    flops_full: list[int] = field(default_factory=list)
    bytes_per_step: list[int] = field(default_factory=list)
    seconds: float = 0.0
    counting_seconds: float = 0.0
    complete: bool = False
    reached: int = 0
    calls: int = 0
    latent: tuple[int, ...] = ()

    def _facts(self) -> dict[str, object]:
        return {
            "policy": self.policy.get("policy"),
            "steps": self.steps_in_words,
            "reused": f"{self.share():.0%}" if self.sites else "0%",
            "speedup_flops": round(self.speedup_flops, 3),
            "cached_bytes": self.cached_bytes,
            "seconds": round(self.seconds, 2),
        }

    def rows(self) -> list[dict[str, object]]:
        """One row for each claimed site, branch and step: what was decided."""
        names = {int(code): code.name.lower() for code in Code}
        return [
            {
                "site": site.name,
                "kind": str(site.kind),
                "branch": branch,
                "step": step.index,
                "timestep": step.timestep,
                "decision": names[cells[step.index]],
            }
            for site, branches in zip(self.sites, self.cells, strict=True)
            for branch, cells in zip(self.run.branches, branches, strict=True)
            for step in self.run.steps
        ]

    @property
    def codes(self) -> NDArray[np.int8]:
        """Decisions as int8, shape (sites, branches, steps), values of `Code`."""
        shape = (len(self.sites), len(self.run.branches), self.run.count)
        if 0 in shape:
            return np.zeros(shape, dtype=np.int8)
        return np.array([[np.frombuffer(b, dtype=np.int8) for b in site] for site in self.cells]).reshape(shape)

    @property
    def cached_bytes(self) -> int:
        """The most bytes held at the end of any step."""
        return max(self.bytes_per_step, default=0)

    @property
    def total_flops(self) -> int:
        """Computed FLOPs of the whole run."""
        return sum(self.flops)

    @property
    def speedup_flops(self) -> float:
        """FLOPs without reuse over FLOPs computed; infinite if nothing was computed."""
        computed = self.total_flops
        return sum(self.flops_full) / computed if computed else float("inf") if self.flops_full else 1.0

    @property
    def steps_in_words(self) -> str:
        """How many steps ran: `50 steps`, or `20 of 50 steps` of a run that ended early."""
        return f"{self.run.count} steps" if self.complete else f"{self.reached} of {self.run.count} steps"

    @property
    def table(self) -> Table:
        """The decisions as a table, for `Schedule.of` and plots."""
        return Table(self.run, self.sites, self.codes, self.predictors)

    def schedule(self) -> Schedule:
        """The run frozen to an explicit schedule, which replays it bit for bit."""
        return Schedule.of(self.table)

    def share(self, code: Code = Code.REUSED) -> float:
        """Share of (site, branch, step) cells with this code."""
        return self.table.share(code)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the costs, the policy and the schedule's rows."""
        return {
            "policy": self.policy,
            "steps": self.run.count,
            "branches": list(self.run.branches),
            "speedup_flops": self.speedup_flops,
            "flops": self.total_flops,
            "flops_full": sum(self.flops_full),
            "cached_bytes": self.cached_bytes,
            "seconds": self.seconds,
            "complete": self.complete,
            "rows": [row.model_dump(mode="json") for row in self.schedule().rows],
        }
