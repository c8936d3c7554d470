"""The cheapest sets of computed steps, at every amount of compute at once: shortest paths.

The damage of a plan is what its stretches add (`Damage`), and what a stretch adds depends on the last K computed steps
only. So the best plan is a shortest path whose state is (the last K computed steps, how many were computed). `plans`
runs that dynamic programme from left to right with a bounded number of paths a state; without the bound it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastercache.tuner.planning.damage import Damage

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Path:
    """A set of computed steps.

    Attributes:
        computed: the steps, rising, the first is 0.
        damage: predicted squared error of the last latent, a mean over its elements and the recorded runs.
    """

    computed: tuple[int, ...]
    damage: float


@dataclass
class _Node:
    """Paths that end by computing one step: counts (s,), costs (s,), last K steps (s, K), their origins."""

    count: Ints
    cost: Floats
    recent: Ints
    parent: Ints  # (s, 2): step and row of the previous node

    which: Ints  # (s,): row of `follow`
    follow: Floats  # (U, n - i): damage of what may follow


def plans(
    damage: Damage,
    *,
    counts: Sequence[int] | None = None,
    width: int = 24,
    alternatives: int = 1,
    best: int = 1,
    apart: int = 1,
    longest: int | None = None,
) -> dict[int, list[Path]]:
    """The plans with the least damage, for every number of computed steps.

    Args:
        damage: of stretches.
        counts: numbers of computed steps that are wanted; all from 1 to n by default.
        width: paths that are kept for each step and number computed; `width` and `alternatives` large enough to hold
            all histories make the result exact.
        alternatives: paths with the same last K computed steps that are kept among them.
        best: plans returned for each number, best first.
        apart: a plan is returned if at least so many of its steps are in none of the better ones returned.
        longest: most steps from one computed step to the next.

    Returns:
        number computed -> its plans.
    """
    n, k = damage.steps, damage.history
    wanted = range(1, n + 1) if counts is None else sorted(set(counts))
    most = max(wanted)
    reach = n if longest is None else longest
    first = np.full((1, k), -1, dtype=np.int64)
    first[0, 0] = 0
    nodes = [_node(damage, np.array([1]), np.zeros(1), first, np.zeros((1, 2), dtype=np.int64))]
    for j in range(1, n + 1):
        begun = max(start for start in damage.starts if start < j)  # the first step of each denoiser is computed
        count, cost, origin = _arrivals(damage, nodes, j, min(reach, j - begun))
        if j == n:
            break
        keep = count < most
        count, cost, origin = count[keep], cost[keep], origin[keep]
        chosen = _selected(count, cost, max(width * 4, 64))
        count, cost, origin = count[chosen] + 1, cost[chosen], origin[chosen]
        recent = np.empty((len(count), k), dtype=np.int64)
        recent[:, 0] = j
        for i in np.unique(origin[:, 0]):
            own = origin[:, 0] == i
            recent[own, 1:] = nodes[i].recent[origin[own, 1], : k - 1]
        recent[recent < damage.first_of(j)] = -1  # values of another denoiser are no history
        chosen = _limited(count, recent, width, alternatives)
        nodes.append(_node(damage, count[chosen], cost[chosen], recent[chosen], origin[chosen]))
    found: dict[int, list[Path]] = {}
    order = np.lexsort((cost, count))
    for b in wanted:
        low, high = np.searchsorted(count[order], [b, b + 1])
        found[b] = []
        for row in order[low:high]:
            steps = _trace(nodes, origin[row])
            if all(len(set(steps) - set(other.computed)) >= apart for other in found[b]):
                found[b].append(Path(steps, float(cost[row])))
            if len(found[b]) == best:
                break
    return found


def _node(damage: Damage, count: Ints, cost: Floats, recent: Ints, parent: Ints) -> _Node:
    if not len(count):
        return _Node(count, cost, recent, parent, count, np.zeros((0, 0)))
    different, which = np.unique(recent, axis=0, return_inverse=True)
    return _Node(count, cost, recent, parent, which.reshape(-1), damage.stretches(different))


def _arrivals(damage: Damage, nodes: Sequence[_Node], j: int, reach: int) -> tuple[Ints, Floats, Ints]:
    """Every path that goes on to step j: counts (before computing j), costs, and (step, row) where it comes from."""
    counts, costs, origins = [], [], []
    for i in range(max(j - reach, 0), j):
        node = nodes[i]
        if not len(node.count):
            continue
        counts.append(node.count)
        costs.append(node.cost + node.follow[node.which, j - i - 1])
        rows = np.arange(len(node.count))
        origins.append(np.stack([np.full_like(rows, i), rows], axis=1))
    if not counts:
        return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, 2), dtype=np.int64)
    return np.concatenate(counts), np.concatenate(costs), np.concatenate(origins)


def _selected(count: Ints, cost: Floats, width: int) -> Ints:
    """Rows of the `width` cheapest paths of each count, sorted by count, then cost."""
    order = np.lexsort((cost, count))
    return order[_rank(count[order]) < width]


def _rank(groups: Ints) -> Ints:
    """Position of each entry within its run of equal values: `[3, 3, 5, 5, 5]` -> `[0, 1, 0, 1, 2]`."""
    starts = np.r_[True, groups[1:] != groups[:-1]] if len(groups) else np.zeros(0, dtype=bool)
    index = np.arange(len(groups))
    return index - np.maximum.accumulate(np.where(starts, index, 0))


def _limited(count: Ints, recent: Ints, width: int, alternatives: int) -> Ints:
    """Of paths sorted by count, then cost: at most `alternatives` with one history, then `width` of each count."""
    if not len(count):
        return np.zeros(0, dtype=np.int64)
    _, key = np.unique(np.column_stack([count, recent]), axis=0, return_inverse=True)
    key = key.reshape(-1)
    stable = np.argsort(key, kind="stable")
    rank = np.empty(len(key), dtype=np.int64)
    rank[stable] = _rank(key[stable])
    allowed = np.nonzero(rank < alternatives)[0]
    return allowed[_rank(count[allowed]) < width]


def _trace(nodes: Sequence[_Node], origin: Ints) -> tuple[int, ...]:
    """The computed steps of the path that ends at (step, row)."""
    step, row = int(origin[0]), int(origin[1])
    steps = [step]
    while step > 0:
        step, row = (int(v) for v in nodes[step].parent[row])
        steps.append(step)
    return tuple(reversed(steps))
