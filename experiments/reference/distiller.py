"""Trains a few-step student on its teacher's trajectories: seeded, resumable, the same on CPU and GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastercache.experiments.reference import latte
from fastercache.experiments.reference.spec import Distilled
from fastercache.experiments.reference.text import MAX_TOKENS, CaptionTable
from fastercache.experiments.reference.training import Training
from fastercache.experiments.reference.trajectories import Ladder, Trajectories


class Distiller(Training):
    """Trains a transformer, which begins as the teacher, to take a trajectory's next step in one evaluation.

    The loss is the mean squared error of v. For a cosine schedule the steps multiply v with nearly equal numbers, so
    it weighs the errors of the latents that the steps reach equally.
    """

    smoothing = 0.98

    def __init__(
        self,
        spec: Distilled,
        transformer: Any,
        text_encoder: nn.Module,
        table: CaptionTable,
        trajectories: Trajectories,
        device: torch.device,
        *,
        compiled: bool = False,
    ) -> None:
        self.spec, self.trajectories, self.compiled = spec, trajectories, compiled
        self.transformer, self.text_encoder, self.table = transformer.to(device), text_encoder.to(device), table
        self.ladder = Ladder(spec.generation.num_inference_steps)
        self.text_encoder.requires_grad_(False)
        trained: dict[str, nn.Parameter] = {}
        for name, value in self.transformer.named_parameters():
            value.requires_grad_(spec.frozen not in name)
            if value.requires_grad:
                trained[name] = value
        # Muon, which trains the teachers, orthogonalises in bfloat16: on a CPU without such instructions that would
        # take longer than the rest of an update
        optimiser = torch.optim.AdamW(trained.values(), lr=spec.rate, betas=(0.9, 0.98), weight_decay=0.0)
        super().__init__(
            trained,
            [optimiser],
            torch.Generator().manual_seed(spec.seed),
            steps=spec.updates,
            warm_up=spec.warm_up,
            ema=spec.ema,
            device=device,
        )

    def _picks(self) -> tuple[Tensor, int]:
        """Trajectories of a batch and the number of tokens of its captions.

        Six batches in ten have captions of one length, as one prompt in a call of the pipeline has; the others are
        padded as in ``latte.caption_embeddings``, so that the student can be called with several prompts too.
        """
        spec, generator, templates = self.spec, self.generator, self.trajectories.templates
        draw = float(torch.rand((), generator=generator))
        picks = torch.randint(len(templates), (spec.batch,), generator=generator)
        lengths = self.table.lengths[templates]
        if draw < 0.6:
            same = torch.nonzero(lengths == lengths[picks[0]]).flatten()
            return same[picks % len(same)], int(lengths[picks[0]])
        if draw < 0.97:
            return picks, (8, 12, 24)[int(torch.randint(3, (), generator=generator))]
        return picks, MAX_TOKENS

    def _velocity(self, latents: Tensor, index: Tensor, embeddings: Tensor) -> Tensor:
        times = self.ladder.timesteps[index].to(self.device)
        output: Tensor = self.transformer(latents, timestep=times, encoder_hidden_states=embeddings, return_dict=False)[
            0
        ]
        return output.chunk(2, dim=1)[0]

    def losses(self) -> tuple[Tensor, Tensor]:
        spec, generator = self.spec, self.generator
        picks, length = self._picks()
        # every step of the schedule equally often in a batch
        index = torch.randperm(spec.batch, generator=generator) % len(self.ladder.timesteps)
        own = float(torch.rand((), generator=generator)) < spec.own
        ways = self.trajectories
        latents = ways.latents[picks, index].to(self.device)
        reached = ways.latents[picks, index + 1].to(self.device)
        # the fused attention kernel's backward is twice as slow as plain matrix products on sequences this short
        with sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                embeddings = latte.encode_captions(
                    self.text_encoder, self.table, ways.attributes[picks], ways.templates[picks], length, self.device
                )
                if self.compiled:
                    torch._dynamo.mark_dynamic(embeddings, 1)
                if own:
                    before = (index - 1).clamp(min=0)
                    earlier = ways.latents[picks, before].to(self.device)
                    made = self.ladder.step(earlier, self._velocity(earlier, before, embeddings), before)
                    latents = torch.where((index > 0).view(-1, 1, 1, 1, 1).to(self.device), made, latents)
            target = self.ladder.velocity(latents, reached, index)
            loss = (self._velocity(latents, index, embeddings) - target).square().mean()
        return loss, loss
