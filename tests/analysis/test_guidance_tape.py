"""How well the conditional output stands in for each other branch's, beside the measures of each pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fastercache.analysis.guidance_tape import GuidanceTape, pair_bytes
from fastercache.analysis.measures import band_similarity, similarity

BRANCHES = ("cond", "uncond", "perturbed")
CPU = torch.device("cpu")
STEPS = 4


def values(shape: tuple[int, ...] = (1, 2, 8, 10)) -> dict[tuple[int, str], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {(step, branch): torch.randn(shape, generator=generator) for step in range(STEPS) for branch in BRANCHES}


@pytest.mark.parametrize("together", [1, 2, 3, 8])
@pytest.mark.parametrize("order", list(itertools.permutations(BRANCHES)))
def test_branches_of_a_step_may_come_in_any_order(order: tuple[str, ...], together: int) -> None:
    """At step 2 the perturbed branch is left out, at step 3 the conditional one."""
    tape, given = GuidanceTape(STEPS, BRANCHES, CPU, together), values()
    for step in range(STEPS):
        for branch in order:
            if (step, branch) not in ((2, "perturbed"), (3, "cond")):
                passed = given[step, branch].clone()
                tape.add(step, branch, passed)
                passed.zero_()  # what is compared later is a copy
    found = tape.close()
    assert found.shape == (3, STEPS, 3, 3) and tape.bands
    expected = np.full(found.shape, np.nan)
    for place, branch in enumerate(BRANCHES[1:], start=1):
        for step in range(3 if branch == "uncond" else 2):
            expected[place, step] = band_similarity(given[step, "cond"], given[step, branch]).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_packed_tokens_are_compared_whole() -> None:
    tape, given = GuidanceTape(STEPS, BRANCHES[:2], CPU), values((1, 12, 6))
    for step in range(STEPS):
        for branch in BRANCHES[:2]:
            tape.add(step, branch, given[step, branch])
    found = tape.close()
    assert not tape.bands and np.isnan(found[1, :, 1:]).all() and np.isnan(found[0]).all()
    expected = [similarity(given[step, "cond"], given[step, "uncond"]).double().numpy() for step in range(STEPS)]
    np.testing.assert_allclose(found[1, :, 0], expected, rtol=1e-5)


def test_nothing_is_compared_across_steps() -> None:
    tape, given = GuidanceTape(STEPS, BRANCHES[:2], CPU), values()
    tape.add(0, "cond", given[0, "cond"])
    tape.add(1, "uncond", given[1, "uncond"])
    assert np.isnan(tape.close()).all()
    assert pair_bytes(torch.zeros(3, 5)) == 15 * (4 * 4 + 128) and pair_bytes(torch.zeros(5).half()) == 5 * (8 + 128)
