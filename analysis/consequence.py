"""What reusing sites over some steps does in the end: predictability times sensitivity, before any cached run.

At a skipped step m a site's value is a combination of earlier ones, so its error is e_m = sum_j w_mj v_j - v_m. To
first order each error reaches the end by itself, by a factor r_m, and what reaches it adds up over the steps:

    E = sum_m r_m e_m = sum_k c_k v_k,        |E|^2 = c' G c

with G the site's recorded inner products. Errors of different sites add as squares. Two assumptions are in it: that
errors of one site arrive in the directions that they were made in, or all turned alike, and that the later sites of
the same call are computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fastercache.analysis.predictability import weights_at
from fastercache.analysis.profile import Profile
from fastercache.analysis.trajectory import Floats
from fastercache.policies.base import Hold, Predictor
from fastercache.policies.errors import RecordingError
from fastercache.policies.vocabulary import Step


def consequence(
    gram: Floats,
    steps: Sequence[Step],
    computed: Sequence[int],
    factors: Floats,
    predictor: Predictor | None = None,
) -> float:
    """Squared error that reuse at one site leaves at the end, in the units of `factors` squared.

    Args:
        gram: (T, T), mean inner products of the site's values. steps: the T steps.
        computed: the steps at which it is computed, rising from 0; it is reused at all others.
        factors: (T,), r_m, what the end is off by for an error of 1 (root mean square) at step m.
        predictor: what stands in, linear in past values; by default the last one.
    """
    chosen, stand_in = set(computed), predictor or Hold()
    mixed: Floats = np.zeros(len(steps))
    for m in range(len(steps)):
        if m in chosen:
            continue
        past = [s for s in computed if s < m]
        mixed[past] += factors[m] * weights_at(stand_in, [steps[s] for s in past], steps[m])
        mixed[m] -= factors[m]
    return max(float(mixed @ gram @ mixed), 0.0)


def of_sites(
    profile: Profile,
    places: Sequence[int],
    computed: Collection[int],
    factors: Mapping[str, Floats],
    predictor: Predictor | None = None,
) -> float:
    """Squared error that reuse at some module sites, or at the denoiser, leaves at the end.

    Args:
        profile: of the uncached pipeline. places: positions of the sites in it. computed: as in `consequence`.
        factors: role, or kind of a site without one -> (T,), what the end is off by for a relative error of 1 at one
            such site and step: `Injected.factors`.

    Raises:
        RecordingError: if the factors of a site's role are not given.
    """
    total = 0.0
    for place in places:
        role = str(profile.sites[place].role or profile.sites[place].kind)
        if role not in factors:
            raise RecordingError(f"what an error of '{role}' does was not measured, only of {', '.join(factors)}")
        for gram in profile.gram[place]:
            sizes = np.sqrt(np.diagonal(gram))
            rows = np.divide(factors[role], sizes, out=np.zeros_like(sizes), where=sizes > 0.0)
            total += consequence(gram, profile.run.steps, sorted(computed), rows, predictor) / len(profile.branches)
    return total
