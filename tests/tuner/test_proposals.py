"""How proposals are made, step by step: crossings, neighbours, the pool, the surrogate's data, and whose turn it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

import fastercache as fc
from fastercache.policies.errors import FasterCacheError
from fastercache.tuner import CostModel, SearchSpace
from fastercache.tuner.fields import from_unit, to_unit
from fastercache.tuner.propose import KnownCostSampler, Proposer, Seen, make_sampler
from fastercache.tuner.simulate import Forecast
from fastercache.tuner.surrogate import Surrogate

SITES = [fc.Site("b.0.attn1", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1)), fc.Site("branch", fc.Kind.BRANCH)]
MODEL = CostModel(fc.Run.of(20, sites=SITES), (100,) * 20, {"b.0.attn1": 0.3})
SPACE = SearchSpace.of("fastercache")
SMALL = SearchSpace.of(fc.StaticInterval())


def proposer(space: SearchSpace = SPACE, pool: int = 12) -> Proposer:
    return Proposer(space, MODEL.forecast, pool=pool)


# -- one proposal from others ------------------------------------------------------------------------------------------
def test_a_crossing_takes_a_third_of_its_parameters_from_the_other() -> None:
    """Each by itself: of 3 x 2,000 draws 2,000 are expected, with a standard deviation of 37."""
    one, other = {"interval": 2, "start": 0.1, "stop": 0.8}, {"interval": 5, "start": 0.4, "stop": 0.9}
    rng = np.random.default_rng(0)
    made = [proposer(SMALL)._cross(one, other, rng) for _ in range(2000)]
    counts = [sum(child[name] == other[name] for child in made) for name in one]
    assert all(child[name] in (one[name], other[name]) for child in made for name in one)
    assert abs(sum(counts) - 2000) < 150 and all(abs(n - 2000 / 3) < 90 for n in counts)
    lacking = [proposer(SMALL)._cross({"interval": 2}, {"start": 0.4}, rng) for _ in range(50)]
    assert all(child["interval"] == 2 and child["start"] == 0.4 for child in lacking), "whoever has it gives it"
    assert len({child["stop"] for child in lacking}) == 50, "what neither has is drawn"


def middle() -> dict[str, Any]:
    return SPACE.draw(lambda p: from_unit(p, 0.5))


def test_a_neighbour_moves_about_three_parameters_by_a_normal_step() -> None:
    """Of n parameters each is moved with chance 3 / n; where that leaves none, one is. By hand: 3 + (1 - 3 / n)^n."""
    params, rng, width = middle(), np.random.default_rng(1), 0.1
    floats = {p.name: p for p in SPACE.parameters if isinstance(p.distribution, FloatDistribution) and p.name in params}
    made = [proposer()._mutate(params, rng, width) for _ in range(2500)]
    moves = [
        to_unit(p, child[name]) - 0.5
        for child in made
        for name, p in floats.items()
        if name in child and child[name] != params[name]
    ]
    n = len(params)
    expected = 2500 * len(floats) * (3 + (1 - 3 / n) ** n) / n
    assert n > 8 and len(floats) > 3
    assert len(moves) == pytest.approx(expected, rel=0.06)
    assert np.std(moves) == pytest.approx(width, rel=0.06) and abs(np.mean(moves)) < 0.01


def test_a_neighbour_of_one_parameter_moves_it_and_stays_within_its_bounds() -> None:
    rng = np.random.default_rng(2)
    space = SearchSpace.of(fc.StaticInterval(), fixed={"interval": 3, "stop": 1.0})
    made = [Proposer(space, MODEL.forecast)._mutate({"start": 0.5}, rng, width=3.0)["start"] for _ in range(60)]
    assert min(made) == 0.0 and max(made) == 1.0 and 0.5 not in made
    fresh = [Proposer(SMALL, MODEL.forecast)._mutate({"start": 0.5}, rng, width=0.0) for _ in range(20)]
    assert {child["start"] for child in fresh} == {0.5} and len({child["stop"] for child in fresh}) == 20


def test_a_neighbours_choices_are_drawn_anew() -> None:
    """`weighting` has two values: a choice that is moved is the other one half of the time."""
    rng, params = np.random.default_rng(3), middle()
    n = len(params)
    made = [proposer()._mutate(params, rng, 0.1) for _ in range(2500)]
    other = sum(child["weighting"] != params["weighting"] for child in made)
    assert other == pytest.approx(2500 * (3 + (1 - 3 / n) ** n) / n / 2, rel=0.15)


# -- the pool ----------------------------------------------------------------------------------------------------------
class Followed(Proposer):
    """Notes what is tried; every candidate is numbered, and admitted if a test says so. The later is the better."""

    def __init__(self, admits: bool) -> None:
        super().__init__(SPACE, MODEL.forecast, pool=12)
        self.admits = admits
        self.tried = 0
        self.crossed: list[tuple[Any, Any]] = []
        self.moved: list[tuple[Any, float]] = []

    def _model(self, seen: Any) -> Any:
        return None, None

    def _cross(self, params: Any, other: Any, rng: Any) -> Any:
        self.crossed.append((params["tag"], other["tag"]))
        return params

    def _mutate(self, params: Any, rng: Any, width: float) -> Any:
        self.moved.append((params["tag"], width))
        return params

    def _admit(self, params: Any, best: float, known: Any, pool: Any) -> None:
        if self.admits:
            pool.append(SimpleNamespace(params={"tag": self.tried}))
        self.tried += 1

    def _gain(self, pool: Any, *rest: Any) -> Any:
        return np.array([one.params["tag"] for one in pool], dtype=float)


def seen(tag: str, ratio: float, margin: float) -> Seen:
    return Seen({"tag": tag}, fc.FasterCache(), ratio, margin, margin >= 0.0)


SEEN = [
    *(seen(f"good {ratio}", ratio, 1.0) for ratio in (0.9, 0.5, 0.7, 0.6, 0.4, 0.8)),
    seen("reuses nothing", 1.0, 60.0),
    *(seen(f"missed {margin}", 0.3, margin) for margin in (-9.0, -1.0, -4.0, -2.0, -30.0)),
]


def test_parents_are_the_four_cheapest_that_are_good_and_the_three_that_miss_least() -> None:
    """By hand: of 3 x 12 tries each eighth is a point from anywhere, each odd one a crossing; all others neighbours."""
    made = Followed(admits=False)
    found = made.propose(SEEN, np.random.default_rng(0))
    parents = {*(f"good {ratio}" for ratio in (0.4, 0.5, 0.6, 0.7)), *(f"missed {m}" for m in (-1.0, -2.0, -4.0))}
    assert {tag for tag, _ in made.moved} == parents == {tag for pair in made.crossed for tag in pair}
    assert (made.tried, len(made.moved), len(made.crossed)) == (36, 36 - 5, 18)
    assert {width for _, width in made.moved} == {0.15}
    assert set(found) >= {"interval", "cfg_interval"}, "nothing was cheaper: a random point of the space"
    alone = Followed(admits=False)
    alone.propose([seen("reuses nothing", 1.0, 60.0)], np.random.default_rng(0))
    assert alone.tried == 36 and alone.moved == [], "what reuses nothing is no parent"


def test_the_six_best_of_the_pool_are_varied_twice_and_the_best_is_proposed() -> None:
    """By hand: 12 candidates, of which 0 and 8 come from anywhere; then twice 12 // 3 neighbours of the best six."""
    made = Followed(admits=True)
    found = made.propose(SEEN, np.random.default_rng(0))
    assert made.tried == 12 + 2 * 4 and found == {"tag": 19}
    assert len(made.crossed) == 6
    first, climbs = made.moved[:10], made.moved[10:]
    assert {width for _, width in first} == {0.15} and [width for _, width in climbs] == [0.08] * 8
    assert {tag for tag, _ in climbs[:4]} <= {6, 7, 8, 9, 10, 11} and {tag for tag, _ in climbs[4:]} <= set(
        range(10, 16)
    )
    spread = Followed(admits=True)
    tags = set()
    for seed in range(30):
        spread.moved, spread.tried = [], 0
        spread.propose(SEEN, np.random.default_rng(seed))
        tags |= {tag for tag, width in spread.moved[:14] if width == 0.08}
    assert tags == {6, 7, 8, 9, 10, 11}, "any of the six"


