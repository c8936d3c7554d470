"""Quality of a video against a reference: PSNR, SSIM, LPIPS per frame and the PSNR of frame differences, then the mean.

The registry of metrics is `analysis.metrics`; this module holds the functions.

Conventions (those of the field's tables): values in [0, 1]; PSNR capped at 100 dB; SSIM with an 11x11 Gaussian window
of sigma 1.5, per channel, only where the whole window lies inside the frame; LPIPS with AlexNet on [-1, 1].
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from fastercache.policies.errors import MeasurementError, MissingDependency, NotFinite

PSNR_CAP = 100.0
WINDOW, SIGMA = 11, 1.5


def psnr(videos: Tensor, references: Tensor) -> Tensor:
    """10 log10(1 / mean squared error) per frame, capped at 100 dB, mean over frames: (N,) in dB."""
    a, b = _checked(videos, references)
    error = (a - b).square().mean(dim=(2, 3, 4))  # (N, F)
    return (-10.0 * error.log10()).clamp(max=PSNR_CAP).mean(1)


def temporal_psnr(videos: Tensor, references: Tensor) -> Tensor:
    """PSNR of the differences between neighbouring frames, mean over them: (N,) in dB.

    With d_t = x_{t+1} - x_t: 10 log10(1 / mean squared error of d_t), capped at 100 dB. Motion that jerks and
    brightness that flickers lower it; an error that stays where it is from frame to frame does not.

    Raises:
        MeasurementError: for videos of one frame, which have no motion.
    """
    a, b = _checked(videos, references)
    if a.shape[1] < 2:
        raise MeasurementError("temporal PSNR needs at least two frames, found one: measure psnr instead")
    error = (a.diff(dim=1) - b.diff(dim=1)).square().mean(dim=(2, 3, 4))  # (N, F - 1)
    return (-10.0 * error.log10()).clamp(max=PSNR_CAP).mean(1)


def ssim(videos: Tensor, references: Tensor) -> Tensor:
    """Structural similarity [Wang et al. 2004] per frame and channel, mean over both: (N,).

    11x11 Gaussian window, sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1. Positions at which the window leaves the frame
    are cropped; torchmetrics itself pads by reflection and averages over them too.
    """
    a, b = _checked(videos, references)
    margin = WINDOW // 2
    if min(a.shape[-2:]) < WINDOW:
        raise MeasurementError(
            f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, found {a.shape[-2]}x{a.shape[-1]}"
        )
    per_video = []
    for video, reference in zip(a, b, strict=True):  # one video at a time: the window needs five copies of its input
        _, image = structural_similarity_index_measure(
            video, reference, sigma=SIGMA, kernel_size=WINDOW, data_range=1.0, reduction="none", return_full_image=True
        )
        per_video.append(image[..., margin:-margin, margin:-margin].mean())
    return torch.stack(per_video)


def lpips(videos: Tensor, references: Tensor) -> Tensor:
    """Learned perceptual distance [Zhang et al. 2018], AlexNet on [-1, 1], per frame, mean over frames: (N,).

    Raises:
        MissingDependency: if the extra `lpips` is not installed, or AlexNet's weights are neither cached nor loadable.
    """
    a, b = _checked(videos, references)
    network = _lpips_network(str(a.device))
    with torch.no_grad():
        return torch.stack([network(x * 2 - 1, y * 2 - 1).flatten().mean() for x, y in zip(a, b, strict=True)])


@lru_cache(maxsize=2)
def _lpips_network(device: str) -> Any:
    try:
        import lpips as package
    except ImportError:
        raise MissingDependency(
            "LPIPS needs the package lpips, which is not installed: pip install 'fastercache[lpips]'"
        ) from None
    try:
        return package.LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        raise MissingDependency(
            f"LPIPS is installed (extra lpips), but AlexNet's weights could not be loaded ({error}): connect once so "
            "that torchvision can download them, put alexnet-owt-7be5be79.pth into torch's hub/checkpoints folder, "
            "or measure psnr and ssim"
        ) from None


def as_videos(frames: Any) -> Tensor:
    """A pipeline's `.frames` (or `.images`) as one tensor (N, F, 3, H, W), float32 in [0, 1].

    Args:
        frames: a list of videos, each a list of PIL images (`output_type="pil"`); one such video; an array
            (N, F, H, W, 3) or (F, H, W, 3) (`"np"`); a tensor (N, F, 3, H, W) or (F, 3, H, W) (`"pt"`). 8-bit integers
            are divided by 255. Each image of `.images` counts as a video of one frame when given as `[[image], ...]`.

    Raises:
        MeasurementError: for anything else, videos of different size, or values outside [0, 1].
        NotFinite: for NaN or infinity.
    """
    videos = _stack(frames)
    if videos.dtype == torch.uint8:
        videos = videos.float() / 255.0
    if videos.ndim == 4:
        videos = videos[None]
    if videos.ndim != 5 or videos.shape[2] != 3:
        raise MeasurementError(
            f"expected RGB videos (N, F, 3, H, W), found a tensor of shape {tuple(videos.shape)}: "
            "call the pipeline with output_type 'pil', 'np' or 'pt'"
        )
    videos = videos.float()
    _in_range(videos)
    return videos.clamp(0.0, 1.0)


def _stack(frames: Any) -> Tensor:
    if isinstance(frames, Tensor):
        return frames
    if isinstance(frames, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3)
    if isinstance(frames, Image.Image):
        return torch.from_numpy(np.array(frames.convert("RGB"))).movedim(-1, -3)
    if isinstance(frames, (list, tuple)) and frames:
        parts = [_stack(item) for item in frames]
        shapes = sorted({tuple(part.shape) for part in parts})
        if len(shapes) > 1:
            raise MeasurementError(f"all frames and videos must have one size, found {shapes}")
        return torch.stack(parts)
    raise MeasurementError(f"cannot read videos from {type(frames).__name__}{'' if frames else ' (empty)'}")


def _in_range(videos: Tensor) -> None:
    low, high = (float(v) for v in torch.aminmax(videos)) if videos.numel() else (0.0, 1.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NotFinite("a video holds NaN or infinity: the run that made it went wrong, so it has no quality")
    if low < -1e-3 or high > 1.0 + 1e-3:
        raise MeasurementError(f"videos must lie in [0, 1], found values from {low:.4g} to {high:.4g}")


def _checked(videos: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    if videos.shape != references.shape or videos.ndim != 5 or videos.shape[2] != 3 or 0 in videos.shape:
        raise MeasurementError(
            "expected videos and references of one shape (N, F, 3, H, W), found "
            f"{tuple(videos.shape)} and {tuple(references.shape)}"
        )
    a, b = videos.float(), references.float().to(videos.device)
    _in_range(a)
    _in_range(b)
    return a, b
