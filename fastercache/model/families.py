"""What differs between model families, as data.

Everything here was read off the pinned diffusers' pipelines, and every family is run small in the tests. A denoiser
class that is not listed still works where detection by structure succeeds; its guidance style must then be passed to
`attach`. A third party lists its own class with `register_family(MyTransformer3DModel, Family("batched"))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import nn

from fastercache.policies.errors import InvalidFamily, shown, suggest
from fastercache.policies.plugins import Plugins
from fastercache.policies.vocabulary import COND, UNCOND, Branch, Role

Guidance = Literal["batched", "separate", "none"]
Layout = Literal["rows", "frames", "tokens", "joined", "joined_last"]
"""Axes of a block's hidden states: `rows` (B, N, D), `frames` (B*F, N, D), `tokens` (B*N, F, D); `joined` is `rows`
with the text's tokens before the image's in one stream, `joined_last` with the text's after them."""


@dataclass(frozen=True)
class Family:
    """How one family's pipelines call their denoiser.

    Attributes:
        guidance: both halves in one call (`batched`), one call per branch (`separate`), or no second branch (`none`).
        order: branches in the order of the rows of a batched call, or of the calls of a step.
        stack: the block lists that make one chain, in the order they run, where the denoiser has others beside it that
            only feed the chain (refiners of the text, VACE's): those are inputs of the stack, not members.
        interleaved: block lists run in turn (a.0, b.0, a.1, ...) instead of one list after the other.
        roles: glob over module names -> role, where structure alone does not tell.
        layouts: block list -> layout of its hidden states, where it is not `rows`.
        contexts: the pipeline's cache-context name -> branch, where it is not the branch's own name.
        tokens: the denoiser's output is packed tokens (B, N, C); the keyword arguments or pipeline that unpack them.
        text_first: blocks return (text, image); needed only where both streams can have one shape.
        passes: further calls of a step with the conditional rows alone: cache context -> the branch, and the pipeline's
            property that says whether a run makes them.
        null_class: label of the unconditional class: a call without it has no guidance.
        inseparable: some argument has its rows along another axis than the first, so that no call can be made for some
            of the branches alone.
        true_cfg: guidance-distilled, but a pipeline call with a negative prompt adds a separate second call.
    """

    guidance: Guidance
    order: tuple[Branch, ...] = (UNCOND, COND)
    stack: tuple[str, ...] = ()
    interleaved: bool = False
    roles: dict[str, Role] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    contexts: dict[str, Branch] = field(default_factory=dict)
    passes: dict[str, tuple[Branch, str]] = field(default_factory=dict)
    tokens: Literal["", "num_frames", "img_shapes", "img_ids"] = ""
    null_class: int | None = None
    text_first: bool = False
    inseparable: bool = False
    true_cfg: bool = False

    def __post_init__(self) -> None:
        allowed = {"guidance": get_args(Guidance), "tokens": ("", "num_frames", "img_shapes", "img_ids")}
        for name, values in allowed.items():
            _one_of(f"a family's {name}", getattr(self, name), values)
        for layout in self.layouts.values():
            _one_of("a layout of a block list", layout, get_args(Layout))
        for role in self.roles.values():
            _one_of("a role of a module", role, tuple(Role))
        if isinstance(self.order, str) or COND not in self.order or len(set(self.order)) != len(self.order):
            raise InvalidFamily(f"a family's order names each branch once, '{COND}' among them, found {self.order!r}")
        if self.guidance != "none" and len(self.order) < 2:
            raise InvalidFamily(f"guidance that is {self.guidance} has two branches or more, found {self.order!r}")


def _one_of(what: str, found: object, allowed: Sequence[str]) -> None:
    if found not in allowed:
        raise InvalidFamily(f"{what} cannot be {shown(found)}{suggest(str(found), allowed)}")


_BATCHED = Family("batched")
_SEPARATE = Family("separate", order=(COND, UNCOND))
_SINGLE_IS_JOINT = {"single_transformer_blocks.*.attn": Role.JOINT}

_GUIDER: dict[str, Branch] = {"pred_cond": COND, "pred_uncond": UNCOND}

