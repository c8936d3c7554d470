"""Wrappers veto without hiding steps from the inner rule; compositions share out sites; every type round-trips."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from fastercache.policies import (
    CFGCache,
    Compose,
    Difference,
    DynamicReuse,
    FasterCache,
    InvalidPolicy,
    Kind,
    MaxConsecutive,
    NoCache,
    Policy,
    Ramp,
    Role,
    Run,
    Site,
    SiteConflict,
    SitePolicy,
    StaticInterval,
    StaticRule,
    Step,
    Taylor,
    UnknownPolicy,
    WarmUp,
    Window,
    compile_policy,
    dump,
    known_policies,
    load_policy,
    load_predictor,
    register,
)
from fastercache.policies.registry import predictors
from fastercache.policies.wrappers import citations_of

SITES = (
    Site("blocks.0.attn1", Kind.MODULE, Role.SPATIAL, 0, (0, 1)),
    Site("blocks.0.ff", Kind.MODULE, Role.FF, 0, (0, 1)),
    Site("denoiser", Kind.DENOISER),
    Site("branch", Kind.BRANCH),
)


def letters(policy: Policy, count: int = 9, site: str = "blocks.0.attn1", branch: int = 0) -> str:
    table = compile_policy(policy, Run.of(count, sites=SITES))
    return "".join("CR-"[c] for c in table.codes[[s.name for s in table.sites].index(site), branch])


def test_warm_up_window_and_max_consecutive() -> None:
    inner = StaticInterval(interval=12)
    assert letters(inner) == "CRRRRRRRR"
    assert letters(WarmUp(inner=inner, steps=4)) == "CCCCRRRRR"
    assert letters(Window(inner=inner, start=0.25, stop=0.75)) == "CCRRRRCCC"
    assert letters(Window(inner=inner, start=0.25)) == "CCRRRRRRR"
    assert letters(MaxConsecutive(inner=inner, limit=2)) == "CRRCRRCRR"
    # a reuse that an outer wrapper vetoed does not count as one
    assert letters(WarmUp(inner=MaxConsecutive(inner=inner, limit=1), steps=4)) == "CCCCRCRCR"


class Counting(SitePolicy, StaticRule[list[int]]):
    """Reuses from the fourth question on; only useful to see who asks."""

    name: ClassVar[str] = "counting"

    @property
    def query(self) -> str:
        return "spatial"

    def begin(self, site: Site, branch: str, run: Run) -> list[int]:
        return [0]

    def reuse(self, state: list[int], step: Step) -> bool:
        state[0] += 1
        return bool(state[0] > 3)


@pytest.mark.usefixtures("own_registry")
def test_a_wrapped_rule_is_asked_at_every_step() -> None:
    register(Counting)
    run = Run.of(8, branches=("cond",), sites=SITES)
    table = compile_policy(WarmUp(inner=Counting(), steps=5), run)
    assert "".join("CR-"[c] for c in table.codes[0, 0]) == "CCCCCRRR"


def test_each_branch_has_its_own_count() -> None:
    policy = Compose([MaxConsecutive(inner=StaticInterval(interval=9), limit=2), CFGCache(interval=2, start=0.0)])
    assert letters(policy, 7) == "CRRCRRC"
    assert letters(policy, 7, branch=1) == "C-R-R-C"


def test_dynamic_reuse_judges_each_branch_by_its_own_age() -> None:
    policy = FasterCache(start=0.0, cfg_start=0.0, interval=2, cfg_interval=5)
    assert letters(policy, 11) == "CRCRCRCRCRC"
    # at step 5 the unconditional attention is five steps old: computed afresh though the rule would reuse
    assert letters(policy, 11, branch=1) == "C----C----C"


def test_two_claims_on_one_site_name_both_policies() -> None:
    policy = Compose([DynamicReuse(), StaticInterval(sites="all")])
    with pytest.raises(SiteConflict, match=r"dynamic_reuse and static_interval both claim blocks\.0\.attn1"):
        policy.claims(SITES)


def test_a_composition_assigns_what_its_parts_do() -> None:
    assigned = Compose([WarmUp(inner=DynamicReuse(order=2)), CFGCache()]).assign(Run.of(9, sites=SITES))
    assert list(assigned) == [SITES[0], SITES[3]]
    assert assigned[SITES[0]].predictor.depth == 3 and assigned[SITES[3]].rule == CFGCache()


def test_a_policy_that_would_do_nothing_is_an_error() -> None:
    class NoRule(SitePolicy):
        name: ClassVar[str] = "no_rule"

        @property
        def query(self) -> str:
            return "attention"

    class NoDecision(SitePolicy, StaticRule[None]):
        name: ClassVar[str] = "no_decision"

    with pytest.raises(InvalidPolicy, match="Shadowing has a field 'update'"), pytest.warns(UserWarning):

        class Shadowing(SitePolicy, StaticRule[None]):
            update: int = 1

    with pytest.raises(InvalidPolicy, match="NoDecision must implement query, reuse"):
        NoDecision()  # type: ignore[abstract]
    with pytest.raises(InvalidPolicy, match="NoRule has no rule"):
        NoRule().claims(SITES)
    with pytest.raises(InvalidPolicy, match="Policy must implement assign, static"):
        Policy()  # type: ignore[abstract]


class Together(SitePolicy, StaticRule[list[int]]):
    """Sites that share their state: every third computation of any of them is followed by a reuse of all."""

    name: ClassVar[str] = "together"

    @property
    def query(self) -> str:
        return "all"

    def begin(self, site: Site, branch: str, run: Run) -> list[int]:
        return []

    def begin_beside(self, first: list[int], site: Site, branch: str, run: Run) -> list[int]:
        return first

    def reuse(self, state: list[int], step: Step) -> bool:
        return len(state) >= 4 and len(state) % 4 == 0 and step.index == state[-1] + 1

    def update(self, state: list[int], step: Step) -> list[int]:
        state.append(step.index)
        return state


def test_sites_that_decide_together_share_a_state_within_a_branch() -> None:
    for policy in (Together(), WarmUp(inner=Together(), steps=1)):
        table = compile_policy(policy, Run.of(6, sites=SITES))
        assert ["".join("CR-"[c] for c in row) for rows in table.codes for row in rows] == ["CCRCCR"] * 4


def test_an_empty_composition_is_refused() -> None:
    with pytest.raises(InvalidPolicy, match="at least one policy"):
        Compose([])


@pytest.mark.parametrize(
    "policy",
    [
        NoCache(),
        StaticInterval(interval=4, stand_in=Taylor(order=2)),
        StaticInterval(stand_in=Difference(weight=Ramp(start=0.3), order=2)),
        DynamicReuse(weight=0.3),
        FasterCache.preset("mochi"),
        Compose([WarmUp(inner=StaticInterval(sites="ff"), steps=3), CFGCache(weighting="repo")]),
        MaxConsecutive(inner=Window(inner=DynamicReuse(), start=0.1), limit=2),
    ],
)
def test_a_policy_round_trips_through_json(policy: Policy) -> None:
    assert load_policy(json.loads(json.dumps(dump(policy)))) == policy


def test_every_registered_default_round_trips() -> None:
    for name, cls in predictors().items():
        if not any(field.is_required() for field in cls.model_fields.values()):
            assert load_predictor(dump(cls())) == cls(), name
    for name, policy in known_policies().items():
        if not any(field.is_required() for field in policy.model_fields.values()) and name != "compose":
            assert load_policy(dump(policy())) == policy(), name


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"policy": "fastercash"}, UnknownPolicy, "did you mean 'fastercache'"),
        ({"policy": "fastercache", "intervall": 2}, InvalidPolicy, "no field 'intervall'; did you mean 'interval'"),
        ({"policy": "fastercache", "interval": 99}, InvalidPolicy, "interval"),
        ({"interval": 2}, InvalidPolicy, "the key 'policy'"),
        ({"policy": "static_interval", "stand_in": {"predictor": "tailor"}}, UnknownPolicy, "did you mean 'taylor'"),
        ({"policy": "warm_up"}, InvalidPolicy, "needs the field 'inner'"),
    ],
)
def test_a_bad_file_is_one_clear_line(data: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        load_policy(data)
    assert "\n" not in str(raised.value)


def test_policies_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        StaticInterval().interval = 3


@pytest.mark.usefixtures("own_registry")
def test_a_taken_name_is_refused() -> None:
    class Thief(NoCache):
        name: ClassVar[str] = "fastercache"

    with pytest.raises(InvalidPolicy, match="taken"):
        register(Thief)


def test_every_work_behind_a_policy_is_cited_once() -> None:
    """Of parts in parts and of what is wrapped, those further in last; CFG-Cache and dynamic reuse are of one paper."""
    cfg, reuse, fora = CFGCache(), DynamicReuse(), StaticInterval(sites="ff")
    wrapped = MaxConsecutive(inner=WarmUp(inner=fora, steps=2), limit=1)
    assert citations_of(Compose([Compose([wrapped, reuse]), cfg])) == [cfg.citation, fora.citation]
    assert citations_of(cfg) == [cfg.citation] and citations_of(NoCache()) == []


def test_a_composition_takes_any_sequence_of_policies() -> None:
    parts = (StaticInterval(sites="ff"), CFGCache())
    assert Compose(list(parts)) == Compose(parts) and Compose(list(parts)).policies == parts
    for wrong in ("ff", 3, None):
        with pytest.raises(InvalidPolicy, match="policies"):
            Compose(wrong)  # type: ignore[arg-type]
