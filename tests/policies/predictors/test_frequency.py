"""CFG-Cache's band split and weighting equal the paper's Fourier formulas, done with numpy's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastercache.policies import GuidanceDelta, Now, Past, Run
from fastercache.policies.predictors.frequency import band_radius, split_bands

RNG = np.random.default_rng(1)


def low_band(x: np.ndarray, radius: int) -> np.ndarray:
    """Low band by the shifted spectrum and a disc around its centre, over the last two axes."""
    height, width = x.shape[-2:]
    shifted = np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1))
    y, z = np.ogrid[:height, :width]
    disc = (y - height // 2) ** 2 + (z - width // 2) ** 2 <= radius**2
    return np.fft.ifft2(np.fft.ifftshift(shifted * disc, axes=(-2, -1))).real


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 9, 7), (4, 6, 10), (1, 2, 3, 5, 12)])
@pytest.mark.parametrize("radius", [0, 1, 2, 4])
def test_split_equals_the_shifted_disc(shape: tuple[int, ...], radius: int) -> None:
    x = RNG.normal(size=shape).astype(np.float32)
    low, high = split_bands(torch.from_numpy(x), radius)
    np.testing.assert_allclose(low.numpy(), low_band(x, radius), atol=1e-5)
    np.testing.assert_allclose((low + high).numpy(), x, atol=1e-6)


def test_radius_zero_is_the_mean_alone() -> None:
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(split_bands(x, 0)[0], x.mean((-2, -1), keepdim=True).expand_as(x))


def test_default_radius_is_a_fifth_of_the_shorter_side() -> None:
    assert [band_radius(54, 96), band_radius(54, 96, 200), band_radius(32, 32)] == [10, 0, 6]


def test_half_precision_splits_in_its_own_dtype() -> None:
    low, high = split_bands(torch.randn(1, 8, 8, dtype=torch.bfloat16), 1)
    assert low.dtype == high.dtype == torch.bfloat16


def expected(cond: np.ndarray, uncond: np.ndarray, now: np.ndarray, w1: float, w2: float, radius: int) -> np.ndarray:
    """Eqs. 6-11 on spectra."""
    height, width = cond.shape[-2:]
    y, z = np.ogrid[:height, :width]
    disc = (y - height // 2) ** 2 + (z - width // 2) ** 2 <= radius**2

    def spectrum(x: np.ndarray) -> np.ndarray:
        return np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1))

    delta = spectrum(uncond) - spectrum(cond)
    whole = spectrum(now) + np.where(disc, w1, w2) * delta
    return np.fft.ifft2(np.fft.ifftshift(whole, axes=(-2, -1))).real


@pytest.mark.parametrize(("index", "w1", "w2"), [(3, 1.2, 1.0), (7, 1.0, 1.3)])
def test_paper_weighting_is_equations_6_to_11(index: int, w1: float, w2: float) -> None:
    cond, uncond, now = RNG.normal(size=(3, 2, 4, 10, 12))
    predictor = GuidanceDelta(alpha_low=0.2, alpha_high=0.3, switch=0.5)
    steps = Run.of(11).steps
    history = [Past(steps[1], predictor.keep(torch.from_numpy(uncond - cond).float(), None))]
    got = now + predictor.predict(history, Now(steps[index])).numpy()
    np.testing.assert_allclose(got, expected(cond, uncond, now, w1, w2, 2), atol=1e-5)


def test_repo_weighting_compounds_on_every_step_since_the_delta() -> None:
    steps = Run.of(11).steps
    predictor = GuidanceDelta(alpha_low=0.1, alpha_high=0.2, switch=0.5, switch_high=0.4, weighting="repo")
    # low while progress < .5 (steps 0-4), high from .4 (step 4 on); the delta's own step does not count
    assert predictor.weights(steps[1], steps[3]) == pytest.approx((1.1**2, 1.0))
    assert predictor.weights(steps[3], steps[6]) == pytest.approx((1.1, 1.2**3))
    assert predictor.weights(steps[6], steps[9]) == pytest.approx((1.0, 1.2**3))
    paper = predictor.model_copy(update={"weighting": "paper"})
    assert paper.weights(steps[3], steps[6]) == pytest.approx((1.0, 1.2))
