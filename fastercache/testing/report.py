"""What a check found, law by law."""

from __future__ import annotations

from dataclasses import dataclass

from fastercache.policies.errors import FasterCacheError

LAWS = {
    1: "a policy that never reuses equals the bare pipeline bit for bit",
    2: "runs repeat, also after an error, another resolution, batch or step count",
    3: "detaching restores the original and leaves nothing behind",
    4: "batched and separate guidance agree",
    5: "no value crosses branches",
    6: "the trace's FLOPs equal torch's flop counter on the real run",
    7: "a run frozen to its schedule replays bit for bit",
    8: "saved, loaded and applied, the output is the same bit for bit",
    9: "stored bytes equal what the trace reports and what was told before the run",
}


class LawBroken(FasterCacheError):
    """A policy or family that breaks one of the laws of the runtime; the message names each.

    Symptom: `check-policy`, or `check_policy(...).raise_if_broken()` in a test of yours, names the law and by how
        much it is off.
    Cause: A rule keeps state outside its own, a predictor changes its inputs or ignores the branch, or a family's
        order of branches is wrong.
    Fix: The page on design lists the laws; keep all state in what `begin` and `update` return, and predictors pure.
    """


@dataclass(frozen=True)
class Verdict:
    """One law's outcome: `passed` is None where the law does not apply, and `detail` then says why."""

    law: int
    passed: bool | None
    detail: str = ""

    def __str__(self) -> str:
        mark = {True: "holds", False: "BROKEN", None: "not applicable"}[self.passed]
        return f"law {self.law}, {LAWS[self.law]}: {mark}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Report:
    """The verdicts of one policy on one subject; `reused` is the share of decisions that were reuses."""

    subject: str
    policy: str
    verdicts: tuple[Verdict, ...]
    reused: float

    @property
    def passed(self) -> bool:
        return all(verdict.passed is not False for verdict in self.verdicts)

    def verdict(self, law: int) -> Verdict:
        """The verdict on one law. Raises KeyError if it was not checked."""
        return {v.law: v for v in self.verdicts}[law]

    def raise_if_broken(self) -> Report:
        """Itself. Raises LawBroken, naming every broken law."""
        broken = [str(v) for v in self.verdicts if v.passed is False]
        if broken:
            raise LawBroken(f"{self.policy} on {self.subject}: " + "; ".join(broken))
        return self

    def __str__(self) -> str:
        head = f"{self.policy} on {self.subject}, {self.reused:.0%} of decisions reused"
        return "\n".join([head, *(f"  {verdict}" for verdict in self.verdicts)])
