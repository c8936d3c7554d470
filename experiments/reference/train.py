"""Train a reference model from nothing: ``python -m fastercache.experiments.reference.train latte-digits``.

Four parts, each kept in the output folder and skipped when already there: autoencoder, encoded videos, transformer with
text encoder, export as a diffusers folder. Interrupt at will; ``--resume`` continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from fastercache.experiments.reference.export import export
from fastercache.experiments.reference.families import family_of
from fastercache.experiments.reference.progress import console, tracked
from fastercache.experiments.reference.spec import SPECS, Spec
from fastercache.experiments.reference.trainer import Pool, Trainer, build_pool, load_pool, save_pool
from fastercache.experiments.reference.training import begun, finished

app = typer.Typer(add_completion=False)


def _autoencoder(spec: Spec, folder: Path, device: torch.device) -> torch.nn.Module:
    family = family_of(spec)
    path = folder / "autoencoder"
    if not path.exists():
        torch.manual_seed(spec.seed)
        autoencoder = family.build_autoencoder(spec)
        steps = spec.autoencoder_steps + spec.decoder_steps
        for _ in tracked(family.train_autoencoder(autoencoder, spec, device), steps, "autoencoder"):
            pass
        partial = folder / "autoencoder.partial"
        autoencoder.cpu().save_pretrained(partial)
        partial.rename(path)
    loaded: torch.nn.Module = family.load_autoencoder(path).to(device).eval()
    return loaded


def _pool(spec: Spec, folder: Path, autoencoder: torch.nn.Module, device: torch.device) -> Pool:
    path = folder / "pool.safetensors"
    if not path.exists():
        parts = list(tracked(build_pool(family_of(spec), autoencoder, spec, device), spec.pool // 64, "videos"))
        latents = torch.cat([part.latents for part in parts])
        save_pool(Pool(latents, torch.cat([part.attributes for part in parts])), path)
    return load_pool(path)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help=f"Which model: {', '.join(SPECS)}.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the finished model; default: runs/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint in --out.")] = False,
    minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 3.0,
    compiled: Annotated[bool, typer.Option(help="Compile the training step: a third faster, minutes to start.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = "",
) -> None:
    """Train a reference model and export it to OUT/NAME."""
    out, chosen = begun(name, SPECS, out, resume, device)
    spec = SPECS[name]
    autoencoder = _autoencoder(spec, out, chosen)
    console.print(f"autoencoder: {family_of(spec).reconstruction_psnr(autoencoder.cpu(), spec):.1f} dB on test videos")
    trainer = Trainer(spec, _pool(spec, out, autoencoder.to(chosen), chosen), chosen, compiled=compiled)
    finished(trainer, name, out, minutes)
    export(trainer, autoencoder.cpu(), out / name)
    console.print(f"wrote {out / name}")


if __name__ == "__main__":
    app()
