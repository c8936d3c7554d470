"""Every denoiser of diffusers that can be built small, under five policies: what is equal, agrees, or is refused.

The zoo's pipelines are run as they are; a class that none of them has is run in a loop of its own (`bare_denoisers`).

`python -m fastercache.experiments.jobs.sweep --out docs/sweep.json` takes some seconds a pipeline. What it found is
kept in that file, from which the page beside it is written, so that `--family` tries some of them anew. NoCache must be
bit-equal to the bare pipeline; TaylorSeer, FirstBlockCache and CFG-Cache must agree with `by_hand`, where a few lines
can say what they do; FasterCache, which mixes two of them, must reuse. A refusal is one line. Exits with 1 at a fault,
and where a policy did nothing without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer
from pydantic import TypeAdapter
from torch import Tensor, nn

from fastercache import zoo
from fastercache.attachment import attach, denoisers_of
from fastercache.experiments import console
from fastercache.experiments.jobs import bare_denoisers, by_hand
from fastercache.experiments.jobs.bare_denoisers import Loop
from fastercache.model.finder import find_blocks, module_at
from fastercache.policies.base import Policy
from fastercache.policies.documents import read_json, write_atomic, write_json
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.methods.cfg_cache import CFGCache
from fastercache.policies.methods.faster_cache import FasterCache
from fastercache.policies.methods.first_block_cache import FirstBlockCache
from fastercache.policies.methods.static_interval import NoCache
from fastercache.policies.methods.taylorseer import TaylorSeer
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND
from fastercache.run.trace import Trace
from fastercache.session import Session
from fastercache.zoo.specimen import Specimen

STEPS = 6
TOLERANCE = 1e-4  # of the largest latent: sums in another order
FAULTS = ("FAULT", "reuses nothing")

POLICIES: dict[str, Policy] = {
    "NoCache": NoCache(),
    "TaylorSeer": TaylorSeer(order=1, interval=2, start=0.0),
    # Random weights change by more from step to step than a threshold may say.
    "FirstBlockCache": FirstBlockCache(threshold=1.0).model_copy(update={"threshold": 1e6}),
    "FasterCache": FasterCache(start=0.0, cfg_start=0.0),
    "CFG-Cache": CFGCache(start=0.0, interval=2, alpha_low=0.0, alpha_high=0.0),
}


@dataclass(frozen=True)
class Row:
    """One pipeline: its classes and what each policy gave there."""

    family: str
    pipeline: str
    denoiser: str
    cells: dict[str, str]

    @property
    def name(self) -> str:
        """The family's, or of a class without one its own."""
        return self.family or self.denoiser

    @property
    def faults(self) -> list[str]:
        """The cells that must not be, in words."""
        return [f"{name}: {cell}" for name, cell in self.cells.items() if cell.startswith(FAULTS)]


class Tried(Protocol):
    """What a policy is tried on: denoisers, and a run of some steps that calls them."""

    scheduler: Any

    @property
    def denoisers(self) -> list[nn.Module]: ...

    def attached(self, policy: Policy) -> AbstractContextManager[Session]: ...

    def run(self, steps: int) -> Tensor: ...


class Piped:
    """A pipeline of the zoo."""

    def __init__(self, specimen: Specimen) -> None:
        self._specimen = specimen
        self.scheduler = specimen.pipe.scheduler

    @property
    def denoisers(self) -> list[nn.Module]:
        return [module for _, module in denoisers_of(self._specimen.pipe)]

    def attached(self, policy: Policy) -> Session:
        """A session of the pipeline."""
        return attach(self._specimen.pipe, policy)

    def run(self, steps: int) -> Tensor:
        """The latents."""
        return self._specimen.generate(steps=steps)


def check(name: str) -> Row:
    """Build a family's pipeline, or a denoiser by its class, and run it under every policy."""
    tried: Tried
    if name in zoo.FAMILIES:
        specimen = zoo.build(name)
        tried, pipeline = Piped(specimen), type(specimen.pipe).__name__
    else:
        tried, pipeline = Loop(name), ""
    bare = tried.run(STEPS)
    cells = {label: _cell(label, policy, tried, bare) for label, policy in POLICIES.items()}
    return Row(name if pipeline else "", pipeline, type(tried.denoisers[0]).__name__, cells)


def _cell(label: str, policy: Policy, tried: Tried, bare: Tensor) -> str:
    try:
        with tried.attached(policy) as session:
            got = tried.run(STEPS)
            trace, told = session.last, session.inspect()
            names = [told.guidance, *told.order]
    except FasterCacheError as error:
        return f"refused: {error}"
    except Exception as error:  # a fault is what the sweep looks for
        return f"FAULT: {type(error).__name__}: {str(error).splitlines()[0]}"
    if label == "NoCache":
        return "bit-equal" if torch.equal(got, bare) else "FAULT: differs from the bare pipeline"
    if not trace.share():
        return "reuses nothing"
    hand = _hand(label, tried, trace, names)
    if hand is None:
        return f"reuses {trace.share():.0%}"
    off = float((got - hand).abs().max() / bare.abs().max())
    return f"by hand, {trace.share():.0%}" if off <= TOLERANCE else f"FAULT: off by {off:.1e} from a hand computation"


