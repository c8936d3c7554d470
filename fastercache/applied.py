"""What a session runs: a policy, and where it comes from a file, what that was made for."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastercache.dial import Dial
from fastercache.model.families import Guidance
from fastercache.picking import Pick, opened
from fastercache.policies.base import Policy
from fastercache.policies.errors import AttachError, ConfigMismatch
from fastercache.policies.methods.planned import Planned
from fastercache.policies.schedule import Schedule
from fastercache.policies.vocabulary import Run
from fastercache.tuned import OtherConditions, TunedConfig, allowed, guidance_scale_of

Source = Policy | TunedConfig | Dial | str | Path
"""What a policy is given as: itself, a tuned config, a dial to pick from, or the path of either."""


@dataclass(frozen=True)
class Applied:
    """A policy with its origin.

    Attributes:
        policy: to be run. config: the tuned config that it comes from. dial: the dial that was picked from.
        allow: differences to what the config was made for that are accepted. said: warnings that were given.
    """

    policy: Policy
    config: TunedConfig | None = None
    dial: Dial | None = None
    allow: frozenset[str] = frozenset()
    said: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        target: Any,
        source: Source | None,
        before: Applied | None = None,
        *,
        pick: Pick,
        allow: Collection[str] = frozenset(),
    ) -> Applied:
        """What to apply to a pipeline or denoiser, compared with it.

        Args:
            source: None to pick again from the dial of `before`, what was applied before.
            pick: which plan of a dial.

        Raises:
            AttachError: if the source is none, or there is nothing to pick from.
            ConfigUnreadable, ConfigMismatch, InvalidBudget, BudgetNotMet: for what the file says.
        """
        allow = allowed(allow)
        if source is None:
            if before is None or before.dial is None:
                raise AttachError("there is no dial to pick from: give a policy, a tuned config or a dial's path")
            source = before.dial
        if isinstance(source, type):
            raise AttachError(f"attach needs a policy, found the class {source.__name__}: write {source.__name__}()")
        if not isinstance(source, (Policy, TunedConfig, Dial, str, Path)):
            raise AttachError(
                f"attach needs a policy, a tuned config or the path of one, found {type(source).__name__}"
            )
        if isinstance(source, (str, Path)):
            source = opened(source)
        if isinstance(source, Policy):
            if pick:
                raise AttachError(
                    f"speedup, budget and quality pick from a dial, found the policy {source.name}: leave them out"
                )
            return cls(source, dial=before.dial if before is not None else None, allow=allow)
        config = pick.of(source)
        config.check(target, allow=allow)
        dial = source if isinstance(source, Dial) else before.dial if before is not None else None
        return cls(config.policy, config, dial, allow)

    def check_run(
        self,
        target: Any,
        pipe: Any,
        run: Run,
        latent: tuple[int, ...],
        guidance: Guidance,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        """Whether a run about to start is what the config was made for; softer differences are warned of, once.

        What was compared when it was applied is compared again: a scheduler may have been exchanged since.

        Args:
            call: arguments of the pipeline's call, where they are known.

        Raises:
            ConfigMismatch: naming the first difference.
        """
        if self.config is None:
            return
        style: Guidance = guidance if len(run.branches) > 1 else "none"
        self.config.check(target, allow=self.allow)
        if isinstance(self.policy, (Planned, Schedule)) and run.count != self.config.steps:
            raise ConfigMismatch(  # which nothing could allow
                f"this schedule was made for {self.config.steps} steps, this run has {run.count}: run it with "
                f"{self.config.steps}, or make one for {run.count}"
            )
        self.config.check_run(run.count, guidance_scale_of(pipe, call), allow=self.allow, guidance=style)
        for difference in set(self.config.differences(target, latent)) - self.said:
            self.said.add(difference)
            warnings.warn(difference, OtherConditions, stacklevel=3)

    @property
    def promised(self) -> TunedConfig | None:
        """The config whose figures hold: none where a difference was accepted."""
        return None if self.allow else self.config
