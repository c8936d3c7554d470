"""Two profiles beside each other: other weights, LoRA on and off, schedulers, resolutions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastercache.analysis.measures import ORDER, measure_of
from fastercache.analysis.profile import Profile
from fastercache.policies.errors import RecordingError
from fastercache.policies.notebook import Framed
from fastercache.policies.vocabulary import COND, Branch, Kind


@dataclass(frozen=True)
class Pair:
    """One role or kind of site in one guidance branch, in both profiles.

    Attributes:
        group, branch: which. sites: how many in the first and in the second profile.
        first, second: mean over sites and prompts, (T, T); row i is replaced, column j stands in.
    """

    group: str
    branch: Branch
    sites: tuple[int, int]
    first: NDArray[np.float32]
    second: NDArray[np.float32]

    @property
    def difference(self) -> NDArray[np.float32]:
        """Second less first, (T, T)."""
        return self.second - self.first

    def nearby(self, lag: int = 1) -> tuple[float, float]:
        """Mean of step i - lag standing in for step i, in the first and in the second profile."""
        return float(np.nanmean(np.diagonal(self.first, -lag))), float(np.nanmean(np.diagonal(self.second, -lag)))

    def largest(self) -> tuple[int, int, float]:
        """(i, j, value): where the second profile is farthest from the first."""
        found = np.where(np.isfinite(self.difference), np.abs(self.difference), -1.0)
        i, j = (int(k) for k in np.unravel_index(int(found.argmax()), found.shape))
        return i, j, float(self.difference[i, j])


@dataclass(frozen=True, repr=False)
class Comparison(Framed):
    """What two profiles have in common.

    Attributes:
        measure: of the matrices. steps, runs: T, and prompts of each profile. pairs: what was compared.
        left_out: what only one of them has, in words.
    """

    measure: str
    steps: int
    runs: tuple[int, int]
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...] = field(default=())

    def _facts(self) -> dict[str, object]:
        groups = [f"{pair.group}, {pair.branch}" for pair in self.pairs]
        return {"measure": self.measure, "steps": self.steps, "runs": self.runs, "compared": groups}

    def rows(self) -> list[dict[str, object]]:
        """One row for each role and branch: the change from the step before in both, and where they differ most."""
        found: list[dict[str, object]] = []
        for pair in self.pairs:
            (first, second), (i, j, value) = pair.nearby(), pair.largest()
            found.append(
                {
                    "group": pair.group,
                    "branch": pair.branch,
                    "sites_first": pair.sites[0],
                    "sites_second": pair.sites[1],
                    "first": first,
                    "second": second,
                    "largest_difference": value,
                    "replaced_step": i,
                    "stand_in_step": j,
                }
            )
        return found


def compare(first: Profile, second: Profile, measure: str = "rel_l1") -> Comparison:
    """Set the step x step matrices of two profiles beside each other, by role (or kind) and guidance branch.

    The models need not be the same: what is compared is the mean over the sites of a role.

    Raises:
        RecordingError: if the runs have different numbers of steps, so that no step has a counterpart, or no role was
            recorded in a branch that both have.
        MeasurementError: for an unknown measure.
    """
    which = ORDER.index(measure_of(measure).name)
    counts = len(first.info.timesteps), len(second.info.timesteps)
    if counts[0] != counts[1]:
        raise RecordingError(
            f"profiles of {counts[0]} and {counts[1]} steps cannot be compared step by step: record both with the same "
            "number of steps"
        )
    mine, theirs = (_groups(profile, which) for profile in (first, second))
    pairs = [Pair(*key, (mine[key][0], theirs[key][0]), mine[key][1], theirs[key][1]) for key in mine if key in theirs]
    alone = [f"{group}, {branch}: only in the first" for group, branch in mine if (group, branch) not in theirs]
    alone += [f"{group}, {branch}: only in the second" for group, branch in theirs if (group, branch) not in mine]
    if not pairs:
        raise RecordingError(f"the profiles have nothing in common to compare: {'; '.join(alone)}")
    return Comparison(measure, counts[0], (first.runs, second.runs), tuple(pairs), tuple(alone))


def _groups(profile: Profile, which: int) -> dict[tuple[str, Branch], tuple[int, NDArray[np.float32]]]:
    """(role or kind, branch) -> how many sites, and the mean of their matrices; what holds no value is left out."""
    found = {}
    for name, sites in profile.groups():
        for b, branch in enumerate(profile.branches):
            if branch == COND and all(profile.sites[i].kind is Kind.BRANCH for i in sites):
                continue
            mean = profile.matrix_mean[sites, b, :, :, which].mean(axis=0)
            if np.isfinite(mean).any():
                found[name, branch] = (len(sites), mean)
    return found
