"""The results of a bench: read and written as JSON, shown as a table for the terminal and for Markdown, drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich import box
from rich.table import Table

from fastercache.analysis.metrics import metric_called
from fastercache.analysis.plots import ComparisonPoint, comparison_info, draw_comparison, save_png
from fastercache.experiments import console, pages
from fastercache.experiments.bench.lineup import FEWER
from fastercache.experiments.bench.rows import column, size
from fastercache.experiments.bench.verdict import NO, OUTSIDE, UNDECIDED, YES, Interval
from fastercache.policies.documents import Missing, read_model, write_atomic, write_json
from fastercache.policies.errors import ConfigUnreadable
from fastercache.policies.wording import counted
from fastercache.tuned import quality_gathered

NOTHING = 1.005
"""Below this speedup in FLOPs a setting is said to skip nothing."""


class Line(BaseModel):
    """One setting of one method; figures are None where it was `refused`, which gives the reason.

    Attributes:
        label, setting, level, family, package: see `fastercache.experiments.bench.lineup.Contender`.
        prompts: how many prompts the figures are over.
        speedup_flops, speedup_wall, judge: with 95 % intervals over prompts. quality: the same by metric's name.
        beats_by_flops, beats_by_wall: the verdicts. difference_by_flops, difference_by_wall: the PSNR over fewer steps
            in dB that they rest on.
        policy: what was run, without calibrated constants.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    label: str
    setting: str
    level: str
    family: str
    package: str
    refused: str | None = None
    prompts: int = 0
    speedup_flops: Interval | None = None
    speedup_wall: Interval | None = None
    quality: dict[str, Interval] = Field(default_factory=dict)
    judge: Interval | None = None
    cache_bytes: int | None = None
    beats_by_flops: str = ""
    beats_by_wall: str = ""
    difference_by_flops: Interval | None = None
    difference_by_wall: Interval | None = None
    policy: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _of_older_file(cls, data: Any) -> Any:
        return quality_gathered(data)

    @property
    def method(self) -> str:
        """The method, and whose code where it is not ours."""
        return self.label if self.package == "fastercache" else f"{self.label} ({self.package})"

    @property
    def idle(self) -> bool:
        """Whether this setting skips nothing on this model."""
        return self.label != FEWER and self.speedup_flops is not None and self.speedup_flops.value < NOTHING


class Results(BaseModel):
    """A whole bench.

    Attributes:
        seconds_uncached: mean of the uncached runs. counted: on how many prompts other packages' FLOPs were counted.
        rule: what the verdicts mean. lines: fewer steps first.
        lineup: version of the methods and settings that took part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["fastercache-bench"] = "fastercache-bench"
    version: Literal[1] = 1
    lineup: int = 1
    pipeline: str
    steps: int
    prompts: int
    seed: int
    hardware: str
    versions: dict[str, str]
    seconds_uncached: float
    counted: int
    rule: str
    lines: tuple[Line, ...]

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read `results.json`. Raises ConfigUnreadable in one line."""
        path = folder / "results.json"
        try:
            return read_model(path, cls, "bench's results")
        except Missing:
            raise ConfigUnreadable(f"there is no {path}: run the bench without --plot-only first") from None

    @property
    def ran(self) -> list[Line]:
        """The lines with figures."""
        return [line for line in self.lines if line.refused is None]

    @property
    def refused(self) -> list[Line]:
        """The lines without."""
        return [line for line in self.lines if line.refused is not None]

    @property
    def metrics(self) -> list[str]:
        """The metrics measured, PSNR and SSIM first."""
        return list(dict.fromkeys(["psnr", "ssim", *(name for line in self.ran for name in line.quality)]))

    @property
    def title(self) -> str:
        """What was measured on what."""
        return (
            f"{self.pipeline}, {self.steps} steps, {counted(self.prompts, 'held-out prompt')}, "
            f"uncached {self.seconds_uncached:.2f} s, {self.hardware}"
        )

    def write(self, folder: Path) -> dict[str, str]:
        """`results.json`, `results.md` and the figures; returns their paths."""
        write_json(folder / "results.json", self.model_dump(mode="json"), "bench's results")
        write_atomic(folder / "results.md", markdown(self), "bench's table")
        files = {"results": folder / "results.json", "table": folder / "results.md"}
        for metric in self.metrics:
            info = comparison_info(points(self, metric), FEWER, metric, note(self))
            for speedup in ("flops", "wall"):
                words = ["pareto", *([] if metric == "psnr" else [metric]), *(["time"] if speedup == "wall" else [])]
                figure = draw_comparison(info, speedup)
                files["_".join(words)] = save_png(figure, folder / f"{'-'.join(words)}.png", dpi=110)
        return {name: str(path) for name, path in files.items()}