FAMILIES: dict[str, Family] = {
    "LatteTransformer3DModel": Family(
        "batched",
        interleaved=True,
        roles={"temporal_transformer_blocks.*.attn1": Role.TEMPORAL, "transformer_blocks.*.attn1": Role.SPATIAL},
        layouts={"transformer_blocks": "frames", "temporal_transformer_blocks": "tokens"},
    ),
    "CogVideoXTransformer3DModel": Family("batched", roles={"transformer_blocks.*.attn1": Role.JOINT}),
    "MochiTransformer3DModel": _BATCHED,
    "LTXVideoTransformer3DModel": Family("batched", tokens="num_frames"),
    "LTX2VideoTransformer3DModel": Family(
        "batched",
        tokens="num_frames",
        passes={
            "uncond_stg": ("stg", "do_spatio_temporal_guidance"),
            "uncond_modality": ("modality", "do_modality_isolation_guidance"),
        },
        roles={
            "transformer_blocks.*.audio_attn1": Role.TEMPORAL,  # the audio's tokens lie along time
            "transformer_blocks.*.audio_attn2": Role.CROSS,
            "transformer_blocks.*.audio_to_video_attn": Role.CROSS,
            "transformer_blocks.*.video_to_audio_attn": Role.CROSS,
            "transformer_blocks.*.audio_ff": Role.FF,
        },
    ),
    "AllegroTransformer3DModel": _BATCHED,
    "PixArtTransformer2DModel": _BATCHED,
    "SD3Transformer2DModel": Family("batched", text_first=True),
    "UNet2DConditionModel": _BATCHED,
    "DiTTransformer2DModel": Family("batched", order=(COND, UNCOND), null_class=1000),
    "SanaTransformer2DModel": _BATCHED,
    "SanaVideoTransformer3DModel": _BATCHED,
    "HunyuanDiT2DModel": _BATCHED,
    "EasyAnimateTransformer3DModel": Family("batched", roles={"transformer_blocks.*.attn1": Role.JOINT}),
    "StableAudioDiTModel": _BATCHED,
    "PRXTransformer2DModel": Family("batched", roles={"blocks.*.attention": Role.JOINT}),
    "UNetMotionModel": _BATCHED,
    "UNetSpatioTemporalConditionModel": _BATCHED,
    "AuraFlowTransformer2DModel": Family(
        "batched",
        text_first=True,
        layouts={"single_transformer_blocks": "joined"},
        roles={"joint_transformer_blocks.*.attn": Role.JOINT, "single_transformer_blocks.*.attn": Role.JOINT},
    ),
    "BriaTransformer2DModel": Family("batched", tokens="img_ids", text_first=True, roles=_SINGLE_IS_JOINT),
    "HiDreamImageTransformer2DModel": Family(
        "batched",
        inseparable=True,
        layouts={"single_stream_blocks": "joined_last"},
        roles={
            "*_stream_blocks.*.attn1": Role.JOINT,
            "*_stream_blocks.*.ff_i": Role.FF,
            "*_stream_blocks.*.ff_t": Role.FF,
        },
    ),
    "ZImageTransformer2DModel": Family(
        "batched",
        order=(COND, UNCOND),
        stack=("layers",),
        inseparable=True,
        roles={"layers.*.attention": Role.JOINT},
    ),
    "WanTransformer3DModel": _SEPARATE,
    "WanVACETransformer3DModel": Family("separate", order=(COND, UNCOND), stack=("blocks",)),
    "WanAnimateTransformer3DModel": Family("separate", order=(COND, UNCOND), stack=("blocks",)),
    "Lumina2Transformer2DModel": Family(
        "separate", order=(COND, UNCOND), stack=("layers",), roles={"layers.*.attn": Role.JOINT}
    ),
    "Kandinsky5Transformer3DModel": Family(
        "separate",
        order=(COND, UNCOND),
        stack=("visual_transformer_blocks",),
        roles={"*.self_attention": Role.SPATIAL, "*.cross_attention": Role.CROSS},
    ),
    "Flux2Transformer2DModel": Family(
        "separate",
        order=(COND, UNCOND),
        tokens="img_ids",
        text_first=True,
        layouts={"single_transformer_blocks": "joined"},
        roles=_SINGLE_IS_JOINT,
    ),
    "SkyReelsV2Transformer3DModel": _SEPARATE,
    "CogView4Transformer2DModel": Family(
        "separate", order=(COND, UNCOND), roles={"transformer_blocks.*.attn1": Role.JOINT}
    ),
    "CosmosTransformer3DModel": _SEPARATE,
    "QwenImageTransformer2DModel": Family("separate", order=(COND, UNCOND), tokens="img_shapes", text_first=True),
    "HunyuanVideo15Transformer3DModel": Family("separate", order=(COND, UNCOND), contexts=_GUIDER),
    "HunyuanImageTransformer2DModel": Family(
        "separate", order=(COND, UNCOND), contexts=_GUIDER, roles=_SINGLE_IS_JOINT
    ),
    "VchitectXLTransformerModel": Family(
        "separate", order=(UNCOND, COND), text_first=True, roles={"transformer_blocks.*.attn": Role.JOINT}
    ),
    "FluxTransformer2DModel": Family(
        "none", order=(COND,), tokens="img_ids", text_first=True, true_cfg=True, roles=_SINGLE_IS_JOINT
    ),
    "ChromaTransformer2DModel": Family(
        "separate",
        order=(COND, UNCOND),
        tokens="img_ids",
        text_first=True,
        layouts={"single_transformer_blocks": "joined"},
        roles=_SINGLE_IS_JOINT,
    ),
    "HunyuanVideoTransformer3DModel": Family("none", order=(COND,), true_cfg=True, roles=_SINGLE_IS_JOINT),
}


