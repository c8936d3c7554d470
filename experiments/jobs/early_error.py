"""Does an error early in a run tell how far the video will be off? The question behind falling back to a gentler plan.

`python -m fastercache.experiments.jobs.early_error latte-digits tuned.json --count 24` runs a plan on prompts that
nothing was searched on. At each computed step the denoiser's true output is compared with what a hold, and a straight
line through the two computed outputs before, would have put there. The errors are ranked against those of the videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from scipy import stats
from torch import Tensor

import fastercache as fc
from fastercache.experiments.console import quiet
from fastercache.experiments.pipelines import Subject, open_pipeline
from fastercache.policies.documents import write_json
from fastercache.policies.schedule import Code
from fastercache.run.trace import Observation
from fastercache.tuner.setting import Setting

SEED = 900_000
"""Seeds begin here: no noise of these prompts was used before."""


def errors(computed: Mapping[int, Tensor]) -> dict[int, dict[str, float]]:
    """From the third computed step on, the relative L2 error of holding the output before, and of the straight line.

    Args:
        computed: the denoiser's output by step, steps ascending.
    """
    steps = list(computed)
    found = {}
    for first, second, here in zip(steps, steps[1:], steps[2:], strict=False):
        a, b, true = computed[first], computed[second], computed[here]
        line = b + (b - a) * ((here - second) / (second - first))
        found[here] = {
            name: float((true - guess).norm() / true.norm()) for name, guess in (("hold", b), ("line", line))
        }
    return found


def measured(subject: Subject, config: fc.TunedConfig, count: int) -> list[tuple[float, dict[int, dict[str, float]]]]:
    """For each prompt the mean squared error of its video, and the errors at the computed steps."""
    captions = subject.captions("held_out")
    setting = Setting(subject.pipe, subject.call, SEED)
    rows = []
    for case in setting.cases([captions[i % len(captions)] for i in range(count)]):
        reference, outputs = setting.generate(case), dict[int, list[Tensor]]()

        def keep(seen: Observation, outputs: dict[int, list[Tensor]] = outputs) -> None:
            if seen.code == Code.COMPUTED:
                outputs.setdefault(seen.step.index, []).append(seen.value.detach().clone().flatten())

        with fc.attach(subject.pipe, config) as session:
            session.watch("denoiser", keep)
            video = setting.generate(case)
        off = float(((video - reference) ** 2).mean())
        rows.append((off, errors({step: torch.cat(values) for step, values in outputs.items()})))
    return rows


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE")],
    config: Annotated[Path, typer.Argument(metavar="FILE")],
    count: Annotated[int, typer.Option("--count", min=3)] = 24,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps. [the model's]")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE")] = None,
) -> None:
    """Print Spearman's correlation of the error at each computed step with the video's."""
    quiet()
    call: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
    rows = measured(open_pipeline(pipe, **call), fc.load(config), count)
    videos = [off for off, _ in rows]
    found: dict[str, dict[str, float]] = {}
    for step in rows[0][1]:
        ranks = {g: float(stats.spearmanr([row[step][g] for _, row in rows], videos)[0]) for g in ("hold", "line")}
        found[str(step)] = ranks
        print(f"step {step}: hold {ranks['hold']:.2f}, line {ranks['line']:.2f}")
    if out is not None:
        write_json(out, {"pipeline": pipe, "prompts": count, "spearman": found}, "figures")


if __name__ == "__main__":
    typer.run(main)
