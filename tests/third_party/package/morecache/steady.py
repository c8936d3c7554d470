"""A rule that watches a signal."""

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

import fastercache as fc


class Steady(fc.SitePolicy, fc.WatchingRule[list[float]]):
    """The blocks rest while a signal has moved by less than `threshold` since they were computed."""

    name: ClassVar[str] = "steady"
    off: ClassVar[dict[str, Any]] = {"threshold": 0.0}
    watched: fc.Signal = fc.signal_called("spread")
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3

    @property
    def query(self) -> str:
        return "stack"

    @property
    def signal(self) -> fc.Signal:
        return self.watched

    def begin(self, site: fc.Site, branch: str, run: fc.Run) -> list[float]:
        return []  # at the last computed step, and now

    def reuse(self, state: list[float], step: fc.Step, seen: Tensor) -> bool:
        state[1:] = [float(seen.float().mean())]
        return abs(state[-1] - state[0]) < self.threshold * abs(state[0])

    def update(self, state: list[float], step: fc.Step, value: Tensor) -> list[float]:
        return [state[-1]]