def test_the_best_so_far_is_the_cheapest_that_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(Followed, "_admit", lambda self, params, best, known, pool: told.append(best))
    Followed(admits=False).propose(SEEN, np.random.default_rng(0))
    assert set(told) == {0.4}
    told.clear()
    Followed(admits=False).propose([seen("missed", 0.3, -1.0)], np.random.default_rng(0))
    assert set(told) == {1.0}


def test_what_was_seen_is_known_by_its_behaviour(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be applied has none."""
    told: list[set[str]] = []
    monkeypatch.setattr(Followed, "_admit", lambda self, params, best, known, pool: told.append(known))
    forecast = MODEL.forecast(fc.FasterCache())
    assert forecast is not None
    for found, expected in ((forecast, {forecast.behaviour}), (None, set())):
        told.clear()
        made = Followed(admits=False)
        monkeypatch.setattr(made, "_forecast", lambda policy, found=found: found)
        made.propose(SEEN, np.random.default_rng(0))
        assert told and all(known == expected for known in told)


def test_a_policy_is_forecast_once_and_one_that_cannot_be_applied_has_no_forecast() -> None:
    asked: list[fc.Policy] = []

    def forecast(policy: fc.Policy) -> Forecast:
        asked.append(policy)
        if isinstance(policy, fc.NoCache):
            raise FasterCacheError("not here")
        return MODEL.forecast(policy)

    made = Proposer(SPACE, forecast)
    for _ in range(2):
        assert made.forecast(fc.NoCache()) is None
        assert made.forecast(fc.FasterCache()) is not None
    assert asked == [fc.NoCache(), fc.FasterCache()]


# -- what the surrogate learns from ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([-40.0, -3.0, 20.0], [-15.0, -3.0, 10.0]),  # near misses are told apart, and how far above does not count
        ([-40.0, -30.0, -25.5], [-40.0, -30.0, -25.5]),  # where all miss, from the best one on
        ([-60.0, -30.0, -44.0], [-45.0, -30.0, -44.0]),
    ],
)
def test_margins_and_columns_that_the_surrogate_is_given(
    monkeypatch: pytest.MonkeyPatch, margins: list[float], expected: list[float]
) -> None:
    fitted: dict[str, Any] = {}
    monkeypatch.setattr(Surrogate, "fit", lambda x, y, groups: fitted.update(x=x, y=y, groups=groups) or "model")
    both = [*SITES, fc.Site("b.0.attn2", fc.Kind.MODULE, fc.Role.TEMPORAL, 0, (0, 1))]  # of whose roles both age alike
    model = CostModel(fc.Run.of(20, sites=both), (100,) * 20, {"b.0.attn1": 0.3, "b.0.attn2": 0.2})
    policies = [
        fc.FasterCache(interval=1, cfg_interval=1),
        fc.FasterCache(interval=2, cfg_interval=3, start=0.2, cfg_start=0.2),
        fc.FasterCache(interval=3, cfg_interval=5, start=0.1, cfg_start=0.6),
    ]
    known = [
        Seen(SPACE.encode(p).params, p, model.forecast(p).ratio, margin, margin >= 0)
        for p, margin in zip(policies, margins, strict=True)
    ]
    made = Proposer(SPACE, model.forecast)
    surrogate, used = made._model(known)
    assert surrogate == "model" and used is not None and fitted["y"].tolist() == expected
    features = np.stack([model.forecast(p).features for p in policies])
    positions = np.stack([SPACE.position(s.params) for s in known])
    distinct: list[tuple[float, ...]] = []
    columns = []
    for column in features.T:  # of columns that say the same the first is kept
        rounded = tuple(column.round(9))
        columns.append(rounded not in distinct)
        distinct.append(rounded)
    assert not all(columns), "two of them say the same here"
    assert used.tolist() == columns + [True] * positions.shape[1], "and every parameter"
    assert fitted["x"].tolist() == np.hstack([features[:, columns], positions]).tolist()
    assert fitted["groups"] == [0] * sum(columns) + [1] * positions.shape[1]
    assert made._model(known[:1]) == (None, None)
    assert made._model(known[:2])[0] == "model"


# -- whose turn it is --------------------------------------------------------------------------------------------------
def study_of(*failed: tuple[int, str | None]) -> Any:
    """A study whose failed trials are these, each with its outcome; one that was abandoned has none."""
    trials = [
        SimpleNamespace(number=n, state=TrialState.FAIL, user_attrs={} if outcome is None else {"outcome": outcome})
        for n, outcome in failed
    ]
    return SimpleNamespace(get_trials=lambda deepcopy, states: trials)


def trial(number: int, **attributes: Any) -> Any:
    return SimpleNamespace(number=number, system_attrs=attributes)


class General:
    """A sampler that says its name."""

    def sample_relative(self, *rest: Any) -> dict[str, Any]:
        return {"by": "general"}

    def infer_relative_search_space(self, *rest: Any) -> dict[str, Any]:
        return {"of": "general"}

    def sample_independent(self, *rest: Any) -> str:
        return "general"


def test_every_second_proposal_is_the_general_samplers_where_there_is_one() -> None:
    made = SimpleNamespace(propose=lambda seen, rng: {"by": rng.random()}, space=SPACE)
    both = KnownCostSampler(made, lambda study: [], 7, General())  # type: ignore[arg-type]
    alone = KnownCostSampler(made, lambda study: [], 7)  # type: ignore[arg-type]
    none = study_of()
    own = [np.random.default_rng([7, n]).random() for n in range(4)]
    assert [both.sample_relative(none, trial(n), {})["by"] for n in range(4)] == [own[0], "general", own[2], "general"]
    assert [alone.sample_relative(none, trial(n), {})["by"] for n in range(4)] == own
    assert both.infer_relative_search_space(none, trial(1)) == {"of": "general"}
    assert both.infer_relative_search_space(none, trial(0)) == SPACE.distributions
    given = trial(1, fixed_params={"interval": 2})
    assert both.sample_relative(none, given, {}) == {}
    # what a queued trial left open is drawn at random, whoever's turn it is
    start = next(p for p in SPACE.parameters if p.name == "start")
    drawn = from_unit(start, np.random.default_rng([7, 1]).random())
    assert both.sample_independent(none, given, "start", start.distribution) == drawn
    assert both.sample_independent(none, trial(1), "start", start.distribution) == "general"
    assert alone.sample_independent(none, trial(1), "start", start.distribution) == drawn


def test_trials_that_were_interrupted_take_no_place() -> None:
    made = SimpleNamespace(propose=lambda seen, rng: {"by": rng.random()}, space=SPACE)
    sampler = KnownCostSampler(made, lambda study: [], -3)  # type: ignore[arg-type]
    study = study_of((1, None), (2, "failed"), (3, "interrupted"), (4, "invalid"), (6, None))
    for number, place in ((1, 1), (2, 1), (3, 2), (5, 3), (6, 4), (7, 4)):
        assert sampler.sample_relative(study, trial(number), {})["by"] == np.random.default_rng([3, place]).random()


@pytest.mark.parametrize(
    ("name", "bases", "kind", "general"),
    [
        ("known-cost", (fc.FasterCache(), fc.FORA()), KnownCostSampler, False),
        ("known-cost", (fc.FasterCache(), fc.TeaCache()), KnownCostSampler, True),
        ("known-cost", (fc.TeaCache(),), optuna.samplers.TPESampler, False),
        ("tpe", (fc.FasterCache(),), optuna.samplers.TPESampler, False),
        ("tpe", (fc.FasterCache(), fc.TeaCache()), optuna.samplers.TPESampler, False),
    ],
)
def test_the_sampler_knows_costs_where_policies_have_them(
    monkeypatch: pytest.MonkeyPatch, name: Any, bases: tuple[fc.Policy, ...], kind: type, general: bool
) -> None:
    made: list[dict[str, Any]] = []
    original = optuna.samplers.TPESampler
    monkeypatch.setattr(
        "optuna.samplers.TPESampler.__init__",
        lambda self, **fields: made.append(fields) or original.__bases__[0].__init__(self),  # type: ignore[misc]
    )
    space: Any = SimpleNamespace(bases={str(i): base for i, base in enumerate(bases)})
    sampler = make_sampler(name, SimpleNamespace(space=space), lambda study: [], seed=5, drawn=4)  # type: ignore[arg-type]
    assert type(sampler) is kind
    if isinstance(sampler, KnownCostSampler):
        assert (sampler._general is not None) is general and sampler._seed == 5
    assert made == [{"seed": 9, "multivariate": True, "group": True}] * (general or kind is not KnownCostSampler)
