"""What steps take in seconds on this machine: a table from which the seconds of any schedule are foreseen.

Computed steps and those that skip something take turns in a run, so that a machine's ups and downs hit all alike. A
skipped step is not free: the scheduler's step and the mix of kept outputs remain. Neither are the text encoder and the
decoder, which every call of the pipeline pays in full.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import fastercache as fc
from fastercache.model.hooks import MethodTap
from fastercache.policies.base import Hold
from fastercache.policies.errors import BudgetNotMet, FasterCacheError, MeasurementError
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.policies.predictors.frequency import GuidanceDelta
from fastercache.policies.schedule import Row, Schedule
from fastercache.policies.vocabulary import Kind, Run, Site
from fastercache.run.writer import now
from fastercache.tuner.planning.room import HISTORY, made_use_of
from fastercache.tuner.setting import Case, Setting, run_under

RUNS = 2
"""Timed runs, at least; one before them is not."""
SAMPLES = 3
"""How often each kind of step is timed, at least."""
COMPUTED, SKIPPED = "computed", str(Kind.DENOISER)
"""Steps that compute everything, and those at which the denoiser is not called."""


def kind_of(site: Site) -> str:
    """What a site is timed as: a module by its role (`spatial`, `ff`, ...), any other by its kind."""
    return str(site.kind if site.role is None else site.role)


@dataclass(frozen=True)
class Seconds:
    """What a call of the pipeline takes on one machine.

    Attributes:
        steps: of a call.
        computed, skipped: seconds of one step at which everything is computed, or the denoiser is not called.
        rest: seconds of everything else in a call: text encoding, decoding.
        kinds: seconds of a step at which all sites of a kind are reused, see `kind_of`; of `branch`, all branches but
            the conditional one.
        hardware: the machine, in words.
    """

    steps: int
    computed: float
    skipped: float
    rest: float
    kinds: Mapping[str, float] = field(default_factory=dict)
    hardware: str = ""

    @classmethod
    def measured(cls, setting: Setting, case: Case, *, history: int = HISTORY) -> Seconds:
        """Time a case in which every second step is computed, and a plan stands in for the others.

        Args:
            history: how many past outputs stand in for a skipped one, as in the plans that will be run.

        Raises:
            MeasurementError: for a call of fewer than 4 steps, or one without a scheduler to tell its steps apart.
        """
        _check(setting)
        with fc.attach(setting.pipe, fc.NoCache(sites="denoiser")) as session:
            steps = enough(len(session.plan(**setting.arguments(case)).per_step))
            made_use_of(session, partial(_every_second, steps, history), setting.arguments(case))
            label = [COMPUTED if i % 2 == 0 else SKIPPED for i in range(steps)]
            return cls._of(_timed(session, setting, case, [None] * (1 + RUNS), [label] * (1 + RUNS)), steps, setting)

    @classmethod
    def of_kinds(cls, setting: Setting, case: Case, run: Run, kinds: Sequence[str]) -> Seconds:
        """Time a case in which every second step is computed, and at the others the kinds of sites take turns at being
        reused; the denoiser is one of them.

        Args:
            run: of such a case. kinds: what is timed, see `kind_of`; the order is that of the turns.

        Raises:
            MeasurementError: as `measured`.
        """
        _check(setting)
        steps, between = enough(run.count), run.count // 2
        turns = list(dict.fromkeys([SKIPPED, *kinds]))
        labels = []
        timed, first = timed_runs(steps, kinds)
        for number in range(first + timed):
            label = [COMPUTED] * steps
            for place, i in enumerate(range(1, steps, 2)):
                label[i] = turns[(number * between + place) % len(turns)]
            labels.append(label)
        with fc.attach(setting.pipe, fc.NoCache()) as session:
            schedules = [taking_turns(run, label) for label in labels]
            return cls._of(_timed(session, setting, case, schedules, labels, first), steps, setting)

    @classmethod
    def _of(cls, timed: tuple[Mapping[str, list[float]], list[float]], steps: int, setting: Setting) -> Seconds:
        stretches, totals = timed
        found = {kind: statistics.median(spans) for kind, spans in stretches.items()}
        computed, skipped = found.pop(COMPUTED), found.pop(SKIPPED)
        rest = max(statistics.median(totals) - computed, 0.0)
        return cls(steps, computed, skipped, rest, found, setting.hardware)

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
        return self.told("here")

    def told(self, where: str) -> str:
        """The same of a machine elsewhere, and of each kind of site that was timed."""
        computed, skipped, rest = (_shown(value) for value in (self.computed, self.skipped, self.rest))
        each = ", of ".join(f"{kind} {_shown(value)}" for kind, value in self.kinds.items())
        kinds = f" (one that reuses all of {each})" if each else ""
        return (
            f"a computed step takes {computed} {where}, a skipped one {skipped}{kinds}, and the rest of a call {rest}"
        )

    def payload(self) -> dict[str, Any]:
        """As JSON values; `Seconds(**payload)` is the same table."""
        return asdict(self)


def timed_runs(steps: int, kinds: Sequence[str]) -> tuple[int, int]:
    """How many runs time so many kinds of sites, see `Seconds.of_kinds`; and how many, before them, do each for the
    first time, which takes longer because FLOPs are then counted."""
    turns, between = len({SKIPPED, *kinds}), steps // 2
    return max(RUNS, math.ceil(SAMPLES * turns / between)), math.ceil(turns / between)


def timeable(setting: Setting, case: Case) -> None:
    """Raises MeasurementError, before any run, for a call whose steps cannot be timed; see `Seconds.measured`."""
    _check(setting)
    with fc.attach(setting.pipe, fc.NoCache(sites="denoiser")) as session:
        enough(len(session.plan(**setting.arguments(case)).per_step))


def kinds_reused(policies: Iterable[fc.Policy], run: Run) -> list[str]:
    """The kinds of sites, see `kind_of`, that any of these policies may reuse in a run."""
    found: list[str] = []
    for policy in policies:
        try:
            found += map(kind_of, policy.claims(run.sites))
        except FasterCacheError:  # nothing in this model that it could reuse
            continue
    here = {kind_of(site) for site in run.sites if site.kind is not Kind.BRANCH or len(run.branches) > 1}
    return [kind for kind in dict.fromkeys(found) if kind in here]


def taking_turns(run: Run, label: Sequence[str]) -> Schedule:
    """The schedule that reuses at each step all sites of the kind that its label names.

    Each holds its value; the difference of a branch is split into bands as CFG-Cache does, which is not free.
    """
    named: dict[str, list[str]] = {}
    for site in run.sites:
        named.setdefault(kind_of(site), []).append(site.name)
    rows = []
    for kind in dict.fromkeys(label):
        if kind != COMPUTED:
            letters = "".join("R" if one == kind else "C" for one in label)
            stand_in = GuidanceDelta() if kind == Kind.BRANCH else Hold()
            rows.append(Row(sites="|".join(named[kind]), steps=letters, predictor=stand_in))
    return Schedule(rows=tuple(rows))


def _check(setting: Setting) -> None:
    """Raises MeasurementError where steps cannot be told apart."""
    if getattr(setting.pipe, "scheduler", None) is None:
        raise MeasurementError("the pipeline has no scheduler, so its steps cannot be timed: go by FLOPs")


def enough(steps: int) -> int:
    """The same number. Raises MeasurementError for so few steps that they cannot be timed."""
    if steps < 4:
        raise MeasurementError(f"steps are timed in calls of at least 4, found {steps}: go by FLOPs")
    return steps


def _timed(
    session: fc.Session,
    setting: Setting,
    case: Case,
    policies: Sequence[fc.Policy | None],
    labels: Sequence[Sequence[str]],
    first: int = 1,
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of single steps by their label, and of each call without the spans between its steps' ends.

    `policies`: what each run is made under; None for the session's own. `first`: so many runs are not timed.
    """
    stretches: dict[str, list[float]] = {}
    totals: list[float] = []
    ends: list[float] = []
    tap = MethodTap(setting.pipe.scheduler, "step", lambda result: ends.append(now()))
    try:
        for turn, (policy, label) in enumerate(zip(policies, labels, strict=True)):
            if policy is not None:
                session.use(policy)
            ends.clear()
            _, _, seconds = run_under(session, setting, case)
            if turn < first:
                continue
            # Schedulers of a higher order are called several times for a step of the pipeline's.
            each = len(ends) // len(label)
            marks = ends[each - 1 :: each]
            spans = [b - a for a, b in pairwise(marks)]  # the first step's start is unknown
            for i, span in enumerate(spans, start=1):
                stretches.setdefault(label[i], []).append(span)
            totals.append(seconds - sum(spans))
    finally:
        tap.remove()
    return stretches, totals


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
