"""The families table: every supported family run small under every law and way of deployment.

`python -m fastercache.experiments.jobs.families --out docs/families.json` checks them all, a few seconds each, and
keeps every row as soon as it is made; `--resume` goes on where it stopped, `--family NAME` checks only some again.
Beside the results it writes docs/families.md, and with `--readme README.md` the short form between that file's markers:
all three are renderings of the same rows, and a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import TypeAdapter, ValidationError

from fastercache.experiments import console
from fastercache.experiments.pages import put_into
from fastercache.policies.documents import write_atomic
from fastercache.policies.errors import ConfigUnreadable, FasterCacheError

if TYPE_CHECKING:
    from fastercache.zoo.specimen import Specimen

Mark = Literal["yes", "no", "n/a", "refused"]
COLUMNS = ("attaches", *(f"law {law}" for law in range(1, 10)), "CFG-Cache", "compile", "offload")
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"


@dataclass(frozen=True)
class Cell:
    """What one check found: it holds, it does not, it does not apply, or the runtime refuses with a reason."""

    mark: Mark
    note: str = ""

    def __str__(self) -> str:
        """The mark; a star where it holds with a reservation."""
        return "**no**" if self.mark == "no" else "yes*" if self.mark == "yes" and self.note else self.mark


@dataclass(frozen=True)
class Row:
    """One family.

    Attributes:
        family: its name in the zoo.
        denoiser: class of its denoiser.
        guidance: `batched`, `separate` or `none`, and the branches of a run.
        cells: column -> what its check found.
        version: of diffusers.
    """

    family: str
    denoiser: str
    guidance: str
    cells: dict[str, Cell]
    version: str

    @property
    def broken(self) -> list[str]:
        """The cells that fail, in words."""
        return [f"{column}: {cell.note}" for column, cell in self.cells.items() if cell.mark == "no"]


ROWS = TypeAdapter(dict[str, Row])


def check_family(name: str) -> Row:
    """Build a family's random pipeline and run every check on it."""
    import diffusers

    from fastercache import zoo
    from fastercache.attachment import attach, denoisers_of
    from fastercache.policies.methods.static_interval import NoCache
    from fastercache.testing import LAWS, check_policy
    from fastercache.testing.deployment import check_compile, check_offload
    from fastercache.testing.probes import coarse, fine

    specimen = zoo.build(name)
    denoiser = type(denoisers_of(specimen.pipe)[0][1]).__name__
    try:
        with attach(specimen.pipe, NoCache(sites="denoiser")) as session:
            specimen.generate()
            branches = session.last.run.branches
            style = session.guidance if len(branches) > 1 else "none"
            guidance = f"{style}: {', '.join(branches)}"
    except FasterCacheError as error:
        cells = dict.fromkeys(COLUMNS, Cell("n/a", "it does not attach")) | {"attaches": Cell("no", str(error))}
        return Row(name, denoiser, "", cells, diffusers.__version__)
    cells = {"attaches": Cell("yes")}
    reports = [check_policy(policy, specimen) for policy in (fine(specimen), coarse(specimen))]
    for law in LAWS:
        verdicts = [report.verdict(law) for report in reports]
        cells[f"law {law}"] = _worst([_cell(v.passed, v.detail) for v in verdicts])
    cells["CFG-Cache"] = _cfg_cache(specimen)
    for column, check in (("compile", check_compile), ("offload", check_offload)):
        outcome = check(partial(zoo.build, name))
        cells[column] = _cell(outcome.passed, outcome.detail)
    return Row(name, denoiser, guidance, cells, diffusers.__version__)


def _cell(passed: bool | None, note: str) -> Cell:
    marks: dict[bool | None, Mark] = {True: "yes", False: "no", None: "n/a"}
    return Cell(marks[passed], note)


def _worst(cells: list[Cell]) -> Cell:
    """A law that fails for one probe fails; one that applies to one probe was tested."""
    return min(cells, key=lambda cell: ("no", "yes", "n/a").index(cell.mark))


def _cfg_cache(specimen: Specimen) -> Cell:
    """CFG-Cache reuses every branch but the conditional one, or says why it cannot."""
    from fastercache.attachment import attach
    from fastercache.policies.methods.cfg_cache import CFGCache

    with attach(specimen.pipe, CFGCache(interval=2, start=0.0)) as session:
        try:
            specimen.generate()
        except FasterCacheError as error:
            return Cell("n/a" if "no second guidance branch" in str(error) else "refused", str(error))
        return _cell(session.last.share() > 0, "" if session.last.share() > 0 else "it reuses nothing")


