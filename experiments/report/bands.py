"""How alike the guidance branches are, for the page: curves over the steps by measure and frequency band."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastercache.analysis.measures import MEASURES, ORDER
from fastercache.analysis.plots import guidance_info
from fastercache.analysis.profile import Profile
from fastercache.policies.vocabulary import COND


def of_profile(profile: Profile) -> list[dict[str, Any]]:
    """An entry for each branch but the conditional one; none where the denoiser's output was not recorded."""
    if profile.guidance.shape[3] == 0:
        return []
    entries = []
    for branch in profile.branches:
        if branch == COND:
            continue
        info = guidance_info(profile, ORDER, branch)
        measures = {
            name: {
                "title": MEASURES[name].title,
                "formula": MEASURES[name].formula,
                "identical": MEASURES[name].identical,
                "bands": {c.band: {"mean": _values(c.mean), "std": _values(c.std)} for c in curves},
            }
            for name, curves in info.curves.items()
            if curves
        }
        if measures:
            entries.append(
                {"branch": branch, "runs": info.runs, "steps": len(profile.info.timesteps), "measures": measures}
            )
    return entries


def _values(curve: NDArray[np.float32]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in curve]
