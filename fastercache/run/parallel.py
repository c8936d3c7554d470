"""Context parallelism: ranks that hold one part of the tokens each must take the same decisions.

A rule that looks at its own part would skip an attention on one rank while another waits in it for keys and values, so
that the run hangs. Here every rank puts the parts of a watched value together, asks the policy about the whole, and
takes the first rank's answer. A rule then decides as it does in one process, at the price of one gathering of hidden
states for each watched or learnt value and a one-byte broadcast for each decision. Static policies exchange nothing.

What is cached stays in parts: each rank keeps and predicts its own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastercache.policies.base import Policy, Predictor
from fastercache.policies.errors import AttachError
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Site

TOKENS = 1
"""The axis of hidden states (rows, tokens, channels) that is shared out, in all of diffusers' plans."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share the tokens of one denoiser.

    Attributes:
        group: their process group.
        device: where this process computes.
        uneven: whether their parts may differ in length (diffusers' `ulysses_anything` and `ring_anything`).
    """

    group: Any
    device: torch.device
    uneven: bool = False

    @classmethod
    def of(cls, denoiser: nn.Module) -> Ranks | None:
        """Those of diffusers' `enable_parallelism` with a `ContextParallelConfig`; None without it."""
        config = getattr(getattr(denoiser, "_parallel_config", None), "context_parallel_config", None)
        if config is None:
            return None
        uneven = bool(config.ulysses_anything or config.ring_anything)
        return cls(config._flattened_mesh.get_group(), config._device, uneven)

    def check(self, policy: Policy, site: Site, predictor: Predictor) -> None:
        """Raises AttachError for a predictor that measures what each rank holds a part of."""
        if predictor.needs is not None and predictor.needs.seen != {Signal.INPUT}:
            raise AttachError(
                f"{policy.name} predicts {site.name} by measuring hidden states, of which each rank of context "
                "parallelism holds a part: use another predictor with it, or one process"
            )

    def whole(self, part: Tensor) -> Tensor:
        """(rows, tokens of this rank, channels) to (rows, all tokens, channels), the same on every rank."""
        count = dist.get_world_size(self.group)
        lengths = [part.shape[TOKENS]] * count
        if self.uneven:
            told = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(count)]
            dist.all_gather(told, torch.tensor([part.shape[TOKENS]], device=part.device), group=self.group)
            lengths = [int(length) for length in told]
        longest = max(lengths)
        padded = part.new_zeros((part.shape[0], longest, *part.shape[2:]))
        padded.narrow(TOKENS, 0, part.shape[TOKENS]).copy_(part)
        parts = [torch.empty_like(padded) for _ in range(count)]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([p.narrow(TOKENS, 0, n) for p, n in zip(parts, lengths, strict=True)], TOKENS)

    def agreed(self, verdict: bool) -> bool:
        """The first rank's verdict."""
        vote = torch.tensor([verdict], dtype=torch.uint8, device=self.device)
        dist.broadcast(vote, group=self.group, group_src=0)
        return bool(vote)
