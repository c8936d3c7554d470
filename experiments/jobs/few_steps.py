"""Is there anything for a cache to gain at 4 to 8 steps? The distilled model, its teacher, and every cache on it.

`python -m fastercache.experiments.jobs.few_steps --out DIR` measures on held-out prompts

- the models: the teacher as it is, with fewer steps, without guidance and with a planned cache, and the student, by
  what the judges read and by PSNR to the teacher's videos (`DIR/few_steps.json`);
- the student's caches and fewer steps against the student's own videos, as `fastercache bench` does
  (`DIR/results.json`).

Interrupted, it goes on where it stopped. `--page FILE` puts both tables into a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import fastercache as fc
from fastercache.analysis.metrics import metric_called
from fastercache.experiments import pages
from fastercache.experiments.bench import standings
from fastercache.experiments.bench.contest import judged
from fastercache.experiments.bench.few_steps import FEW_STEPS
from fastercache.experiments.bench.lineup import FEWER, Method
from fastercache.experiments.bench.plans import plans_for
from fastercache.experiments.bench.runner import bench, plan_for
from fastercache.experiments.bench.verdict import NO, YES, Interval, mean_interval
from fastercache.experiments.console import progress, quiet, say
from fastercache.experiments.pipelines import Subject, open_pipeline, with_steps
from fastercache.experiments.reference.spec import DISTILLED
from fastercache.policies.documents import write_json
from fastercache.policies.errors import InvalidPolicy
from fastercache.tuner.setting import Case, References, Setting, run, run_bare

FILE = "few_steps.json"


@dataclass(frozen=True)
class Way:
    """One way to make a video: who makes it, how it is called, and what it caches."""

    name: str
    setting: Setting
    policy: fc.Planned | None = None

    @property
    def calls(self) -> int:
        """Evaluations of the denoiser for a video, each branch of guidance counted."""
        steps = int(self.setting.call["num_inference_steps"])
        computed = steps if self.policy is None else len(self.policy.computed)
        return computed * (2 if self.setting.call["guidance_scale"] > 1.0 else 1)


class Figures(BaseModel):
    """One way, measured.

    Attributes:
        calls: see `Way`. judge: share of videos that show what their captions ask for. psnr: to the teacher's videos
            from the same noise; None for those themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    steps: int
    guidance_scale: float
    calls: int
    judge: Interval
    psnr: Interval | None


