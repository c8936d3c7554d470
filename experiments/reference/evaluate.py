"""Generate videos of held-out captions, judge them, draw a contact sheet and write the model card.

``python -m fastercache.experiments.reference.evaluate latte-digits`` measures the shipped model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fastercache.experiments.reference import load, path
from fastercache.experiments.reference.card import Measured, record, write_card
from fastercache.experiments.reference.data import TEMPLATES, Split, captions, combinations
from fastercache.experiments.reference.judges import Judge
from fastercache.experiments.reference.spec import MODELS

app = typer.Typer(add_completion=False)


def generate(pipeline: Any, prompts: list[str], call: dict[str, Any], *, seed: int, batch: int = 1) -> Iterator[Tensor]:
    """Videos ``(B, F, 3, H, W)`` in [0, 1], one seed per prompt (``seed``, ``seed + 1``, ...) at any batch."""
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        prompt, generator = (chunk[0], generators[0]) if batch == 1 else (chunk, generators)
        with torch.no_grad():
            yield pipeline(prompt, generator=generator, output_type="pt", **call).frames.float().cpu()


def prompts_of(split: Split, count: int, *, paraphrase: bool = False) -> list[str]:
    """``count`` captions of a split in their fixed order, from the start again when they run out."""
    if not paraphrase:
        every = captions(split)
        return [every[i % len(every)] for i in range(count)]
    chosen = combinations(split)
    return [chosen[i % len(chosen)].caption(TEMPLATES[i % len(TEMPLATES)]) for i in range(count)]


def contact_sheet(videos: Tensor, texts: list[str], *, columns: int = 4, looks: int = 4, scale: int = 3) -> Image.Image:
    """A grid of videos ``(N, F, 3, H, W)`` in [0, 1]: ``looks`` frames side by side, the caption beneath."""
    count, frames, _, height, width = videos.shape
    chosen = torch.linspace(0, frames - 1, looks).round().long()
    cell = (looks * width * scale + 10, height * scale + 24)
    sheet = Image.new("RGB", (columns * cell[0] + 10, -(-count // columns) * cell[1] + 10), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, (video, text) in enumerate(zip(videos, texts, strict=True)):
        left, top = 10 + index % columns * cell[0], 10 + index // columns * cell[1]
        strip = video[chosen].permute(2, 0, 3, 1).flatten(1, 2).clamp(0, 1).mul(255).round().byte().numpy()
        size = (looks * width * scale, height * scale)
        sheet.paste(Image.fromarray(strip).resize(size, Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + height * scale + 2), text, fill="black", font=font)
    return sheet


@dataclass(frozen=True)
class Measurement:
    """One way of calling the model."""

    what: str
    paraphrase: bool
    batch: int


MEASUREMENTS = {
    "single": Measurement("canonical captions, one prompt per call", paraphrase=False, batch=1),
    "several": Measurement("paraphrased captions, eight prompts per call", paraphrase=True, batch=8),
}


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="Short name of a shipped model.")] = "latte-digits",
    folder: Annotated[Path | None, typer.Option(help="Another folder of the same kind.")] = None,
    videos: Annotated[int, typer.Option(help="Videos per measurement.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the first video; the next ones count up.")] = 10_000,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale instead of the default.")] = None,
    measure: Annotated[list[str] | None, typer.Option(help=f"Only these of: {', '.join(MEASUREMENTS)}.")] = None,
    timed: Annotated[bool, typer.Option(help="Record the wall time; not on a busy machine.")] = True,
    card: Annotated[bool, typer.Option(help="Write README.md, metrics.json and contact-sheet.png.")] = True,
) -> None:
    """Judge a model on held-out captions and write its model card."""
    chosen = measure or list(MEASUREMENTS)
    if unknown := set(chosen) - set(MEASUREMENTS):
        raise typer.BadParameter(f"unknown measurement {sorted(unknown)}, expected some of: {', '.join(MEASUREMENTS)}")
    console, where = Console(), folder or path(name)
    pipeline = load(name, folder=folder)
    judge = Judge.load()
    call = MODELS[name].generation.kwargs() | ({} if guidance is None else {"guidance_scale": guidance})
    next(generate(pipeline, prompts_of("held_out", 1), call, seed=0))
    for key in chosen:
        measurement = MEASUREMENTS[key]
        prompts = prompts_of("held_out", videos, paraphrase=measurement.paraphrase)
        started = time.monotonic()
        parts = generate(pipeline, prompts, call, seed=seed, batch=measurement.batch)
        made = torch.cat(list(track(parts, measurement.what, total=-(-videos // measurement.batch))))
        measured = Measured(
            what=measurement.what,
            videos=videos,
            seed=seed,
            guidance_scale=call["guidance_scale"],
            accuracy=judge.score(made, prompts).accuracy(),
            seconds=(time.monotonic() - started) / videos if timed else None,
            threads=torch.get_num_threads(),
        )
        console.print(measured)
        if card:
            record(where, key, measured)
            if key == "single":
                contact_sheet(made[:40], prompts[:40]).save(where / "contact-sheet.png", optimize=True)
    if card:
        write_card(where, name)
        console.print(f"wrote {where / 'README.md'}")


if __name__ == "__main__":
    app()
