"""Which decisions of a planned schedule cost most of the final error: predicted from the recording, and in truth.

A decision is to skip one stretch of steps. Let E be the mean squared error of the last latent under the plan. Two
questions have different answers:

- *What does a stretch do wrong by itself?* `alone`: the error of a run that skips this stretch and computes all others,
  with the weights fitted to that. `predicted` has it without a run.
- *What does computing it gain?* `without`: the error of the plan with this stretch computed as well, all weights as
  they are, E less which is its drop.

In both, stand-ins combine the outputs of the plan's own computed steps, whatever else is computed.

Neither need add to E. Each stretch's weights are fitted to where the cached run has got to and repair most of what
earlier ones did wrong, so the errors that the stretches make by themselves are together several times E. And weights
that repair an error do harm where it is not made any more: a drop can be negative. How the sums compare to E is part
of the answer (`repaired`, `explained`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

import fastercache as fc
from fastercache.analysis.metrics import metric_called
from fastercache.analysis.trajectory import Floats, Trajectory
from fastercache.policies.errors import InvalidPolicy, ScheduleMismatch
from fastercache.policies.predictors.fitted import Fitted
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.fitting import Memory, Sampler, SearchRun, beginning, fit, replay
from fastercache.tuner.planning.rehearsal import GROWTH


@dataclass(frozen=True)
class Decision:
    """A stretch of skipped steps: `first` to `last`, both inclusive, after computing step `after`."""

    after: int
    first: int
    last: int

    @property
    def steps(self) -> range:
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        steps = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{steps} after {self.after}"


def decisions(plan: fc.Planned) -> tuple[Decision, ...]:
    """The stretches that a plan skips, in order."""
    ends = [*plan.computed[1:], plan.steps]
    return tuple(Decision(s, s + 1, j - 1) for s, j in zip(plan.computed, ends, strict=True) if j > s + 1)


def weights_of(plan: fc.Planned, sampler: Sampler) -> Fitted:
    """The fitted weights of a plan.

    Raises:
        InvalidPolicy: if it skips nothing, or its stand-in is another one than fitted weights.
        ScheduleMismatch: if a stretch has no weights, or they combine more outputs than there are by then.
    """
    skipped = decisions(plan)
    if not skipped:
        raise InvalidPolicy("this plan computes every step, so no decision costs anything: plan with a higher speedup")
    if not isinstance(plan.stand_in, Fitted):
        raise InvalidPolicy(
            f"this plan's stand-in is `{plan.stand_in.name}`, which has no fitted weights: attribution needs a config "
            "that `fastercache plan` made"
        )
    stretches = plan.stand_in.stretches
    for decision in skipped:
        first = sampler.first_of(decision.after)
        past = sum(first <= step <= decision.after for step in plan.computed)
        serving = [stretch for stretch in stretches if stretch.start <= decision.first][-1:]
        serving += [stretch for stretch in stretches if decision.first < stretch.start <= decision.last]
        if not serving or any(s.after != decision.after or len(s.outputs) > past for s in serving):
            raise ScheduleMismatch(f"this plan has no weights for steps {decision}: plan it again")
    return plan.stand_in


def predicted(trajectory: Trajectory, sampler: Sampler, plan: fc.Planned) -> Floats:
    """What each stretch does wrong by itself, (D,), from the recording alone.

    That is its isolated damage (`damage`), which has the sampler's part, and the denoiser's as `rehearsal` has it: an
    error that nothing repairs grows by e^GROWTH over a run, so by e^(GROWTH (1 - j / n)) from the stretch's end j.
    """
    damage = Damage(
        trajectory,
        sampler.impulse,
        history=plan.stand_in.depth,
        latent=sampler.input is not None,
        starts=sampler.relations.starts,
    )
    skipped = decisions(plan)
    isolated = damage.by_stretch(plan.computed)[np.isin(plan.computed, [decision.after for decision in skipped])]
    left = np.array([1.0 - (decision.last + 1) / plan.steps for decision in skipped])
    found: Floats = isolated * np.exp(2.0 * GROWTH * left)
    return found


def shares(errors: Floats) -> Floats:
    """Errors as shares of what they are together; equal ones where there is no error."""
    total = float(errors.sum())
    return errors / total if total > 0.0 else np.full(len(errors), 1.0 / len(errors))


@dataclass(frozen=True)
class Truth:
    """What the D stretches of a plan do to P prompts.

    Attributes:
        whole: (P,) mean squared error of the last latent under the plan.
        alone: (D, P), skipping one stretch only, fitted to that. without: (D, P), the plan with one stretch computed.
        psnr: (P,) dB to the uncached video under the plan. psnr_without: (D, P).
        calls: denoiser calls made.
    """

    whole: Floats
    alone: Floats
    without: Floats
    psnr: Floats
    psnr_without: Floats
    calls: int

    @property
    def shares(self) -> Floats:
        """(D,) share of each stretch in what all do wrong by themselves."""
        return shares(self.alone.mean(axis=1))

    @property
    def repaired(self) -> float:
        """Share of what the stretches do wrong by themselves that is no longer there under the plan."""
        return 1.0 - float(self.whole.mean() / self.alone.mean(axis=1).sum())

    @property
    def drops(self) -> Floats:
        """(D,) share of the error that computing a stretch takes away; negative where it adds to it."""
        found: Floats = 1.0 - self.without.mean(axis=1) / self.whole.mean()
        return found

    @property
    def explained(self) -> float:
        """The drops together."""
        return float(self.drops.sum())

    @property
    def gains(self) -> Floats:
        """(D,) dB of the video that computing a stretch gains, a mean over prompts."""
        found: Floats = (self.psnr_without - self.psnr).mean(axis=1)
        return found


def price(plan: fc.Planned) -> int:
    """Steps that `truth` computes for each prompt."""
    total, last = len(plan.computed), True
    for decision in reversed(decisions(plan)):
        rest = plan.steps - 1 - decision.last
        total += len(decision.steps) + sum(step > decision.last for step in plan.computed)  # with it computed
        total += rest + (decision.first if last else 0)  # it alone, after the uncached run that the first of them makes
        last = False
    return total


def truth(
    pipe: Any,
    runs: Sequence[SearchRun],
    videos: Sequence[Tensor],
    sampler: Sampler,
    plan: fc.Planned,
    *,
    told: Callable[[str, int], None] = lambda doing, calls: None,
) -> Truth:
    """Run prompts under a plan, with each stretch computed as well, and with each stretch alone skipped.

    Runs share what they compute before they part.

    Args:
        runs: the prompts. videos: their uncached videos, (F, 3, H, W).
        told: progress: what is done next, and how many denoiser calls were made so far.

    Raises:
        InvalidPolicy, ScheduleMismatch: see `weights_of`.
    """
    fitted, skipped = weights_of(plan, sampler), decisions(plan)
    psnr, memory = metric_called("psnr"), Memory()
    errors, quality, calls = [], [], 0
    for decision in (None, *skipped):
        told("the plan as it is" if decision is None else f"computing {decision}", calls)
        exact = () if decision is None else decision.steps
        found = replay(
            pipe,
            runs,
            sampler,
            plan.computed,
            fitted.stretches,
            exact=exact,
            memory=memory,
            keep=decision is None,
            finish=True,
            variance=fitted.variance,
        )
        errors.append(found.errors)
        pairs = zip(found.results, videos, strict=True)
        quality.append([float(psnr.measured(video[None], reference[None], [""])[0]) for video, reference in pairs])
        calls += found.calls
    every = [step for decision in skipped for step in decision.steps]
    uncached = beginning(plan.computed, every, plan.steps)
    memory, alone = Memory(), []
    for decision in reversed(skipped):  # the last one first: its run computes what all others begin with
        told(f"skipping {decision} alone", calls)
        others = [step for step in every if step not in decision.steps]
        depth = plan.stand_in.depth
        run = fit(pipe, runs, sampler, plan.computed, history=depth, exact=others, memory=memory, finish=False)
        memory.only(uncached)
        alone.append(run.errors[-1])
        calls += run.calls
    told("done", calls)
    return Truth(
        errors[0], np.array(alone[::-1]), np.array(errors[1:]), np.array(quality[0]), np.array(quality[1:]), calls
    )


def rank_correlation(predicted: Floats, true: Floats) -> float:
    """Spearman's of predicted and true shares; NaN for fewer than three stretches, where it says nothing."""
    if len(predicted) < 3:
        return float("nan")
    return float(stats.spearmanr(predicted, true).statistic)


def rank_interval(predicted: Floats, true: Floats, draws: int = 1000) -> dict[str, float]:
    """Spearman's with its 95 % bootstrap interval: `spearman`, `low`, `high`; NaN where there are fewer than three.

    Draws of one plan alone have no rank.
    """
    if len(true) < 3:
        return dict.fromkeys(("spearman", "low", "high"), float("nan"))
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(true), (draws, len(true)))
    low, high = np.nanquantile([rank_correlation(predicted[one], true[one]) for one in chosen], [0.025, 0.975])
    return {"spearman": rank_correlation(predicted, true), "low": float(low), "high": float(high)}


def holding(found: Floats, part: float = 0.5) -> list[int]:
    """The fewest stretches, the costliest first, whose shares reach `part` of the sum of all; by index."""
    order = [int(i) for i in np.argsort(-found, kind="stable")]
    reached = np.cumsum(found[order])
    enough = np.flatnonzero(reached >= part * float(found.sum()) * (1.0 - 1e-9))
    return order[: int(enough[0]) + 1] if len(enough) else order