class Models(BaseModel):
    """`few_steps.json`: the models on the same prompts and noise, the teacher as it is first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    student: str
    teacher: str
    prompts: int
    seed: int
    ways: tuple[Figures, ...]

    def markdown(self) -> str:
        """The table."""
        head = ["model", "steps", "guidance", "denoiser calls", "judge", "PSNR to the teacher's videos, dB"]
        rows = [head, ["---", *["---:"] * 5]]
        for way in self.ways:
            psnr = "" if way.psnr is None else way.psnr.shown("{:.2f}", always=True)
            judge = f"{way.judge.value:.1%}".replace("%", " %")
            rows.append([way.name, str(way.steps), f"{way.guidance_scale:g}", str(way.calls), judge, psnr])
        said = f"{self.prompts} held-out captions, each with the same noise for all; mean ± half the 95 % interval."
        return f"{pages.table(rows)}\n\n{said}\n"


def ways_of(student: Subject, teacher: Subject, plan: fc.Planned, seed: int) -> list[Way]:
    """What is compared: the teacher as it is first, then as it taught, then the cheaper ways."""
    own, taught = Setting(teacher.pipe, teacher.call, seed), Setting(student.pipe, student.call, seed)
    steps, many = int(student.call["num_inference_steps"]), DISTILLED[student.name].teacher_steps
    return [
        Way(teacher.name, own),
        Way(f"{teacher.name}, {many} steps, which taught", own.calling(num_inference_steps=many)),
        Way(f"{teacher.name}, {steps} steps", own.calling(num_inference_steps=steps)),
        Way(f"{teacher.name}, {steps // 2} steps", own.calling(num_inference_steps=steps // 2)),
        Way(
            f"{teacher.name}, {steps} steps without guidance",
            own.calling(num_inference_steps=steps, guidance_scale=1.0),
        ),
        Way(f"{teacher.name}, planned: {len(plan.computed)} steps computed", own, plan),
        Way(student.name, taught),
    ]


def compare(subject: Subject, ways: Sequence[Way], prompts: Sequence[str], folder: Path) -> list[Figures]:
    """Run each way on each prompt and measure it against the first."""
    first = ways[0].setting
    cases = first.cases(prompts)
    psnr = metric_called("psnr")
    right: dict[str, list[float]] = {way.name: [] for way in ways}
    close: dict[str, list[float]] = {way.name: [] for way in ways}
    with progress() as bar:
        for case in bar.track(cases, description="models"):
            videos = {way.name: _video(way, case, folder) for way in ways}
            reference = videos[ways[0].name]
            for name, video in videos.items():
                found = judged(subject, video[None], [case.prompt])
                assert found is not None  # captions of the reference data can be judged
                right[name].append(float(found[0]))
                close[name].append(float(psnr.measured(video[None], reference[None], [case.prompt])[0]))
    return [
        Figures(
            name=way.name,
            steps=int(way.setting.call["num_inference_steps"]),
            guidance_scale=float(way.setting.call["guidance_scale"]),
            calls=way.calls,
            judge=mean_interval(right[way.name]),
            psnr=None if way is ways[0] else mean_interval(close[way.name]),
        )
        for way in ways
    ]


def _video(way: Way, case: Case, folder: Path) -> Tensor:
    """Made once where nothing is cached, and kept."""
    if way.policy is not None:
        return run(way.setting, way.policy, case)[0]
    references = References(way.setting, folder)
    found = references.read(case)
    if found is None:
        found, _ = run_bare(way.setting, case)
        references.write(case, found)
    return found


def models(student: Subject, out: Path, *, count: int, seed: int) -> Models:
    """The student beside its teacher, whose planned cache costs as many denoiser calls as the student."""
    teacher = open_pipeline(DISTILLED[student.name].teacher)
    calls = {subject.name: Way("", Setting(subject.pipe, subject.call)).calls for subject in (student, teacher)}
    speedup = calls[teacher.name] / calls[student.name]
    methods = (Method("planned", "planned", "", ({"speedup": speedup},), planned=True),)
    plan = plan_for(teacher, methods, None, count, seed, peers=False)
    plans, why = plans_for(teacher, plan.search, (speedup,), out / "teacher")
    if plans is None:
        raise InvalidPolicy(f"{teacher.name} has no plan at {speedup:g}x: {why}")
    planned = plans[speedup]
    assert isinstance(planned, fc.Planned)
    ways = ways_of(student, teacher, planned, seed)
    found = compare(teacher, ways, plan.prompts, out / "models")
    return Models(student=student.name, teacher=teacher.name, prompts=count, seed=seed, ways=tuple(found))


def gains(results: standings.Results) -> str:
    """Planned caches beside fewer steps, one row for each number of computed steps, and the other methods counted."""
    fewer = {line.level: line for line in results.ran if line.label == FEWER}
    rows = [["steps computed", "FLOPs", "fewer steps, dB", "planned, dB", "difference, dB"], ["---", *["---:"] * 4]]
    others = []
    for line in results.ran:
        if line.label == "planned":
            computed = len(line.policy["computed"])
            psnrs = (fewer[str(computed)].quality["psnr"], line.quality["psnr"], line.difference_by_flops)
            speedup = "" if line.speedup_flops is None else f"{line.speedup_flops.value:.2f}x"
            shown = ["" if value is None else value.shown("{:.1f}", always=True) for value in psnrs]
            rows.append([f"{computed} of {results.steps}", speedup, *shown])
        elif line.label != FEWER:
            others.append(line)
    acting = [line for line in others if not line.idle]
    words = [line.beats_by_flops for line in acting]
    wins, losses = words.count(YES), words.count(NO)
    idle = [f"{line.method} ({line.setting})" for line in others if line.idle]
    judge = min(line.judge.value for line in results.ran if line.judge is not None)
    return f"""{pages.table(rows)}

- Of {len(acting)} settings of published methods that skip anything, {wins} beat fewer steps at equal FLOPs,
  {losses} lose to them, {len(acting) - wins - losses} are undecided or outside what was measured.
- Skip nothing: {", ".join(idle) or "none"}.
- In every row of the table below the judges read at least {100 * judge:.0f} % of the videos right.
"""


def place(name: str, what: str) -> tuple[str, str]:
    """Where a page's `models` or `gains` begin and end."""
    return f"<!-- {what} {name} -->", f"<!-- end {what} -->"


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE", help=f"{', '.join(DISTILLED)}.")] = "latte-digits-8",
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("few-steps"),
    count: Annotated[int, typer.Option("--count", min=2, help="Held-out prompts.")] = 32,
    seed: Annotated[int, typer.Option("--seed", help="Prompt i is generated with seed SEED + i.")] = 300_000,
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE", help="Put the tables into this page.")] = None,
) -> None:
    """Measure a distilled model, its teacher and every cache on it."""
    quiet()
    if pipe not in DISTILLED:
        raise typer.BadParameter(f"{pipe!r} is not distilled, expected one of: {', '.join(DISTILLED)}")
    subject = with_steps(open_pipeline(pipe))
    found = models(subject, out, count=count, seed=seed)
    write_json(out / FILE, found.model_dump(mode="json"), "few-step figures")
    results = bench(subject, plan_for(subject, FEW_STEPS, None, count, seed, peers=False), out)
    files = results.write(out)
    if page is not None:
        pages.put_into(page, *place(pipe, "models"), found.markdown())
        pages.put_into(page, *place(pipe, "gains"), gains(results))
        standings.put_into(page, results)
    standings.show(results, files)
    say(f"models: {out / FILE}")


if __name__ == "__main__":
    typer.run(main)
