"""Fixed random summaries of long vectors, from which distances between any two of them are estimated later.

Two kinds, because no one summary serves both norms cheaply:

* `Projection`, a count-sketch [Charikar et al. 2002; sparse Johnson-Lindenstrauss], for inner products and L2;
* `Coordinates`, a stratified sample of elements, for mean|a − b|, which is a mean over elements.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def projection_error(width: int) -> float:
    """Standard error of a projected L2 distance, relative to the distance: sqrt(1 / (2 width))."""
    return math.sqrt(0.5 / width)


class Projection:
    """A linear map R^n -> R^k that keeps inner products in expectation.

    The vector is cut into rows of k elements; each element gets a random sign, each row a random rotation, and the rows
    are summed. Two elements of one row never meet, two of different rows meet with probability 1 / k, so for any d

        E ‖S d‖² = ‖d‖²,    Var ‖S d‖² ≤ (2 / k) ‖d‖⁴

    whatever d is (no assumption on its distribution). Hence the distance ‖S a − S b‖ between two steps has a relative
    standard error of at most about sqrt(1 / (2 k)) — 1.6 % for k = 2048 — and off by more than a share ε in the
    square with probability at most 2 / (k ε²) (Chebyshev). 1 − cosine, computed from the distance and exact norms,
    has a relative standard error of about sqrt(2 / k). Vectors of at most k elements are kept as they are, exactly.

    Args:
        numel: n. size: k. seed: of signs and rotations. device: where vectors lie.

    Costs one gather, one multiplication and one sum over n elements, and 5 n bytes, shared by all sites of one size.
    """

    def __init__(self, numel: int, size: int, seed: int, device: torch.device) -> None:
        self.numel = numel
        self.exact = numel <= size
        self.width = numel if self.exact else size
        if self.exact:
            return
        rows = math.ceil(numel / size)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (rows * size,), generator=generator, dtype=torch.int8) * 2 - 1
        shifts = torch.randint(0, size, (rows, 1), generator=generator, dtype=torch.int32)
        columns = torch.arange(size, dtype=torch.int32)
        index = ((columns - shifts) % size + torch.arange(rows, dtype=torch.int32)[:, None] * size).flatten()
        signs[index >= numel] = 0  # the last row is filled up with zeros
        self._index = index.clamp_(max=numel - 1).to(device)
        self._signs = signs.to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) float32 -> (..., k) float32."""
        if self.exact:
            return x
        signed = x.index_select(-1, self._index).mul_(self._signs)
        return signed.view(*x.shape[:-1], -1, self.width).sum(-2)


class Coordinates:
    """A fixed sample of elements, one drawn at random from each of `size` equal stretches of the vector.

    The sample's mean of |a − b| estimates that of the whole vector without bias; its relative standard error is at most
    about (standard deviation of |a − b| / its mean) / sqrt(size): for normal differences 0.76 / sqrt(2048) = 1.7 %. It
    depends on the data, so a recording compares it with the exact distances it also has. Vectors of at most `size`
    elements are kept whole.
    """

    def __init__(self, numel: int, size: int, seed: int, device: torch.device) -> None:
        self.numel = numel
        self.exact = numel <= size
        self.width = numel if self.exact else size
        if self.exact:
            return
        generator = torch.Generator().manual_seed(seed + 1)
        places = torch.arange(size, dtype=torch.float64) + torch.rand(size, generator=generator, dtype=torch.float64)
        self._index = (places * (numel / size)).long().clamp_(max=numel - 1).to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) float32 -> (..., size) float32."""
        return x if self.exact else x.index_select(-1, self._index)
