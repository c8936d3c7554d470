"""Does a certificate hold? The tuned config of a reference model on many fresh prompts.

python -m fastercache.experiments.jobs.recheck latte-digits tuned.json --count 500
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import fastercache as fc
from fastercache.experiments.bench.contest import Contest
from fastercache.experiments.console import progress, quiet
from fastercache.experiments.jobs.certifying import SEED, unseen
from fastercache.experiments.pipelines import Subject, open_pipeline, with_steps
from fastercache.policies.documents import write_json
from fastercache.policies.errors import ConfigUnreadable
from fastercache.tuned import TunedConfig
from fastercache.tuner.budget import Budget
from fastercache.tuner.certify import clopper_pearson, misses

FRESH = 300_000
"""Seeds begin here: no noise of these prompts was used before."""


def recheck(subject: Subject, config: TunedConfig, count: int, folder: Path) -> dict[str, Any]:
    """The share of `count` fresh prompts that miss the certificate's budget, with the bounds of a 95 % interval.

    Captions that nothing was searched or measured on, again and again with other noise.

    Raises:
        ConfigUnreadable: if the config has no certificate.
    """
    promised = config.certificate
    if promised is None:
        raise ConfigUnreadable("this tuned config has no certificate: make one with fastercache certify")
    captions = unseen(subject.name, config.seen)
    prompts = [captions[i % len(captions)] for i in range(count)]
    budget = Budget.parse(promised.budget)
    contest = Contest(
        with_steps(subject), {"tuned": config}, prompts, folder, seed=SEED + FRESH, keep=0, metrics=budget.metrics
    )
    with progress() as bar:
        task = bar.add_task("fresh prompts", total=2 * count)
        contest.run(lambda: bar.advance(task))
    missed = sum(misses(budget, run["quality"]) for run in contest.figures("tuned"))
    return {
        "pipeline": subject.name,
        "certificate": promised.words,
        "prompts": count,
        "misses": missed,
        "rate": missed / count,
        "at_least": 1.0 - clopper_pearson(count - missed, count, 0.975),
        "at_most": clopper_pearson(missed, count, 0.975),
        "holds": missed / count <= promised.rate,
    }


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE")],
    config: Annotated[Path, typer.Argument(metavar="FILE")],
    count: Annotated[int, typer.Option("--count", min=1)] = 500,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps. [the model's]")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("recheck"),
) -> None:
    """Re-check a certificate and write DIR/recheck.json."""
    quiet()
    found = recheck(open_pipeline(pipe, num_inference_steps=steps), fc.load(config), count, out)
    write_json(out / "recheck.json", found, "re-check")
    print(
        f"{found['misses']} of {found['prompts']} fresh prompts miss it ({100 * found['rate']:.1f} %, 95 % interval "
        f"{100 * found['at_least']:.1f} to {100 * found['at_most']:.1f} %); promised: {found['certificate']}"
    )


if __name__ == "__main__":
    typer.run(main)
