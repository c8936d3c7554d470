"""A static rule."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

import fastercache as fc


class Thirds(fc.SitePolicy, fc.StaticRule[None]):
    """Every `pace`-th step is computed; what stands in between can be chosen."""

    name: ClassVar[str] = "thirds"
    off: ClassVar[dict[str, Any]] = {"pace": 1}
    sites: str = "attention"
    pace: Annotated[int, Field(ge=1, le=6)] = 3
    stand_in: fc.AnyPredictor = fc.Hold()

    @property
    def query(self) -> str:
        return self.sites

    def reuse(self, state: None, step: fc.Step) -> bool:
        return step.index % self.pace != 0

    def predictor(self, site: fc.Site, run: fc.Run) -> fc.Predictor:
        return self.stand_in
