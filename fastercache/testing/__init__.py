"""The laws as a reusable check, for this project's tests and for policies and pipelines of others.

>>> from fastercache.testing import check_policy
>>> report = check_policy(MyPolicy(), pipe, call={"prompt": "a red seven moving left"})    # doctest: +SKIP
>>> print(report)                                                                          # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fastercache.policies.base import Policy
from fastercache.testing.laws import Checker
from fastercache.testing.report import LAWS, LawBroken, Report, Verdict
from fastercache.testing.subject import specimen_of
from fastercache.zoo.specimen import Specimen


def check_policy(
    policy: Policy,
    pipe: Any,
    call: Mapping[str, Any] | None = None,
    *,
    steps: int | None = None,
    laws: Iterable[int] = tuple(LAWS),
) -> Report:
    """Check the laws of the runtime for one policy on one pipeline.

    Args:
        policy: the policy, static or dynamic.
        pipe: a diffusers pipeline, or a specimen of `fastercache.zoo`.
        call: keyword arguments of the pipeline call (generator excepted); a specimen brings its own.
        steps: denoising steps of a run, where `call` does not say.
        laws: which laws to check; see `LAWS`.

    Returns:
        A report; `raise_if_broken()` turns a broken law into an error.
    """
    specimen = pipe if isinstance(pipe, Specimen) else specimen_of(pipe, call, steps)
    with torch.random.fork_rng():
        checker = Checker(policy, specimen)
        verdicts = tuple(checker.check(law) for law in laws)
        reused = checker.reused()
    return Report(specimen.name, policy.name, verdicts, reused)


__all__ = ["LAWS", "LawBroken", "Report", "Verdict", "check_policy"]
