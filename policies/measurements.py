"""What a calibration measures on a model, as the policies that need such constants see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastercache.policies.vocabulary import Branch

Curve = tuple[float, ...]
Lags = tuple[Curve, ...]
"""Curves by lag: entry [k - 1][i] compares step i with step i - k. Entries before step k are 0 and are never read."""


@dataclass(frozen=True)
class Measure:
    """A policy's own measurement: two values of a site, some steps apart, compared.

    Attributes:
        sites: site query. Results are averaged over these sites, the branches and the runs.
        compare: (newer value, older value) -> a number. Values are one branch's rows, in the model's dtype.
        apart: what stands at a step whose earlier value belongs to another denoiser, so that it cannot be reused.
    """

    sites: str
    compare: Callable[[Tensor, Tensor], float | Tensor]
    apart: float = 1.0


class Measurements(Protocol):
    """What was measured on one model, in plain numbers; made by `fastercache.analysis.calibrate`."""

    @property
    def steps(self) -> int:
        """Steps of the measured runs."""
        ...

    @property
    def inputs(self) -> tuple[Curve, ...]:
        """Relative L1 change of the first block's modulated input from each step to the next, one list a run."""
        ...

    @property
    def outputs(self) -> tuple[Curve, ...]:
        """The same of the denoiser's output."""
        ...

    @property
    def ratios(self) -> Mapping[Branch, Curve]:
        """By branch and step, mean over tokens of |r_t| / |r_{t-1}| for the stack's residual r."""
        ...

    @property
    def mean_ratios(self) -> Curve:
        """The mean of `ratios` over branches."""
        ...

    @property
    def curves(self) -> Mapping[str, Lags]:
        """By role, relative L1 distance of a module's output to the value k steps before."""
        ...

    @property
    def errors(self) -> Lags:
        """The same for the stack's residual."""
        ...

    @property
    def gains(self) -> Lags:
        """Slope of the regression of the stack's newer residual on the older one."""
        ...

    @property
    def offsets(self) -> Lags:
        """Intercept of that regression."""
        ...

    def own(self, policy: str) -> Mapping[str, Lags]:
        """What the `measures` of the policy of this name gave, by their names."""
