"""Several policies, each with its own sites, as one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

from pydantic import Field, model_validator

from fastercache.policies.base import Assigned, Policy
from fastercache.policies.errors import NoGuidance, SiteConflict
from fastercache.policies.registry import AnyPolicy, register
from fastercache.policies.vocabulary import Run, Site


class Parts(Policy):
    """Base of policies made of parts: what they assign, together."""

    @abstractmethod
    def parts(self) -> tuple[Policy, ...]:
        """The policies this one is made of."""

    @property
    def static(self) -> bool:
        return all(part.static for part in self.parts())

    @final
    def assign(self, run: Run) -> Mapping[Site, Assigned]:
        """The union of what the parts assign. Raises SiteConflict where two of them assign to one site.

        Guidance may be off in one run of a pipeline and on in the next: without guidance, a part that governs nothing
        but the branch site is skipped.
        """
        table: dict[Site, Assigned] = {}
        owners: dict[Site, Policy] = {}
        for part in self.parts():
            try:
                assigned = part.assign(run)
            except NoGuidance:
                continue
            for site, what in assigned.items():
                if site in owners:
                    raise SiteConflict(
                        f"{owners[site].name} and {part.name} both claim {site.name}: narrow the sites of one of them"
                    )
                owners[site], table[site] = part, what
        return table


@register
class Compose(Parts):
    """Several policies side by side: `Compose([DynamicReuse(), CFGCache()])`.

    Raises:
        SiteConflict: at attach time, if two of them claim the same site; the message names both.
    """

    name: ClassVar[str] = "compose"
    policies: tuple[AnyPolicy, ...] = Field(description="the policies that act side by side, each on sites of its own")

    def __init__(self, policies: Sequence[Any] = (), **fields: Any) -> None:
        super().__init__(**{"policies": policies, **fields})

    @model_validator(mode="after")
    def _not_empty(self) -> Compose:
        if not self.policies:
            raise ValueError("needs at least one policy")
        return self

    def parts(self) -> tuple[Policy, ...]:
        return self.policies

    def switched_off(self) -> Policy | None:
        """All parts at theirs; None where one of them has none."""
        parts = [part.switched_off() for part in self.policies]
        return None if None in parts else Compose(parts)
