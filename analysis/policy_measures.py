"""Takes what a policy of its own measures on a model: see `fastercache.policies.measurements.Measure`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastercache as fc
from fastercache.policies.errors import RecordingError, told
from fastercache.policies.measurements import Lags, Measure
from fastercache.policies.vocabulary import Branch, Site


class Comparison:
    """One `Measure` of one policy, over all sites, branches and complete runs of a calibration.

    Args:
        policy, name: whose measure it is, and what that calls it. sites: where values are compared.
        lags: how many steps apart; so many values of each site and branch are held.
    """

    def __init__(self, policy: str, name: str, measure: Measure, sites: Sequence[Site], lags: int) -> None:
        self.policy, self.name, self.measure, self.sites, self.lags = policy, name, measure, sites, lags
        self._run: Any = None
        self._past: dict[tuple[str, Branch], list[tuple[int, Tensor]]] = {}
        self._last = -1  # the newest step of the run
        self._pending: dict[tuple[int, int], list[float]] = {}  # of the run, by lag and step
        self._found: dict[tuple[int, int], list[float]] = {}  # of all complete runs

    @torch.no_grad()
    def see(self, seen: fc.Observation) -> None:
        """Compare a value with those before it."""
        if seen.run is not self._run:
            self._close_run()
            self._run = seen.run
        past = self._past.setdefault((seen.site.name, seen.branch), [])
        for index, value in past:
            lag = seen.step.index - index
            if 0 < lag <= self.lags and value.shape == seen.value.shape:
                self._pending.setdefault((lag, seen.step.index), []).append(self._compared(seen.value, value))
        self._last = seen.step.index
        past.append((seen.step.index, seen.value.detach().clone()))
        del past[: -self.lags]

    def _compared(self, newer: Tensor, older: Tensor) -> float:
        try:
            found = float(self.measure.compare(newer, older))
        except Exception as error:  # a third party's function raises whatever it likes
            raise RecordingError(f"the measure '{self.name}' of {self.policy} failed: {told(error)}") from error
        if not np.isfinite(found):
            raise RecordingError(f"the measure '{self.name}' of {self.policy} gave {found}, expected a finite number")
        return found

    def result(self, run: fc.Run) -> Lags:
        """The means by lag and step; 0 where there is no such earlier step, `apart` where it is another denoiser's."""
        self._close_run()
        return tuple(
            tuple(
                0.0 if i < lag else float(np.mean(self._found.get((lag, i), self.measure.apart)))
                for i in range(run.count)
            )
            for lag in range(1, min(self.lags, run.count - 1) + 1)
        )

    def _close_run(self) -> None:
        if self._run is not None and self._last == self._run.count - 1:
            for place, found in self._pending.items():
                self._found.setdefault(place, []).extend(found)
        self._run, self._last, self._past, self._pending = None, -1, {}, {}

    def forget(self) -> None:
        """Drop every held value."""
        self._past = {}
