"""The denoiser and branch sites: one step's outputs, branch by branch, and how computed and predicted ones make a call.

With one call per branch, a step's outputs arrive one after the other. A branch's difference to the conditional output
needs both, so they are kept until the step ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fastercache.model.families import Family
from fastercache.model.grids import grid_of
from fastercache.model.layout import flatten_output, rebuild_output, strip
from fastercache.policies.errors import AttachError
from fastercache.policies.schedule import applies
from fastercache.policies.vocabulary import COND, Branch, Kind
from fastercache.run.calls import Call
from fastercache.run.rows import Rows, Streams
from fastercache.run.store import storages
from fastercache.run.units import Unit


class Assembly:
    """What the denoiser returns. `whole` is the unit of the denoiser site, `guidance` that of the branch site."""

    def __init__(self, family: Family | None) -> None:
        self.family = family
        self.whole: Unit | None = None
        self.guidance: Unit | None = None
        self._step: int | None = None
        self._outputs: dict[Branch, Streams] = {}  # this step's outputs by branch
        self._computed: set[Branch] = set()  # those of them that were computed
        self._seen: dict[Branch, Tensor] = {}  # what the predictor of differences needs of this step, by branch
        self._before: Streams | None = None  # the conditional output of the step before, where calls come without one
        self._template: Any = None

    def begin(self, units: Iterable[Unit]) -> None:
        """Forget the last run, and find the two units among those of this one."""
        self.clear()
        found = {unit.site.kind: unit for unit in units}
        self.whole, self.guidance = found.get(Kind.DENOISER), found.get(Kind.BRANCH)

    def clear(self) -> None:
        """Forget the run."""
        self._outputs, self._computed, self._seen, self._before = {}, set(), {}, None

    def enter(self, index: int) -> None:
        """A call of step `index` begins."""
        if index != self._step:
            self._step, self._outputs, self._computed, self._seen = index, {}, set(), {}

    def release(self, index: int, cond_last: bool) -> None:
        """Step `index` has ended. `cond_last`: the conditional call of a step comes after another."""
        cond = self._outputs.get(COND)
        needed = cond_last and self.guidance is not None and self.guidance.may_reuse(index + 1)
        self._before = [None if s is None else s.clone() for s in cond] if needed and cond is not None else None
        self._outputs, self._computed, self._seen = {}, set(), {}

    def held(self) -> dict[int, int]:
        """What is held between steps, storage -> bytes."""
        return storages(self._before)

    def decide(self, call: Call) -> dict[Branch, Unit]:
        """The branches of this call that are predicted, and the unit that predicts them."""
        predicted: dict[Branch, Unit] = {}
        if self.whole is not None:
            predicted.update(dict.fromkeys(self.whole.decide(call, self.whole.source(call)), self.whole))
        if self.guidance is not None:
            rest = tuple(b for b in call.branches if b not in predicted and b != COND)
            # Where the unconditional call comes first, the step before stands in for this step's conditional output.
            known = COND in call.branches or COND in self._outputs or self._before is not None
            if rest and known:
                part = None if call.input is None else Rows(call.branches).of(call.input, rest)
                asked = Call(call.step, rest, call.batch, part)
                reused = self.guidance.decide(asked, self.guidance.source(asked))
                predicted.update(dict.fromkeys(reused, self.guidance))
        return predicted

    def finish(
        self,
        call: Call,
        every: tuple[Branch, ...],
        predicted: dict[Branch, Unit],
        computed: tuple[Branch, ...],
        output: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        """What the call returns: computed and predicted branches put together; keeps what later steps read.

        `output` holds the rows of the `computed` branches; `every` names all branches of the run.
        """
        units = [unit for unit in (self.whole, self.guidance) if unit is not None]
        if not units:
            return output
        # With one call per branch a difference needs the outputs of every call of the step.
        whole_step = Call(call.step, every, call.batch)
        if not predicted and all(unit.idle(whole_step) for unit in units):
            for unit in units:
                unit.mark(call.step, [b for b in call.branches if applies(unit.site, b)])
            return output
        if computed:
            self._take(call, computed, output)
        held = tuple(b for b in call.branches if predicted.get(b) is self.whole is not None)
        if held and self.whole is not None:
            self._stand_in(self.whole, call, held)
        if self.guidance is not None:
            seen = self.guidance.seen(self.guidance.source(call))
            if seen is not None:
                self._seen.update(zip(call.branches, Rows(call.branches).apart(seen), strict=True))
            guided = tuple(b for b in call.branches if predicted.get(b) is self.guidance)
            if guided:
                self._guide(self.guidance, call, guided, kwargs)
            self._keep_differences(self.guidance, call, kwargs)
        result = self._joined(call) if predicted else output
        if self.whole is not None and self.whole.watchers:
            for branch in call.branches:
                self.whole.tell(Call(call.step, (branch,), call.batch), self._outputs[branch][0])
        return result

    def _take(self, call: Call, computed: tuple[Branch, ...], output: Any) -> None:
        """Note the computed branches' outputs."""
        if _listed(output):
            raise AttachError(
                "the denoiser returns a list with a tensor for each sample, so its output cannot be told apart by "
                "branch: use a policy without the denoiser and branch sites for this model"
            )
        fresh = flatten_output(output)
        self._template = strip(output)
        self._note(computed, fresh)
        self._computed.update(computed)
        if self.whole is not None:
            self.whole.keep(call, computed, fresh, self.whole.seen(self.whole.source(call)))

    def _stand_in(self, unit: Unit, call: Call, held: tuple[Branch, ...]) -> None:
        """Predict whole outputs."""
        self._note(held, unit.predict(call, held, unit.seen(unit.source(call))))

    def _note(self, branches: tuple[Branch, ...], values: Streams) -> None:
        for branch in branches:
            self._outputs[branch] = Rows(branches).of_streams(values, (branch,))

    def _joined(self, call: Call) -> Any:
        """The rows of every branch of the call, in its order and container."""
        streams = Rows(call.branches).join_streams({(b,): self._outputs[b] for b in call.branches})
        return rebuild_output(self._template, streams)

    def _guide(self, unit: Unit, call: Call, guided: tuple[Branch, ...], kwargs: dict[str, Any]) -> None:
        """Predict branches as the conditional output plus their predicted difference to it."""
        base = self._outputs.get(COND, self._before)
        assert base is not None  # decide() saw one
        deltas = unit.predict(call, guided, unit.seen(unit.source(call)))
        for branch in guided:
            streams: Streams = []
            for stream, (cond, delta) in enumerate(zip(base, deltas, strict=True)):
                if cond is None or delta is None:
                    streams.append(cond)
                    continue
                grid = grid_of(self.family, kwargs, cond, stream)
                streams.append(cond + grid.back(Rows(guided).of(delta, (branch,))))
            self._outputs[branch] = streams

    def _keep_differences(self, unit: Unit, call: Call, kwargs: dict[str, Any]) -> None:
        """Store or report the difference of each branch to the conditional one, once both are there."""
        if COND not in self._outputs:
            return
        arrived = self._outputs if COND in call.branches else call.branches
        for branch in [b for b in arrived if b != COND]:
            fresh = branch in self._computed  # the difference to the conditional output as it is, predicted or not
            inside = Call(call.step, (branch,), call.batch)
            if not unit.watchers and (not fresh or unit.idle(inside)):
                if fresh:
                    unit.mark(call.step, (branch,))
                continue
            delta: Streams = []
            for stream, (value, cond) in enumerate(zip(self._outputs[branch], self._outputs[COND], strict=True)):
                if value is None or cond is None:
                    delta.append(None)
                else:
                    delta.append(grid_of(self.family, kwargs, cond, stream).to(value - cond))
            if fresh:
                unit.keep(inside, (branch,), delta, self._seen.get(branch))
            unit.tell(inside, delta[0])


def _listed(output: Any) -> bool:
    """Whether the first thing returned is a list, as Z-Image's is."""
    if isinstance(output, dict):
        output = tuple(output.values())
    return isinstance(output, tuple) and bool(output) and isinstance(output[0], list)
