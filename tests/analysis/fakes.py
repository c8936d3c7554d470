"""A session that emits chosen values, so that a recording's statistics can be known in advance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastercache.policies.methods.static_interval import NoCache
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Role, Run, Site, select
from fastercache.run.trace import Observation

SITES = (
    Site("blocks.0.attn1", Kind.MODULE, Role.SPATIAL, 0, (0, 1)),
    Site("blocks.1.attn1", Kind.MODULE, Role.TEMPORAL, 1, (1, 2)),
    Site("denoiser", Kind.DENOISER),
    Site("branch", Kind.BRANCH),
)


class FakeWatch:
    closed = False

    def close(self) -> None:
        self.closed = True


class FakeSession:
    """Emits `values(site, branch, step)` for every step, as a batched pipeline would."""

    def __init__(self, values: Callable[[Site, str, int], Tensor]) -> None:
        self.sites, self.pipe, self.policy, self.values = SITES, None, NoCache(), values
        self.call_arguments = None
        self.watched: list[tuple[tuple[Site, ...], Callable[[Observation], None]]] = []
        self.closed: list[FakeWatch] = []

    def watch(self, query: str, callback: Callable[[Observation], None]) -> FakeWatch:
        self.watched.append((select(query, self.sites), callback))
        self.closed.append(FakeWatch())
        return self.closed[-1]

    def go(self, steps: int, stop: int | None = None, skip: tuple[int, ...] = (), code: Code = Code.COMPUTED) -> None:
        """One run; `stop` interrupts it before that step, at the steps in `skip` module sites are not reached."""
        run = Run.of(steps, sites=self.sites)
        for step in run.steps[:stop]:
            for sites, callback in self.watched:
                for site in sites:
                    if site.kind is Kind.MODULE and step.index in skip:
                        continue
                    for branch in (UNCOND, COND) if site.kind is not Kind.BRANCH else (UNCOND,):
                        value = self.values(site, branch, step.index)
                        callback(Observation(site, step, branch, value, code, run))


def drifting(numel: int = 6000, seed: int = 0, **kwargs: Any) -> Callable[[Site, str, int], Tensor]:
    """Values that drift smoothly, differently by site and branch; the denoiser's are (1, 4, 2, 8, 8)."""

    def values(site: Site, branch: str, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash_of(site.name, branch) + seed)
        shape = (1, 4, 2, 8, 8) if site.kind in (Kind.DENOISER, Kind.BRANCH) else (numel,)
        a, b, c = torch.randn((3, *shape), generator=generator)
        u = step / 10
        return (a + u * b + 0.3 * u**2 * c).to(**kwargs) if kwargs else a + u * b + 0.3 * u**2 * c

    return values


def hash_of(*words: str) -> int:
    """A number that does not change between processes."""
    return sum((i + 1) * ord(letter) for i, letter in enumerate("|".join(words))) % 100003
