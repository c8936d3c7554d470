"""Planned and fitted steps on the families of the zoo: never worse than a fixed predictor, replayed bit for bit."""

from __future__ import annotations

import pytest

from fastercache import zoo
from fastercache.experiments.jobs.planning_families import ROUNDING, Outcome, checked, outcomes


@pytest.mark.parametrize("family", ["mochi"])
def test_a_fit_is_never_worse_than_a_fixed_predictor(family: str) -> None:
    """By itself the fit of this random model is 6 % worse than holding the output."""
    outcome = checked(family, "own", zoo.build(family))
    assert outcome.replays == 0.0
    assert outcome.fitted <= min(outcome.fixed.values()) * (1.0 + ROUNDING)
    assert outcome.holds and "<--" not in str(outcome)


REFUSED = {
    "z-image": "returns a list with a tensor for each sample",
    "ltx-condition": "does not take outputs of the latent's shape",  # its scheduler has a time for each token
}
"""Families that cannot be planned, and why."""


@pytest.mark.slow
@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_every_family_with_every_sampler(family: str) -> None:
    found = list(outcomes(family))
    if family in REFUSED:
        assert found and all(REFUSED[family] in str(one) for one in found)
        return
    assert any(isinstance(one, Outcome) for one in found), found
    assert not [str(one) for one in found if isinstance(one, Outcome) and not one.holds]