def points(results: Results, metric: str) -> list[ComparisonPoint]:
    """The settings as points of the figure; those that skip nothing have no place in it."""
    found = []
    for line in results.ran:
        flops, wall, quality = line.speedup_flops, line.speedup_wall, line.quality.get(metric)
        if flops is None or wall is None or quality is None or line.idle:
            continue
        whose = "" if line.package == "fastercache" else line.package
        found.append(ComparisonPoint(line.label, line.family, whose, flops, wall, quality))
    return found


def note(results: Results) -> str:
    """What the figure says below its title."""
    return (
        f"{results.title} · bars and band: 95 % intervals over prompts · grey lines: the methods of the other panels · "
        "hollow: diffusers' and cache-dit's own code"
    )


def _interval(value: Interval | None, form: str) -> str:
    return "-" if value is None else value.shown(form)


LONG = 64
"""Characters; of a longer setting the Markdown table gives the level, and `results.json` the whole."""


def columns(results: Results) -> dict[str, Callable[[Line], str]]:
    """The Markdown table's columns."""
    found = dict(list(COLUMNS.items())[:4])
    for name in results.metrics:
        form = "{:.1f}" if name == "psnr" or metric_called(name).decibel else "{:.4f}"
        found[column(name)] = lambda line, name=name, form=form: _interval(line.quality.get(name), form)  # type: ignore[misc]
    return found | dict(list(COLUMNS.items())[4:])


COLUMNS: dict[str, Callable[[Line], str]] = {
    "method": lambda line: line.method,
    "setting": lambda line: line.setting if len(line.setting) <= LONG else line.level,
    "FLOPs ↑": lambda line: _interval(line.speedup_flops, "{:.2f}") + ("×, skips nothing" if line.idle else "×"),
    "time ↑": lambda line: _interval(line.speedup_wall, "{:.2f}") + "×",
    "judge ↑": lambda line: "-" if line.judge is None else f"{line.judge.value:.0%}",
    "cached ↓": lambda line: "-" if line.cache_bytes is None else size(line.cache_bytes),
    "beats fewer steps, FLOPs": lambda line: line.beats_by_flops,
    "beats fewer steps, time": lambda line: line.beats_by_wall,
}
"""The Markdown table's columns but those of the metrics, which stand after the fourth."""

SHORT: dict[str, Callable[[Line], str]] = {
    "level": lambda line: line.level,
    "FLOPs": lambda line: _number(line.speedup_flops, "{:.2f}x"),
    "time": lambda line: _number(line.speedup_wall, "{:.2f}x"),
    "PSNR": lambda line: _interval(line.quality.get("psnr"), "{:.1f}").replace("± ", "±"),
    "SSIM": lambda line: _number(line.quality.get("ssim"), "{:.3f}"),
    "judge": lambda line: "-" if line.judge is None else f"{line.judge.value:.0%}",
    "F?": lambda line: _shorter(line.beats_by_flops),
    "t?": lambda line: _shorter(line.beats_by_wall),
}
"""The terminal's columns beside the method's name: 80 characters wide together."""


def _number(value: Interval | None, form: str) -> str:
    return "-" if value is None else form.format(value.value)


def _shorter(verdict: str) -> str:
    return {UNDECIDED: "?", OUTSIDE: "-"}.get(verdict, verdict)


