"""A transformer and a loop of Vchitect-2.0's shape, which no diffusers pipeline has.

Two calls a step with the unconditional one first; blocks called with keywords, returning (text, image), with None for
the text of the last; an attention with three parallel paths; (B, F, C, H, W) in and (B*F, C, H, W) out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastercache.zoo.rows import Row, noisy, texts


class ThreePathAttention(nn.Module):
    """Spatial, temporal and cross paths in one module; returns (image, text)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_q_temp, self.to_k_temp, self.to_v_temp = (nn.Linear(dim, dim) for _ in range(3))
        self.to_q_cross, self.to_k_cross, self.to_v_cross = (nn.Linear(dim, dim) for _ in range(3))
        self.to_add_out = nn.Linear(dim, dim)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, freqs_cis: Tensor, full_seqlen: int, Frame: int
    ) -> tuple[Tensor, Tensor]:
        rows, tokens, dim = hidden_states.shape  # (B*F, N, D)
        attend = nn.functional.scaled_dot_product_attention
        spatial = attend(self.to_q(hidden_states) + freqs_cis, self.to_k(hidden_states), self.to_v(hidden_states))
        by_token = hidden_states.reshape(-1, Frame, tokens, dim).transpose(1, 2)  # (B, N, F, D)
        temporal = attend(self.to_q_temp(by_token), self.to_k_temp(by_token), self.to_v_temp(by_token))
        temporal = temporal.transpose(1, 2).reshape(rows, tokens, dim)
        cross = attend(
            self.to_q_cross(hidden_states),
            self.to_k_cross(encoder_hidden_states),
            self.to_v_cross(encoder_hidden_states),
        )
        return spatial + temporal + cross, self.to_add_out(encoder_hidden_states)


class JointTransformerBlock(nn.Module):
    """One block; the last is `context_pre_only` and returns None for the text."""

    def __init__(self, dim: int, context_pre_only: bool) -> None:
        super().__init__()
        self.context_pre_only = context_pre_only
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ThreePathAttention(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        freqs_cis: Tensor,
        full_seqlen: int,
        Frame: int,
    ) -> tuple[Tensor | None, Tensor]:
        gate = temb.repeat_interleave(hidden_states.shape[0] // temb.shape[0], dim=0)[:, None]
        image, text = self.attn(self.norm1(hidden_states), encoder_hidden_states, freqs_cis, full_seqlen, Frame)
        hidden_states = hidden_states + gate * image
        hidden_states = hidden_states + self.ff(hidden_states)
        return None if self.context_pre_only else encoder_hidden_states + text, hidden_states


class VchitectXLTransformerModel(nn.Module):
    """(B, F, C, H, W) and text (B, T, 12) to (B*F, C, H, W)."""

    def __init__(self, channels: int = 4, dim: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.config = {"in_channels": channels}
        self.proj_in, self.proj_out = nn.Linear(channels, dim), nn.Linear(dim, channels)
        self.context_embedder, self.time_embed = nn.Linear(12, dim), nn.Linear(1, dim)
        self.transformer_blocks = nn.ModuleList(JointTransformerBlock(dim, i == layers - 1) for i in range(layers))

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        batch, frames, channels, height, width = hidden_states.shape
        x = hidden_states.flatten(0, 1).flatten(2).transpose(1, 2)  # (B*F, H*W, C)
        image: Tensor = self.proj_in(x)
        text: Tensor | None = self.context_embedder(encoder_hidden_states).repeat_interleave(frames, dim=0)
        temb = self.time_embed(timestep.reshape(-1, 1).float() / 1000).expand(batch, -1)
        freqs = torch.linspace(0, 1, height * width)[:, None]
        for block in self.transformer_blocks:
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                temb=temb,
                freqs_cis=freqs,
                full_seqlen=frames * height * width,
                Frame=frames,
            )
        pixels: Tensor = self.proj_out(image).transpose(1, 2)
        return pixels.reshape(batch * frames, channels, height, width)


class VchitectPipeline:
    """The loop of the official script: uncond, then cond, then the scheduler."""

    def __init__(self, transformer: nn.Module) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.transformer = transformer
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def set_progress_bar_config(self, **settings: object) -> None:
        """There is none."""

    @torch.no_grad()
    def __call__(
        self,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        num_inference_steps: int,
        generator: torch.Generator,
        height: int = 8,
        frames: int = 3,
        guidance_scale: float = 4.0,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn(len(prompt_embeds), frames, 4, height, 8, generator=generator)
        for t in self.scheduler.timesteps:
            time = t.expand(latents.shape[0])
            uncond = self.transformer(latents, time, negative_prompt_embeds)
            cond = self.transformer(latents, time, prompt_embeds)
            guided = (uncond + guidance_scale * (cond - uncond)).reshape(latents.shape)
            latents = self.scheduler.step(guided, t, latents, return_dict=False)[0]
        return (latents,)


VCHITECT = Row(
    "A random transformer of Vchitect-2.0's shape in its own loop.",
    "fastercache.zoo.vchitect:VchitectPipeline",
    {"transformer": noisy("fastercache.zoo.vchitect:VchitectXLTransformerModel")},
    texts(12),
    resized={"height": 6, "frames": 2},
    unguided={},
    videos=True,
)

ROWS = {"vchitect-2.0": VCHITECT}
