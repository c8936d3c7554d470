"""The response read off by probing equals the scheduler itself on random outputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastercache.analysis.response import probe

N = 7
FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
V: dict[str, Any] = {"prediction_type": "v_prediction"}
PLAIN: dict[str, Any] = {"clip_sample": False}
SCHEDULERS: dict[str, tuple[Any, str]] = {
    "Euler": (diffusers.EulerDiscreteScheduler(), "memoryless"),
    "Euler, v": (diffusers.EulerDiscreteScheduler(**V), "memoryless"),
    "flow Euler": (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "memoryless"),
    "DDIM, eps": (diffusers.DDIMScheduler(**PLAIN), "memoryless"),
    "DDIM, v": (diffusers.DDIMScheduler(**PLAIN, **V), "memoryless"),
    "DDPM": (diffusers.DDPMScheduler(**PLAIN), "memoryless"),
    "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler(), "memoryless"),
    "LCM": (diffusers.LCMScheduler(**PLAIN), "memoryless"),
    "Heun": (diffusers.HeunDiscreteScheduler(), "memory"),
    "flow Heun": (diffusers.FlowMatchHeunDiscreteScheduler(), "memory"),
    "DPM-Solver++ 1": (diffusers.DPMSolverMultistepScheduler(solver_order=1), "memoryless"),
    "DPM-Solver++ 2": (diffusers.DPMSolverMultistepScheduler(solver_order=2), "memory"),
    "DPM-Solver++ 2, flow": (diffusers.DPMSolverMultistepScheduler(solver_order=2, **FLOW), "memory"),
    "DPM-Solver++ 3": (diffusers.DPMSolverMultistepScheduler(solver_order=3), "memory"),
    "SDE-DPM-Solver++": (diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "memory"),
    "DPM-Solver++, single step": (diffusers.DPMSolverSinglestepScheduler(), "memory"),
    "UniPC": (diffusers.UniPCMultistepScheduler(), "memory"),
    "UniPC, flow": (diffusers.UniPCMultistepScheduler(**FLOW), "memory"),
    "PNDM": (diffusers.PNDMScheduler(skip_prk_steps=True), "memory"),
    "EDM Euler": (diffusers.EDMEulerScheduler(), "memoryless"),
    "EDM DPM-Solver++": (diffusers.EDMDPMSolverMultistepScheduler(), "memory"),
}
STOCHASTIC = {"DDPM", "Euler ancestral", "LCM", "SDE-DPM-Solver++"}


def latents(scheduler: Any, x: Tensor, outputs: Tensor, first: int = 0) -> NDArray[np.float64]:
    """x_0 .. x_n, (n + 1, size), by the scheduler itself, with fixed noise."""
    sampler = copy.deepcopy(scheduler)
    if hasattr(type(sampler), "set_begin_index"):  # DDIM looks its step up by its time
        sampler.set_begin_index(first)
    takes = "generator" in inspect.signature(sampler.step).parameters
    given = {"generator": torch.Generator().manual_seed(5)} if takes else {}
    found = [x]
    torch.manual_seed(5)
    for output, time in zip(outputs, sampler.timesteps[first:], strict=True):
        if hasattr(sampler, "scale_model_input"):
            sampler.scale_model_input(x, time)
        x = sampler.step(output, time, x, return_dict=False, **given)[0]
        found.append(x)
    return torch.stack(found).reshape(len(found), -1).double().numpy()


def ready(scheduler: Any, steps: int = N) -> Any:
    sampler = copy.deepcopy(scheduler)
    sampler.set_timesteps(steps)
    return sampler


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_matrix_gives_the_scheduler_s_latents(name: str) -> None:
    scheduler, kind = SCHEDULERS[name]
    sampler = ready(scheduler)
    before = {key: copy.deepcopy(value) for key, value in vars(sampler).items()}
    response = probe(sampler)
    for key, value in vars(sampler).items():
        assert np.array_equal(np.asarray(before[key], dtype=object), np.asarray(value, dtype=object)), key
    assert response.kind == kind
    assert response.stochastic == (name in STOCHASTIC)
    n = len(sampler.timesteps)
    assert response.steps == n and response.matrix.shape == (n + 1, n + 1)
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(n, 1, 4, 6, 6, generator=generator, dtype=torch.float64)
    start = float(getattr(sampler, "init_noise_sigma", 1.0)) * torch.randn(1, 4, 6, 6, generator=generator).double()
    real = latents(sampler, start, outputs) - latents(sampler, torch.zeros_like(start), torch.zeros_like(outputs))
    inputs = np.stack([start.numpy().ravel(), *(f.numpy().ravel() for f in outputs)])
    expected = response.matrix @ inputs
    size = np.linalg.norm(real, axis=1, keepdims=True)
    assert (np.abs(expected - real) <= 1e-3 * size / np.sqrt(real.shape[1])).all()


@pytest.mark.parametrize("name", [name for name, (_, kind) in SCHEDULERS.items() if kind == "memoryless"])
def test_memoryless_steps_have_a_scale_and_a_gain(name: str) -> None:
    """x_{k+1} = a_k x_k + b_k F_k from two real steps that start at x_k."""
    sampler = ready(SCHEDULERS[name][0])
    response = probe(sampler)
    matrix = np.zeros((N + 1, N + 1))
    matrix[0, 0] = 1.0
    for k in range(N):
        matrix[k + 1] = response.scale[k] * matrix[k]
        matrix[k + 1, 1 + k] += response.gain[k]
    np.testing.assert_allclose(matrix, response.matrix, rtol=1e-3, atol=1e-4 * np.abs(response.matrix).max())
    np.testing.assert_array_equal(response.impulse, response.matrix[-1, 1:])


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(clip_sample=True),
        diffusers.DDPMScheduler(clip_sample=True),
        diffusers.DDIMScheduler(clip_sample=False, thresholding=True),
        diffusers.DPMSolverMultistepScheduler(thresholding=True, sample_max_value=1.0),
    ],
    ids=["DDIM clips", "DDPM clips", "DDIM thresholds", "DPM-Solver++ thresholds"],
)
def test_clipping_and_thresholding_are_nonlinear(scheduler: Any) -> None:
    response = probe(ready(scheduler))
    assert response.kind == "nonlinear" and response.reach == -1 and response.residual > 1e-2


def test_noise_by_eta_is_stochastic() -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    assert not probe(ready(scheduler)).stochastic
    assert probe(ready(scheduler), step={"eta": 1.0}).stochastic


@pytest.mark.parametrize("name", ["DDIM, eps", "flow Euler", "Euler", "DPM-Solver++ 2", "UniPC"])
def test_a_run_may_begin_in_the_middle(name: str) -> None:
    """Image-to-image: the first steps are not taken."""
    sampler, first = ready(SCHEDULERS[name][0]), 3
    response = probe(sampler, first=first)
    n = N - first
    assert response.steps == n
    np.testing.assert_allclose(response.times, np.asarray(sampler.timesteps, dtype=np.float64)[first:])
    outputs = torch.randn(n, 1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    start = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    real = latents(sampler, start, outputs, first)
    inputs = np.stack([start.numpy().ravel(), *(f.numpy().ravel() for f in outputs)])
    np.testing.assert_allclose(response.matrix @ inputs, real, atol=1e-3 * np.abs(real).max())


def test_another_number_of_steps_and_mu_need_no_prepared_scheduler() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    wanted = copy.deepcopy(scheduler)
    wanted.set_timesteps(5, mu=0.8)
    response = probe(scheduler, 5, timesteps={"mu": 0.8})
    np.testing.assert_allclose(response.times, wanted.timesteps.double().numpy())
    untouched = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert torch.equal(scheduler.timesteps, untouched.timesteps)
    np.testing.assert_allclose(response.gain, np.diff(wanted.sigmas.double().numpy()), rtol=1e-4)


def test_the_denoiser_s_input_scale_is_found() -> None:
    sampler = ready(diffusers.EulerDiscreteScheduler())
    expected = 1.0 / np.sqrt(sampler.sigmas[:-1].double().numpy() ** 2 + 1.0)
    np.testing.assert_allclose(probe(sampler).input_scale, expected, rtol=1e-4)
    np.testing.assert_allclose(probe(ready(diffusers.DDIMScheduler())).input_scale, np.ones(N))


def test_refusals_say_why() -> None:
    with pytest.raises(ValueError, match=r"FlowMatchEuler.*no timesteps: give the number of steps"):
        probe(_without_timesteps())
    learned = ready(diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False))
    with pytest.raises(ValueError, match="does not take outputs of the latent's shape"):
        probe(learned)


def _without_timesteps() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.timesteps = None
    return scheduler


class Elsewhere(Tensor):
    """A tensor that refuses to be mixed with ordinary ones until it is moved to the CPU, as a GPU's does."""

    def __deepcopy__(self, memo: Any) -> Elsewhere:
        return self.as_subclass(Tensor).clone().as_subclass(Elsewhere)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to and args[1] == "cpu":
            return args[0].as_subclass(Tensor)
        if any(type(part) is Tensor and part.ndim for part in args):
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", ["DDIMScheduler", "CogVideoXDDIMScheduler", "UniPCMultistepScheduler"])
def test_a_scheduler_whose_tables_are_on_a_gpu_is_probed_on_the_host(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(8)
    expected = probe(scheduler)
    for key, value in vars(scheduler).items():
        if isinstance(value, Tensor):
            setattr(scheduler, key, value.clone().as_subclass(Elsewhere))
    scheduler.unused = {"table": [scheduler.timesteps], "name": "kept"}
    found = probe(scheduler)
    np.testing.assert_array_equal(found.matrix, expected.matrix)
    np.testing.assert_array_equal(found.times, expected.times)
    assert type(scheduler.timesteps) is Elsewhere, "the scheduler is left as it is"


class Made:
    """A sampler by hand: `becomes(k, x, output)` is the next latent. Its latents are `size` times as large as usual."""

    def __init__(self, becomes: Callable[[int, Tensor, Tensor], Tensor], size: float = 1.0, steps: int = 3) -> None:
        self.becomes, self.init_noise_sigma, self.steps = becomes, size, steps
        self.timesteps = torch.arange(float(steps), 0.0, -1.0)

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.arange(float(steps), 0.0, -1.0)

    def step(self, output: Tensor, time: Any, x: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.becomes(len(self.timesteps) - int(time), x, output),)


def test_how_far_back_a_sampler_looks_is_counted() -> None:
    """Each latent is half the one before, a fifth of the newest output, and something of older ones."""
    for weights in ((0.2,), (0.2, 0.1), (0.2, 0.0, 0.05), (0.2, 0.1, 0.05), (0.2, 0.0, 8e-5)):
        seen: list[Tensor] = []

        def becomes(k: int, x: Tensor, output: Tensor, weights: Any = weights, seen: Any = seen) -> Tensor:
            seen[:] = [output, *seen[:k]]
            return 0.5 * x + sum(w * past for w, past in zip(weights, seen, strict=False))

        response = probe(Made(becomes, steps=5))
        assert response.reach == len(weights) - 1, weights
        assert response.kind == ("memory" if len(weights) > 1 else "memoryless")
        assert response.residual < 1e-7 and not response.stochastic
        if len(weights) == 1:
            np.testing.assert_allclose(response.scale, 0.5)
            np.testing.assert_allclose(response.gain, 0.2)
            np.testing.assert_allclose(response.impulse, 0.2 * 0.5 ** np.arange(4, -1, -1.0), rtol=1e-9)


def test_the_residual_is_relative_to_the_latents() -> None:
    """A sampler whose latents are much larger is as far from being linear."""
    found = []
    for size in (0.01, 100.0):
        made = Made(lambda k, x, output, size=size: 0.9 * x + size * (0.3 * output + 0.02 * output**2), size)
        found.append(probe(made))
    assert found[0].residual == pytest.approx(found[1].residual, rel=1e-6) and found[0].kind == "nonlinear"
    np.testing.assert_allclose(found[1].matrix[:, 1:], 1e4 * found[0].matrix[:, 1:], rtol=1e-6)
    np.testing.assert_allclose(found[1].matrix[:, 0], found[0].matrix[:, 0], rtol=1e-9)


def test_a_ten_thousandth_of_bending_is_let_pass() -> None:
    found = [probe(Made(lambda k, x, f, bend=bend: x + f + bend * f**2)) for bend in (1e-6, 1e-3)]
    assert [(one.kind, one.reach) for one in found] == [("memoryless", 0), ("nonlinear", -1)]
    assert found[1].residual / found[0].residual == pytest.approx(1000.0, rel=0.05)
    assert found[0].residual < 1e-4 < found[1].residual
    bent = Made(lambda k, x, f: x + f + 1e-3 * f**2)
    assert probe(bent, tolerance=0.1).kind == "memoryless"
    assert probe(Made(lambda k, x, f: x + f + 1e-6 * f**2), tolerance=1e-7).kind == "nonlinear"


def test_the_run_that_is_probed_is_as_long_as_asked() -> None:
    made = Made(lambda k, x, output: x + output)
    assert probe(made).steps == 3 and probe(made, 6).steps == 6 and probe(made, 6, first=2).times.tolist() == [
        4.0, 3.0, 2.0, 1.0,
    ]  # fmt: skip
    assert len(made.timesteps) == 3
    with pytest.raises(ValueError, match="Made has no timesteps"):
        probe(made, first=3)
