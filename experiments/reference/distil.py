"""Distil a few-step model: ``python -m fastercache.experiments.reference.distil latte-digits-8``.

Three parts, each kept in the output folder and skipped when already there: the teacher's trajectories, the student,
export of the student's own tensors. Interrupt at will; ``--resume`` continues.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file

from fastercache.experiments.reference import OWN, load
from fastercache.experiments.reference.distiller import Distiller
from fastercache.experiments.reference.export import machine
from fastercache.experiments.reference.progress import console, tracked
from fastercache.experiments.reference.spec import DISTILLED, Distilled
from fastercache.experiments.reference.text import CaptionTable, build_tokenizer
from fastercache.experiments.reference.training import begun, finished
from fastercache.experiments.reference.trajectories import Trajectories, join, part_of, trace

app = typer.Typer(add_completion=False)


def _trajectories(
    spec: Distilled, folder: Path, teacher: Any, table: CaptionTable, device: torch.device, compiled: bool
) -> Trajectories:
    folder.mkdir(exist_ok=True)
    total = spec.trajectories // part_of(spec)
    places = [folder / f"part-{part:04d}.safetensors" for part in range(total)]
    done = next((part for part, place in enumerate(places) if not place.exists()), total)
    parts = trace(spec, teacher.transformer, teacher.text_encoder, table, range(done, total), device, compiled=compiled)
    for part, trajectories in tracked(parts, total, f"trajectories of {part_of(spec)}", done):
        trajectories.save(places[part])
    return join(places)


def export_student(distiller: Distiller, path: Path) -> None:
    """Write what the student does not share with its teacher, replacing ``path``.

    ``OWN`` holds the averaged weights that were trained (float16), by their names in the
    transformer; ``training.json`` says how long the training took, where, and how it ended.
    """
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    own = {name: value.half().cpu().contiguous() for name, value in distiller.average.items()}
    save_file(own, partial / OWN, metadata={"format": "pt"})
    training = {
        "updates": distiller.step,
        "trajectories": len(distiller.trajectories.templates),
        "loss": distiller.loss,
        "minutes": distiller.seconds / 60,
        "machine": machine(distiller.device),
    }
    (partial / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


@app.command()
def distil(
    name: Annotated[str, typer.Argument(help=f"Which model: {', '.join(DISTILLED)}.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the finished model; default: runs/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint in --out.")] = False,
    minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 3.0,
    compiled: Annotated[bool, typer.Option(help="Compile the transformer: a third faster, minutes to start.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = "",
) -> None:
    """Distil a few-step model from a reference model and export it to OUT/NAME."""
    out, chosen = begun(name, DISTILLED, out, resume, device)
    spec = DISTILLED[name]
    teacher: Any = load(spec.teacher).to(chosen)
    if compiled:
        teacher.transformer.compile()
    table = CaptionTable(build_tokenizer())
    trajectories = _trajectories(spec, out / "trajectories", teacher, table, chosen, compiled)
    distiller = Distiller(
        spec, teacher.transformer, teacher.text_encoder, table, trajectories, chosen, compiled=compiled
    )
    finished(distiller, name, out, minutes)
    export_student(distiller, out / name)
    console.print(f"wrote {out / name}")


if __name__ == "__main__":
    app()
