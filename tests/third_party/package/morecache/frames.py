"""A denoiser of an architecture of one's own, and its family."""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

import fastercache as fc


class FramesTransformer3DModel(ModelMixin, ConfigMixin):
    """Called as Latte's transformer is; its blocks see each frame by itself."""

    @register_to_config
    def __init__(
        self, in_channels: int = 4, out_channels: int = 8, width: int = 16, layers: int = 2, text: int = 12,
        sample_size: int = 8,
    ) -> None:  # fmt: skip
        super().__init__()
        self.entry = nn.Linear(in_channels, width)
        self.time = nn.Linear(1, width)
        self.blocks = nn.ModuleList(
            [BasicTransformerBlock(width, 2, width // 2, cross_attention_dim=text) for _ in range(layers)]
        )
        self.exit = nn.Linear(width, out_channels)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: object
    ) -> tuple[Tensor]:
        rows, _channels, frames, height, width = hidden_states.shape
        x = self.entry(hidden_states.permute(0, 2, 3, 4, 1))  # (B, F, H, W, D)
        time = (timestep.to(x.dtype) / 1000).reshape(-1, 1).expand(rows, 1)
        x = (x + self.time(time)[:, None, None, None]).flatten(0, 1).flatten(1, 2)  # (B F, H W, D)
        text = encoder_hidden_states.repeat_interleave(frames, 0)
        for block in self.blocks:
            x = block(x, encoder_hidden_states=text)
        x = self.exit(x).unflatten(0, (rows, frames)).unflatten(2, (height, width))
        return (x.permute(0, 4, 1, 2, 3).contiguous(),)


FAMILY = fc.Family("batched", layouts={"blocks": "frames"})
