"""Inner products of everything a sampler's run consists of: all that planning needs, whatever the latent's size.

A run of n steps has latents x_0 .. x_n (before each step, and the last one) and denoiser outputs F_0 .. F_{n-1} (as the
sampler is given them, guidance done). With these 2n + 1 vectors in the order [x_0 .. x_n, F_0 .. F_{n-1}], a run is
kept as their Gram matrix, divided by the number of elements of a latent, so that every entry is a mean product.

Any quantity that is linear in these vectors has a squared norm that the matrix gives: the error of every predictor that
combines past outputs, at every step, for every schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastercache.policies.errors import RecordingError

Floats = NDArray[np.float64]

BLOCK = 1 << 22
"""Numbers that are multiplied at a time: bounds the float64 copies to 32 MiB, however many vectors there are."""


@dataclass(frozen=True)
class Trajectory:
    """Gram matrices of one or several runs of the same sampler.

    Attributes:
        products: (P, 2n + 1, 2n + 1), one matrix a run, vectors in the order [x_0 .. x_n, F_0 .. F_{n-1}]: mean
            products over the elements of a latent.
        times: (n,), the scheduler's timesteps; falling or rising.
        by_branch: (P, C n, C n), the same for the denoiser's raw outputs, the n outputs of one branch after those of
            the other; C is 0 where they do not lie row by row in the denoiser's output.
    """

    products: Floats
    times: Floats
    by_branch: Floats

    def __post_init__(self) -> None:
        n, p = len(self.times), len(self.products)
        if self.products.shape != (p, 2 * n + 1, 2 * n + 1):
            raise RecordingError(
                f"{n} steps have products of shape (P, {2 * n + 1}, {2 * n + 1}), found {self.products.shape}"
            )
        rows = self.by_branch.shape[-1]
        if self.by_branch.shape != (p, rows, rows) or (n and rows % n):
            raise RecordingError(f"products by branch have the shape (P, C {n}, C {n}), found {self.by_branch.shape}")

    @property
    def steps(self) -> int:
        """Number of steps, n."""
        return len(self.times)

    @property
    def runs(self) -> int:
        """Number of runs, P."""
        return len(self.products)

    @property
    def branches(self) -> int:
        """Number of guidance branches whose raw outputs were recorded, C."""
        return int(self.by_branch.shape[-1]) // self.steps

    def latent(self, k: int) -> int:
        """The row of x_k in `products`."""
        return k

    def output(self, k: int) -> int:
        """The row of F_k in `products`."""
        return self.steps + 1 + k

    @classmethod
    def merged(cls, parts: Sequence[Trajectory]) -> Trajectory:
        """All runs of several recordings, e.g. of two machines. Raises RecordingError if their steps differ."""
        first = parts[0]
        for other in parts[1:]:
            if other.times.shape != first.times.shape or not np.allclose(other.times, first.times):
                raise RecordingError("recordings with different timesteps cannot be merged: record with the same steps")
            if other.branches != first.branches:
                raise RecordingError("recordings with and without guidance cannot be merged")
        products, by_branch = (np.concatenate([getattr(p, name) for p in parts]) for name in ("products", "by_branch"))
        return cls(products, first.times, by_branch)

    def only(self, runs: Sequence[int]) -> Trajectory:
        """Some of the runs."""
        return Trajectory(self.products[list(runs)], self.times, self.by_branch[list(runs)])

    def resampled(self, times: Floats, matrix: Floats) -> Trajectory:
        """What another number of steps would have recorded, without a run.

        The outputs are interpolated in time, F'(t') = sum_k c_k(t') F_k, and the latents follow from the other
        sampler's own response to the same noise. Both are linear, so the new matrix is T G T'.

        Args:
            times: (m,) timesteps of the other sampler.
            matrix: (m + 1, m + 1), its latents in terms of [x_0, F_0 .. F_{m-1}]: `Response.matrix`.
        """
        n, m = self.steps, len(times)
        weights = interpolation(self.times, times)
        transform = np.zeros((2 * m + 1, 2 * n + 1))
        transform[m + 1 :, n + 1 :] = weights
        transform[: m + 1, 0] = matrix[:, 0]
        transform[: m + 1, n + 1 :] = matrix[:, 1:] @ weights
        branches = np.kron(np.eye(self.branches), weights)
        return Trajectory(
            transform @ self.products @ transform.T,
            np.asarray(times, dtype=np.float64),
            branches @ self.by_branch @ branches.T,
        )


def gram(vectors: Sequence[Tensor]) -> Floats:
    """Mean products of vectors of one size, (V, V), summed in float64; each stays where it is until its turn."""
    flat = [vector.reshape(-1) for vector in vectors]
    size = flat[0].numel() if flat else 1
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    chunk = max(BLOCK // max(len(flat), 1), 1)
    for first in range(0, size if flat else 0, chunk):
        block = torch.stack([vector[first : first + chunk].to("cpu", torch.float64) for vector in flat])
        total += block @ block.T
    found: Floats = (total / size).numpy()
    return found


def interpolation(known: Floats, wanted: Floats, points: int = 6) -> Floats:
    """Weights of local Lagrange interpolation, (m, n): value at `wanted[i]` = `weights[i] @ values`.

    Each row uses the `points` known positions around the wanted one; it is exact at known positions and for
    polynomials below degree `points`. Outside the known range the nearest points extrapolate. Positions that occur
    twice (Heun's two calls a step) count once.
    """
    positions, first = np.unique(known, return_index=True)
    points = min(points, len(positions))
    weights = np.zeros((len(wanted), len(known)))
    for row, position in enumerate(np.asarray(wanted, dtype=np.float64)):
        start = int(np.clip(np.searchsorted(positions, position) - points // 2, 0, len(positions) - points))
        near = positions[start : start + points]
        for i, index in enumerate(first[start : start + points]):
            others = np.delete(near, i)
            weights[row, index] = np.prod((position - others) / (near[i] - others))
    return weights
