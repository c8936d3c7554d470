"""What the steps of a plan take in seconds on this machine, and which plans are so many times as fast by the clock.

Computed and skipped steps take turns in a run, so that a machine's ups and downs hit both alike. A skipped step is not
free: the scheduler's step and the mix of kept outputs remain. Neither are the text encoder and the decoder, which every
call of the pipeline pays in full.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import fastercache as fc
from fastercache.model.hooks import MethodTap
from fastercache.policies.errors import BudgetNotMet, MeasurementError
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.run.writer import now
from fastercache.tuner.planning.room import HISTORY, made_use_of
from fastercache.tuner.setting import Case, Setting, run_under

RUNS = 2
"""Timed runs; one before them is not."""


@dataclass(frozen=True)
class Seconds:
    """What a call of the pipeline takes on this machine.

    Attributes:
        steps: of a call.
        computed, skipped: seconds of one step at which the denoiser is computed, or is not.
        rest: seconds of everything else in a call: text encoding, decoding.
    """

    steps: int
    computed: float
    skipped: float
    rest: float

    @classmethod
    def measured(cls, setting: Setting, case: Case, *, history: int = HISTORY) -> Seconds:
        """Time a case in which every second step is computed.

        Args:
            history: how many past outputs stand in for a skipped one, as in the plans that will be run.

        Raises:
            MeasurementError: for a call of fewer than 4 steps, or one without a scheduler to tell its steps apart.
        """
        scheduler = getattr(setting.pipe, "scheduler", None)
        if scheduler is None:
            raise MeasurementError("the pipeline has no scheduler, so its steps cannot be timed: plan by FLOPs")
        ends: list[float] = []
        stretches: dict[bool, list[float]] = {True: [], False: []}  # by whether the step is computed
        totals: list[float] = []
        with fc.attach(setting.pipe, fc.NoCache(sites="denoiser")) as session:
            steps = len(session.plan(**setting.arguments(case)).per_step)
            if steps < 4:
                raise MeasurementError(f"steps are timed in calls of at least 4, found {steps}: plan by FLOPs")
            made_use_of(session, partial(_every_second, steps, history), setting.arguments(case))
            tap = MethodTap(scheduler, "step", lambda result: ends.append(now()))
            try:
                for turn in range(1 + RUNS):
                    ends.clear()
                    _, _, seconds = run_under(session, setting, case)
                    if not turn:
                        continue
                    # Schedulers of a higher order are called several times for a step of the pipeline's.
                    each = len(ends) // steps
                    marks = ends[each - 1 :: each]
                    spans = [b - a for a, b in pairwise(marks)]  # the first step's start is unknown
                    for i, span in enumerate(spans, start=1):
                        stretches[i % 2 == 0].append(span)
                    totals.append(seconds - sum(spans))
            finally:
                tap.remove()
        computed, skipped = (statistics.median(stretches[kind]) for kind in (True, False))
        return cls(steps, computed, skipped, max(statistics.median(totals) - computed, 0.0))

    def of(self, computed: int) -> float:
        """Seconds of a call that computes so many steps."""
        return self.rest + computed * self.computed + (self.steps - computed) * self.skipped

    def speedup(self, computed: int) -> float:
        """How many times as fast as the uncached call."""
        return self.of(self.steps) / self.of(computed)

    def most(self, limit: float) -> int:
        """The largest number of computed steps with which a call takes at most `limit` seconds; 0 if there is none."""
        return max((count for count in range(1, self.steps + 1) if self.of(count) <= limit), default=0)

    def computed_for(self, speedup: float) -> int:
        """The largest number of computed steps with which a call is at least so many times as fast.

        Raises:
            BudgetNotMet: if not even one computed step is few enough.
        """
        count = self.most(self.of(self.steps) / speedup * (1.0 + 1e-9))
        if not count:
            raise BudgetNotMet(
                f"no plan is {speedup:g}x as fast by the clock here: at most {self.speedup(1):.3g}x, because "
                f"{self.words}"
            )
        return count

    @property
    def words(self) -> str:
        """`a computed step takes 68 ms here, a skipped one 1.6 ms, and the rest of a call 210 ms`."""
        computed, skipped, rest = (_shown(value) for value in (self.computed, self.skipped, self.rest))
        return f"a computed step takes {computed} here, a skipped one {skipped}, and the rest of a call {rest}"

    def payload(self) -> dict[str, Any]:
        return asdict(self)


def _every_second(steps: int, history: int, source: float) -> fc.Planned:
    """A plan that computes every second step, and mixes as many past outputs as there are, up to `history`."""
    computed = tuple(range(0, steps, 2))
    stretches = []
    for i in range(1, steps, 2):
        kept = min(history, (i + 1) // 2)
        stretches.append(Stretch(after=i - 1, start=i, outputs=(1.0 / kept,) * kept, input=source))
    return fc.Planned(steps=steps, computed=computed, stand_in=Fitted(stretches=tuple(stretches), variance=True))


def _shown(seconds: float) -> str:
    if seconds >= 1.0:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"
