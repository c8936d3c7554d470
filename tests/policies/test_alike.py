"""Sites that fare alike are decided about once: the table is the one that deciding about each by itself gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastercache as fc
from fastercache.policies import schedule
from fastercache.policies.schedule import Code, assignment, compile_policy
from fastercache.policies.vocabulary import COND, UNCOND

ROLES = {"attn1": fc.Role.SPATIAL, "attn2": fc.Role.CROSS, "ff": fc.Role.FF}
SITES = [fc.Site("denoiser", fc.Kind.DENOISER), fc.Site("branch", fc.Kind.BRANCH), fc.Site("stack", fc.Kind.STACK)]
for depth in range(5):
    SITES.append(fc.Site(f"blocks.{depth}", fc.Kind.BLOCK, None, depth, (depth, depth + 1)))
    SITES += [
        fc.Site(f"blocks.{depth}.{n}", fc.Kind.MODULE, role, depth, (depth, depth + 1)) for n, role in ROLES.items()
    ]
RUN = fc.Run.of(14, branches=(COND, UNCOND), sites=SITES)

POLICIES: dict[str, fc.Policy] = {
    "one rule": fc.StaticInterval(sites="all", interval=3),
    "FasterCache": fc.FasterCache(start=0.1, cfg_start=0.2),
    "PAB": fc.PyramidAttentionBroadcast(),
    "wrapped": fc.MaxConsecutive(inner=fc.StaticInterval(sites="all|block", interval=5), limit=2),
    "modules inside later blocks": fc.Compose(
        policies=(
            fc.StaticInterval(sites="block", interval=2),
            fc.StaticInterval(sites="all[2:4]", interval=3),
        )
    ),
    "modules inside blocks": fc.Compose(
        policies=(
            fc.StaticInterval(sites="block[1:4]", interval=2),
            fc.StaticInterval(sites="all", interval=3, start=0.2),
            fc.BranchReuse(interval=2, other_interval=3, start=0.0),
        )
    ),
}


def one_by_one(policy: fc.Policy) -> Any:
    """By hand: each site and branch asked at every step, outer sites first, its state held apart."""
    assigned = assignment(policy, RUN)
    sites, firsts = list(assigned), {}  # type: ignore[var-annotated]
    states = [schedule.begin_all(one.rule, site, RUN, firsts) for site, one in assigned.items()]
    codes = np.zeros((len(sites), 2, RUN.count), dtype=np.int8)
    seen = np.zeros((len(sites), 2), dtype=bool)
    for step in RUN.steps:
        i = step.index
        for b, branch in enumerate(RUN.branches):
            for s, site in enumerate(sites):
                outside = [o for o, other in enumerate(sites) if site.inside(other)]
                rule: Any = assigned[site].rule
                if (site.kind is fc.Kind.BRANCH and branch == COND) or any(codes[o, b, i] == 1 for o in outside):
                    codes[s, b, i] = Code.UNREACHED
                elif rule.reuse(states[s][branch], step) and seen[s, b]:
                    codes[s, b, i] = Code.REUSED
        for b, branch in enumerate(RUN.branches):
            for s, site in enumerate(sites):
                if codes[s, b, i] == Code.COMPUTED:
                    seen[s, b] = True
                    rule = assigned[site].rule
                    states[s][branch] = rule.update(states[s][branch], step)
    return codes


@pytest.mark.parametrize("name", POLICIES)
def test_the_table_is_that_of_each_site_by_itself(name: str) -> None:
    table = compile_policy(POLICIES[name], RUN)
    assert (table.codes == Code.REUSED).any()
    assert np.array_equal(table.codes, one_by_one(POLICIES[name]))


def test_sites_under_one_rule_are_decided_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = fc.StaticInterval.reuse
    monkeypatch.setattr(fc.StaticInterval, "reuse", lambda *a: asked.append(1) or original(*a))
    compile_policy(fc.StaticInterval(sites="all", interval=3), RUN)
    assert len(asked) == RUN.count * len(RUN.branches)
    asked.clear()
    compile_policy(fc.Compose(policies=(fc.StaticInterval(sites="block", interval=2),)), RUN)
    assert len(asked) == RUN.count * len(RUN.branches)


def test_a_state_that_changes_in_place_is_no_other_sites() -> None:
    class Counting(fc.StaticRule[list[int]]):
        """Reuses after it was asked three times, whoever holds the list."""

        def begin(self, site: fc.Site, branch: str, run: fc.Run) -> list[int]:
            return []

        def reuse(self, state: list[int], step: fc.Step) -> bool:
            state.append(step.index)
            return len(state) > 3

    rule = Counting()
    assigned = {site: fc.Assigned(rule, fc.Hold()) for site in SITES if site.kind is fc.Kind.BLOCK}
    codes = schedule.compile_rules(assigned, [rule] * len(assigned), RUN).codes
    assert (codes[:, :, :3] == Code.COMPUTED).all() and (codes[:, :, 3:] == Code.REUSED).all()


@pytest.mark.parametrize(
    "state", [([],), (1, ("a", [])), {}, frozenset({(1, 2)})], ids=["in it", "deeper", "dict", "set"]
)
def test_only_states_that_cannot_change_make_sites_alike(state: Any) -> None:
    """Each site is asked about by itself where what it begins with, in one branch at least, could be written to."""
    asked: list[int] = []

    class Same(fc.StaticRule[Any]):
        def begin(self, site: fc.Site, branch: str, run: fc.Run) -> Any:
            return state if branch == UNCOND else 1

        def reuse(self, state: Any, step: fc.Step) -> bool:
            asked.append(step.index)
            return False

    rule = Same()
    assigned = {site: fc.Assigned(rule, fc.Hold()) for site in SITES if site.kind is fc.Kind.BLOCK}
    schedule.compile_rules(assigned, [rule] * 5, RUN)
    assert len(asked) == RUN.count * 2 * (1 if isinstance(state, frozenset) else 5)
