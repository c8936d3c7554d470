"""Quality metrics follow the field's conventions, checked against independent numpy and scipy."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.signal import convolve2d
from torch import Tensor

from fastercache.analysis import quality
from fastercache.analysis.metrics import measure
from fastercache.policies.errors import MeasurementError, MissingDependency, NotFinite


def videos(n: int = 2, frames: int = 3, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(n, frames, 3, size, size, generator=generator)
    noise = torch.randn(a.shape, generator=generator) * torch.linspace(0.02, 0.2, n * frames).view(n, frames, 1, 1, 1)
    return a, (a + noise).clamp(0, 1)


def scipy_ssim(x: Any, y: Any) -> float:
    """SSIM of one channel: 11x11 Gaussian of sigma 1.5, valid positions only [Wang et al. 2004]."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def blur(image: Any) -> Any:
        return convolve2d(image, window, mode="valid")

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def test_psnr_is_the_mean_of_the_frames_not_of_the_squares() -> None:
    a, b = videos()
    x, y = a.double().numpy(), b.double().numpy()
    expected = [[10 * math.log10(1 / ((x[i, f] - y[i, f]) ** 2).mean()) for f in range(3)] for i in range(2)]
    found = measure(a, b, ["psnr"])["psnr"]
    assert found.shape == (2,)
    np.testing.assert_allclose(found.numpy(), np.mean(expected, axis=1), rtol=1e-5)


def test_psnr_of_equal_videos_is_capped_frame_by_frame() -> None:
    a, b = videos(n=1, frames=2)
    b[0, 0] = a[0, 0]
    one = quality.psnr(a[:, 1:], b[:, 1:])
    np.testing.assert_allclose(quality.psnr(a, b).numpy(), (100.0 + one.numpy()) / 2, rtol=1e-6)
    assert quality.psnr(a, a).tolist() == [100.0]


@pytest.mark.parametrize("size", [11, 32])
def test_ssim_equals_scipy_on_valid_positions_per_channel(size: int) -> None:
    a, b = videos(size=size)
    x, y = a.double().numpy(), b.double().numpy()
    expected = [np.mean([scipy_ssim(x[i, f, c], y[i, f, c]) for f in range(3) for c in range(3)]) for i in range(2)]
    np.testing.assert_allclose(quality.ssim(a, b).numpy(), expected, rtol=2e-4)
    assert quality.ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_metrics_refuse_what_they_cannot_measure() -> None:
    a, b = videos(n=1)
    with pytest.raises(MeasurementError, match="did you mean 'psnr'"):
        measure(a, b, ["pnsr"])
    with pytest.raises(MeasurementError, match=r"one shape .*found \(1, 3, 3, 32, 32\) and \(1, 2, 3, 32, 32\)"):
        quality.psnr(a, b[:, :2])
    with pytest.raises(MeasurementError, match=r"in \[0, 1\], found values from"):
        quality.psnr(a * 2, b)
    with pytest.raises(MeasurementError, match="at least 11x11 pixels, found 8x32"):
        quality.ssim(a[..., :8, :], b[..., :8, :])
    b[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(NotFinite, match="NaN or infinity"):
        quality.psnr(a, b)


def test_lpips_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    quality._lpips_network.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingDependency, match=r"fastercache\[lpips\]"):
        measure(*videos(n=1), ["lpips"])


def test_lpips_without_weights_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    quality._lpips_network.cache_clear()
    package = ModuleType("lpips")

    def offline(**_: Any) -> Any:
        raise OSError("no route to host")

    package.LPIPS = offline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    with pytest.raises(MissingDependency, match=r"no route to host.*alexnet-owt-7be5be79\.pth"):
        measure(*videos(n=1), ["lpips"])


