"""What a contest compares: the bare pipeline, fewer steps, policies, tuned configs and other packages' caches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

import fastercache as fc
from fastercache.experiments.bench.peers import Peer, Refused, counted, reason
from fastercache.tuner.evaluate import Evaluator
from fastercache.tuner.setting import Case, Setting, run, run_bare


@dataclass(frozen=True)
class FewerSteps:
    """The baseline a cache has to beat: the same solver with fewer steps and nothing cached."""

    steps: int

    @classmethod
    def within(cls, ratio: float, steps: int) -> FewerSteps:
        """As many of `steps` as cost at most `ratio` of all their FLOPs, but one at least."""
        return cls(max(1, math.floor(ratio * steps + 1e-9)))


Entry = fc.Policy | fc.TunedConfig | FewerSteps | Peer | None
"""None is the bare pipeline: no session is attached for it."""


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        video: `(F, 3, H, W)`.
        seconds: of the pipeline call; None where it was not timed.
        flops, flops_full: computed and uncached FLOPs of the denoiser; None where they were not counted.
        cache_bytes: peak cached bytes; None where another package keeps them.
    """

    video: Tensor
    seconds: float | None
    flops: int | None
    flops_full: int | None
    cache_bytes: int | None


def once(
    evaluator: Evaluator,
    entry: Entry,
    case: Case,
    allow: frozenset[str] = frozenset(),
    *,
    count: bool = True,
    timed: bool = True,
) -> Outcome:
    """Run one prompt under one entry; the bare pipeline's FLOPs are not counted.

    With fewer steps, the uncached FLOPs are those of the full number of steps, each costing what these cost on average.

    `allow`: which differences to what a tuned config was made for are accepted. `count`: whether a peer's FLOPs are
    counted, which takes a further run of it, since what it skips is decided while it runs. `timed`: whether a peer's
    seconds are wanted; if not, its only run is the one under the counter.

    Raises:
        FasterCacheError: where the entry cannot run on this pipeline.
    """
    evaluator.close()
    setting = evaluator.setting
    if entry is None:
        return Outcome(*run_bare(setting, case), 0, 0, 0)
    if isinstance(entry, Peer):
        return _peer(evaluator, entry, case, count=count, timed=timed)
    if isinstance(entry, FewerSteps):
        shorter = _cached(setting.calling(num_inference_steps=entry.steps), fc.NoCache(), case)
        steps = int(setting.call["num_inference_steps"])
        return replace(shorter, flops_full=(shorter.flops or 0) * steps // entry.steps)
    return _cached(setting, entry, case, allow)


def _cached(
    setting: Setting, policy: fc.Policy | fc.TunedConfig, case: Case, allow: frozenset[str] = frozenset()
) -> Outcome:
    video, trace, seconds = run(setting, policy, case, allow)
    return Outcome(video, seconds, sum(trace.flops), sum(trace.flops_full), trace.cached_bytes)


def _peer(evaluator: Evaluator, peer: Peer, case: Case, *, count: bool, timed: bool) -> Outcome:
    """The timed run, and where asked one under the flop counter."""
    found: tuple[Tensor, float | None] | None = None
    if timed:
        with _on_twin(evaluator.setting, peer) as twin:
            found = run_bare(twin, case)
        if not count:
            return Outcome(*found, None, None, None)
    full = sum(evaluator.cost_model(case).step_flops)
    evaluator.close()
    with _on_twin(evaluator.setting, peer) as twin, counted(twin.pipe) as calls:
        counted_video = twin.generate(case)
    return Outcome(*(found or (counted_video, None)), sum(calls), full, None)


@contextmanager
def _on_twin(setting: Setting, peer: Peer) -> Iterator[Setting]:
    """The setting on a twin of its pipeline under a peer. Raises Refused for whatever the peer raises."""
    with peer.applied(setting.pipe, setting.call) as pipe:
        try:
            yield setting.on(pipe)
        except fc.FasterCacheError:
            raise
        except Exception as error:  # a peer's hooks raise whatever they like in the middle of a run
            raise Refused(reason(error)) from error


def described(entry: Entry) -> dict[str, Any]:
    """An entry as JSON values; the bare pipeline is described as `no_cache`."""
    if isinstance(entry, Peer):
        return entry.described()
    if isinstance(entry, FewerSteps):
        return {"policy": fc.NoCache.name, "num_inference_steps": entry.steps}
    if entry is None:
        return {"policy": fc.NoCache.name}
    return fc.dump(entry if isinstance(entry, fc.Policy) else entry.policy)


def in_words(policy: dict[str, Any]) -> str:
    """A policy's name and what differs from its defaults."""
    usual = fc.dump(fc.policy_class(policy["policy"])())
    changed = [
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in policy.items()
        if usual.get(key) != value
    ]
    return f"{policy['policy']} with {', '.join(changed)}" if changed else f"{policy['policy']} as it is"
