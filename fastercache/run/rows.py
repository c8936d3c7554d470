"""Which rows of a tensor belong to which branch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastercache.policies.vocabulary import Branch


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows along the leading axis in equal parts, one for each branch, in this order."""

    branches: tuple[Branch, ...]

    def of(self, tensor: Tensor, some: tuple[Branch, ...]) -> Tensor:
        """The rows of some branches, in the order given: a view where they lie side by side, else a copy."""
        if some == self.branches:
            return tensor
        size = tensor.shape[0] // len(self.branches)
        places = [self.branches.index(branch) for branch in some]
        if places == list(range(places[0], places[0] + len(places))):
            return tensor.narrow(0, places[0] * size, size * len(places))
        return torch.cat([tensor.narrow(0, place * size, size) for place in places])
