"""The tables of the swept peers, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastercache.experiments import pages
from fastercache.experiments.bench.equal import Ratio
from fastercache.experiments.bench.lineup import FEWER, PLANNED
from fastercache.experiments.bench.standings import Line
from fastercache.experiments.bench.swept import Point, Swept, acting_lines
from fastercache.policies.wording import counted

REACHED = {"yes": "reached", "no": "not reached", "undecided": "undecided"}


def place(pipe: str) -> tuple[str, str]:
    """Where a model's tables begin and end in a page."""
    return f"<!-- swept {pipe} -->", "<!-- end swept -->"


def markdown(swept: Swept) -> str:
    """What was searched, the goals, the figure, the ratios, our own front, and what did not run."""
    said = (
        f"{swept.table.title}. {counted(len(tried(swept)), 'setting')} of other packages ran on "
        f"{counted(swept.search_prompts, 'search prompt')}; {counted(sum(p.chosen for p in swept.points), 'setting')} "
        "were measured."
    )
    name = swept.table.pipeline
    picture = f"![{name}](bench/{name}/swept.png)"
    tables = [pages.table(rows(swept)) for rows in (_goal_rows, _ratio_rows, _ours)]
    parts = [said, tables[0], picture, *tables[1:]]
    if out := not_compared(swept.points):
        parts.append("\n".join(["Not compared:", "", *(f"- {method}: {why}" for method, why in out)]))
    return "\n\n".join(parts) + "\n"


def tried(swept: Swept) -> list[Point]:
    """The settings that ran."""
    return [point for point in swept.points if point.refused is None]


def goals(swept: Swept) -> list[str]:
    """The goals, a line each."""
    return [
        f"{swept.table.pipeline}: over {goal.over}, {goal.by}: {goal.ratio.shown()}x, goal {goal.goal:g}x: "
        f"{REACHED[goal.reached]} ({goal.nearest})"
        for goal in swept.goals
    ]


def _goal_rows(swept: Swept) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("planned, at equal PSNR, over", "by", "goal", "the smallest ratio", "found at", "goal reached?"),
        ("---", "---", "---:", "---:", "---", "---"),
    ]
    for goal in swept.goals:
        among = f"{goal.over} ({counted(goal.settings, 'setting')})"
        rows.append(
            (among, goal.by, f"{goal.goal:g}×", goal.ratio.shown(), shortened(goal.nearest), REACHED[goal.reached])
        )
    return rows


def _ratio_rows(swept: Swept) -> list[Sequence[str]]:
    """Methods in the order of the grids, each with its default first and then by speedup; fewer steps last."""
    rows: list[Sequence[str]] = [
        (
            "method", "setting", "FLOPs ↑", "time ↑", "PSNR ↑", "planned over it, FLOPs", "planned over it, time",
            "fewer steps over it, FLOPs", "fewer steps over it, time",
        ),
        ("---", "---", *["---:"] * 7),
    ]  # fmt: skip
    lines = {(line.method, line.level): line for line in swept.table.ran}
    order = [*dict.fromkeys(row.method for row in swept.ratios if row.method != FEWER), FEWER]
    speed = {(m, level): line.speedup_flops.value for (m, level), line in lines.items() if line.speedup_flops}
    for row in sorted(swept.ratios, key=lambda r: (order.index(r.method), not r.default, speed[r.method, r.level])):
        line = lines[row.method, row.level]
        setting = shortened(row.setting)
        rows.append(
            (
                row.method, f"**default**: {setting}" if row.default else setting, *_measured(line),
                row.by_flops.shown(), row.by_time.shown(), _or_dash(row.fewer_by_flops), _or_dash(row.fewer_by_time),
            )
        )  # fmt: skip
    return rows


def _ours(swept: Swept) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("planned for", "FLOPs ↑", "time ↑", "PSNR ↑"), ("---", *["---:"] * 3)]
    for line in acting_lines(swept):
        if line.family == PLANNED:
            rows.append((line.setting, *_measured(line)))
    return rows


def _measured(line: Line) -> tuple[str, str, str]:
    assert line.speedup_flops is not None and line.speedup_wall is not None  # whatever ran was timed and counted
    return (
        f"{line.speedup_flops.value:.2f}×",
        line.speedup_wall.shown("{:.2f}") + "×",
        line.quality["psnr"].shown("{:.1f}"),
    )


def _or_dash(ratio: Ratio | None) -> str:
    return "-" if ratio is None else ratio.shown()


def not_compared(points: Sequence[Point]) -> list[tuple[str, str]]:
    """(method, reason) of methods none of whose settings is measured, and of settings that were refused."""
    found: dict[tuple[str, str], list[str]] = {}
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        for point in own:
            if point.refused is not None:
                found.setdefault((method, point.refused), []).append(shortened(point.setting))
        if not any(point.chosen for point in own) and all(point.refused is None for point in own):
            found[method, "skips nothing"] = []
    return [
        (f"{method}, {settings[0]}" if len(settings) == 1 else method, why) for (method, why), settings in found.items()
    ]


def shortened(setting: str) -> str:
    """A setting with short names, and a window of timesteps that all kinds share said once.

    >>> shortened("spatial_attention_block_skip_range 2, spatial_attention_timestep_skip_range 100 to 800")
    'spatial 2, timesteps 100 to 800'
    """
    window = r"(?:^|, )[a-z_]+_timestep_skip_range (-?\d+ to \d+)"
    windows = list(dict.fromkeys(re.findall(window, setting)))
    rest = re.sub(window, "", setting).removeprefix(", ")
    words = [rest] if rest else []
    words += [f"timesteps {one}" for one in windows]
    text = ", ".join(words)
    for long, short in SHORT.items():
        text = text.replace(long, short)
    return text.replace("_", " ")


SHORT = {
    "_attention_block_skip_range": "",
    "unconditional_batch_skip_range": "guidance",
    "disable_cache_before_step": "from step",
    "cache_interval": "interval",
    "max_order": "order",
    "use_lite_mode True": "lite",
    "use_lite_mode False, ": "",
    "max_skip_steps": "skips",
    "retention_ratio": "retention",
    "residual_order": "order",
    "max_consecutive_cached": "in a row",
    "residual_diff_threshold": "threshold",
    "Fn_compute_blocks": "F",
    "Bn_compute_blocks": "B",
    "max_continuous_cached_steps -1, ": "",
    "max_continuous_cached_steps": "in a row",
    "max_warmup_steps": "warm-up",
}
