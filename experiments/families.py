"""The families table: every supported family run small under every law, each cell from a check that really ran.

`python -m experiments.families --out docs/families.md` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastercache import zoo
from fastercache.attach import attach
from fastercache.testing import LAWS, check_policy
from fastercache.testing.probes import coarse, fine
from fastercache.zoo.specimen import Specimen
from policies.cfg_cache import CFGCache
from policies.errors import FasterCacheError
from policies.static_interval import NoCache

MARKS = {True: "yes", False: "**no**", None: "n/a"}


@dataclass(frozen=True)
class Row:
    """One family.

    Attributes:
        family: its name in the zoo.
        denoiser: class of its denoiser.
        attaches: whether attaching works.
        laws: law -> held under every probe; None where it does not apply (one branch, or texts of other lengths).
        cfg_cache: CFG-Cache reuses the unconditional branch; None where there is none, and it says so.
        broken: what broke, in words.
    """

    family: str
    denoiser: str
    attaches: bool
    laws: dict[int, bool | None]
    cfg_cache: bool | None
    broken: tuple[str, ...]


def check_family(name: str) -> Row:
    """Build a family's random pipeline and run every check on it."""
    specimen = zoo.build(name)
    pipe = specimen.pipe
    denoiser = type(getattr(pipe, "transformer", None) or pipe.unet).__name__
    try:
        attach(pipe, NoCache(sites="denoiser")).detach()
    except FasterCacheError as error:
        return Row(name, denoiser, False, dict.fromkeys(LAWS), None, (str(error),))
    reports = [check_policy(policy, specimen) for policy in (fine(), coarse(pipe))]
    laws = {law: _worst([report.verdict(law).passed for report in reports]) for law in LAWS}
    broken = tuple(str(v) for report in reports for v in report.verdicts if v.passed is False)
    return Row(name, denoiser, True, laws, _cfg_cache(specimen), broken)


def _worst(verdicts: list[bool | None]) -> bool | None:
    """False if any is, else True if any is: a law that applies to one probe was tested."""
    return False if False in verdicts else True if True in verdicts else None


def _cfg_cache(specimen: Specimen) -> bool | None:
    with attach(specimen.pipe, CFGCache(interval=2, start=0.0)) as session:
        try:
            specimen.generate()
        except FasterCacheError:
            return None
        return session.last.share() > 0


def markdown(rows: Iterable[Row]) -> str:
    """The table in Markdown."""
    head = ["family", "denoiser", "attaches", *(f"law {law}" for law in LAWS), "CFG-Cache"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        marks = [MARKS[row.attaches], *(MARKS[row.laws[law]] for law in LAWS), MARKS[row.cfg_cache]]
        lines.append("| " + " | ".join([row.family, f"`{row.denoiser}`", *marks]) + " |")
    return "\n".join(lines) + "\n"


def legend() -> str:
    """What the columns mean."""
    return "\n".join(f"{law}. {text}" for law, text in LAWS.items()) + "\n"


def main(
    out: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only these families (repeat it).")] = None,
) -> None:
    """Run every family under every law and print the table."""
    console = Console()
    rows = []
    for name in family or list(zoo.FAMILIES):
        row = check_family(name)
        rows.append(row)
        console.print(f"{name}: {'; '.join(row.broken) or 'every law that applies holds'}")
    text = markdown(rows) + "\n" + legend()
    if out is None:
        console.print(text, soft_wrap=True)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    if any(row.broken for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
