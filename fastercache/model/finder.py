"""Finds a denoiser's sites by structure: its block lists, and in each block the attentions and feed-forwards."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fastercache.model.families import Family, family_of
from fastercache.policies.errors import AttachError
from fastercache.policies.vocabulary import Kind, Role, Site

_FF_NAMES = ("ff", "ffn", "feed_forward", "mlp", "ff_context", "ff_net", "img_mlp", "txt_mlp")
_TEMPORAL_MARKS = ("temporal", "temp_", "_temp", "motion")


@dataclass(frozen=True)
class Block:
    """One block in execution order: `path` inside its denoiser, and the list it belongs to."""

    path: str
    module: nn.Module
    family_list: str


def is_attention(module: nn.Module) -> bool:
    """An attention layer: named so, or holding query projections, and not a container of other attentions."""
    name = type(module).__name__
    if "Processor" in name or name.endswith("Block"):
        return False
    has_query = any(hasattr(module, attr) for attr in ("to_q", "to_qkv", "q_proj", "qkv"))
    return has_query or name.endswith("Attention")


UNET = ("down_blocks", "mid_block", "up_blocks")
"""The children by which a UNet is known, in the order they run."""


def is_unet(denoiser: nn.Module) -> bool:
    """Whether the blocks are a UNet's: they change resolution and hand each other skips, so they have no residual."""
    return all(isinstance(getattr(denoiser, name, None), nn.Module) for name in UNET)


def find_blocks(denoiser: nn.Module) -> list[Block]:
    """The denoiser's blocks in execution order: a UNet's, or direct ModuleLists whose members contain attention."""
    if is_unet(denoiser):
        found: list[Block] = []
        for name in UNET:
            child = denoiser.get_submodule(name)
            if isinstance(child, nn.ModuleList):
                found.extend(Block(f"{name}.{i}", block, name) for i, block in enumerate(child))
            else:
                found.append(Block(name, child, name))
        return found
    family = family_of(denoiser)
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, child in denoiser.named_children():
        if isinstance(child, nn.ModuleList) and any(is_attention(m) for block in child for m in block.modules()):
            lists.append((name, child))
    if family is not None and family.stack:
        chain = dict(lists)
        lists = [(name, chain[name]) for name in family.stack]
    if family is not None and family.interleaved and len({len(blocks) for _, blocks in lists}) == 1:
        return [Block(f"{name}.{i}", blocks[i], name) for i in range(len(lists[0][1])) for name, blocks in lists]
    return [Block(f"{name}.{i}", block, name) for name, blocks in lists for i, block in enumerate(blocks)]


def _role(path: str, module: nn.Module, family: Family | None) -> Role | None:
    if family is not None:
        for pattern, role in family.roles.items():
            if fnmatch.fnmatchcase(path, pattern):
                return role
    leaf = path.rsplit(".", 1)[-1]
    if leaf in _FF_NAMES:
        return Role.FF
    if not is_attention(module):
        return None
    if any(mark in path for mark in _TEMPORAL_MARKS):
        return Role.TEMPORAL
    joint = getattr(module, "add_k_proj", None) is not None or getattr(module, "added_kv_proj_dim", None)
    crosses = getattr(module, "is_cross_attention", None)
    if crosses or (crosses is None and leaf in ("attn2", "cross_attn", "crossattn")) or (leaf == "attn2" and not joint):
        return Role.CROSS
    if joint:
        return Role.JOINT
    return Role.SPATIAL


def order_is_assumed(denoiser: nn.Module, blocks: Sequence[Block]) -> bool:
    """Whether several lists of blocks stand in the order of their definition only, which no family vouches for."""
    several = len({block.family_list for block in blocks}) > 1
    return several and family_of(denoiser) is None and not is_unet(denoiser)


def find_denoiser_sites(
    denoiser: nn.Module,
    prefix: str = "",
    *,
    branches: bool = True,
    blocks: Sequence[Block] | None = None,
    chained: bool = True,
) -> tuple[Site, ...]:
    """Every site of one denoiser, blocks and modules in execution order, then the kinds that are no single module.

    Args:
        denoiser: the denoiser.
        prefix: the denoiser's name and a slash, which distinguishes the denoisers of a pipeline that has several.
        branches: whether it has a second branch.
        blocks: its blocks, where a call has shown which and in which order; found by structure otherwise.
        chained: whether they go on from each other, so that there is a stack.
    """
    family = family_of(denoiser)
    blocks = find_blocks(denoiser) if blocks is None else blocks
    owner = prefix.removesuffix("/")
    sites: list[Site] = []
    for depth, block in enumerate(blocks):
        span = (depth, depth + 1)
        sites.append(Site(f"{prefix}{block.path}", Kind.BLOCK, None, depth, span, owner))
        taken: list[str] = []
        for name, module in block.module.named_modules():
            if not name or any(name.startswith(f"{outer}.") for outer in taken):
                continue
            path = f"{block.path}.{name}"
            role = _role(path, module, family)
            if role is not None:
                taken.append(name)
                sites.append(Site(f"{prefix}{path}", Kind.MODULE, role, depth, span, owner))
    if blocks and chained and not is_unet(denoiser):
        sites.append(Site(f"{prefix}stack", Kind.STACK, None, 0, (0, len(blocks)), owner))
    sites.append(Site(f"{prefix}denoiser", Kind.DENOISER, denoiser=owner))
    if branches:
        sites.append(Site(f"{prefix}branch", Kind.BRANCH, denoiser=owner))
    return tuple(sites)


def module_at(denoiser: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path. Raises AttachError if the model has changed since its sites were found."""
    try:
        return denoiser.get_submodule(path)
    except AttributeError:
        raise AttachError(
            f"{type(denoiser).__name__} has no module '{path}' any more: detach before changing the model"
        ) from None