def register_family(denoiser: type[nn.Module] | str, family: Family) -> Family:
    """Make a family known for a denoiser class, and for the classes that derive from it.

    Args:
        denoiser: the class, or its name.
        family: how pipelines call it.

    Raises:
        InvalidFamily: if this is no class of a denoiser, or the class has another family already.
    """
    name = denoiser if isinstance(denoiser, str) else getattr(denoiser, "__name__", "")
    if not name.isidentifier():
        raise InvalidFamily(f"a family belongs to a denoiser's class or the class's name, found {shown(denoiser)}")
    if not isinstance(family, Family):
        raise InvalidFamily(f"expected a fastercache.Family for {name}, found {shown(family)}")
    if FAMILIES.get(name, family) != family:
        raise InvalidFamily(f"the denoiser {name} has another family already: {FAMILIES[name]}")
    FAMILIES[name] = family
    return family


PLUGINS = Plugins("fastercache.families", register_family)
"""An installed package offers a family as an entry point with the name of the denoiser's class."""

IMAGE: Branch = "image"
"""The branch of InstructPix2Pix that is given the picture without the text."""

ORDERS: dict[str, tuple[Branch, ...]] = {
    "StableDiffusionInstructPix2PixPipeline": (COND, IMAGE, UNCOND),
    "StableDiffusionXLInstructPix2PixPipeline": (COND, IMAGE, UNCOND),
}
"""Pipeline class -> branches in the order of the rows of a call, where it is not that of the denoiser's family."""

COMPONENTS = ("transformer", "transformer_2", "unet")
"""Pipeline components that are denoisers, in the order in which a run uses them."""


def known_families() -> dict[str, Family]:
    """Every known family by the name of its denoiser's class: listed here, registered, and installed as plug-ins."""
    PLUGINS.load()
    return dict(sorted(FAMILIES.items()))


def family_of(denoiser: nn.Module | str) -> Family | None:
    """The family of a denoiser, or of a class by its name; None where only detection by structure is left.

    A module has the family of its class, or of the nearest listed class that this derives from, as quantised and
    extended ones do. One that `torch.compile` wrapped has that of what is inside.
    """
    PLUGINS.load()
    if isinstance(denoiser, str):
        return FAMILIES.get(denoiser)
    lineage = type(getattr(denoiser, "_orig_mod", denoiser)).__mro__
    return next((FAMILIES[c.__name__] for c in lineage if c.__name__ in FAMILIES), None)
