"""How a budget is answered, with a planner whose plans are made up: every step follows from a few straight lines.

Of n = 20 steps, computing c is foreseen to leave 2 c dB. The last latents of a plan that was run are at 2 c + 15 dB,
and its video at 2 c + 10 dB less what verifying it takes away. The budget is 30 dB, so a plan is 2 c - 20 dB over it.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fastercache.policies.errors import BudgetNotMet
from fastercache.tuner import Budget
from fastercache.tuner.planning.within import Within, margin_of

N, PROMPTS, GENERATIONS = 20, 4, 24.0


@dataclass
class Known:
    plan: tuple[int, ...]
    level: float | None = None
    quality: dict[str, list[float]] = field(default_factory=dict)


class Planner:
    """Stands in for the planner. What it is asked to do is written down, and what it does costs something.

    Args:
        left: generations. worse: what verifying takes away, dB. slope: of what is foreseen, dB a step. starts: how many
        denoisers. fewest, most: computed steps of the plans there are. blind: whether searches run no plan.
    """

    steps, prompts = N, PROMPTS
    effort = SimpleNamespace(generations=GENERATIONS)

    def __init__(
        self,
        left: float = 1000.0,
        *,
        worse: float = 0.0,
        slope: float = 2.0,
        starts: int = 1,
        fewest: int = 1,
        most: int = N,
        blind: bool = False,
    ) -> None:
        self.left, self.worse, self.slope, self.blind = left, worse, slope, blind
        self.sampler = SimpleNamespace(relations=SimpleNamespace(starts=tuple(range(starts))))
        self.predicted = dict.fromkeys(range(fewest, most + 1))
        self.known: dict[int, Known] = {}
        self.did: list[tuple[Any, ...]] = []
        self.words: list[str] = []

    @property
    def verified(self) -> dict[int, Known]:
        return {count: known for count, known in self.known.items() if known.quality}

    def cost(self, count: int) -> float:
        return PROMPTS * count / N

    def foreseen(self, plan: tuple[int, ...]) -> float:
        return self.slope * len(plan)

    def level(self, count: int) -> float:
        return self.slope * count

    def told(self, doing: str) -> None:
        self.words.append(doing)

    def look(self, count: int) -> Known:
        self.did.append(("look", count))
        return Known(tuple(range(count)), 2.0 * count + 15.0, {"psnr": [2.0 * count + 9.0, 2.0 * count + 11.0]})

    def search(self, count: int, generations: float) -> None:
        self.did.append(("search", count, pytest.approx(generations)))
        self.known[count] = Known(tuple(range(count)), None if self.blind else 2.0 * count + 15.0)

    def verify(self, count: int, keep: float = 0.0) -> None:
        self.did.append(("verify", count, pytest.approx(keep)))
        self.left -= self.cost(count)
        known = self.known.setdefault(count, Known(tuple(range(count))))
        known.quality = {"psnr": [2.0 * count + 10.0 - self.worse + d for d in (-3.0, -1.0, 1.0, 3.0)]}

    def point(self, count: int) -> str:
        return f"{count} steps"


def answered(planner: Planner, margin: float | None = 1.0, budget: str = "psnr>=30") -> Any:
    made_up: Any = planner
    return Within(made_up, Budget.parse(budget), margin).cheapest()


def searches(planner: Planner) -> list[int]:
    return [one[1] for one in planner.did if one[0] == "search"]


def verified(planner: Planner) -> list[int]:
    return [one[1] for one in planner.did if one[0] == "verify"]


def test_two_looks_then_searches_until_one_is_enough_and_one_less_is_not() -> None:
    """Looks at 5 and 2 steps lie on -20 + 2 c; beyond them 1.35 dB a foreseen one: 9 steps come to 0.8, 10 to 3.5.

    The 10 of the search are at 0, so 11 are asked for (2.7), which are at 2.
    """
    planner = Planner(30.0)
    assert answered(planner) == "11 steps"
    assert planner.did == [
        ("look", 5),
        ("look", 2),
        ("search", 10, (30.0 - 2.5 * 2.0) / 2.0),
        ("search", 11, (30.0 - 2.5 * 2.2) / 2.0),
        ("verify", 11, 2.4),
    ]
    assert planner.words == [
        "10 computed steps: -1.0 dB over the budget and its margin",
        "11 computed steps: +1.0 dB over the budget and its margin",
    ]


def test_what_is_asked_for_is_enough() -> None:
    """11 steps are at 2, foreseen and verified. 5 are at 0 of 20 dB, which the look tells."""
    planner = Planner()
    assert answered(planner, margin=2.0) == "11 steps" and verified(planner) == [11]
    planner = Planner()
    assert answered(planner, margin=0.0, budget="psnr>=20") == "5 steps" and searches(planner) == [5]


@pytest.mark.parametrize(("margin", "tried"), [(0.4, [13, 10, 11]), (0.6, [13, 11])])
def test_one_fewer_is_tried_where_half_a_decibel_is_missing(margin: float, tried: list[int]) -> None:
    """Foreseen 1 dB a step: 12 are expected at -0.6 and 13 at 0.8, which are at 6. The line to there has 10 at 0."""
    planner = Planner(slope=1.0)
    assert answered(planner, margin) == "11 steps"
    assert searches(planner) == tried and verified(planner) == [11]


@pytest.mark.parametrize(
    ("left", "slope", "tried", "answer"),
    [
        (6.59, 2.0, [10], 11),
        (6.61, 2.0, [10, 11], 11),
        (8.39, 1.0, [14], 14),
        (8.41, 1.0, [14, 11], 11),
    ],
)
def test_searches_end_where_less_than_three_plans_could_be_paid_for(
    left: float, slope: float, tried: list[int], answer: int
) -> None:
    """Three of 11 steps on 4 prompts take 6.6 generations of 20 steps, and three of the 14 that were tried 8.4."""
    planner = Planner(left, slope=slope)
    assert answered(planner) == f"{answer} steps"
    assert searches(planner) == tried and verified(planner) == [answer]


@pytest.mark.parametrize(("left", "following"), [(7.19, 13), (7.21, 12)])
def test_what_was_verified_and_is_too_little_is_learnt_from(left: float, following: int) -> None:
    """11 steps verified are at 0.5, so 12 are expected at 3.2 and 13 at 5.9, where 1 is asked. They took 2.2
    generations. Where what is left does not pay for 12 and 13 steps (5.0), the next is to be 3 dB over what is asked.
    """
    planner = Planner(left, worse=1.5)
    assert answered(planner) == f"{following} steps"
    assert verified(planner) == [11, following]


def test_without_a_plan_that_was_run_the_looks_decide() -> None:
    """10 are expected at 3.5 and 9 at 0.8, where 1 is asked: both are tried. Verified, 10 are at 0 and 11 at 2."""
    planner = Planner(blind=True)
    assert answered(planner) == "11 steps"
    assert searches(planner) == [10, 9] and verified(planner) == [10, 11]


@pytest.mark.parametrize(
    ("words", "looks"),
    [
        ({}, [5, 2]),
        ({"starts": 4}, [5, 4]),
        ({"starts": 6, "fewest": 6}, [6]),
        ({"most": 4}, [4, 2]),
    ],
)
def test_a_look_computes_a_quarter_and_a_tenth_of_the_steps_and_every_denoiser(
    words: dict[str, int], looks: list[int]
) -> None:
    planner = Planner(**words)  # type: ignore[arg-type]
    with contextlib.suppress(BudgetNotMet):
        answered(planner)
    assert [one[1] for one in planner.did if one[0] == "look"] == looks


def test_what_any_plan_keeps_takes_the_fewest_steps() -> None:
    assert answered(Planner(), budget="psnr>=1") == "1 steps"
    assert answered(Planner(fewest=3), budget="psnr>=1") == "3 steps"


def refused(planner: Planner, **words: Any) -> str:
    with pytest.raises(BudgetNotMet) as caught:
        answered(planner, **words)
    return str(caught.value)


def test_where_no_plan_is_found_it_says_what_is_missing() -> None:
    asked = "keeps psnr>=30 on 4 search prompts with the margin for unseen ones"
    assert refused(Planner(4.59, worse=1.5)) == (
        f"no plan within 24 generations {asked}; the closest, with 11 computed steps, is +0.5 dB from the budget where "
        "1.0 dB are asked: raise --effort, or set --margin"
    )
    planner = Planner()
    assert "no plan with fewer than 20 computed steps keeps psnr>=48" in refused(planner, budget="psnr>=48")
    assert not verified(planner)


def test_one_plan_is_verified_if_it_can_just_be_paid_for() -> None:
    assert answered(Planner(4 * 11 / 20)) == "11 steps"
    assert refused(Planner(2.19)) == (
        "24 generations are too few to run a plan on 4 search prompts, so none is known to keep psnr>=30: raise "
        "--effort, or give fewer prompts"
    )


def test_the_closest_is_the_one_with_the_highest_level() -> None:
    planner: Any = Planner()
    within = Within(planner, Budget.parse("psnr>=30"), 1.0)
    for count, level in ((11, 28.0), (12, 30.5), (13, 30.0), (20, 99.0)):
        planner.known[count] = Known((), 0.0, {"psnr": [level]})
    assert "the closest, with 12 computed steps, is +0.5 dB" in within._unmet(14)
    planner.known[18] = Known((), 0.0, {"psnr": [29.0]})
    assert "the closest, with 12 computed steps" in within._unmet(20)
    planner.known[19] = Known((), 0.0, {"psnr": [29.0]})
    assert within._unmet(20).startswith("no plan with fewer than 20 computed steps")


def test_margins() -> None:
    """t of 4 degrees and as many prompts' worth of spread 3 more than were measured."""
    assert margin_of([40.0]) == pytest.approx(stats.t.ppf(0.9, 4) * 3.0)
    assert margin_of([38.0, 42.0]) == pytest.approx(stats.t.ppf(0.9, 5) * math.sqrt((2 * 4.0 + 36.0) / 5 / 2))
    planner: Any = Planner()
    within = Within(planner, Budget.parse("psnr>=30"))
    usual = [3.0 * stats.norm.ppf(share) for share in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
    asked = stats.t.ppf(0.9, 7) * math.sqrt((np.sum(np.square(usual)) + 36.0) / 7 / 4)
    assert within._asked(11) == pytest.approx(asked)
    planner.known[11] = Known((), 0.0, {"psnr": [30.0, 31.0, 33.0, 34.0]})
    assert within._asked(11) == pytest.approx(stats.t.ppf(0.9, 7) * math.sqrt((10.0 + 36.0) / 7 / 4))
    assert within._asked(12) == pytest.approx(asked)
    assert Within(planner, Budget.parse("psnr>=30"), 0.0)._asked(11) == 0.0


def test_what_is_added_to_a_level_is_the_mean_of_both_looks() -> None:
    """At 5 steps a video is 4 dB over the budget and the last latents at 25 dB, at 2 steps 3 dB below and at 12 dB."""

    class Uneven(Planner):
        def look(self, count: int) -> Known:
            level, over = {5: (25.0, 4.0), 2: (12.0, -3.0)}[count]
            return Known(tuple(range(count)), level, {"psnr": [30.0 + over - 1.0, 30.0 + over + 1.0]})

    made_up: Any = Uneven()
    assert Within(made_up, Budget.parse("psnr>=30"), 1.0)._look() == pytest.approx((4.0 - 25.0 - 3.0 - 12.0) / 2)


def test_more_steps_than_were_tried_are_more() -> None:
    """10 steps are the fewest that are expected to be 1 dB over the budget."""
    planner: Any = Planner()
    within = Within(planner, Budget.parse("psnr>=30"), 1.0)
    within._anchors = {5: (10.0, -10.0), 2: (4.0, -16.0)}
    assert [within._fewest(above=above) for above in (0, 9, 10, 11)] == [10, 10, 11, 12]
