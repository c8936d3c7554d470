"""What else was measured on a model, as points of the page's front: benches, demos and held-out comparisons."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastercache.experiments.bench.contest import UNCACHED, Runs
from fastercache.experiments.bench.lineup import FEWER
from fastercache.experiments.bench.standings import Results
from fastercache.experiments.bench.verdict import mean_interval
from fastercache.policies.documents import read_model

Group = Literal["fewer steps", "published", "planned"]
PLANNED = "planned"


@dataclass(frozen=True)
class Rival:
    """One measured setting.

    Attributes:
        speedup: in FLOPs. psnr: dB, mean over `prompts` held-out prompts. low, high: its 95 % interval, where known.
        computed: steps of a plan, which the editor can load; None for anything else.
        source: where it was measured.
    """

    name: str
    group: Group
    speedup: float
    psnr: float
    prompts: int
    source: str
    low: float | None = None
    high: float | None = None
    computed: tuple[int, ...] | None = None

    def island(self) -> dict[str, Any]:
        return asdict(self)


def of_bench(results: Results) -> list[Rival]:
    """The settings of a bench that skip something."""
    found = []
    for line in results.ran:
        psnr = line.quality.get("psnr")
        if line.speedup_flops is None or psnr is None or line.idle:
            continue
        group = _group(line.policy, line.label == FEWER)
        name = line.setting if group == "fewer steps" else f"{line.method}, {line.setting}"
        found.append(
            Rival(
                name=name,
                group=group,
                speedup=line.speedup_flops.value,
                psnr=psnr.value,
                low=psnr.low,
                high=psnr.high,
                prompts=line.prompts,
                source=f"bench of {results.pipeline}",
                computed=_computed(line.policy),
            )
        )
    return found


def of_demo(table: dict[str, Any]) -> list[Rival]:
    """The rows of `demo.json`."""
    found = []
    for row in table.get("rows", ()):
        if row.get("name") == UNCACHED or row.get("psnr") is None:
            continue
        policy = row.get("policy", {})
        group = _group(policy, policy.get("policy") == "no_cache")
        found.append(
            Rival(
                row["name"],
                group,
                row["speedup_flops"],
                row["psnr"],
                row["prompts"],
                "demo",
                None,
                None,
                _computed(policy),
            )
        )
    return found


def of_held_out(folder: Path, computed: Sequence[int] | None) -> list[Rival]:
    """The comparison that `plan` makes on held-out prompts: the plan or plans, and fewer steps at their cost.

    `computed`: the plan that was exported, where its file is there.
    """
    runs = [
        run
        for case in read_model(folder / "runs.json", Runs, "bench's runs").cases.values()
        for run in case.runs.values()
    ]
    named: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["name"] != UNCACHED and "refused" not in run and "psnr" in run["quality"]:
            named.setdefault(run["name"], []).append(run)
    found = []
    for name, mine in named.items():
        plan = name.partition(",")[0] == PLANNED
        psnr = mean_interval([run["quality"]["psnr"] for run in mine])
        steps = tuple(computed) if plan and computed and folder.name.endswith(f"-{len(computed)}") else None
        found.append(
            Rival(
                name=name,
                group="planned" if plan else "fewer steps",
                speedup=statistics.fmean(run["flops_full"] / run["flops"] for run in mine),
                psnr=psnr.value,
                low=psnr.low,
                high=psnr.high,
                prompts=len(mine),
                source="held-out prompts",
                computed=steps,
            )
        )
    return found


def _group(policy: dict[str, Any], fewer: bool) -> Group:
    if fewer:
        return "fewer steps"
    return "planned" if policy.get("policy") == PLANNED else "published"


def _computed(policy: dict[str, Any]) -> tuple[int, ...] | None:
    return tuple(policy["computed"]) if policy.get("policy") == PLANNED else None
