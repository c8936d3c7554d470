"""Vchitect-2.0's transformer and loop, which no diffusers pipeline has: small in the zoo, or of the real size.

Two calls a step with the unconditional one first; blocks called with keywords, returning (text, image), with None for
the text of the last; an attention with three parallel paths; (B, F, C, H, W) in and (B*F, C, H, W) out.

Source: arXiv:2501.08453 and github.com/Vchitect/Vchitect-2.0. The layers, their names and what they compute are those
published there: an MMDiT of Stable Diffusion 3 on every frame, with a temporal and a cross path in its attention.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

PUBLISHED: dict[str, int] = {
    "sample_size": 128,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
"""The fields of `VchitectXLTransformerModel` in the published checkpoint, Vchitect-2.0-2B."""

PUBLISHED_CALL: dict[str, Any] = {
    "height": 432,
    "width": 768,
    "frames": 40,
    "num_inference_steps": 100,
    "guidance_scale": 7.5,
}
"""The call of the published script; its prompts have 77 CLIP tokens and 256 T5 tokens."""

PUBLISHED_TEXT = 77 + 256
"""Tokens of a prompt: those of the CLIP encoders, then those of T5."""

SHRINK = 8
"""Pixels along a side of a latent."""


class ThreePathAttention(nn.Module):
    """Spatial, temporal and cross attention side by side over image and text tokens; returns (image, text).

    The text's projections serve all three paths. `N` image tokens and `T` text tokens make up a frame:

    - spatial: the frame's N + T tokens attend to each other;
    - temporal: each of the N + T places attends to itself in the other frames, turned by a rotary embedding;
    - cross: all F * (N + T) tokens of a video attend to the text of its first frame.
    """

    def __init__(self, dim: int, heads: int, context_pre_only: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_q_temp, self.to_k_temp, self.to_v_temp = (nn.Linear(dim, dim) for _ in range(3))
        self.to_q_cross = nn.Linear(dim, dim)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list, as in the checkpoint
        self.to_add_out = None if context_pre_only else nn.Linear(dim, dim)
        self.to_out_temporal, self.to_add_out_temporal = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_out_context = nn.Linear(dim, dim)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, freqs_cis: Tensor, full_seqlen: int, Frame: int
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden_states.shape[1]  # image (B*F, N, D), text (B*F, T, D)
        text_q, text_k, text_v = (
            project(encoder_hidden_states) for project in (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        )
        spatial = self._attend(
            torch.cat([self.to_q(hidden_states), text_q], dim=1),
            torch.cat([self.to_k(hidden_states), text_k], dim=1),
            torch.cat([self.to_v(hidden_states), text_v], dim=1),
        )  # (B*F, N+T, D)
        cross_q = torch.cat([self.to_q_cross(hidden_states), text_q], dim=1)
        cross = self._attend(
            cross_q.unflatten(0, (-1, Frame)).flatten(1, 2),  # (B, F*(N+T), D)
            text_k.unflatten(0, (-1, Frame))[:, 0],  # (B, T, D)
            text_v.unflatten(0, (-1, Frame))[:, 0],
        ).reshape(cross_q.shape)
        joint = 1.1 * spatial + self.to_out_context(cross)
        image: Tensor = self.to_out[0](joint[:, :tokens])
        text = joint[:, tokens:] if self.to_add_out is None else self.to_add_out(joint[:, tokens:])
        if Frame > 1:  # one frame has no motion
            temporal = self._through_time(
                torch.cat([self.to_q_temp(hidden_states), text_q], dim=1),
                torch.cat([self.to_k_temp(hidden_states), text_k], dim=1),
                torch.cat([self.to_v_temp(hidden_states), text_v], dim=1),
                freqs_cis,
                Frame,
            )
            image = image + self.to_out_temporal(temporal[:, :tokens])
            text = text + self.to_add_out_temporal(temporal[:, tokens:])
        return image, text

    def _through_time(self, query: Tensor, key: Tensor, value: Tensor, freqs_cis: Tensor, frames: int) -> Tensor:
        """Attention of each place over the frames; all (B*F, N+T, D)."""

        def by_place(x: Tensor) -> Tensor:
            along: Tensor = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (B*(N+T), F, D)
            return along

        places = query.shape[1]
        turned: Tensor = self._attend(
            rotated(by_place(query), freqs_cis), rotated(by_place(key), freqs_cis), by_place(value)
        )  # (B*(N+T), F, D)
        by_frame: Tensor = turned.unflatten(0, (-1, places)).transpose(1, 2).flatten(0, 1)
        return by_frame

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of `heads` heads; (rows, tokens, D) in and out."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rotary(dim: int, frames: int, device: torch.device) -> Tensor:
    """Complex rotary embedding (frames, dim / 2) of the frames' places, with base 1e6."""
    frequencies = 1e6 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(frames, device=device, dtype=torch.float32), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def rotated(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """`x` (rows, F, D), each pair of neighbours in each head turned in float32 by its frame's angle."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, freqs_cis.shape[-1], 2)))  # (rows, F, heads, d / 2)
    return torch.view_as_real(pairs * freqs_cis[:, None]).flatten(2).to(x.dtype)


class JointTransformerBlock(nn.Module):
    """One block of image and text; the last is `context_pre_only` and returns None for the text."""

    def __init__(self, dim: int, heads: int, context_pre_only: bool) -> None:
        super().__init__()
        self.context_pre_only = context_pre_only
        self.norm1 = AdaLayerNormZero(dim)
        if context_pre_only:
            self.norm1_context = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        else:
            self.norm1_context = AdaLayerNormZero(dim)
        self.attn = ThreePathAttention(dim, heads, context_pre_only)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(dim, activation_fn="gelu-approximate")
        if not context_pre_only:
            self.norm2_context = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
            self.ff_context = FeedForward(dim, activation_fn="gelu-approximate")

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        freqs_cis: Tensor,
        full_seqlen: int,
        Frame: int,
    ) -> tuple[Tensor | None, Tensor]:
        """Image (B*F, N, D), text (B*F, T, D) and `temb` (B*F, D) to (text, image)."""
        image, gate, shift_ff, scale_ff, gate_ff = self.norm1(hidden_states, emb=temb)
        if self.context_pre_only:
            text = self.norm1_context(encoder_hidden_states, temb)
        else:
            text, text_gate, text_shift, text_scale, text_gate_ff = self.norm1_context(encoder_hidden_states, emb=temb)
        image, text = self.attn(
            hidden_states=image,
            encoder_hidden_states=text,
            freqs_cis=freqs_cis,
            full_seqlen=full_seqlen,
            Frame=Frame,
        )
        hidden_states = hidden_states + gate[:, None] * image
        inner = self.norm2(hidden_states) * (1 + scale_ff[:, None]) + shift_ff[:, None]
        hidden_states = hidden_states + gate_ff[:, None] * self.ff(inner)
        if self.context_pre_only:
            return None, hidden_states
        encoder_hidden_states = encoder_hidden_states + text_gate[:, None] * text
        inner = self.norm2_context(encoder_hidden_states) * (1 + text_scale[:, None]) + text_shift[:, None]
        return encoder_hidden_states + text_gate_ff[:, None] * self.ff_context(inner), hidden_states


class VchitectXLTransformerModel(nn.Module):
    """(B, F, C, H, W) of latents, text (B, T, `joint_attention_dim`) and its summary to (B*F, C, H, W).

    The defaults make a small one; `VchitectXLTransformerModel(**PUBLISHED)` is the real size, 2.4 billion parameters.

    Args:
        sample_size: side of the latents whose positional embedding has step 1.
        in_channels: C, also of the output.
        num_layers: blocks.
        attention_head_dim: width of a head.
        num_attention_heads: heads.
        joint_attention_dim: width of the text.
        pooled_projection_dim: width of the text's summary.
        pos_embed_max_size: patches of 2 x 2 latents along a side of the largest frame.
    """

    patch_size = 2

    def __init__(
        self,
        sample_size: int = 8,
        in_channels: int = 4,
        num_layers: int = 3,
        attention_head_dim: int = 8,
        num_attention_heads: int = 2,
        joint_attention_dim: int = 12,
        pooled_projection_dim: int = 10,
        pos_embed_max_size: int = 8,
    ) -> None:
        super().__init__()
        self.config = {
            "sample_size": sample_size,
            "in_channels": in_channels,
            "num_layers": num_layers,
            "attention_head_dim": attention_head_dim,
            "num_attention_heads": num_attention_heads,
            "joint_attention_dim": joint_attention_dim,
            "pooled_projection_dim": pooled_projection_dim,
            "pos_embed_max_size": pos_embed_max_size,
        }
        dim = num_attention_heads * attention_head_dim
        self.pos_embed = PatchEmbed(
            height=sample_size,
            width=sample_size,
            patch_size=self.patch_size,
            in_channels=in_channels,
            embed_dim=dim,
            pos_embed_max_size=pos_embed_max_size,
        )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(dim, pooled_projection_dim)
        self.context_embedder = nn.Linear(joint_attention_dim, dim)
        self.transformer_blocks = nn.ModuleList(
            JointTransformerBlock(dim, num_attention_heads, i == num_layers - 1) for i in range(num_layers)
        )
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(dim, self.patch_size**2 * in_channels)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor
    ) -> Tensor:
        """The prediction for latents (B, F, C, H, W) at `timestep` (B,), H and W even; all on one device.

        `pooled_projections` is (B, `pooled_projection_dim`).
        """
        batch, frames, _, height, width = hidden_states.shape
        image: Tensor = self.pos_embed(hidden_states.flatten(0, 1))  # (B*F, N, D)
        text: Tensor | None = self.context_embedder(encoder_hidden_states).repeat_interleave(frames, dim=0)
        temb = self.time_text_embed(timestep, pooled_projections).repeat_interleave(frames, dim=0)  # (B*F, D)
        freqs = rotary(self.config["attention_head_dim"], frames, image.device)
        for block in self.transformer_blocks:
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                temb=temb,
                freqs_cis=freqs,
                full_seqlen=batch * frames,
                Frame=frames,
            )
        patches: Tensor = self.proj_out(self.norm_out(image, temb))  # (B*F, N, 2 * 2 * C)
        side = self.patch_size
        patches = patches.unflatten(-1, (side, side, -1)).unflatten(1, (height // side, width // side))
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch * frames, -1, height, width)


class VchitectPipeline:
    """The loop of the published script: uncond, then cond, then the scheduler.

    The script also varies the guidance with the step; here it is constant, which costs the same.
    """

    def __init__(self, transformer: VchitectXLTransformerModel) -> None:
        self.transformer = transformer
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def set_progress_bar_config(self, **settings: object) -> None:
        """There is none."""

    @torch.no_grad()
    def __call__(
        self,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        negative_pooled_prompt_embeds: Tensor,
        num_inference_steps: int,
        height: int,
        width: int,
        frames: int,
        generator: torch.Generator | None = None,
        guidance_scale: float = 7.5,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Latents (B, F, C, height / 8, width / 8), on the transformer's device and of its type.

        Args:
            prompt_embeds, negative_prompt_embeds: texts (B, T, `joint_attention_dim`).
            pooled_prompt_embeds, negative_pooled_prompt_embeds: their summaries (B, `pooled_projection_dim`).
            num_inference_steps: steps.
            height, width: of a frame, in pixels; multiples of 16.
            frames: F.
            generator: of the noise that the run starts from; the global one if None.
            guidance_scale: weight of the conditional prediction.
            return_dict: there is only one form of result.
        """
        weight = next(self.transformer.parameters())
        # Weights that are offloaded module by module rest on the meta device; the texts are where the run is.
        place: dict[str, Any] = {
            "device": prompt_embeds.device if weight.is_meta else weight.device,
            "dtype": weight.dtype,
        }
        uncond_text, cond_text = negative_prompt_embeds.to(**place), prompt_embeds.to(**place)
        uncond_pooled, cond_pooled = negative_pooled_prompt_embeds.to(**place), pooled_prompt_embeds.to(**place)
        channels = self.transformer.config["in_channels"]
        shape = (len(prompt_embeds), frames, channels, height // SHRINK, width // SHRINK)
        latents = randn_tensor(shape, generator=generator, **place)
        self.scheduler.set_timesteps(num_inference_steps, device=place["device"])
        for t in self.scheduler.timesteps:
            time = t.expand(latents.shape[0])
            uncond = self.transformer(
                hidden_states=latents,
                encoder_hidden_states=uncond_text,
                pooled_projections=uncond_pooled,
                timestep=time,
            )
            cond = self.transformer(
                hidden_states=latents,
                encoder_hidden_states=cond_text,
                pooled_projections=cond_pooled,
                timestep=time,
            )
            guided = (uncond + guidance_scale * (cond - uncond)).reshape(latents.shape)
            latents = self.scheduler.step(guided, t, latents, return_dict=False)[0]
        return (latents,)
