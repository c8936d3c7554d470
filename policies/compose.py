"""Several policies, each with its own sites, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from fastercache.policies.base import Policy, Predictor
from fastercache.policies.errors import SiteConflict
from fastercache.policies.registry import AnyPolicy, register
from fastercache.policies.vocabulary import Branch, Kind, Run, Signal, Site, Step, matches


class Parts(Policy):
    """Base of policies made of parts; each site is decided by the part that claims it."""

    def parts(self) -> tuple[Policy, ...]:
        """The policies this one is made of."""
        raise NotImplementedError(f"{type(self).__name__} must implement parts()")

    @property
    def query(self) -> str:
        return "|".join(part.query for part in self.parts())

    @property
    def signal(self) -> Signal | None:
        return next((part.signal for part in self.parts() if part.signal is not None), None)

    @property
    def static(self) -> bool:
        return all(part.static for part in self.parts())

    def claims(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        return tuple(site for part in self._claims(sites) for site in part[1])

    def _claims(self, sites: Sequence[Site]) -> list[tuple[Policy, tuple[Site, ...]]]:
        taken: dict[str, Policy] = {}
        result = []
        # Guidance may be off in one run of a pipeline and on in the next: a part that only lacks the branch site rests.
        has_branch = any(site.kind is Kind.BRANCH for site in sites)
        for part in self.parts():
            if not has_branch and part.query == Kind.BRANCH and matches("all|denoiser", sites):
                continue
            claimed = part.claims(sites)
            for site in claimed:
                other = taken.setdefault(site.name, part)
                if other is not part:
                    raise SiteConflict(
                        f"{other.name} and {part.name} both claim {site.name}: narrow the sites of one of them"
                    )
            result.append((part, claimed))
        return result

    def owner(self, site: Site, sites: Sequence[Site]) -> Policy:
        for part, claimed in self._claims(sites):
            if any(c.name == site.name for c in claimed):
                return part.owner(site, sites)
        raise SiteConflict(f"{self.name} does not claim {site.name}")

    def init(self, run: Run) -> dict[str, tuple[Policy, Any]]:
        table: dict[str, tuple[Policy, Any]] = {}
        for part, claimed in self._claims(run.sites):
            state = part.init(run)
            table.update({site.name: (part, state) for site in claimed})
        return table

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        part, inner = state[site.name]
        return bool(part.reuse(inner, site, step, branch, signal))

    def observe(self, state: Any, site: Site, step: Step, branch: Branch, value: Tensor | None) -> None:
        part, inner = state[site.name]
        part.observe(inner, site, step, branch, value)

    def predictor(self, site: Site, run: Run) -> Predictor:
        for part, claimed in self._claims(run.sites):
            if any(c.name == site.name for c in claimed):
                return part.predictor(site, run)
        raise SiteConflict(f"{self.name} does not claim {site.name}")


@register
class Compose(Parts):
    """Several policies side by side: `Compose([DynamicReuse(), CFGCache()])`.

    Raises:
        SiteConflict: at attach time, if two of them claim the same site; the message names both.
    """

    name: ClassVar[str] = "compose"
    policies: tuple[AnyPolicy, ...] = Field(description="the policies that act side by side, each on sites of its own")

    def __init__(self, policies: Sequence[Any] = (), **fields: Any) -> None:
        given = tuple(policies) if isinstance(policies, list) else policies
        super().__init__(**{"policies": given, **fields})

    @model_validator(mode="after")
    def _not_empty(self) -> Compose:
        if not self.policies:
            raise ValueError("needs at least one policy")
        return self

    def parts(self) -> tuple[Policy, ...]:
        return self.policies
