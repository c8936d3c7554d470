"""What planning returns: plans by compute, with predicted and, where a plan was verified, measured quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fastercache.policies.base import Hold
from fastercache.policies.documents import read_model, write_json
from fastercache.policies.errors import BudgetNotMet
from fastercache.policies.methods.planned import Planned
from fastercache.policies.notebook import Framed
from fastercache.policies.registry import AnyPredictor
from fastercache.tuned import Identity, Model, package_versions

WHAT = "front"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Point(_Frozen):
    """One plan of a front.

    Attributes:
        computed: steps at which the denoiser is computed.
        predicted_psnr: dB, from the recording and calibrated by the verified plans; None before any was verified.
        quality: measured per metric and search prompt, for a verified plan. It was fitted on these prompts.
        predictor: the fitted weights of a verified plan; None where every step is computed.
    """

    computed: tuple[int, ...] = Field(min_length=1)
    predicted_psnr: float | None = None
    quality: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    predictor: AnyPredictor | None = None

    @property
    def verified(self) -> bool:
        """Whether the plan was fitted and measured on the search prompts."""
        return bool(self.quality)

    @property
    def psnr(self) -> float | None:
        """Mean PSNR over the search prompts, dB; None for a plan that was not verified."""
        values = self.quality.get("psnr", ())
        return sum(values) / len(values) if values else None

    def policy(self, steps: int) -> Planned:
        """The plan as a policy."""
        if self.predictor is None and len(self.computed) < steps:
            raise BudgetNotMet(
                "this plan was only predicted, no weights were fitted for it: plan with it as the target"
            )
        return Planned(steps=steps, computed=self.computed, stand_in=self.predictor or Hold())


class Front(Framed, _Frozen):
    """Plans by compute, the cheapest first.

    Attributes:
        model, scheduler, guidance_scale: what was recorded.
        steps: n. prompts: recorded search prompts.
        points: one for each number of computed steps, rising.
        prediction_error: root mean square difference of predicted and measured PSNR over the verified plans, dB; each
            is predicted from the others. None with fewer than two.
        generations: denoiser calls made in all, in units of an uncached generation.
    """

    format: Literal["fastercache-front"] = "fastercache-front"
    version: Literal[1] = 1
    model: Model
    scheduler: Identity | None
    guidance_scale: float | None
    steps: int = Field(ge=1)
    prompts: int = Field(ge=1)
    points: tuple[Point, ...]
    prediction_error: float | None = None
    generations: float
    packages: dict[str, str] = Field(default_factory=package_versions)

    def _facts(self) -> dict[str, object]:
        measured = {f"{self.speedup(p):.2f}x": f"{p.psnr:.1f} dB" for p in self.points if p.psnr is not None}
        return {
            "pipeline": self.model.pipeline,
            "steps": self.steps,
            "plans": len(self.points),
            "measured": measured,
            "prompts": self.prompts,
            "generations": round(self.generations, 1),
        }

    def speedup(self, point: Point) -> float:
        """Uncached over computed denoiser calls."""
        return self.steps / len(point.computed)

    @property
    def verified(self) -> tuple[Point, ...]:
        """The plans that were fitted and measured."""
        return tuple(point for point in self.points if point.verified)

    def at(self, speedup: float) -> Point:
        """The plan with the most computed steps that is at least so fast. Raises BudgetNotMet if there is none."""
        fast = [point for point in self.points if self.speedup(point) >= speedup - 1e-9]
        if not fast:
            most = max(self.speedup(point) for point in self.points)
            raise BudgetNotMet(f"no plan is {speedup:g}x as fast: the fastest one of {self.steps} steps is {most:.3g}x")
        return max(fast, key=lambda point: len(point.computed))

    def rows(self) -> list[dict[str, object]]:
        """One plain row for each plan, for tables and JSON."""
        return [
            {
                "computed": len(point.computed),
                "speedup_flops": self.speedup(point),
                "predicted_psnr": point.predicted_psnr,
                "psnr": point.psnr,
                "computed_steps": list(point.computed),
            }
            for point in self.points
        ]

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all."""
        return write_json(path, self.model_dump(mode="json"), WHAT)

    @classmethod
    def load(cls, path: str | Path) -> Front:
        """Read what `save` wrote. Raises ConfigUnreadable."""
        return read_model(path, cls, WHAT)


def means(quality: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each metric over prompts."""
    return {name: sum(values) / len(values) for name, values in quality.items()}
