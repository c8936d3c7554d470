"""Step x step maps for the page: what standing in for each other would cost, by site, branch and measure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastercache.analysis.measures import MEASURES, ORDER
from fastercache.analysis.predictability import Floats, fitted_errors
from fastercache.analysis.profile import Profile
from fastercache.analysis.trajectory import Trajectory
from fastercache.experiments.report.numbers import floats
from fastercache.policies.vocabulary import COND, Kind

FITTED = "fitted"
MOST = 3_200_000
"""Characters of all maps together: single sites are left out beyond, evenly, and the page says so."""


def measures() -> list[dict[str, Any]]:
    """How the page writes each measure."""
    rows = [
        {"name": m.name, "title": m.title, "formula": m.formula, "identical": m.identical} for m in MEASURES.values()
    ]
    title, formula = "Error of a fitted combination", "least ‖b − Σ w a‖ / ‖b‖ over the last 5 values up to that step"
    return [*rows, {"name": FITTED, "title": title, "formula": formula, "identical": 0.0}]


def of_recording(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """The maps of the denoiser's outputs: as the sampler uses them, and of each guidance branch."""
    n = trajectory.steps
    outputs = slice(n + 1, 2 * n + 1)
    grams = {"guided" if trajectory.branches > 1 else COND: trajectory.products.mean(axis=0)[outputs, outputs]}
    if trajectory.branches > 1:
        whole = trajectory.by_branch.mean(axis=0)
        grams |= {f"branch {c + 1}": whole[c * n : c * n + n, c * n : c * n + n] for c in range(trajectory.branches)}
    for branch, gram in grams.items():
        yield _entry("denoiser output", branch, n, trajectory.runs, from_gram(gram), "outputs recorded by planning")


def from_gram(gram: Floats) -> dict[str, Floats]:
    """Relative L2 distance, cosine and fitted error of a step's value (row) by another's (column), each (T, T)."""
    size = np.diagonal(gram)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = np.maximum(size[:, None] + size[None, :] - 2.0 * gram, 0.0)
        distance = np.sqrt(square / size[:, None])
        # 1 - cosine by the law of cosines, which loses no digits for nearly equal values
        gap = (square - (np.sqrt(size[:, None]) - np.sqrt(size[None, :])) ** 2) / (2.0 * np.sqrt(np.outer(size, size)))
    return {"rel_l2": distance, "cosine": 1.0 - gap, FITTED: fitted_errors(gram)}


def of_profile(profile: Profile) -> tuple[list[dict[str, Any]], str]:
    """The maps of a feature profile, and what was left out in words.

    First the mean of each role or kind, then single sites, as many as `MOST` allows.
    """
    found = [entry for name, sites in profile.groups() for entry in _sites(profile, name, sites)]
    size = max((sum(map(len, entry["values"].values())) for entry in found), default=1)
    branches = max(len(profile.branches), 1)
    room = max((MOST - size * len(found)) // (size * branches), 0)
    everyone = [i for i, site in enumerate(profile.sites) if len(_group(profile, i)) > 1]
    chosen = everyone
    if len(everyone) > room:
        chosen = [everyone[i] for i in np.unique(np.linspace(0, len(everyone) - 1, room).round().astype(int))]
    found += [entry for i in chosen for entry in _sites(profile, profile.sites[i].name, [i])]
    left = len(everyone) - len(chosen)
    note = f"{left} of {len(everyone)} single sites are left out to keep the file small" if left else ""
    return found, note


def _group(profile: Profile, site: int) -> list[int]:
    return next(sites for _, sites in profile.groups() if site in sites)


def _sites(profile: Profile, name: str, sites: list[int]) -> Iterator[dict[str, Any]]:
    """One entry for each branch that the sites have."""
    for b, branch in enumerate(profile.branches):
        if branch == COND and all(profile.sites[i].kind is Kind.BRANCH for i in sites):
            continue
        mean = profile.matrix_mean[sites, b].mean(axis=0)
        if not np.isfinite(mean).any():
            continue
        values: dict[str, Any] = {measure: mean[..., k] for k, measure in enumerate(ORDER)}
        grams = profile.gram[sites, b]
        values[FITTED] = np.mean([fitted_errors(gram) for gram in grams], axis=0)
        label = f"{name}, mean of {len(sites)} sites" if len(sites) > 1 else name
        yield _entry(label, branch, mean.shape[0], profile.runs, values, "feature profile")


def _entry(label: str, branch: str, steps: int, runs: int, values: dict[str, Any], source: str) -> dict[str, Any]:
    encoded = {name: floats(array) for name, array in values.items()}
    return {"label": label, "branch": branch, "steps": steps, "runs": runs, "source": source, "values": encoded}
