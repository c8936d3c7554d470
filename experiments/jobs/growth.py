"""How the cost of each part of the toolkit grows with steps, blocks and prompts, and where it stops being practical.

`python -m fastercache.experiments.jobs.growth --out DIR` measures curves on random models that are as small as they can
be, so that what is left is the toolkit's own cost, and writes `DIR/growth.json` and `DIR/growth.png`. Seconds are
processor time of one run on this machine. A curve ends where its next point would take longer than `--longest`.
`--page FILE` puts the table into a page; `--plot-only` draws and writes from the file again.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pydantic import BaseModel, ConfigDict

import fastercache as fc
from fastercache.analysis.plots import save_png
from fastercache.analysis.record import record
from fastercache.analysis.trajectory import Trajectory, gram
from fastercache.experiments import pages
from fastercache.experiments.console import quiet, say
from fastercache.experiments.jobs.reporting import report
from fastercache.policies.documents import read_model, write_json
from fastercache.policies.errors import FasterCacheError
from fastercache.run.plan import RunPlan
from fastercache.tuner.fields import from_unit
from fastercache.tuner.joint import JointSpace
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.fitting import fit
from fastercache.tuner.planning.material import Material, material
from fastercache.tuner.planning.paths import plans
from fastercache.tuner.planning.portfolio import portfolio
from fastercache.tuner.planning.rehearsal import Foresight
from fastercache.tuner.propose import Proposer, Seen
from fastercache.tuner.setting import References, Setting, hardware
from fastercache.tuner.simulate import CostModel
from fastercache.tuner.space import SearchSpace
from fastercache.zoo.videos import latte

STEPS = (20, 50, 100, 200, 500, 1000)
BLOCKS = (4, 8, 16, 30, 60)
PROMPTS = (1, 2, 4, 8, 16, 32)
SEEN = 20
"""Trials made before the proposal that is timed."""
WHOLE = "fora", "taylorseer", "fastercache"
"""Methods that are searched together; each governs sites in every block."""
MODULES = {"attn1": fc.Role.SPATIAL, "attn2": fc.Role.CROSS, "ff": fc.Role.FF}
CALL = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False, "guidance_scale": 4.0}
LATENT = 1 << 14
"""Elements of the latents whose inner products are timed."""
PAGE = 5.0
"""MB: the most that a report may have."""
WHAT = "growth"
MARKS = "<!-- growth -->", "<!-- end growth -->"


class Curve(BaseModel):
    """One cost against one size.

    Attributes:
        what: in words. against: `steps`, `blocks` or `prompts`. unit: `s` or `MB`. beside: what else was fixed.
        practical: a cost beyond which it is no longer practical; None for what is there to compare with.
        points: (size, cost), rising.
        stopped: the first size that was left out because it would take too long, or was refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    what: str
    against: str
    unit: str
    beside: str
    practical: float | None
    points: tuple[tuple[int, float], ...]
    stopped: int | None = None

    @property
    def slope(self) -> float:
        """The power of the size that the cost grows with, over the last half of the sizes, at least two of them."""
        last = self.points[-max(len(self.points) // 2, 2) :]
        x, y = (np.log([max(point[i], 1e-9) for point in last]) for i in (0, 1))
        return float(np.polyfit(x, y, 1)[0]) if len(last) > 1 else math.nan

    @property
    def ends(self) -> tuple[float, bool] | None:
        """The size at which it stops being practical, and whether that is beyond what was measured; None for never."""
        if self.practical is None:
            return None
        if self.unit == "MB" and self.stopped is not None:
            return float(self.stopped), False
        known = [(math.log(x), math.log(max(y, 1e-9))) for x, y in self.points]
        limit = math.log(self.practical)
        for (x0, y0), (x1, y1) in pairwise(known):
            if y0 < limit <= y1:
                return math.exp(x0 + (limit - y0) / (y1 - y0) * (x1 - x0)), False
        if known[0][1] >= limit:
            return float(self.points[0][0]), False
        if not self.slope > 0.1:
            return None
        return math.exp(known[-1][0] + (limit - known[-1][1]) / self.slope), True


class Growth(BaseModel):
    """`growth.json`: all curves of one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hardware: str
    curves: tuple[Curve, ...]


def curve(
    what: str,
    against: str,
    sizes: Sequence[int],
    cost: Callable[[int], float],
    *,
    practical: float | None,
    longest: float,
    beside: str = "",
    unit: str = "s",
) -> Curve:
    """Measure a cost at each size, in turn, until the next would take longer than `longest` or one is refused.

    The next one is foreseen by the growth between the last two, at least linear.
    """
    points: list[tuple[int, float]] = []
    stopped = None
    for size in sizes:
        if unit == "s" and points:
            (x0, y0), (x1, y1) = (points[0], *points)[-2:]
            power = math.log(y1 / y0) / math.log(x1 / x0) if x1 > x0 and min(y0, y1) > 0.0 else 1.0
            if y1 * (size / x1) ** max(power, 1.0) > longest:
                stopped = size
                break
        try:
            points.append((size, cost(size)))
        except FasterCacheError as reason:
            say(f"{what}, {size} {against}: {reason}")
            stopped = size
            break
        say(f"{what}, {size} {against}: {points[-1][1]:.3g} {unit}")
    return Curve(
        what=what, against=against, unit=unit, beside=beside, practical=practical, points=tuple(points), stopped=stopped
    )


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """The least processor time of a few runs."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


# -- what is measured --------------------------------------------------------------------------------------------------
def sites_of(blocks: int) -> list[fc.Site]:
    """Blocks with two attentions and a feed-forward each, the stack, the branch, the denoiser."""
    found = [fc.Site("denoiser", fc.Kind.DENOISER), fc.Site("branch", fc.Kind.BRANCH)]
    found.append(fc.Site("stack", fc.Kind.STACK, span=(0, blocks)))
    for depth in range(blocks):
        span = (depth, depth + 1)
        found.append(fc.Site(f"blocks.{depth}", fc.Kind.BLOCK, None, depth, span))
        for name, role in MODULES.items():
            found.append(fc.Site(f"blocks.{depth}.{name}", fc.Kind.MODULE, role, depth, span))
    return found


def cost_model(steps: int, blocks: int) -> CostModel:
    """What policies cost on a made-up denoiser."""
    run = fc.Run.of(steps, sites=sites_of(blocks))
    shares = {s.name: 0.9 / len(run.sites) for s in run.sites if s.span[1] > s.span[0]}
    return CostModel(run, (100,) * steps, shares)


def compiling(steps: int, blocks: int) -> float:
    """A policy of every attention and feed-forward becomes a plan of a run."""
    run = fc.Run.of(steps, sites=sites_of(blocks))
    return seconds(lambda: RunPlan.of(fc.TaylorSeer(), run), 3)


def proposing(steps: int, blocks: int) -> float:
    """What `tune` does once a trial: propose a policy and forecast its FLOPs."""
    model = cost_model(steps, blocks)
    space = JointSpace.of({name: SearchSpace.of(name) for name in WHOLE})
    rng = np.random.default_rng(0)
    seen: list[Seen] = []
    while len(seen) < SEEN:
        params = space.draw(lambda p: from_unit(p, rng.random()))
        policy = space.build(params)
        seen.append(Seen(params, policy, model.forecast(policy).ratio, float(rng.normal()), bool(rng.random() < 0.5)))
    return seconds(lambda: Proposer(space, model.forecast).propose(seen, np.random.default_rng(1)))


def trajectory(steps: int) -> Trajectory:
    """The inner products of two made-up recorded runs."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(2, steps + 1, 64)), rng.normal(size=(2, steps, 64)).cumsum(axis=1)], axis=1)
    products = np.stack([gram([torch.from_numpy(vector) for vector in run]) for run in rows])
    return Trajectory(products, np.arange(steps, 0.0, -1.0), np.zeros((2, 0, 0)))


def planning(steps: int) -> float:
    """The plan of least isolated damage for every number of computed steps."""
    found = trajectory(steps)
    return seconds(lambda: plans(Damage(found, np.full(steps, -0.1))))


def multiplying(steps: int) -> float:
    """The inner products of one recorded run."""
    vectors = list(torch.randn(2 * steps + 1, LATENT, generator=torch.Generator().manual_seed(0)))
    return seconds(lambda: gram(vectors))


class Lab:
    """A random Latte that is as small as can be, at each number of blocks and steps, and what was recorded of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recorded: dict[tuple[int, int], tuple[Setting, Material, float]] = {}

    def setting(self, steps: int, blocks: int = 4) -> Setting:
        """Latte has its blocks in pairs."""
        pipe = latte(blocks // 2).build("latte").pipe
        pipe.set_progress_bar_config(disable=True)
        return Setting(pipe, {**CALL, "num_inference_steps": steps})

    def bare(self, steps: int, blocks: int = 4) -> float:
        """An uncached run."""
        setting = self.setting(steps, blocks)
        [case] = setting.cases(("warm-up",))
        return seconds(lambda: setting.generate(case), 2)

    def recorded(self, steps: int, prompts: int) -> tuple[Setting, Material, float]:
        """What `plan` records, and the seconds it took."""
        key = steps, prompts
        if key not in self._recorded:
            setting = self.setting(steps)
            references = References(setting, self.folder / f"{steps}-{prompts}")
            cases = setting.cases([f"prompt {n}" for n in range(prompts)])
            started = time.process_time()
            found = material(references, cases)
            self._recorded[key] = setting, found, time.process_time() - started
        return self._recorded[key]

    def choosing(self, steps: int) -> float:
        """The ten plans worth running for one number of computed steps, a fifth."""
        _, found, _ = self.recorded(steps, 2)
        foresight = Foresight.recorded(found.profile.trajectory, found.sampler)
        return seconds(lambda: portfolio(foresight, max(steps // 5, 2)))

    def fitting(self, steps: int, prompts: int) -> float:
        """Run the prompts under one plan with a fifth of the steps, and fit its weights."""
        setting, found, _ = self.recorded(steps, prompts)
        computed = tuple(range(0, steps, 5))
        return seconds(lambda: fit(setting.pipe, found.runs, found.sampler, computed, finish=False))

    def reporting(self, steps: int) -> tuple[float, float]:
        """The page of a recording: seconds, and its size in MB."""
        _, found, _ = self.recorded(steps, 2)
        place = found.profile.save(self.folder / f"profile-{steps}")
        return self._page(place.with_suffix(".json"))

    def analysing(self, blocks: int, steps: int = 20) -> tuple[float, float, float]:
        """A recording of every attention, and its page: seconds of both, and the page's size in MB."""
        setting = self.setting(steps, blocks)
        [case] = setting.cases(("one",))
        started = time.process_time()
        with record(setting.pipe) as recorder:
            setting.generate(case)
        recorder.profile().save(self.folder / f"sites-{blocks}")
        taken = time.process_time() - started
        return taken, *self._page(self.folder / f"sites-{blocks}")

    def _page(self, place: Path) -> tuple[float, float]:
        out = self.folder / "page.html"
        taken = seconds(lambda: report([place], out, show=False))
        return taken, out.stat().st_size / 1e6


def measured(longest: float, steps: Sequence[int], blocks: Sequence[int], prompts: Sequence[int]) -> Iterator[Curve]:
    """Every curve. A run's own overhead may take a second, what is done once a trial 10 s, planning 10 minutes."""
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name))

        def by_steps(what: str, cost: Callable[[int], float], practical: float | None, **more: Any) -> Curve:
            return curve(what, "steps", steps, cost, practical=practical, longest=longest, **more)

        yield by_steps("compile a policy", lambda n: compiling(n, 30), 1.0, beside="30 blocks")
        yield by_steps("propose a trial", lambda n: proposing(n, 30), 10.0, beside="30 blocks, 20 trials seen")
        yield by_steps("an uncached run, for comparison", lab.bare, None, beside="4 blocks")
        yield by_steps("record 2 prompts for planning", lambda n: lab.recorded(n, 2)[2], 600.0, beside="4 blocks")
        yield by_steps("multiply what was recorded", multiplying, 600.0, beside=f"a latent of {LATENT:,} numbers")
        yield by_steps("plan every number of computed steps", planning, 600.0)
        yield by_steps("choose 10 plans of a fifth of the steps", lab.choosing, 600.0)
        yield by_steps("fit a plan of a fifth of the steps", lambda n: lab.fitting(n, 2), 600.0, beside="2 prompts")
        page = cache(lab.reporting)

        yield by_steps("report a recording", lambda n: page(n)[0], 60.0)
        yield by_steps("size of its page", lambda n: page(n)[1], PAGE, unit="MB")

        def by_blocks(what: str, cost: Callable[[int], float], practical: float | None, **more: Any) -> Curve:
            return curve(what, "blocks", blocks, cost, practical=practical, longest=longest, **more)

        yield by_blocks("compile a policy", lambda b: compiling(50, b), 1.0, beside="50 steps")
        yield by_blocks("propose a trial", lambda b: proposing(50, b), 10.0, beside="50 steps, 20 trials seen")
        yield by_blocks("an uncached run, for comparison", lambda b: lab.bare(20, b), None, beside="20 steps")
        analysed = cache(lab.analysing)

        yield by_blocks("record every attention", lambda b: analysed(b)[0], 600.0, beside="20 steps")
        yield by_blocks("report such a recording", lambda b: analysed(b)[1], 60.0, beside="20 steps")
        yield by_blocks("size of its page", lambda b: analysed(b)[2], PAGE, beside="20 steps", unit="MB")

        def by_prompts(what: str, cost: Callable[[int], float]) -> Curve:
            return curve(what, "prompts", prompts, cost, practical=600.0, longest=longest, beside="20 steps, 4 blocks")

        yield by_prompts("record for planning", lambda p: lab.recorded(20, p)[2])
        yield by_prompts("fit a plan of a fifth of the steps", lambda p: lab.fitting(20, p))


def main(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where growth.json and growth.png go.")],
    longest: Annotated[float, typer.Option("--longest", min=0.1, help="Seconds that one point may take.")] = 40.0,
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE", help="Put the table into this page.")] = None,
    plot_only: Annotated[bool, typer.Option("--plot-only", help="Draw what was measured before.")] = False,
) -> None:
    """How the cost of each part grows with steps, blocks and prompts."""
    from fastercache.experiments.jobs.growth_page import draw, markdown

    quiet()
    file = out / "growth.json"
    if plot_only:
        found = read_model(file, Growth, WHAT)
    else:
        found = Growth(hardware=hardware("cpu"), curves=tuple(measured(longest, STEPS, BLOCKS, PROMPTS)))
        write_json(file, found.model_dump(mode="json"), WHAT)
    save_png(draw(found), out / "growth.png", dpi=110)
    if page is not None:
        pages.put_into(page, *MARKS, markdown(found))
    say(f"growth: {file}")


if __name__ == "__main__":
    typer.run(main)
