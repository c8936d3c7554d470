"""The answer of a recording in words: which sites can be reused over which steps, ranked by what that saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastercache.analysis.consequence import of_sites
from fastercache.analysis.injection import Injected
from fastercache.analysis.predictability import FITTED, Predictability
from fastercache.analysis.profile import Profile
from fastercache.policies.errors import RecordingError
from fastercache.policies.wording import counted

LIMIT = 0.05
"""Relative L2 error up to which a value counts as reusable."""


@dataclass(frozen=True)
class Finding:
    """What reusing every second value of a group of sites would do, over its longest stretch of steps within `LIMIT`.

    Attributes:
        group: role or kind. sites: how many. first, last: the skipped steps at both ends; None where every skipped step
            is above the limit.
        hold, fitted: root mean square of the relative error there, of holding the value and of a fitted combination;
            over all skipped steps where none is within the limit.
        saves: share of the denoiser's FLOPs; None where they were not counted.
        psnr: predicted of the video where this alone is held, dB; None where no errors were injected there.
    """

    group: str
    sites: int
    first: int | None
    last: int | None
    hold: float
    fitted: float
    saves: float | None
    psnr: float | None = None

    def __str__(self) -> str:
        count = counted(self.sites, "site")
        errors = f"{self.hold:.1%} by holding it, {self.fitted:.1%} by a fitted combination"
        if self.first is None:
            return f"{self.group} ({count}): no step's value can be held within {LIMIT:.0%}; off by {errors}"
        saved = "" if self.saves is None else f"; saves {self.saves:.1%} of the denoiser's FLOPs"
        steps = f"steps {self.first} to {self.last}" if self.first != self.last else f"step {self.first}"
        left = "" if self.psnr is None else f"; held, it leaves the video at {self.psnr:.0f} dB (predicted)"
        return f"{self.group} ({count}), {steps}: every second value is off by {errors}{saved}{left}"

    @property
    def skipped(self) -> tuple[int, ...]:
        """The skipped steps within the limit."""
        return () if self.first is None or self.last is None else tuple(range(self.first, self.last + 1, 2))


def ranked(
    profile: Profile, shares: Mapping[str, float] | None = None, injected: Injected | None = None
) -> list[Finding]:
    """A finding for each role or kind of site, what saves most first, then what can be reused with the least error.

    Args:
        shares: of a whole denoiser call's FLOPs, by site (`Session.flop_shares`).
        injected: what an error of a site does to the video, for the predicted PSNR.
    """
    found = []
    for group, places in profile.groups():
        try:
            errors = profile.predictability(group, intervals=(2,))
        except RecordingError:  # not reached at every step: nothing can be said of it
            continue
        known = [] if shares is None else [shares.get(profile.sites[i].name) for i in places]
        share = sum(value for value in known if value is not None) if None not in known and known else None
        one = finding(group, len(places), errors, share)
        if injected is not None and group in injected.groups and one.skipped:
            one = replace(one, psnr=_psnr(profile, places, one.skipped, injected))
        found.append(one)
    return sorted(found, key=lambda one: (one.first is None, -(one.saves or 0.0), one.hold))


def _psnr(profile: Profile, places: Sequence[int], skipped: Sequence[int], injected: Injected) -> float:
    """Predicted of the video where the values of some steps are held, dB."""
    count = len(profile.info.timesteps)
    left = of_sites(profile, places, set(range(count)) - set(skipped), injected.factors(count))
    return -10.0 * math.log10(max(left, 1e-10))


def finding(group: str, sites: int, errors: Predictability, share: float | None = None) -> Finding:
    """The longest run of skipped steps at which holding stays within `LIMIT`; of several, the first.

    Args:
        errors: at interval 2. share: of the FLOPs that the sites take at a step.
    """
    hold = errors.errors[errors.predictors.index("hold"), 0]
    fitted = errors.errors[errors.predictors.index(FITTED), 0]
    skipped = np.flatnonzero(np.isfinite(hold))
    best: list[int] = []
    run: list[int] = []
    for step in skipped.tolist():
        run = [*run, step] if hold[step] <= LIMIT else []
        best = run if len(run) > len(best) else best
    shown = best or skipped.tolist()
    return Finding(
        group=group,
        sites=sites,
        first=best[0] if best else None,
        last=best[-1] if best else None,
        hold=float(np.sqrt(np.mean(hold[shown] ** 2))),
        fitted=float(np.sqrt(np.mean(fitted[shown] ** 2))),
        saves=None if share is None else share * len(best) / len(hold),
    )
