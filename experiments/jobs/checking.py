"""What `check-policy` does: the laws of the runtime for one policy on several pipelines, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.calibrate import calibrate
from fastercache.experiments import reference
from fastercache.experiments.arguments import assignments, named
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.pipelines import open_pipeline
from fastercache.testing import LAWS, Verdict, check_policy
from fastercache.testing.subject import specimen_of

PIPES = ("latte-digits", "cogvideox", "wan")
"""The trained model, and random ones with guidance in one call and in two."""
MARKS = {True: Text("yes"), False: Text("no", style="red"), None: Text("n/a")}


@dataclass(frozen=True)
class Checked:
    """One policy on one pipeline; `reused` is None where the policy could not be used at all."""

    pipe: str
    verdicts: tuple[Verdict, ...]
    reused: float | None

    @property
    def passed(self) -> bool:
        return all(verdict.passed is not False for verdict in self.verdicts)

    def payload(self) -> dict[str, Any]:
        """As JSON values."""
        laws = [{"law": v.law, "text": LAWS[v.law], "passed": v.passed, "detail": v.detail} for v in self.verdicts]
        return {"pipe": self.pipe, "passed": self.passed, "reused": self.reused, "laws": laws}


def specimen(name: str, steps: int, prompt: str, arguments: Sequence[str] = ()) -> zoo.Specimen:
    """A pipeline to check on: a family of the zoo, a reference model, or a pipeline's folder or hub id."""
    if name in zoo.FAMILIES:
        return zoo.build(name)
    subject = open_pipeline(name, call=arguments)
    texts = subject.captions("train")[:1] if subject.name in reference.names() else [prompt]
    call = {**subject.call, "prompt": texts[0], "num_inference_steps": steps, "output_type": "latent"}
    return specimen_of(subject.pipe, call, steps)


def made(cls: type[fc.Policy], fields: Mapping[str, Any], subject: zoo.Specimen) -> fc.Policy:
    """The policy, with constants that belong to a model measured on this one unless they are given."""
    if not cls.unmeasured(fields):
        return cls(**fields)
    with calibrate(subject.pipe, [cls], lags=min(3, subject.steps - 1)) as calibrator:
        subject.generate()
    return cls.calibrated(calibrator.result(), **fields)


def check(
    policy: str,
    fields: Sequence[str],
    pipes: Sequence[str],
    *,
    steps: int,
    prompt: str,
    show: bool,
    arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """Check a policy's laws on each pipeline.

    Args:
        policy: a registered name, or a file of the user's own.
        pipes: what to check on; see `specimen`. Where the policy finds no site, or refuses, no law applies.
        steps, arguments: denoising steps, and `key=value` arguments of a call, for pipelines that are not the zoo's.

    Raises:
        InvalidPolicy, UnknownPolicy, PipelineUnreadable: for what does not exist or cannot be used.
    """
    cls, values = fc.policy_class(named(policy)), assignments(fields)
    found: list[Checked] = []
    with progress() as bar:
        task = bar.add_task("checking", total=len(pipes))
        for pipe in pipes:
            bar.update(task, description=f"checking on {pipe}")
            found.append(_checked(cls, values, pipe, lambda name: specimen(name, steps, prompt, arguments)))
            bar.advance(task)
    if all(one.reused is None for one in found):
        raise fc.InvalidPolicy(
            f"{cls.name} could not be used on any of {', '.join(pipes)}: {found[0].verdicts[0].detail}"
        )
    passed = all(one.passed for one in found)
    if show:
        _show(cls.name, found)
    return {"policy": cls.name, "fields": values, "passed": passed, "pipes": [one.payload() for one in found]}


def _checked(
    cls: type[fc.Policy], fields: Mapping[str, Any], pipe: str, opened: Callable[[str], zoo.Specimen]
) -> Checked:
    subject = opened(pipe)
    with torch.random.fork_rng():
        policy = made(cls, fields, subject)
        try:
            with fc.attach(subject.pipe, policy):
                subject.generate()
        except fc.FasterCacheError as reason:  # refusing a pipeline in so many words breaks no law
            return Checked(pipe, tuple(Verdict(law, None, str(reason)) for law in LAWS), None)
    report = check_policy(policy, subject)
    return Checked(pipe, report.verdicts, report.reused)


def _show(name: str, found: Sequence[Checked]) -> None:
    grid = Table(title=f"{name}: do the laws hold?", title_justify="left", header_style="bold")
    grid.add_column("law")
    for one in found:
        grid.add_column(one.pipe, justify="center")
    for i, (law, text) in enumerate(LAWS.items()):
        grid.add_row(f"{law} {text}", *(MARKS[one.verdicts[i].passed] for one in found))
    shares = ["n/a" if one.reused is None else f"{one.reused:.0%}" for one in found]
    grid.add_row("decisions that were reuses", *shares, style="dim")
    results.print(grid)
    for one in found:
        if one.reused is None:
            say(f"{one.pipe}: not applicable: {one.verdicts[0].detail}", results)
            continue
        if one.reused == 0.0:
            say(f"{one.pipe}: nothing was reused, so this says little: loosen it with --set", results)
        for verdict in one.verdicts:
            if verdict.passed is False:
                say(f"{one.pipe}, law {verdict.law} is broken: {verdict.detail}", results)