def read(path: Path) -> dict[str, Row]:
    """The rows of a results file. Raises ConfigUnreadable."""
    try:
        return ROWS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigUnreadable(f"{path} holds no families table ({reason}): make it anew without --resume") from None


def table(rows: dict[str, Row]) -> str:
    """The whole page in Markdown: legend, table, notes."""
    from fastercache.testing import LAWS

    versions = ", ".join(sorted({row.version for row in rows.values()}))
    lines = [
        "# Families",
        "",
        "Every family of `fastercache.zoo`, built small with random weights from its diffusers classes and run through",
        f"its real pipeline (diffusers {versions}). Each cell is a check that ran; this page is written by",
        "`python -m fastercache.experiments.jobs.families --out docs/families.json --readme README.md`.",
        "",
        "Two policies reach every kind of site: attention extrapolated, feed-forwards held and the unconditional",
        "branch predicted; and blocks, stack and whole denoiser at intervals. The laws:",
        "",
        *(f"{law}. {text}" for law, text in LAWS.items()),
        "",
        "*CFG-Cache*: further branches are predicted from the conditional one. *compile*: blocks compiled with",
        "`fullgraph=True` (so without a graph break) give the plain pipeline's output and decisions under a static",
        "policy at every attention and feed-forward. *offload*: so do model, sequential and group offloading, enabled",
        "before or after attaching, by accelerate's and diffusers' own hooks with the CPU as the device to compute on.",
        "*n/a* does not apply; *refused* raises with the reason; *yes\\** holds with a reservation, see the notes.",
        "",
        "| " + " | ".join(["family", "denoiser", "guidance", *COLUMNS]) + " |",
        "|" + "---|" * (3 + len(COLUMNS)),
    ]
    notes = []
    for row in rows.values():
        marks = [str(row.cells[c]) for c in COLUMNS]
        lines.append("| " + " | ".join([row.family, f"`{row.denoiser}`", row.guidance, *marks]) + " |")
        notes += [f"- {row.family}, {c}: {row.cells[c].note}" for c in COLUMNS if row.cells[c].note]
    return "\n".join([*lines, "", "## Notes", "", *notes]) + "\n"


def digest(rows: dict[str, Row]) -> str:
    """The short form: families of one style of guidance and equal marks share a line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows.values():
        laws = [f"law {law}" for law in range(1, 10)]
        held = [law.removeprefix("law ") for law in laws if row.cells[law].mark == "yes"]
        broken = [law.removeprefix("law ") for law in laws if row.cells[law].mark == "no"]
        text = _span(held) + (f", **not {_span(broken)}**" if broken else "")
        others = [str(row.cells[c]) for c in ("CFG-Cache", "compile", "offload")]
        groups.setdefault((row.guidance.partition(":")[0], text, *others), []).append(f"`{row.family}`")
    head = ["families", "guidance", "laws that apply and hold", "CFG-Cache", "compile", "offload"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key, names in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]))):
        lines.append("| " + " | ".join([", ".join(names), *key]) + " |")
    return "\n".join(lines) + "\n"


def _span(numbers: list[str]) -> str:
    """`1-3, 6` for 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for n in map(int, numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def main(
    out: Annotated[Path, typer.Option(help="Results (JSON); the page is written beside it.")] = Path("families.json"),
    family: Annotated[list[str] | None, typer.Option(help="Check only these families (repeat it).")] = None,
    resume: Annotated[bool, typer.Option(help="Keep the rows that are there and hold.")] = False,
    readme: Annotated[Path | None, typer.Option(help="Write the short form between this file's markers.")] = None,
) -> None:
    """Check every family, keep the results and write the table. Exits with 1 if a cell fails."""
    console.quiet()
    from fastercache import zoo

    try:
        rows = read(out) if out.exists() and (resume or family) else {}
        listed = [n for n in zoo.FAMILIES if n not in zoo.SWEPT]
        wanted = family or [n for n in listed if not (resume and n in rows and not rows[n].broken)]
        with console.progress() as bar:
            task = bar.add_task("families", total=len(wanted))
            for name in wanted:
                bar.update(task, description=name)
                rows[name] = row = check_family(name)
                found = "; ".join(row.broken) or "every check that applies holds"
                console.say(f"{name}: {found}")
                rows = {n: rows[n] for n in zoo.FAMILIES if n in rows}
                write_atomic(out, ROWS.dump_json(rows, indent=1).decode() + "\n", "families")
                bar.advance(task)
        write_atomic(out.with_suffix(".md"), table(rows), "families' table")
        if readme is not None:
            put_into(readme, BEGIN, END, digest(rows))
    except FasterCacheError as error:
        console.fail(str(error))
        raise typer.Exit(2) from None
    if any(row.broken for row in rows.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