def _hand(label: str, tried: Tried, trace: Trace, names: list[str]) -> Tensor | None:
    """What a few lines give, or None where they cannot say."""
    denoisers, scheduler = tried.denoisers, tried.scheduler
    denoiser = denoisers[0]

    def run() -> Tensor:
        return tried.run(STEPS)

    if len(denoisers) > 1 or trace.run.count != STEPS:  # two experts share the steps; some runs start in the middle
        return None
    skipped = {site.name: _skipped(codes) for site, codes in zip(trace.sites, trace.codes, strict=True)}
    if label == "TaylorSeer":
        return by_hand.taylor(run, scheduler, [(module_at(denoiser, site), steps) for site, steps in skipped.items()])
    if label == "CFG-Cache":
        if len(trace.run.branches) != 2 or (names[0] == "separate" and names[1] != COND):
            return None
        rows = next(codes for codes in trace.codes)
        uncond = [bool((rows[:, step] == Code.REUSED).any()) for step in range(STEPS)]
        return by_hand.guided(run, scheduler, denoiser, uncond, names)
    if label == "FirstBlockCache":
        (site,) = trace.sites
        blocks = [block.module for block in find_blocks(denoiser)][slice(*site.span)]
        rows = trace.codes[0]
        if not _single_stream(tried, blocks) or any(len({int(c) for c in rows[:, s]}) > 1 for s in range(STEPS)):
            return None
        return by_hand.chained(run, scheduler, blocks, skipped[site.name])
    return None


def _skipped(codes: Any) -> list[bool]:
    return [bool((codes[:, step] == Code.REUSED).any()) for step in range(codes.shape[1])]


def _single_stream(tried: Tried, blocks: list[Any]) -> bool:
    """Whether every block returns one tensor shaped as what the first was given."""
    seen: set[Any] = set()

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        same = isinstance(output, Tensor) and isinstance(hidden, Tensor) and output.shape == hidden.shape
        seen.add(output.shape if same else None)

    handles = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    try:
        tried.run(2)  # some schedulers have no run of one step
    finally:
        for handle in handles:
            handle.remove()
    return None not in seen and len(seen) == 1


def exported() -> list[str]:
    """The denoiser classes that diffusers exports: transformers and UNets that pipelines call."""
    import diffusers

    marks = ("Transformer1DModel", "Transformer2DModel", "Transformer3DModel", "DiTModel", "DiT2DModel", "UNetModel")
    unets = ("UNet2DConditionModel", "UNet3DConditionModel", "UNetMotionModel", "UNetSpatioTemporalConditionModel")
    not_alone = {"Transformer2DModel"}  # a part of UNets
    names = [n for n in dir(diffusers) if (n.endswith(marks) or n in unets) and n not in not_alone]
    return sorted(n for n in names if "ControlNet" not in n)


def table(rows: Iterable[Row]) -> str:
    """The page in Markdown: what was tried, the table, and the classes that were not built."""
    rows = list(rows)
    import diffusers

    built = {row.denoiser for row in rows}
    classes = exported()
    missing = [name for name in classes if name not in built]
    lines = [
        "# The sweep over diffusers",
        "",
        f"{len(rows)} denoisers of diffusers {diffusers.__version__}, built small with random weights: "
        f"{sum(bool(row.pipeline) for row in rows)} in",
        "their pipelines, the others in a loop that calls them with and without a text; written by",
        "`python -m fastercache.experiments.jobs.sweep --out docs/sweep.json`. *bit-equal*: to the run without a",
        "policy. *by hand*: as a few lines around `forward` give, with the share of decisions reused. *reuses*: that",
        "share, where no few lines say the same. *refused*: raised with the line in the notes.",
        "",
        "| family | pipeline | denoiser | " + " | ".join(POLICIES) + " |",
        "|" + "---|" * (3 + len(POLICIES)),
    ]
    notes: dict[str, list[str]] = {}
    for row in rows:
        cells = [cell.partition(":")[0] for cell in row.cells.values()]
        pipeline = f"`{row.pipeline}`" if row.pipeline else ""
        lines.append("| " + " | ".join([row.family, pipeline, f"`{row.denoiser}`", *cells]) + " |")
        for policy, cell in row.cells.items():
            if ": " in cell:
                said = re.sub(r"\(\d[\d, ]*\)", "(...)", cell)
                notes.setdefault(f"{policy}: {said}", []).append(row.name)
    covered = len([name for name in classes if name in built])
    lines += ["", "## Notes", "", *(f"- {note}\n  ({', '.join(names)})" for note, names in notes.items())]
    lines += ["", "## Not built", ""]
    lines += [f"{covered} of {len(classes)} exported denoiser classes were built. Not yet:", ""]
    lines += [", ".join(f"`{name}`" for name in missing) + "."]
    return "\n".join(lines) + "\n"


def kept(path: Path) -> list[Row]:
    """The rows of a file, in the order of the sweep. Raises ConfigUnreadable."""
    if not path.exists():
        return []
    rows = TypeAdapter(list[Row]).validate_python(read_json(path, "table of the sweep"))
    order = [*zoo.FAMILIES, *bare_denoisers.names()]
    return sorted((row for row in rows if row.name in order), key=lambda row: order.index(row.name))


def keep(path: Path, row: Row) -> None:
    """Put a row into the file in the place of its older one, and write the page."""
    rows = [old for old in kept(path) if old.name != row.name]
    write_json(path, [asdict(one) for one in (*rows, row)], "table of the sweep")
    write_atomic(path.with_suffix(".md"), table(kept(path)), "page of the sweep")


def main(
    out: Annotated[
        Path | None, typer.Option(help="Keep what is found in this JSON file, and a page beside it.")
    ] = None,
    family: Annotated[list[str] | None, typer.Option(help="Try only these families (repeat it).")] = None,
) -> None:
    """Try every family of the zoo and print what each policy gives. Exits with 1 at a fault."""
    console.quiet()
    rows = []
    for name in family or [*zoo.FAMILIES, *bare_denoisers.names()]:
        row = check(name)
        rows.append(row)
        found = "; ".join(f"{label}: {cell}" for label, cell in row.cells.items())
        console.words.print(f"{name}: {found}", markup=False)
        if out is not None:
            keep(out, row)
    if any(row.faults for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
