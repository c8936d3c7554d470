"""The price of a plan of a real checkpoint, from measured seconds of its denoiser: a table in `docs/checkpoints.md`.

Write it again with `python -m fastercache.experiments.site.prices`.
"""

from __future__ import annotations

import json
from typing import Any

from fastercache.experiments.pages import put_into
from fastercache.experiments.site.pages import ROOT
from fastercache.tuner.certify import prompts_needed
from fastercache.tuner.planning.planner import EFFORTS

BEGIN, END = "<!-- prices: begin -->", "<!-- prices: end -->"
MODELS = ("latte-1", "cogvideox-2b", "wan-2.1-1.3b", "vchitect-2.0", "mochi-1")
PAGE = ROOT / "docs" / "checkpoints.md"
SIZES = ROOT / "docs" / "bench" / "size"


def table() -> str:
    """The table, in Markdown: seconds of one loop at the published steps, the rest in multiples of it."""
    effort_0, effort_1 = (EFFORTS[effort].generations for effort in (0, 1))
    prompts = prompts_needed(0.05)
    lines = [
        f"| model | steps | one step | one uncached loop | plan, effort 0 (at most {effort_0:g}) | plan, default (at "
        f"most {effort_1:g}) | certificate ({prompts} prompts, a plan at 5x) | peak memory | kept by the plan |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        found: dict[str, Any] = json.loads((SIZES / f"{name}.json").read_text(encoding="utf-8"))
        rows = {row["name"]: row for row in found["rows"]}
        steps, planned = found["published_steps"], rows["planned"]
        step = rows["uncached"]["seconds"] / found["steps"]
        loop = step * steps
        lines.append(
            f"| {found['model']} | {steps} | {step:.2f} s | {loop:.0f} s | {minutes(loop * effort_0)} | "
            f"{minutes(loop * effort_1)} | {minutes(loop * prompts * 1.2)} | {planned['peak_gib']:.1f} GiB | "
            f"{planned['cached_gib'] * 1024:.0f} MiB |"
        )
    return "\n".join([*lines, ""])


def minutes(seconds: float) -> str:
    """`12 min`, `1.5 h`."""
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    put_into(PAGE, BEGIN, END, table())
