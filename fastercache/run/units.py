"""The runtime of one site: decides, computes or stands in, keeps what later steps read, tells its watchers.

A unit handles calls of the modules its site is made of. The branches of a call are given by `Call.branches`, in row
order; a unit may compute some of them and predict others within one call. What a site's value is, and how a call yields
it, is said by the kinds of units: `module_unit`, `stack_unit`, and `assembly` for the denoiser and branch sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import Branch, Site, Step
from fastercache.run.calls import Call, RunState, SitePlan, Watcher
from fastercache.run.rows import Rows, Streams
from fastercache.run.signals import Jury, Source, signal_value
from fastercache.run.store import History
from fastercache.run.trace import Observation


@dataclass(frozen=True)
class Duty:
    """What is to be done at one site in one run.

    Attributes:
        history: what is kept of the site and stands in for it; None where it is only watched.
        plan: when, for a static policy. jury: who is asked, for a dynamic one.
        watchers: who is told every value.
        policy: name of the policy, for messages.
    """

    history: History | None = None
    plan: SitePlan | None = None
    jury: Jury[Any] | None = None
    watchers: tuple[Watcher, ...] = ()
    policy: str = ""


class Unit:
    """Decisions and history of one site in one run."""

    def __init__(self, site: Site, path: str, duty: Duty, state: RunState) -> None:
        self.site, self.path, self.policy, self.state = site, path, duty.policy, state
        self.history, self.plan, self.watchers = duty.history, duty.plan, duty.watchers
        self.jury = duty.jury
        self.rows = [bytearray([Code.UNREACHED]) * state.run.count for _ in state.run.branches]
        self._index = {branch: i for i, branch in enumerate(state.run.branches)}
        self.template: Any = None
        self.clones = False  # a block changed the returned tensor in place: keep copies

    # -- a run -------------------------------------------------------------------------------------------------------
    def forget(self) -> None:
        """Drop every value and the policy's state."""
        self.jury = None
        if self.history is not None:
            self.history.clear()

    def idle(self, call: Call) -> bool:
        """Whether a static plan computes here, keeps nothing and nobody watches: the module needs no handler."""
        if self.watchers:
            return False
        if self.plan is None:
            return self.history is None
        i, busy = call.step.index, self.plan.busy
        return not any(busy[self._index[b]][i] for b in call.branches)

    @property
    def quiet(self) -> bool:
        """Whether it is idle at every call of the run."""
        return not self.watchers and self.plan is not None and self.plan.quiet

    def position(self, branch: Branch) -> int:
        """The branch's place in the run's order."""
        return self._index[branch]

    def reuses(self, branch: Branch, step: Step) -> bool:
        """What was noted for a branch at a step of this run."""
        return self.rows[self._index[branch]][step.index] == Code.REUSED

    def may_reuse(self, index: int) -> bool:
        """Whether some branch is reused at step `index`, as a static plan knows; a dynamic policy may at any step."""
        if self.history is None or index >= self.state.run.count:
            return False
        return self.plan is None or any(reused[index] for reused in self.plan.reused)

    def mark(self, step: Step, branches: Sequence[Branch]) -> None:
        """Note that these branches were computed and nothing of them is kept."""
        for branch in branches:
            self.rows[self._index[branch]][step.index] = Code.COMPUTED

    def release(self, index: int) -> None:
        """Drop what only step `index` needed, and values that no later step reads (a static plan knows those)."""
        if self.plan is not None and self.history is not None:
            last = self.plan.last_read
            self.history.release(lambda step, branch: last[self._index[branch]][step] <= index)

    # -- one call ----------------------------------------------------------------------------------------------------
    def decide(self, call: Call, source: Source) -> tuple[Branch, ...]:
        """The branches of this call that are reused."""
        if self.history is None:
            return ()
        if self.plan is not None:
            i = call.step.index
            wanted = tuple(b for b in call.branches if self.plan.reused[self._index[b]][i])
        else:
            assert self.jury is not None
            wanted = self._asked(call, source)
        return tuple(b for b in wanted if self.history.has(b))

    def _asked(self, call: Call, source: Source) -> tuple[Branch, ...]:
        """What a dynamic policy says of the branches for which no outer site stands in."""
        assert self.jury is not None
        branches = call.reached(call.branches)
        if branches == call.branches:
            return self.jury.ask(call.step, branches, source)
        rows = Rows(call.branches)
        return self.jury.ask(call.step, branches, lambda wanted: rows.of(source(wanted), branches)) if branches else ()

    def seen(self, source: Source) -> Tensor | None:
        """What the predictor needs of the present call, for all of its branches."""
        needs = self.history.predictor.needs if self.history is not None else None
        return None if needs is None else needs.value(source)

    def keep(self, call: Call, branches: tuple[Branch, ...], streams: Streams, seen: Tensor | None = None) -> None:
        """Note computed branches, whose rows `streams` holds in this order, and store what a later step reads.

        `seen`: what the predictor needs, for all branches of the call.
        """
        i, reached, rows = call.step.index, call.reached(branches), Rows(branches)
        self.mark(call.step, reached)
        if self.history is None or not reached:
            return
        if self.jury is not None:
            value = next((s for s in streams if s is not None), None)
            self.jury.teach(call.step, reached, None if value is None else rows.of(value, reached))
        wanted = reached
        if self.plan is not None:
            wanted = tuple(b for b in reached if i in self.plan.last_read[self._index[b]])
        if not wanted:
            return
        own = wanted == branches and not self.clones
        self.history.add(call.step, wanted, rows.of_streams(streams, wanted), own=own, seen=_rows(call, seen, wanted))

    def predict(self, call: Call, branches: tuple[Branch, ...], seen: Tensor | None = None) -> Streams:
        """Stand-ins for some branches. `seen`: what the predictor needs, for all branches of the call."""
        assert self.history is not None
        for branch in branches:
            self.rows[self._index[branch]][call.step.index] = Code.REUSED
        streams = self.history.predict(call.step, branches, _rows(call, seen, branches))
        return [s.clone() if s is not None and self.clones else s for s in streams]

    def source(self, call: Call, entry: Tensor | None = None) -> Source:
        """Where this site's signals come from; `entry` is the input of a run of blocks."""
        return lambda wanted: signal_value(wanted, self.site, call.input, call.sighted, entry)

    def tell(self, call: Call, value: Tensor | None) -> None:
        """Report a site's value, rows ordered as the call's branches, to the watchers."""
        if value is None or not self.watchers:
            return
        for branch, part in zip(call.branches, Rows(call.branches).apart(value), strict=True):
            if branch in call.over:
                continue
            code = Code(self.rows[self._index[branch]][call.step.index])
            observation = Observation(self.site, call.step, branch, part, code, self.state.run)
            for watcher in self.watchers:
                watcher(observation)


def _rows(call: Call, seen: Tensor | None, branches: tuple[Branch, ...]) -> Tensor | None:
    return None if seen is None else Rows(call.branches).of(seen, branches)
