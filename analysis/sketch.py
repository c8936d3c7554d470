"""Fixed random summaries of long vectors, from which distances between any two of them are estimated later.

Two kinds, because no one summary serves both norms cheaply:

* `Projection`, a count-sketch [Charikar et al. 2002; sparse Johnson-Lindenstrauss], for inner products and L2;
* `Coordinates`, a stratified sample of elements, for mean|a − b|, which is a mean over elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

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
        signs = torch.randint(0, 2, (rows * size,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        shifts = torch.randint(0, size, (rows, 1), generator=generator, dtype=torch.int32)
        columns = torch.arange(size, dtype=torch.int32)
        index = columns - shifts  # changed in place: it is as large as a value
        index %= size
        index += torch.arange(rows, dtype=torch.int32)[:, None] * size
        index = index.flatten()
        signs[index >= numel] = 0  # the last row is filled up with zeros
        self._index = index.clamp_(max=numel - 1).to(device)
        self._signs = signs.to(device)

    @property
    def padded(self) -> int:
        """Elements of the working copy that a vector is summarised in; 0 where none is needed."""
        return 0 if self.exact else len(self._index)

    def __call__(self, x: Tensor, out: Tensor | None = None, scratch: Tensor | None = None) -> Tensor:
        """(..., n) float32 -> (..., k) float32, into `out` if given. `scratch`: where to work, (..., padded)."""
        if self.exact:
            return x if out is None else out.copy_(x)
        signed = torch.index_select(x, -1, self._index, out=scratch).mul_(self._signs)
        return torch.sum(signed.view(*x.shape[:-1], -1, self.width), -2, out=out)


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

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(..., n) float32 -> (..., size) float32, into `out` where it is given."""
        if self.exact:
            return x if out is None else out.copy_(x)
        return torch.index_select(x, -1, self._index, out=out)


@dataclass(frozen=True)
class Tokens:
    """A fixed sample of a value's tokens, one drawn at random from each of `kept` equal stretches; or all of them.

    A token is what lies along the value's last axis: of attention outputs (B, N, C) there are B N. A mean over the kept
    tokens estimates that over all without bias. Its standard error is at most that of independent draws: the standard
    deviation between tokens over sqrt(kept).

    Args:
        count, width: tokens of the value, and elements of one. kept: how many are kept. seed: of the sample.
        device: where values lie.
    """

    count: int
    width: int
    kept: int
    seed: int
    device: torch.device
    index: Tensor | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = _stratified(self.count, self.kept, self.seed, self.device) if self.kept < self.count else None
        object.__setattr__(self, "index", index)

    def fewer(self, kept: int) -> Tokens:
        """A sample of these: `kept` of them, or all where they are no more."""
        if kept >= self.kept:
            return self
        sample = replace(self, kept=kept)
        if self.index is not None:
            among = _stratified(self.kept, kept, self.seed + 1, self.device)
            object.__setattr__(sample, "index", self.index.index_select(0, among))
        return sample

    def shrunk(self, values: Tensor, fewer: Tokens) -> Tensor:
        """What `fewer`, made by `self.fewer`, keeps of what is kept here: (n,) -> (n',)."""
        if fewer.kept == self.kept:
            return values
        among = fewer.index if self.index is None else _stratified(self.kept, fewer.kept, self.seed + 1, self.device)
        assert among is not None
        return values.view(self.kept, self.width).index_select(0, among).view(-1)

    @property
    def whole(self) -> bool:
        """Whether no token is left out."""
        return self.index is None

    @property
    def numel(self) -> int:
        """Elements of what is kept."""
        return self.kept * self.width

    def fits(self, value: Tensor) -> bool:
        """Whether a value has this many tokens of this width; one that is kept whole may have any shape."""
        return value.numel() == self.count * self.width and (self.whole or width_of(value) == self.width)

    def of(self, value: Tensor) -> Tensor:
        """What is kept of a value, (n,); of a whole one a view where it can be."""
        if self.index is None:
            return value.detach().reshape(-1)
        return value.detach().reshape(self.count, self.width).index_select(0, self.index).view(-1)

    def mean_square(self, value: Tensor) -> Tensor | None:
        """mean F² over all tokens, which that over the kept ones is checked against; None where all are kept."""
        if self.index is None:
            return None
        tokens = value.detach().reshape(self.count, self.width)
        norms: Tensor = torch.linalg.vector_norm(tokens, dim=1)  # as narrow as tokens
        return norms.float().square().mean() / self.width


def _stratified(count: int, kept: int, seed: int, device: torch.device) -> Tensor:
    """Ascending places among `count`, one in each of `kept` equal stretches."""
    generator = torch.Generator().manual_seed(seed + 2)
    edges = torch.arange(kept + 1) * count // kept
    drawn = torch.rand(kept, generator=generator, dtype=torch.float64) * edges.diff()
    with torch.inference_mode(False):
        return (edges[:-1] + drawn.long()).to(device)


def width_of(value: Tensor) -> int:
    """Elements of one token of a value."""
    return value.shape[-1] if value.ndim > 1 else 1
