"""Which policies a pipeline can be tuned over, with the constants that some of them need measured on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastercache.analysis.calibrate import Calibration, calibrate
from fastercache.attachment import find_sites
from fastercache.policies.base import Policy
from fastercache.policies.documents import put_aside
from fastercache.policies.errors import ConfigUnreadable, FasterCacheError, InvalidPolicy, suggest
from fastercache.policies.methods.planned import Planned
from fastercache.policies.plugins import ANY
from fastercache.policies.registry import known_policies, policy_class
from fastercache.tuner.evaluate import Evaluator
from fastercache.tuner.fields import Bounds
from fastercache.tuner.joint import JointSpace
from fastercache.tuner.setting import Case
from fastercache.tuner.space import SearchSpace, Space

CALIBRATED_ON = 3
"""How many of the search prompts a calibration runs, uncached."""

Searched = str | Policy | type[Policy]


class Library:
    """Makes the search space of one or several policies on a pipeline.

    Args:
        evaluator: runs the pipeline, where constants have to be measured.
        cases: the search cases; the first `CALIBRATED_ON` serve for that.
        calibration: file that keeps what was measured, so that a resumed study has the same constants.
        fixed, bounds: fields that are not searched, and tighter bounds; with several policies by `policy.field`.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        cases: Sequence[Case],
        calibration: Path,
        fixed: Mapping[str, Any] | None = None,
        bounds: Mapping[str, Bounds] | None = None,
    ) -> None:
        self.evaluator, self.cases, self.path = evaluator, cases, calibration
        self.fixed, self.bounds = dict(fixed or {}), dict(bounds or {})
        self._calibration: Calibration | None = None

    def calibration(self, cls: type[Policy]) -> Calibration:
        """The pipeline's constants, with those that a policy measures by itself; measured once, and kept in the file.

        Raises:
            ConfigMismatch: if the file is of another model.
        """
        if self._calibration is None and self.path.is_file():
            try:
                self._calibration = Calibration.load(self.path)
            except ConfigUnreadable:
                put_aside(self.path)  # measured again: the same runs give the same constants
            else:
                self._calibration.check(self.evaluator.pipe)
        kept = self._calibration
        if kept is not None and kept.measured_for([cls]):
            return kept
        self.evaluator.close()
        with calibrate(self.evaluator.pipe, [cls]) as calibrator:
            for case in self.cases[:CALIBRATED_ON]:
                self.evaluator.setting.generate(case)
        self._calibration = calibrator.result()
        if kept is not None:  # the rest is as it was
            self._calibration = kept.model_copy(update={"further": kept.further | self._calibration.further})
        self._calibration.save(self.path)
        return self._calibration

    def space(self, searched: Searched | Sequence[Searched]) -> Space:
        """The space of a policy, of several, or (`any`) of all that can be searched here.

        Raises:
            InvalidPolicy, UnknownPolicy: for what does not exist or cannot be searched.
        """
        names = listed(searched)
        everything = names == [ANY]
        if everything:
            names = list(known_policies())
        elif len(names) == 1:
            return self._one(names[0], self.fixed, self.bounds)
        by_name = {_name(policy): policy for policy in names}
        if len(by_name) < len(names):
            raise InvalidPolicy(f"each policy can be searched once, found {', '.join(map(_name, names))}")
        fixed, bounds = (_by_policy(given, by_name) for given in (self.fixed, self.bounds))
        spaces: dict[str, SearchSpace] = {}
        left_out: dict[str, str] = {}
        for name, policy in by_name.items():
            try:
                space = self._one(policy, fixed[name], bounds[name])
                space.base.claims(find_sites(self.evaluator.pipe))
                spaces[name] = space
            except FasterCacheError as reason:
                if not everything:
                    raise
                left_out[name] = str(reason)
        return JointSpace.of(spaces, left_out)

    def _one(self, policy: Searched, fixed: Mapping[str, Any], bounds: Mapping[str, Bounds]) -> SearchSpace:
        cls = policy_class(policy) if isinstance(policy, str) else policy
        if not isinstance(cls, Policy) and cls.unmeasured(fixed):
            known = {key: value for key, value in fixed.items() if "." not in key}
            policy = cls.calibrated(self.calibration(cls), **known)
        space = SearchSpace.of(policy, fixed=fixed, bounds=bounds)
        grid = {p.name: (0, side) for p in space.parameters if _leaf(p.name) == "radius" and (side := self._half())}
        # Beyond half the latent's smaller side a frequency radius changes nothing.
        return SearchSpace.of(policy, fixed=fixed, bounds={**grid, **bounds}) if grid else space

    def _half(self) -> int:
        pipe = self.evaluator.pipe
        size = getattr(getattr(pipe, "transformer", getattr(pipe, "unet", None)), "config", {}).get("sample_size")
        side = min(size) if isinstance(size, (list, tuple)) else size
        return side // 2 if isinstance(side, int) else 0


def listed(searched: Searched | Sequence[Searched]) -> list[Searched]:
    """What was asked for, one policy or several, as a list."""
    return [searched] if isinstance(searched, (str, Policy, type)) else list(searched)


def check(names: Sequence[str], fixed: Mapping[str, Any]) -> None:
    """Refuse policies, fields and values that do not exist, before any pipeline is there.

    Raises:
        InvalidPolicy, UnknownPolicy: naming what is wrong.
    """
    everything = list(names) == [ANY]
    if ANY in names and not everything:
        raise InvalidPolicy(f"'{ANY}' already stands for every policy: give it alone")
    known = list(known_policies()) if everything else [_name(name) for name in names]
    if Planned.name in known and not everything:
        if len(known) == 1:
            raise InvalidPolicy(
                "planned has no fields to search: `fastercache plan` makes a plan from a recording; with other "
                "policies beside it `tune` makes one first"
            )
        known.remove(Planned.name)
    given = {known[0]: dict(fixed)} if len(known) == 1 else _by_policy(fixed, dict.fromkeys(known))
    for name, fields in given.items():
        if fields or not everything:
            own = {key: value for key, value in fields.items() if "." not in key}
            cls = policy_class(name)
            cls(**dict(cls.constants) | own)


def _name(policy: Searched) -> str:
    return policy_class(policy).name if isinstance(policy, str) else policy.name


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _by_policy(given: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"fora.interval": 3}` as `{"fora": {"interval": 3}, ...}`."""
    result: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in given.items():
        head, _, name = key.partition(".")
        if not name or head not in names:
            raise InvalidPolicy(
                f"with several policies a field is written policy.field, found '{key}'{suggest(head, names)}"
            )
        result[head][name] = value
    return result
