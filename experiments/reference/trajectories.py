"""What a few-step student learns from: the way its teacher goes from noise to a video.

In a variance-preserving process ``x = a x0 + s noise`` with ``a^2 + s^2 = 1``, and with v = a noise - s x0 (Salimans &
Ho, Progressive Distillation, 2022, appendix D), a step of DDIM (Song et al. 2021, equation 12, eta 0) from (a, s) to
(a', s') is linear in the latent and in v:

    x' = (a a' + s s') x - (a' s - a s') v.

So whatever the teacher does on the way from x to x', in any number of steps and with guidance, there is one v that
brings a student there in one step. It exists at zero terminal signal too (a = 0), where noise predictions fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastercache.experiments.reference import latte
from fastercache.experiments.reference.data import TEMPLATES, combinations
from fastercache.experiments.reference.spec import Distilled
from fastercache.experiments.reference.text import CaptionTable, null_sequence
from fastercache.policies.documents import replacing


class Ladder:
    """The steps of the Latte models' DDIM scheduler as numbers.

    Each step ends where the next begins. The scheduler's own steps do so too where their number divides 1000; at
    others they end up to one timestep beside it, which a teacher that is to pass through its student's timesteps must
    not.

    Attributes:
        timesteps: ``(steps,)`` integers, the first is the noisiest.
        keep: ``(steps,)`` what a step multiplies the latent with.
        move: ``(steps,)`` what a step multiplies v with before it is subtracted.
    """

    def __init__(self, steps: int) -> None:
        scheduler: Any = latte.build_scheduler()
        scheduler.set_timesteps(steps)
        self.timesteps: Tensor = scheduler.timesteps
        alphas = scheduler.alphas_cumprod.double()
        reached = torch.cat([alphas[self.timesteps[1:]], scheduler.final_alpha_cumprod.double().view(1)])
        a, s = alphas[self.timesteps].sqrt(), (1 - alphas[self.timesteps]).sqrt()
        then_a, then_s = reached.sqrt(), (1 - reached).sqrt()
        self.keep = (a * then_a + s * then_s).float()
        self.move = (then_a * s - a * then_s).float()

    def step(self, latents: Tensor, velocity: Tensor, index: Tensor) -> Tensor:
        """Latents ``(B, C, F, h, w)`` after the step ``index`` ``(B,)`` with a predicted v of the same shape."""
        keep, move = (x.to(latents.device)[index].view(-1, 1, 1, 1, 1) for x in (self.keep, self.move))
        reached: Tensor = keep * latents - move * velocity
        return reached

    def velocity(self, latents: Tensor, reached: Tensor, index: Tensor) -> Tensor:
        """The v with which the step ``index`` brings ``latents`` to ``reached``."""
        keep, move = (x.to(latents.device)[index].view(-1, 1, 1, 1, 1) for x in (self.keep, self.move))
        velocity: Tensor = (keep * latents - reached) / move
        return velocity


@dataclass
class Trajectories:
    """Latents ``(N, steps + 1, C, F, h, w)`` from noise to the end, attributes ``(N, 3)`` and templates ``(N,)``."""

    latents: Tensor
    attributes: Tensor
    templates: Tensor

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        with replacing(path, "trajectories") as temporary:
            save_file({name: value.contiguous() for name, value in vars(self).items()}, temporary)


def join(paths: list[Path]) -> Trajectories:
    """Read files that ``Trajectories.save`` wrote as one."""
    parts = [load_file(path) for path in paths]
    return Trajectories(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def part_of(spec: Distilled) -> int:
    """Trajectories in a part: with both branches they make one batch."""
    return spec.batch // 2


@torch.no_grad()
def trace(
    spec: Distilled,
    transformer: Any,
    text_encoder: nn.Module,
    table: CaptionTable,
    parts: range,
    device: torch.device,
    *,
    compiled: bool = False,
) -> Iterator[tuple[int, Trajectories]]:
    """The teacher's trajectories, part by part, each from its own seed; both branches in one batch.

    A part has one template, so that its captions have one length, as in a call of the pipeline with one prompt.
    """
    few, many = Ladder(spec.generation.num_inference_steps), Ladder(spec.teacher_steps)
    every = spec.teacher_steps // len(few.timesteps)
    if 1000 % len(few.timesteps) or not torch.equal(many.timesteps[::every], few.timesteps):
        raise ValueError(
            f"a teacher of {spec.teacher_steps} steps cannot teach {len(few.timesteps)} steps: expected a multiple of "
            "them, and a number that divides 1000"
        )
    choices = torch.tensor([c.indices() for c in combinations("train")])
    config, count = transformer.config, part_of(spec)
    shape = (count, config.in_channels, spec.generation.frames, config.sample_size, config.sample_size)
    for part in parts:
        generator = torch.Generator().manual_seed(spec.seed + 1000 + part)
        attributes = choices[torch.randint(len(choices), (count,), generator=generator)]
        template = torch.full((count,), part % len(TEMPLATES))
        latents = torch.randn(shape, generator=generator).to(device)
        length = int(table.lengths[template[0]])
        asked = latte.encode_captions(text_encoder, table, attributes, template, length, device)
        embeddings = torch.cat([null_sequence(text_encoder, length, device).expand_as(asked), asked])
        if compiled:
            torch._dynamo.mark_dynamic(embeddings, 1)
        way = [latents.cpu()]
        for index in range(spec.teacher_steps):
            times = many.timesteps[index].to(device).expand(2 * count)
            output = transformer(
                latents.repeat(2, 1, 1, 1, 1), timestep=times, encoder_hidden_states=embeddings, return_dict=False
            )[0]
            without, with_caption = output.chunk(2, dim=1)[0].chunk(2)
            velocity = without + spec.teacher_guidance * (with_caption - without)
            latents = many.step(latents, velocity, torch.full((count,), index))
            if (index + 1) % every == 0:
                way.append(latents.cpu())
        yield part, Trajectories(torch.stack(way, dim=1), attributes, template)
