"""What reuse at some sites leaves at the end: sites add as squares, and branches are averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastercache.analysis.consequence import consequence, of_sites
from fastercache.policies.errors import RecordingError
from fastercache.policies.vocabulary import Kind, Role, Run, Site

STEPS = 5
FACTORS = {"spatial": np.linspace(1.0, 2.0, STEPS), "block": np.linspace(3.0, 1.0, STEPS)}


class Made:
    """A profile of two attentions and a block, in two branches, whose values are chosen: (3, 2, steps, elements)."""

    sites = (
        Site("a", Kind.MODULE, Role.SPATIAL, 0, (0, 1)),
        Site("b", Kind.MODULE, Role.SPATIAL, 1, (1, 2)),
        Site("blocks.0", Kind.BLOCK, None, 0, (0, 1)),
    )
    branches = ("cond", "uncond")
    run = Run.of(STEPS)

    def __init__(self) -> None:
        self.values = np.random.default_rng(0).normal(size=(3, 2, STEPS, 20)).cumsum(axis=2)
        self.gram = np.einsum("sbte,sbue->sbtu", self.values, self.values) / 20


def left(values: Any, factors: Any, held: dict[int, int]) -> float:
    """Of one site and branch, whose steps hold others' values: relative errors times factors, added as vectors."""
    off = sum(factors[m] * (values[k] - values[m]) / np.sqrt(np.mean(values[m] ** 2)) for m, k in held.items())
    return float(np.mean(off**2))


def test_sites_add_as_squares_and_branches_are_averaged() -> None:
    profile: Any = Made()
    held = {1: 0, 2: 0, 4: 3}
    expected = [
        sum(left(profile.values[s, b], FACTORS[role], held) for b in range(2)) / 2
        for s, role in enumerate(("spatial", "spatial", "block"))
    ]
    assert of_sites(profile, [0], {3, 0}, FACTORS) == pytest.approx(expected[0])
    assert of_sites(profile, [0, 1], {0, 3}, FACTORS) == pytest.approx(expected[0] + expected[1])
    assert of_sites(profile, [2, 1], (3, 0), FACTORS) == pytest.approx(expected[1] + expected[2])
    assert of_sites(profile, [0, 1, 2], range(STEPS), FACTORS) == 0.0 and of_sites(profile, [], {0}, FACTORS) == 0.0
    with pytest.raises(RecordingError, match="of 'block' does was not measured, only of spatial"):
        of_sites(profile, [2], {0}, {"spatial": FACTORS["spatial"]})


def test_a_value_of_zero_has_no_relative_error() -> None:
    profile: Any = Made()
    profile.values[0, :, 2] = 0.0
    profile.gram = np.einsum("sbte,sbue->sbtu", profile.values, profile.values) / 20
    expected = sum(left(profile.values[0, b], FACTORS["spatial"], {1: 0, 4: 3}) for b in range(2)) / 2
    assert of_sites(profile, [0], {0, 3}, FACTORS) == pytest.approx(expected)


def test_rounding_leaves_no_negative_square() -> None:
    gram = np.full((2, 2), 1.0)
    gram[0, 0] -= 1e-9
    assert consequence(gram, Run.of(2).steps, [0], np.ones(2)) == 0.0
