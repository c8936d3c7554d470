"""TensorBoard: similarities as scalars over the steps, heatmaps as images, trials as hyper-parameters.

`tensorboard --logdir FOLDER` shows all three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fastercache.analysis.measures import BANDS, ORDER
from fastercache.analysis.plots.overview import overview
from fastercache.analysis.plots.redundancy import redundancy_info
from fastercache.analysis.plots.style import to_image
from fastercache.analysis.plots.timeline import draw_timeline, timeline_info
from fastercache.analysis.profile import Profile
from fastercache.policies.errors import NotFinite, RecordingError
from fastercache.policies.vocabulary import COND
from fastercache.run.trace import Trace


class Board:
    """Writes event files below a folder; a context manager that flushes and closes them.

    >>> with Board("runs/latte") as board:                                                # doctest: +SKIP
    ...     board.add_profile(profile)
    ...     board.add_trial("trial-007", {"interval": 2}, {"speedup_flops": 1.9, "psnr": 31.2})
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer = SummaryWriter(str(self.folder))
        self._trials: set[str] = set()

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left and close the files."""
        self._writer.close()

    def flush(self) -> None:
        """Make everything written so far visible to a running TensorBoard."""
        self._writer.flush()

    def add_profile(self, profile: Profile, tag: str = "profile") -> None:
        """A recording: scalars over the denoising steps, and the figures of `plots.overview` as images.

        Scalars: `TAG/lag1/MEASURE/ROLE`, step i against step i − 1, mean over depth and prompts;
        `TAG/guidance/MEASURE/BRANCH/BAND`, the conditional output standing in for that branch's.
        """
        for measure in ORDER if len(profile.info.timesteps) > 1 else ():
            for group in redundancy_info(profile, measure).groups:
                self._curve(f"{tag}/lag1/{measure}/{group.name}", group.mean)
        for b, branch in enumerate(profile.branches):
            if branch == COND or profile.guidance.shape[3] == 0:
                continue
            for m, measure in enumerate(ORDER):
                for k, band in enumerate(BANDS):
                    curve = profile.guidance[:, b, :, k, m].mean(axis=0)
                    self._curve(f"{tag}/guidance/{measure}/{branch}/{band}", curve)
        for name, figure in overview(profile).items():
            self.add_figure(f"{tag}/{name}", figure)

    def add_trace(self, trace: Trace, tag: str = "trace") -> None:
        """A run: the share of FLOPs each step computed as a scalar, its decisions as an image."""
        info = timeline_info(trace)
        self._curve(f"{tag}/flops_share", info.cost)
        self.add_figure(f"{tag}/timeline", draw_timeline(info))

    def add_figure(self, tag: str, figure: Figure, step: int = 0) -> None:
        """Any figure as an image."""
        self._writer.add_image(tag, to_image(figure), step, dataformats="HWC")

    def add_trial(
        self, name: str, parameters: Mapping[str, Any], metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """One trial of a study: its parameters and results in TensorBoard's HPARAMS tab.

        Nested parameters get dotted names; lists and None are written as text. Trials may have different parameters: no
        common header is written, so that the tab shows the union.

        Args:
            name: of the trial's own folder below the board's; each may be used once.
            step: a number to plot the metrics over, such as the trial's.

        Raises:
            NotFinite: if a metric is NaN or infinite: leave out what was not measured.
            RecordingError: if the name was used before.
        """
        if name in self._trials:
            raise RecordingError(f"the trial '{name}' was written to {self.folder} already: give each its own name")
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise NotFinite(f"metric '{key}' of trial '{name}' is {value}: leave out what was not measured")
        self._trials.add(name)
        _, start, end = hparams(_flat(parameters), dict(metrics))
        with SummaryWriter(str(self.folder / name)) as writer:
            file_writer = writer.file_writer
            assert file_writer is not None  # a writer has one until it is closed
            file_writer.add_summary(start)
            file_writer.add_summary(end)
            for key, value in metrics.items():
                writer.add_scalar(key, value, step)

    def _curve(self, tag: str, values: Any) -> None:
        """One scalar a step; steps without a value have none."""
        for i, value in enumerate(np.asarray(values, dtype=np.float64).tolist()):
            if math.isfinite(value):
                self._writer.add_scalar(tag, value, i)


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float]:
    found: dict[str, bool | str | float] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, str, int, float)):
            found[prefix + key] = value
        elif isinstance(value, Sequence):
            found[prefix + key] = ", ".join(str(item) for item in value)
        else:
            found[prefix + key] = str(value)
    return found
