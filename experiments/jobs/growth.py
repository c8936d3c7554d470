"""How the cost of compiling, proposing and planning grows with sites and steps, without a model.

`python -m fastercache.experiments.jobs.growth [--out FILE]` prints two tables: a policy of every site compiled,
forecast and proposed at 60, 170 and 600 sites, and the whole-step planner at 20 to 1000 steps. Seconds are medians of
processor time on this machine; they are for reading, nothing is decided by them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table as Printed

import fastercache as fc
from fastercache.analysis.trajectory import Trajectory, gram
from fastercache.policies.documents import write_json
from fastercache.run.plan import RunPlan
from fastercache.tuner.fields import from_unit
from fastercache.tuner.joint import JointSpace
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.paths import plans
from fastercache.tuner.propose import Proposer, Seen
from fastercache.tuner.simulate import CostModel
from fastercache.tuner.space import SearchSpace

SITES = (60, 170, 600)
STEPS = (20, 50, 100, 200, 500, 1000)
SEEN = 20
"""Trials made before the proposal that is timed."""
WHOLE = "fora", "taylorseer", "fastercache"
"""Methods that are searched together; each governs sites in every block."""
MODULES = {"attn1": fc.Role.SPATIAL, "attn2": fc.Role.CROSS, "ff": fc.Role.FF}


def sites_of(count: int) -> list[fc.Site]:
    """About `count` sites: blocks with two attentions and a feed-forward each, the stack, the branch, the denoiser."""
    found = [fc.Site("denoiser", fc.Kind.DENOISER), fc.Site("branch", fc.Kind.BRANCH)]
    blocks = (count - 3) // 4
    found.append(fc.Site("stack", fc.Kind.STACK, span=(0, blocks)))
    for depth in range(blocks):
        span = (depth, depth + 1)
        found.append(fc.Site(f"blocks.{depth}", fc.Kind.BLOCK, None, depth, span))
        for name, role in MODULES.items():
            found.append(fc.Site(f"blocks.{depth}.{name}", fc.Kind.MODULE, role, depth, span))
    return found


def by_sites(count: int, repeats: int, steps: int = 50) -> dict[str, Any]:
    """Seconds of what the tuner does once a trial at so many sites."""
    run = fc.Run.of(steps, sites=sites_of(count))
    model = CostModel(run, (100,) * steps, {s.name: 0.9 / len(run.sites) for s in run.sites if s.span[1] > s.span[0]})
    space = JointSpace.of({name: SearchSpace.of(name) for name in WHOLE})
    rng = np.random.default_rng(0)
    seen: list[Seen] = []
    while len(seen) < SEEN:
        params = space.draw(lambda p: from_unit(p, rng.random()))
        policy = space.build(params)
        ratio = model.forecast(policy).ratio
        seen.append(Seen(params, policy, ratio, float(rng.normal()), bool(rng.random() < 0.5)))
    every = fc.TaylorSeer()
    return {
        "sites": len(run.sites),
        "compile": _median(lambda: RunPlan.of(every, run), repeats),
        "forecast": _median(lambda: model.forecast(every), repeats),
        "propose": _median(lambda: Proposer(space, model.forecast).propose(seen, np.random.default_rng(1)), repeats),
    }


def by_steps(steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of the planner for every amount of compute, from the inner products of two made-up recorded runs."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(2, steps + 1, 64)), rng.normal(size=(2, steps, 64)).cumsum(axis=1)], axis=1)
    products = np.stack([gram([torch.from_numpy(vector) for vector in run]) for run in rows])
    trajectory = Trajectory(products, np.arange(steps, 0.0, -1.0), np.zeros((2, 0, 0)))
    longest = None if steps <= 200 else 50  # of so many steps no useful plan skips more in a row
    return {
        "steps": steps,
        "plan": _median(lambda: plans(Damage(trajectory, np.full(steps, -0.1)), longest=longest), repeats),
    }


def _median(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def _printed(title: str, rows: list[dict[str, Any]]) -> Printed:
    table = Printed(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{v:.3f} s" if isinstance(v, float) else str(v) for v in row.values()))
    return table


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, of which the median is printed.")] = 3,
    sites: Annotated[list[int] | None, typer.Option(min=8, help="Numbers of sites. [60, 170, 600]")] = None,
    steps: Annotated[list[int] | None, typer.Option(min=4, help="Numbers of steps. [20 to 1000]")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """How the cost of compiling, proposing and planning grows with sites and steps."""
    console = Console()
    by_site = [by_sites(count, repeats) for count in sites or SITES]
    console.print(_printed("once a trial, by sites (50 steps)", by_site))
    by_step = [by_steps(count, repeats) for count in steps or STEPS]
    console.print(_printed("planning every amount of compute, by steps", by_step))
    if out is not None:
        write_json(out, {"sites": by_site, "steps": by_step}, "figures")
        console.print(f"written to {out}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