def test_lpips_gets_frames_in_minus_one_to_one_and_is_averaged_over_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    quality._lpips_network.cache_clear()

    class Network(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex" and not verbose
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            assert x.shape[1:] == (3, 32, 32) and not self.training
            assert not self.scale.requires_grad and not torch.is_grad_enabled(), "it is measured with, not trained"
            return self.scale * (x - y).abs().mean(dim=(1, 2, 3), keepdim=True)

    package = ModuleType("lpips")
    package.LPIPS = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    a, b = videos()
    expected = 2 * (a - b).abs().mean(dim=(2, 3, 4)).mean(1)
    torch.testing.assert_close(measure(a, b, ["lpips"])["lpips"], expected)
    assert quality._lpips_network.cache_parameters()["maxsize"] == 2, "one on the processor and one on a device"
    quality._lpips_network.cache_clear()


def test_every_output_type_of_a_pipeline_gives_the_same_videos() -> None:
    levels = torch.randint(0, 256, (2, 3, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = levels.float() / 255
    pil = [[Image.fromarray(f.movedim(0, -1).numpy()) for f in video] for video in levels]
    for frames in (expected, levels, pil, expected.movedim(2, -1).numpy(), list(expected)):
        torch.testing.assert_close(quality.as_videos(frames), expected)
    torch.testing.assert_close(quality.as_videos(pil[0]), expected[:1])
    torch.testing.assert_close(quality.as_videos(expected[0].movedim(1, -1).numpy()), expected[:1])


def test_frames_of_other_kinds_are_refused() -> None:
    with pytest.raises(MeasurementError, match=r"\(2, 4, 8, 8, 8\)"):
        quality.as_videos(torch.zeros(2, 4, 8, 8, 8))  # latents
    with pytest.raises(MeasurementError, match="cannot read videos from str"):
        quality.as_videos("video.gif")
    with pytest.raises(MeasurementError, match="empty"):
        quality.as_videos([])
    with pytest.raises(MeasurementError, match="one size"):
        quality.as_videos([[Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))]])
    with pytest.raises(NotFinite):
        quality.as_videos(torch.full((1, 1, 3, 8, 8), torch.nan))


def test_temporal_psnr_of_two_frames_is_that_of_their_one_difference() -> None:
    a, b = videos(n=3, frames=2)
    error = ((a[:, 1] - a[:, 0]) - (b[:, 1] - b[:, 0])).double().square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(quality.temporal_psnr(a, b).double(), -10.0 * error.log10(), rtol=1e-4, atol=1e-4)
    assert quality.temporal_psnr(a, a).tolist() == [100.0] * 3


def test_values_may_leave_the_range_by_a_thousandth() -> None:
    """Decoders round; anything further off is no picture."""
    a = torch.full((1, 2, 3, 16, 16), 0.5)
    for low, high in ((-9e-4, 1.0), (0.0, 1.0 + 9e-4)):
        b = a.clone()
        b[..., 0, 0], b[..., 0, 1] = low, high
        assert quality.psnr(b, a).shape == (1,)
        found = quality.as_videos(b)
        assert float(found.min()) >= 0.0 and float(found.max()) <= 1.0 and torch.equal(found, b.clamp(0, 1))
    for value in (-1.1e-3, 1.0 + 1.1e-3):
        b = a.clone()
        b[0, 0, 0, 0, 0] = value
        for first, second in ((b, a), (a, b)):
            with pytest.raises(MeasurementError, match=r"in \[0, 1\], found values from"):
                quality.psnr(first, second)


@pytest.mark.parametrize("shape", [(1, 2, 4, 16, 16), (2, 3, 16, 16), (0, 2, 3, 16, 16), (1, 0, 3, 16, 16)])
def test_what_is_no_video_is_refused(shape: tuple[int, ...]) -> None:
    """Four channels, no frames' axis, no video, no frame."""
    with pytest.raises(MeasurementError, match="expected videos and references of one shape"):
        quality.psnr(torch.zeros(shape), torch.zeros(shape))


def test_an_array_of_numbers_from_0_to_255_is_divided_by_255_and_an_image_is_read_in_colour() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    expected = torch.from_numpy(levels.astype(np.float32) / 255).movedim(-1, -3)[None]
    torch.testing.assert_close(quality.as_videos(levels), expected)
    grey = Image.fromarray(levels[0, ..., 0])
    torch.testing.assert_close(quality.as_videos([[grey]])[0, 0, 1], torch.from_numpy(levels[0, ..., 0] / 255).float())
    with pytest.raises(MeasurementError, match=r"\(3, 8, 9\)"):
        quality.as_videos(torch.zeros(3, 8, 9))
