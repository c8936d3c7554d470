"""What a policy does in one kind of run, as plain data made before the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastercache.policies.base import Assigned, Policy
from fastercache.policies.rules import StaticRule
from fastercache.policies.schedule import Table, assignment, compile_rules
from fastercache.policies.vocabulary import Run, Site
from fastercache.run.calls import SitePlan


@dataclass(frozen=True)
class RunPlan:
    """One policy in one kind of run. It holds no value and no state, so runs of one shape share it.

    Attributes:
        policy: the policy. run: the kind of run.
        assigned: the governed sites, outermost kind first, each with its rule and predictor.
        table: every decision, if all rules are static; else None, and rules are asked while the model runs.
        cells: the same by site, in the form that units read; empty without a table.
    """

    policy: Policy
    run: Run
    assigned: Mapping[Site, Assigned]
    table: Table | None
    cells: tuple[SitePlan, ...]

    @classmethod
    def of(cls, policy: Policy, run: Run) -> RunPlan:
        """Raises what the policy raises for such a run: NoSiteMatched, SiteConflict, ScheduleMismatch."""
        assigned = assignment(policy, run)
        rules = [one.rule for one in assigned.values() if isinstance(one.rule, StaticRule)]
        table = compile_rules(assigned, rules, run) if len(rules) == len(assigned) else None
        return cls(policy, run, assigned, table, () if table is None else tuple(SitePlan.all_of(table)))
