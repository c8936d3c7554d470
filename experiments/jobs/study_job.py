"""What a study of `tune` is about, in words that a file holds, and the study itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

import fastercache as fc
from fastercache.experiments.arguments import assignments, metric_names, named
from fastercache.experiments.bench.contest import METRICS
from fastercache.experiments.pipelines import Subject, given_prompts, open_pipeline
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.prompts import plain
from fastercache.tuner import Budget, Record, Study, tune
from fastercache.tuner.clock import Objective, needs_table, objective_called
from fastercache.tuner.entry import JOURNAL
from fastercache.tuner.library import check
from fastercache.tuner.planning.material import Told

JOB = "job.json"


class Job(BaseModel):
    """What a study is about. Written beside the study, so that `export` needs only the folder.

    Attributes:
        pipe, device, dtype, call: how the pipeline is opened and called.
        prompts, held_out: what trials are judged by, and what the outcome is measured on.
        budget: the quality demanded. metrics: what is measured besides its metrics, PSNR and SSIM.
        policies, fields: what is searched (`any`: all there are), and the fields that are not.
        seed: of the noise and of the search.
        objective: what is minimised, `flops` or `time`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    pipe: str
    prompts: tuple[str | dict[str, Any], ...]
    budget: str
    held_out: tuple[str | dict[str, Any], ...] = ()
    policies: tuple[str, ...] = (fc.FasterCache.name,)
    fields: dict[str, Any] = Field(default_factory=dict)
    call: dict[str, Any] = Field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    metrics: tuple[str, ...] = ()
    objective: str = str(Objective.FLOPS)

    @property
    def timed(self) -> bool:
        """Whether steps have to be timed."""
        return needs_table(objective_called(self.objective), Budget.parse(self.budget))

    def save(self, folder: Path, storage: str | None = None) -> None:
        """Write the job, also over one whose study never began.

        Raises:
            ConfigMismatch: if the folder holds a study of something else.
        """
        begun = storage is not None or (folder / JOURNAL).is_file()
        if begun and (folder / JOB).is_file():
            before = Job.load(folder)
            for name in Job.model_fields:
                was, now = getattr(before, name), getattr(self, name)
                if was != now:
                    raise fc.ConfigMismatch(
                        f"the study in {folder} was made with {_differing(name, was, now)}: "
                        "repeat the old call to continue it, or give another --study folder"
                    )
        write_json(folder / JOB, self.model_dump(mode="json"), "study's job")

    @classmethod
    def load(cls, folder: Path) -> Job:
        """The job of a study's folder. Raises ConfigUnreadable."""
        try:
            return read_model(folder / JOB, cls, "study's job")
        except Missing:
            raise fc.ConfigUnreadable(f"there is no study in {folder}: {JOB} is missing; make one with tune") from None

    def open(self) -> Subject:
        """The pipeline the job is about."""
        return open_pipeline(self.pipe, device=self.device, dtype=self.dtype, **self.call)


def folder_for(job: Job, base: Path) -> Path:
    """The default folder of a job: `base`, or where that holds a study of another job `base-2`, `base-3`, ..."""
    return next(one for one in numbered(base) if not (one / JOURNAL).is_file() or _is_of(one, job))


def numbered(base: Path) -> Iterator[Path]:
    """`base`, `base-2`, `base-3` and so on."""
    yield base
    for number in itertools.count(2):
        yield base.with_name(f"{base.name}-{number}")


def _is_of(folder: Path, job: Job) -> bool:
    try:
        return Job.load(folder) == job
    except fc.ConfigUnreadable:
        return False


def _differing(name: str, was: Any, now: Any) -> str:
    """`4 prompts, this call has 8`; a setting that is no list by its value."""
    if isinstance(was, tuple) and len(was) != len(now):
        noun = {"prompts": "prompts", "held_out": "held-out prompts"}.get(name, name)
        return f"{len(was)} {noun}, this call has {len(now)}"
    if name in ("prompts", "held_out"):
        differing = next(i for i, (old, new) in enumerate(zip(was, now, strict=True)) if old != new)
        first = f"{_short(was[differing])}, this call has {_short(now[differing])}"
        return f"other {name.replace('_', '-')} (place {differing + 1}): {first}"
    return f"{name} {_short(was)}, this call has {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def study_of(
    subject: Subject,
    job: Job,
    folder: Path,
    *,
    trials: int,
    seconds: float | None,
    on_trial: Callable[[Study, Record], None] | None = None,
    told: Told = lambda doing, spent: None,
    references: Path | None = None,
    logdir: Path | None = None,
    storage: str | None = None,
    place: int = 0,
) -> Study:
    """The job's study, continued by up to `trials` trials in all; 0 only opens it.

    `logdir`: for TensorBoard. `storage`: a database's URL, in which the study is called as the folder is.
    """
    return tune(
        subject.pipe,
        job.prompts,
        budget=job.budget,
        metrics=(*METRICS, *job.metrics),
        policy=job.policies,
        held_out=job.held_out,
        call=subject.call,
        trials=trials,
        timeout=seconds,
        out=folder,
        seed=job.seed,
        fixed=job.fields,
        on_trial=on_trial,
        told=told,
        references=references,
        logdir=logdir,
        storage=storage,
        name=folder.name,
        place=place,
        objective=job.objective,
    )


def job_of(
    pipe: str,
    *,
    prompt_file: Path | None,
    held_out_file: Path | None,
    count: int,
    budget: str,
    metrics: Sequence[str] = (),
    policies: Sequence[str],
    fields: Sequence[str],
    call: Sequence[str],
    steps: int | None,
    guidance: float | None,
    device: str,
    dtype: str,
    seed: int,
    objective: str = str(Objective.FLOPS),
    made_up: int = 0,
) -> Job:
    """A job from what was typed; whatever is wrong with it is said before a model is loaded.

    Reference models bring search and held-out prompts of their own; for an estimate of another some are made up, see
    `given_prompts`. Raises as the parts do.
    """
    measured_by = metric_names(metrics)  # first: a budget may bound a metric of the user's own file
    Budget.parse(budget)
    values, names = assignments(fields), tuple(map(named, policies)) or (fc.FasterCache.name,)
    check(names, values)
    given = {"num_inference_steps": steps, "guidance_scale": guidance}
    arguments = assignments(call) | {key: value for key, value in given.items() if value is not None}
    prompts, held_out = given_prompts(pipe, prompt_file, held_out_file, made_up)
    chosen, measured = tuple(map(plain, prompts[:count])), tuple(map(plain, held_out[:count]))
    return Job(
        pipe=pipe,
        prompts=chosen,
        budget=budget,
        held_out=measured,
        policies=names,
        fields=values,
        call=arguments,
        device=device,
        dtype=dtype,
        seed=seed,
        metrics=measured_by,
        objective=str(objective_called(objective)),
    )
