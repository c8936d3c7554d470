"""Runs a pipeline on prompts, cached and uncached, and measures what came out and what it cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import fastercache as fc
from fastercache.analysis.metrics import measure, metric_called
from fastercache.policies.errors import NotFinite
from fastercache.policies.schedule import Table
from fastercache.tuned import Measured
from fastercache.tuner.setting import Case, References, Setting, as_video, run_bare, run_under
from fastercache.tuner.simulate import CostModel


@dataclass
class Evaluation:
    """One policy on some cases.

    Attributes:
        values: per metric one value per case that was run.
        flops, flops_full: computed and uncached FLOPs of the denoiser, summed over those cases.
        seconds: wall time of each cached pipeline call, FLOP counting excluded.
        cached_bytes: the peak over all runs.
        stopped: why not all cases were run; None if they were.
        tables: what each run decided.
    """

    values: dict[str, list[float]]
    flops: int = 0
    flops_full: int = 0
    seconds: list[float] = field(default_factory=list)
    cached_bytes: int = 0
    stopped: str | None = None
    tables: list[Table] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Computed over uncached FLOPs."""
        return self.flops / self.flops_full if self.flops_full else 1.0


Stop = Callable[[Evaluation], str | None]
"""Told what was measured so far; a reason ends the evaluation early."""


class Evaluator:
    """Runs policies in one setting and judges them by its references; its session stays attached between runs.

    Attributes:
        setting: the pipeline and its call. references: the uncached videos. metrics: what quality is measured by.

    Args:
        pipe, call, seed, video: see `Setting`.
        store: folder of the references.
        place: number of the case whose reference is made first; workers that share a folder begin at different ones.
        max_cache_bytes: a policy that would cache more is refused before it runs; see `attach`.
    """

    def __init__(
        self,
        pipe: Any,
        call: Mapping[str, Any] | None = None,
        *,
        store: str | Path,
        metrics: Sequence[str] = ("psnr", "ssim"),
        seed: int = 0,
        video: Callable[[Any], Tensor] | None = None,
        max_cache_bytes: int | None = None,
        place: int = 0,
    ) -> None:
        self.max_cache_bytes = max_cache_bytes
        self._place = place
        self.setting = Setting(pipe, dict(call or {}), seed, video or as_video)
        self.references = References(self.setting, Path(store))
        self.metrics = tuple(metrics)
        self._cost: CostModel | None = None
        self._session: fc.Session | None = None

    @property
    def pipe(self) -> Any:
        """The pipeline of the setting."""
        return self.setting.pipe

    def cases(self, prompts: Sequence[str]) -> list[Case]:
        """The cases of a list of prompts."""
        return self.setting.cases(prompts)

    # -- running -----------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Detach from the pipeline, if attached."""
        if self._session is not None:
            self._session.detach()
            self._session = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attached(self, policy: fc.Policy) -> fc.Session:
        if self._session is None:
            self._session = fc.attach(self.pipe, policy, max_cache_bytes=self.max_cache_bytes)
        else:
            self._session.use(policy)
        return self._session

    def run(self, policy: fc.Policy, case: Case) -> tuple[Tensor, fc.Trace, float]:
        """One cached run: video, trace, and seconds of the whole call without FLOP counting."""
        return run_under(self._attached(policy), self.setting, case)

    def run_bare(self, case: Case) -> tuple[Tensor, float]:
        """One run of the bare pipeline, nothing attached: video and seconds."""
        self.close()
        return run_bare(self.setting, case)

    def cost_model(self, case: Case) -> CostModel:
        """FLOPs of any static policy, from one counted run; made once."""
        if self._cost is None:
            self._cost = CostModel.measured(self._attached(fc.NoCache()), lambda: self.setting.generate(case))
        return self._cost

    # -- references --------------------------------------------------------------------------------------------------
    def reference(self, case: Case) -> Tensor:
        """The uncached video of a case, (F, 3, H, W), from disk if it was made before."""
        video = self.references.read(case)
        if video is None:
            video, _ = self.run_bare(case)
            self.references.write(case, video)
        return video

    # -- measuring ---------------------------------------------------------------------------------------------------
    def quality(self, video: Tensor, case: Case) -> dict[str, float]:
        """Each metric of a video against the case's reference. Raises NotFinite."""
        found = measure(video[None], self.reference(case)[None], metrics=self.metrics, prompts=[case.prompt])
        values = {name: float(found[name][0]) for name in self.metrics}
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(f"{name} of '{case.prompt:.60}' (seed {case.seed}) is {value}")
        return values

    def exact(self, cases: Sequence[Case]) -> dict[str, list[float]]:
        """Each metric of the uncached videos themselves: the best value, or what a reference-free one says."""
        values: dict[str, list[float]] = {}
        for name in self.metrics:
            metric = metric_called(name)
            if metric.reference_free:
                values[name] = [self.quality(self.reference(case), case)[name] for case in cases]
            else:
                values[name] = [metric.best] * len(cases)
        return values

    def evaluate(self, policy: fc.Policy, cases: Sequence[Case], stop: Stop | None = None) -> Evaluation:
        """Run the cases one by one; `stop` is asked after each but the last. Raises NotFinite."""
        result = Evaluation({name: [] for name in self.metrics})
        for i in range(len(cases)):  # all at once, so that the session need not be detached for each
            self.reference(cases[(self._place + i) % len(cases)])
        for i, case in enumerate(cases):
            self._add(result, case, self.run(policy, case))
            if stop is not None and i + 1 < len(cases):
                result.stopped = stop(result)
                if result.stopped is not None:
                    break
        return result

    def _add(self, result: Evaluation, case: Case, outcome: tuple[Tensor, fc.Trace, float]) -> None:
        video, trace, seconds = outcome
        for name, value in self.quality(video, case).items():
            result.values[name].append(value)
        result.flops += trace.total_flops
        result.flops_full += sum(trace.flops_full)
        result.seconds.append(seconds)
        result.tables.append(trace.table)
        result.cached_bytes = max(result.cached_bytes, trace.cached_bytes)

    def compare(self, policy: fc.Policy, cases: Sequence[Case], repeats: int = 1) -> tuple[Measured, Evaluation]:
        """Measure a policy fully; cached and bare runs alternate, so that the speedup is fair to both.

        `speedup_wall` is the ratio of their median seconds over all cases and repeats. Raises NotFinite.
        """
        result = Evaluation({name: [] for name in self.metrics})
        bare: list[float] = []
        for turn in range(repeats):
            for i, case in enumerate(cases):
                outcome = None
                for cached in (True, False) if (turn + i) % 2 else (False, True):
                    if cached:
                        outcome = self.run(policy, case)
                    else:
                        video, seconds = self.run_bare(case)
                        bare.append(seconds)
                        if self.references.read(case) is None:
                            self.references.write(case, video)
                assert outcome is not None
                if turn == 0:
                    self._add(result, case, outcome)
                else:
                    result.seconds.append(outcome[2])
        self.close()
        means = {name: statistics.fmean(values) for name, values in result.values.items()}
        measured = Measured(
            prompts=len(cases),
            quality=means,
            speedup_flops=1.0 / result.ratio,
            speedup_wall=statistics.median(bare) / statistics.median(result.seconds),
            seconds=statistics.median(result.seconds),
            cached_bytes=result.cached_bytes,
            hardware=self.setting.hardware,
        )
        return measured, result