def legend(results: Results) -> str:
    """How to read the table."""
    peers = any(line.package != "fastercache" for line in results.ran)
    counted = f" Other packages' FLOPs were counted on {results.counted} of {results.prompts} prompts." if peers else ""
    return (
        f"Means over prompts ± half the 95 % interval; speedups over the uncached run."
        f"{counted} Verdicts: {results.rule}."
    )


def table(results: Results) -> Table:
    """The results for a terminal."""
    shown = Table(title=results.title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("method", min_width=16, overflow="fold")
    for i, heading in enumerate(SHORT):
        shown.add_column(heading, justify="right" if 0 < i < 6 else "left", no_wrap=True)
    for method, lines in itertools.groupby(results.ran, key=lambda line: line.method):
        for n, line in enumerate(lines):
            shown.add_row("" if n else method, *(cell(line) for cell in SHORT.values()))
        shown.add_section()
    return shown


def show(results: Results, files: Mapping[str, str]) -> None:
    """Print the table, how to read it, what did not run, and where the files are."""
    console.results.print(table(results))
    console.say(
        f"F?, t?: at its FLOPs, at its time, does it beat fewer steps (? undecided, - outside). {legend(results)}",
        console.results,
    )
    for who, why in refusals(results.refused):
        console.say(f"did not run: {who}: {why}", console.results)
    for name, path in files.items():
        console.say(f"{name:>12}  {path}", console.results)


def refusals(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """(method, reason) of what did not run; settings of a method with one reason in one line."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        found.setdefault((line.method, line.refused or ""), []).append(line.level)
    return [
        (method if len(levels) > 2 else f"{method} {', '.join(levels)}", why) for (method, why), levels in found.items()
    ]


def markdown(results: Results) -> str:
    """The results as Markdown: the table, how to read it, and what did not run."""
    cells = columns(results)
    found = [tuple(cell(line).replace("|", "\\|") for cell in cells.values()) for line in results.ran]
    rows = [tuple(cells), ("---",) * 2 + ("---:",) * (len(cells) - 4) + ("---",) * 2, *found]
    parts = [
        f"{results.title}.",
        "\n".join(in_short(results.ran)),
        pages.table(rows),
        legend(results),
    ]
    if results.refused:
        parts.append("\n".join(["Did not run:", "", *(f"- {who}: {why}" for who, why in refusals(results.refused))]))
    return "\n\n".join(parts) + "\n"


def in_short(lines: Sequence[Line]) -> list[str]:
    """Which methods beat fewer steps: a list item for each outcome, at equal FLOPs and at equal time."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line.family != FEWER:
            found.setdefault(line.method, []).append(line)
    items = []
    for what, verdict_of in VERDICTS.items():
        said: dict[str, list[str]] = {text: [] for text in OUTCOMES.values()}
        for method, own in found.items():
            verdicts = [verdict_of(line) for line in own]
            wins, decided = verdicts.count(YES), [v for v in verdicts if v in (YES, NO)]
            key = "all" if wins and wins == len(decided) else "some" if wins else "none" if decided else "open"
            count = f" ({wins} of {len(own)})" if key in ("all", "some") else ""
            said[OUTCOMES[key]].append(f"{method}{count}")
        items += [f"- At equal {what}, {text}: {', '.join(names)}." for text, names in said.items() if names]
    return items


OUTCOMES = {
    "all": "beat fewer steps wherever it is decided",
    "some": "beat fewer steps at some settings and lose at others",
    "none": "never beat fewer steps",
    "open": "undecided, or outside what fewer steps were measured at",
}


VERDICTS: dict[str, Callable[[Line], str]] = {
    "FLOPs": lambda line: line.beats_by_flops,
    "time": lambda line: line.beats_by_wall,
}


def put_into(page: Path, results: Results) -> None:
    """Replace what stands between `<!-- bench NAME -->` and `<!-- end bench -->` in a page by the table.

    Raises:
        ConfigUnreadable: if the page is missing or has no such place.
    """
    pages.put_into(page, f"<!-- bench {results.pipeline} -->", "<!-- end bench -->", markdown(results))
