"""The quality metrics: one registry that budgets, benches, figures, TensorBoard and tuned files read.

A metric is a function with a direction and a range. Third parties add their own with `register_metric`, from an
installed package (entry point group `fastercache.metrics`), or from a file that a person names:

>>> sharp = Metric("sharp", sharpness, low=0.0, high=1.0, better="higher", unit=0.01, label="sharpness",
...                reference_free=True)                                                   # doctest: +SKIP
>>> register_metric(sharp)                                                                # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastercache.analysis import quality
from fastercache.policies.errors import FasterCacheError, InvalidMetric, MeasurementError, suggest, told
from fastercache.policies.files import module_from_file, split_spec
from fastercache.policies.plugins import Plugins, check_name

Measuring = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
"""(videos, references, prompts) -> one value a video; videos are (N, F, 3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Metric:
    """A quality metric.

    Attributes:
        name: what budgets and files call it.
        fn: (videos (N, F, 3, H, W) in [0, 1], references of the same shape, N prompts) -> (N,) values.
        low, high: its range; may be infinite. better: which end of it.
        unit: a difference that matters about as much as 1 dB of PSNR, so that violations of different terms of a budget
            can be compared.
        label: what tables and figures write.
        decibel: whether its values are in dB, a scale on which damage adds up. Others are put on one by their distance
            from the best value.
        reference_free: whether the uncached video is not needed. Then the uncached video itself has a value that is not
            the best one.
    """

    name: str
    fn: Measuring
    low: float
    high: float
    better: Literal["higher", "lower"]
    unit: float
    label: str
    decibel: bool = False
    reference_free: bool = False

    def __post_init__(self) -> None:
        try:
            check_name(self.name)
        except FasterCacheError as error:
            raise InvalidMetric(str(error)) from None
        if not callable(self.fn):
            raise InvalidMetric(f"the metric '{self.name}' needs a function (videos, references, prompts) -> values")
        if self.better not in ("higher", "lower"):
            raise InvalidMetric(f"the metric '{self.name}' is better 'higher' or 'lower', found {self.better!r:.40}")
        if not (self.low < self.high and 0.0 < self.unit < math.inf):
            raise InvalidMetric(
                f"the metric '{self.name}' needs low < high and a positive unit, found {self.low:g}, {self.high:g} and "
                f"{self.unit:g}"
            )

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""
        return self.better == "higher"

    @property
    def best(self) -> float:
        """The better end of the range."""
        return self.high if self.higher_is_better else self.low

    def to_decibel(self, value: float) -> float:
        """The value on a logarithmic scale on which higher is better and damage adds up, at most 100.

        Without a best value (an infinite range) the scale is linear: one dB a unit.
        """
        if self.decibel:
            return min(value, 100.0) if self.higher_is_better else -value
        if math.isinf(self.best):
            return (value if self.higher_is_better else -value) / self.unit
        return min(-10.0 * math.log10(max(abs(self.best - value), 1e-10)), 100.0)

    def from_decibel(self, value: float) -> float:
        """The metric's value at a place on the decibel scale, kept within its range."""
        sign = 1.0 if self.higher_is_better else -1.0
        if self.decibel:
            found = sign * value
        elif math.isinf(self.best):
            found = sign * value * self.unit
        else:
            found = self.best - sign * math.pow(10.0, -value / 10.0)
        return min(max(found, self.low), self.high)

    def measured(self, videos: Tensor, references: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N,) float32 on the CPU. Raises MeasurementError for a function that returns anything else."""
        try:
            found = torch.as_tensor(self.fn(videos, references, prompts)).detach()
        except (FasterCacheError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a third party's function raises whatever it likes
            raise MeasurementError(f"the metric '{self.name}' failed: {told(error)}") from error
        if tuple(found.shape) != (len(videos),):
            raise MeasurementError(
                f"the metric '{self.name}' must give one value for each of {len(videos)} videos, found shape "
                f"{tuple(found.shape)}"
            )
        return found.float().cpu()


_METRICS: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Make a metric known under its name. Raises InvalidMetric if the name is taken by another one."""
    if not isinstance(metric, Metric):
        raise InvalidMetric(f"expected a fastercache.analysis.Metric, found {type(metric).__name__}")
    known = _METRICS.get(metric.name)
    if known is not None and (known.fn.__module__, known.label) != (metric.fn.__module__, metric.label):
        raise InvalidMetric(f"the name '{metric.name}' is taken by the metric '{known.label}'")
    _METRICS[metric.name] = metric
    return metric


PLUGINS = Plugins("fastercache.metrics", lambda name, found: register_metric(found))


def known_metrics() -> dict[str, Metric]:
    """Every known metric by name: shipped, registered, and installed as plug-ins."""
    PLUGINS.load()
    return dict(sorted(_METRICS.items()))


def metric_called(name: str) -> Metric:
    """The metric registered under a name. Raises MeasurementError, naming the nearest."""
    known = known_metrics()
    if name not in known:
        raise MeasurementError(f"no quality metric is called '{name}'{PLUGINS.missed(name) or suggest(name, known)}")
    return known[name]


def metric_from_file(text: str) -> Metric:
    """The metric that `FILE.py:name` or `FILE.py` names, registered; `name` is the variable that holds it.

    Raises:
        ConfigUnreadable: if there is no such file.
        InvalidPolicy: if it cannot be run.
        InvalidMetric: if it holds no metric of this name, or several where none is named.
    """
    path, name = split_spec(text)
    module = module_from_file(path)
    held = {key: value for key, value in vars(module).items() if isinstance(value, Metric)}
    if not held:
        raise InvalidMetric(f"{path} holds no metric: assign a fastercache.analysis.Metric to a variable")
    if name is None and len(held) > 1:
        raise InvalidMetric(f"{path} holds several metrics ({', '.join(held)}): say which, {path}:{next(iter(held))}")
    chosen = name or next(iter(held))
    if chosen not in held:
        raise InvalidMetric(f"{path} holds no metric '{chosen}'{suggest(chosen, held)}")
    return register_metric(held[chosen])


def measure(
    videos: Tensor, references: Tensor, metrics: Sequence[str] = ("psnr", "ssim"), prompts: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Each metric per video.

    Args:
        videos, references: (N, F, 3, H, W) in [0, 1]; `as_videos` makes them from a pipeline's output.
        metrics: registered names.
        prompts: one a video, for metrics that read them; empty texts where none are given.

    Returns:
        name -> (N,) float32 on the CPU.

    Raises:
        MeasurementError: for an unknown metric, other shapes, values outside [0, 1], or frames too small.
        NotFinite: if a video holds NaN or infinity.
        MissingDependency: for a metric whose package or weights are not there.
    """
    chosen = [metric_called(name) for name in dict.fromkeys(metrics)]
    texts = [""] * len(videos) if prompts is None else list(prompts)
    if len(texts) != len(videos):
        raise MeasurementError(f"expected one prompt a video, found {len(texts)} prompts and {len(videos)} videos")
    return {metric.name: metric.measured(videos, references, texts) for metric in chosen}


for _metric in (
    Metric(
        "psnr",
        lambda videos, references, prompts: quality.psnr(videos, references),
        low=0.0,
        high=quality.PSNR_CAP,
        better="higher",
        unit=1.0,
        label="PSNR (dB)",
        decibel=True,
    ),
    Metric(
        "tpsnr",
        lambda videos, references, prompts: quality.temporal_psnr(videos, references),
        low=0.0,
        high=quality.PSNR_CAP,
        better="higher",
        unit=1.0,
        label="temporal PSNR (dB)",
        decibel=True,
    ),
    Metric(
        "ssim",
        lambda videos, references, prompts: quality.ssim(videos, references),
        low=-1.0,
        high=1.0,
        better="higher",
        unit=0.01,
        label="SSIM",
    ),
    Metric(
        "lpips",
        lambda videos, references, prompts: quality.lpips(videos, references),
        low=0.0,
        high=math.inf,
        better="lower",
        unit=0.01,
        label="LPIPS",
    ),
):
    register_metric(_metric)
