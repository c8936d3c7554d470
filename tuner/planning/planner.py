"""The planner: from recorded search prompts to verified plans, within a number of generations.

`Planner` holds what is known: the recording, what was predicted from it, and the plans that were run. `for_speedup` and
`for_budget` add what they need to it; `within` answers budgets. Each may be asked several times, and has the effort's
generations every time. Nothing depends on the machine's speed: searches are bounded by denoiser calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastercache.analysis.metrics import metric_called
from fastercache.policies.errors import BudgetNotMet
from fastercache.policies.wording import counted
from fastercache.tuner.budget import Budget
from fastercache.tuner.planning.fitting import FittedRuns, Sampler, SearchRun, Steps, fit, replay
from fastercache.tuner.planning.fixed import better_of
from fastercache.tuner.planning.front import Front, Point
from fastercache.tuner.planning.material import Material, Told
from fastercache.tuner.planning.paths import Path, plans
from fastercache.tuner.planning.portfolio import portfolio
from fastercache.tuner.planning.referee import Referee
from fastercache.tuner.planning.refine import refine
from fastercache.tuner.planning.rehearsal import Foresight
from fastercache.tuner.planning.room import HISTORY
from fastercache.tuner.planning.scale import Scale
from fastercache.tuner.planning.search import Judged, search
from fastercache.tuner.planning.within import Within
from fastercache.tuner.setting import Setting


@dataclass(frozen=True)
class Effort:
    """How much a plan may cost.

    Attributes:
        recorded: search prompts. generations: denoiser calls in all, in units of an uncached generation.
        groups: prompts that judge plans, group by group; none to take the first plan as it is.
        fitted: how many of the recorded prompts the weights are fitted on; the others decide whether all weights are
            refined together.
    """

    recorded: int
    generations: float
    groups: tuple[tuple[int, ...], ...] = ()
    fitted: int | None = None

    def price(self, recorded: int, questions: int = 1) -> float:
        """Generations that so many plans take at most: the recording is paid once."""
        return recorded + questions * (self.generations - recorded)


EFFORTS = (
    Effort(2, 10.0),
    Effort(8, 24.0, ((0, 1), (2, 3, 4))),
    Effort(12, 160.0, ((0, 1), (2, 3, 4), (5, 6, 7)), fitted=8),
)
"""Effort 0: plan, fit, check. 1: the best of a portfolio and of moves from it. 2: more moves, then Gauss-Newton."""

REFINING = 0.6
"""Most of the generations that may go into refining weights."""


@dataclass
class Known:
    """What is known of plans with one number of computed steps.

    Attributes:
        plan: the best one so far.
        level: -10 log10 of its mean squared error on the latest prompts that judged it, dB; None before it was run.
        fitted: its fit on all search prompts; quality: measured then, per metric and prompt.
    """

    plan: Steps
    level: float | None = None
    fitted: FittedRuns | None = None
    quality: dict[str, list[float]] = field(default_factory=dict)


def computed_for(steps: int, speedup: float, fewest: int = 1) -> int:
    """The most computed steps with which a run is at least so many times as fast, in denoiser calls.

    Raises:
        BudgetNotMet: if they are fewer than the fewest that a plan can have.
    """
    count = math.floor(steps / speedup + 1e-9)
    if count < fewest:
        raise BudgetNotMet(
            f"no plan of {counted(steps, 'step')} is {speedup:g}x as fast: at most {steps / fewest:.3g}x; ask for less"
        )
    return count


class Planner:
    """Plans for one pipeline.

    Args:
        setting: the pipeline and its call. material: the recorded search prompts.
        effort: 0, 1 or 2. metrics: what is measured on verified plans, `psnr` among them.
        history: K, how many computed outputs a stand-in combines.
        judged: told every plan that was run, with the number of the groups' prompts. known: plans run before, by an
            interrupted call with the same material and effort: they are not run again.
        told: progress.
    """

    def __init__(
        self,
        setting: Setting,
        material: Material,
        *,
        effort: int = 1,
        metrics: Sequence[str] = ("psnr", "ssim"),
        history: int = HISTORY,
        judged: Callable[[Judged], None] = lambda one: None,
        known: Mapping[Steps, Judged] | None = None,
        told: Told = lambda doing, spent: None,
    ) -> None:
        self.setting, self.material, self.effort = setting, material, EFFORTS[effort]
        self.metrics = tuple(dict.fromkeys(("psnr", *metrics)))
        self.history = history
        self.spent = material.spent
        self._until = self.effort.generations
        self.known: dict[int, Known] = {}
        self._tell, self._judged, self._stored = told, judged, dict(known or {})
        self.sampler: Sampler = material.sampler
        self.foresight = Foresight.recorded(material.profile.trajectory, self.sampler, history)
        self.damage = self.foresight.damage
        self._portfolios: dict[int, list[Steps]] = {}
        self._levels: dict[Steps, float] = {}
        self.predicted: dict[int, Path] = {
            count: paths[0] for count, paths in plans(self.damage, best=1).items() if paths
        }

    def _portfolio(self, count: int) -> list[Steps]:
        """Plans with `count` computed steps that are worth running, the most promising first."""
        if count not in self._portfolios:
            self.told(f"{count} computed steps: planning")
            self._portfolios[count] = portfolio(self.foresight, count) or [self.predicted[count].computed]
        return self._portfolios[count]

    def _known(self, count: int) -> Known:
        """The best plan so far; before any was run, the most promising one."""
        if count not in self.known:
            self.known[count] = Known(self._portfolio(count)[0])
        return self.known[count]

    @property
    def steps(self) -> int:
        """Steps of an uncached run."""
        return self.sampler.steps

    @property
    def prompts(self) -> int:
        """How many search prompts were recorded."""
        return len(self.material.cases)

    # -- the two questions -------------------------------------------------------------------------------------------
    def _asked(self) -> None:
        """A question begins: it has the effort's generations but for the recording, whatever others have taken."""
        self._until = self.spent + self.effort.generations - self.material.spent

    def for_speedup(self, speedup: float) -> Point:
        """The best plan that is at least so many times as fast, in denoiser calls. Raises BudgetNotMet."""
        count = computed_for(self.steps, speedup, min(self.predicted))
        self._asked()
        if count < self.steps:
            self.search(count, self.left - self.cost(count))
            self.verify(count)
        return self.point(count)

    def for_budget(self, budget: Budget, margin: float | None = None) -> Point:
        """The cheapest plan that keeps a budget, within the effort's generations.

        Args:
            margin: dB that the search prompts must exceed the budget by; by default what the spread over them makes
                necessary for the mean of unseen prompts, see `within.margin_of`.

        Raises:
            BudgetNotMet: if only computing every step keeps it, or the generations ran out before a plan did.
        """
        self._asked()
        return Within(self, budget, margin).cheapest()

    # -- what is known -----------------------------------------------------------------------------------------------
    @property
    def verified(self) -> dict[int, Known]:
        """Plans that were fitted on all search prompts, by their number of computed steps."""
        return {count: known for count, known in sorted(self.known.items()) if known.quality}

    def point(self, count: int) -> Point:
        """What is known of `count` computed steps."""
        known = self.verified.get(count)
        plan = known.plan if known else self.predicted[count].computed
        return Point(
            computed=plan,
            predicted_psnr=self._psnr(plan, self.verified),
            quality={name: tuple(values) for name, values in known.quality.items()} if known else {},
            predictor=known.fitted.predictor if known and known.fitted else None,
        )

    def front(self) -> Front:
        """Everything known so far."""
        info = self.material.profile.info
        return Front(
            model=info.model,
            scheduler=info.scheduler,
            guidance_scale=info.guidance_scale,
            steps=self.steps,
            prompts=self.prompts,
            points=tuple(self.point(count) for count in sorted(self.predicted)),
            prediction_error=self._prediction_error(self.verified),
            generations=self.spent,
        )

    def _psnr(self, plan: Steps, verified: Mapping[int, Known]) -> float | None:
        """Predicted PSNR, dB: what the recording foresees, on the scale of the verified plans."""
        if not verified or len(plan) == self.steps:
            return None
        anchors = [(self.foreseen(k.plan), float(np.mean(k.quality["psnr"]))) for k in verified.values()]
        return min(Scale(anchors)(self.foreseen(plan)), 100.0)

    def _prediction_error(self, verified: Mapping[int, Known]) -> float | None:
        if len(verified) < 2:
            return None
        misses = []
        for count, known in verified.items():
            predicted = self._psnr(known.plan, {c: k for c, k in verified.items() if c != count})
            assert predicted is not None
            misses.append(predicted - float(np.mean(known.quality["psnr"])))
        return float(np.sqrt(np.mean(np.square(misses))))

    def foreseen(self, plan: Steps) -> float:
        """-10 log10 of the damage that the recording foresees, dB."""
        if plan not in self._levels:
            self._levels[plan] = -10.0 * math.log10(max(self.foresight.of(plan), 1e-14))
        return self._levels[plan]

    def level(self, count: int) -> float:
        """The foreseen level of what is known of `count` computed steps, dB."""
        known = self.known.get(count)
        return self.foreseen(known.plan if known else self.predicted[count].computed)

    @property
    def left(self) -> float:
        """Generations that may still be spent on the present question."""
        return self._until - self.spent

    def cost(self, count: int) -> float:
        """Generations that fitting a plan on all search prompts takes, and refining it."""
        cost = self.prompts * count / self.steps
        return cost + self._refining(count)

    def _refining(self, count: int) -> float:
        """Generations that refining all weights takes; 0 where it is left out, because it would take most of them."""
        if self.effort.fitted is None or not self.sampler.held:
            return 0.0
        varied = (self.history + 1) * count * (count - 1) / 2.0
        cost = (self.effort.fitted * varied + 6.0 * self.prompts * count) / self.steps
        return cost if cost <= REFINING * self.effort.generations else 0.0

    def told(self, doing: str) -> None:
        """Tell what is done, and the generations spent."""
        self._tell(doing, self.spent)

    # -- running plans -----------------------------------------------------------------------------------------------
    def search(self, count: int, generations: float) -> None:
        """The best plan with `count` computed steps that `generations` allow; a verified one is not searched again."""
        if count in self.verified:
            return
        if not self.effort.groups or generations <= 0.0:
            self._known(count)
            return
        groups = [[i for i in group if i < self.prompts] for group in self.effort.groups]
        referee = Referee(self.setting.pipe, self.material.runs, self.sampler, [g for g in groups if g], self.history)
        options = self._portfolio(count)
        before = self.spent

        def tick(one: Judged) -> None:
            self.spent += one.spent
            self._judged(one)
            self.told(f"{count} computed steps, plan {len(found) + 1}")
            found.append(one)

        found: list[Judged] = []
        state = search(
            options,
            referee,
            self.foresight.of,
            self.steps,
            generations,
            prompts=sum(map(len, groups)),
            tick=tick,
            known=self._stored,
            fixed=self.sampler.relations.starts,
        )
        self.spent = before + state.spent
        if not state.ranked():  # not one plan fitted into what is left
            self._known(count)
            return
        best = state.best
        self.known[count] = Known(best.computed, best.decibels)

    def verify(self, count: int, keep: float = 0.0) -> None:
        """Fit the plan on all search prompts and measure what comes out. `keep`: generations not to be touched."""
        known = self._known(count)
        if known.quality:
            return
        self.told(f"{count} computed steps: fitting on {counted(self.prompts, 'prompt')}")
        self._fit(known, range(self.prompts), keep)

    def look(self, count: int) -> Known:
        """The most promising plan, fitted and measured on two prompts; not taken for the best one."""
        look = Known(self._portfolio(count)[0])
        self.told(f"{count} computed steps: a first look")
        self._fit(look, range(min(2, self.prompts)), rivals=False)
        return look

    def _fit(self, known: Known, prompts: Sequence[int], keep: float = 0.0, rivals: bool = True) -> None:
        runs = [self.material.runs[i] for i in prompts]
        fitted = runs[: self.effort.fitted or len(runs)]
        found = fit(self.setting.pipe, fitted, self.sampler, known.plan, history=self.history)
        self._pay(found.calls)
        if rivals:
            left = self.left - keep - self.cost(len(known.plan)) * (len(fitted) < len(runs))
            best = better_of(
                self.setting.pipe,
                fitted,
                self.sampler,
                self.material.profile.trajectory,
                found,
                history=self.history,
                most=left * self.steps * self.sampler.relations.calls,
            )
            self._pay(best.calls - found.calls)
            found = best
        if len(fitted) < len(runs):
            self._refine(found, fitted, runs[len(fitted) :])
            again = replay(self.setting.pipe, runs, self.sampler, known.plan, found.stretches, finish=True)
            self._pay(again.calls)
            found.results, found.errors = again.results, [*found.errors[:-1], again.errors]
        known.fitted = found
        known.level = float(np.mean(-10.0 * np.log10(found.errors[-1] + 1e-14)))
        known.quality = {name: [] for name in self.metrics}
        for video, i in zip(found.results, prompts, strict=True):
            for name in self.metrics:
                value = metric_called(name).measured(
                    video[None], self.material.videos[i][None], [self.material.cases[i].prompt]
                )
                known.quality[name].append(float(value[0]))

    def _refine(self, found: FittedRuns, runs: Sequence[SearchRun], others: Sequence[SearchRun]) -> None:
        """All weights together, where the sampler is linear; the other prompts decide."""
        count = len(found.computed)
        if not self._refining(count) or not found.stretches:
            return

        def told(done: int, total: int) -> None:
            self.told(f"{count} computed steps: refining weight {done + 1} of {total}")

        better = refine(self.setting.pipe, runs, others, self.sampler, found.computed, found.stretches, told=told)
        self._pay(better.calls)
        found.stretches = better.stretches

    def _pay(self, calls: int) -> None:
        self.spent += calls / (self.steps * self.sampler.relations.calls)
