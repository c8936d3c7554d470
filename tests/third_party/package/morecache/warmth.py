"""A metric."""

from collections.abc import Sequence

from torch import Tensor

from fastercache.analysis import Metric


def redness(videos: Tensor, references: Tensor, prompts: Sequence[str]) -> Tensor:
    """How far the share of red is from the reference's: (N, F, 3, H, W) -> (N,)."""
    return (videos[:, :, 0].mean((1, 2, 3)) - references[:, :, 0].mean((1, 2, 3))).abs()


warmth = Metric("warmth", redness, low=0.0, high=1.0, better="lower", unit=0.01, label="warmth")
