"""How much of a plan's computed speedup arrives as time: the whole call, and the call less text and decoding.

`python -m fastercache.experiments.jobs.plan_time latte-digits --out DIR` runs plans of a few sizes and the uncached
pipeline in turn and compares medians. The weights of a plan are made up: time does not depend on their values, and what
they come to is not looked at.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fastercache as fc
from fastercache.experiments.console import progress, quiet
from fastercache.experiments.pipelines import open_pipeline, shipped_captions, with_steps
from fastercache.policies.documents import write_json
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.tuner.setting import Setting

SPEEDUPS = (2.5, 4.16, 5.0, 10.0)
HISTORY = 5


def evenly(steps: int, count: int) -> tuple[int, ...]:
    """So many of the steps, as far apart as they can be."""
    return tuple(int(s) for s in np.unique(np.linspace(0, steps - 1, count + 1)[:-1].round()))


def made_up(steps: int, computed: Sequence[int]) -> fc.Planned:
    """A plan of these computed steps, each stretch a combination of up to `HISTORY` outputs and the latent."""
    stretches = []
    for q, (first, end) in enumerate(zip(computed, [*computed[1:], steps], strict=True)):
        if end > first + 1:
            known = min(q + 1, HISTORY)
            weights = (1.0, *(1e-3 for _ in range(known - 1)))
            stretches.append(Stretch(after=first, start=first + 1, outputs=weights, input=1e-3))
    return fc.Planned(steps=steps, computed=tuple(computed), stand_in=Fitted(stretches=tuple(stretches), variance=True))


@contextmanager
def beside(pipe: Any) -> Iterator[list[float]]:
    """Collects the seconds that go into encoding text and decoding latents."""
    spent: list[float] = []
    began: list[float] = []
    encoders = [getattr(pipe, name) for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None)]
    handles = [e.register_forward_pre_hook(lambda *_: began.append(time.perf_counter())) for e in encoders]
    handles += [e.register_forward_hook(lambda *_: spent.append(time.perf_counter() - began.pop())) for e in encoders]
    decode = pipe.vae.decode

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return decode(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - start)

    pipe.vae.decode = timed
    try:
        yield spent
    finally:
        pipe.vae.decode = decode
        for handle in handles:
            handle.remove()


def measure(pipe: str, *, rounds: int, speedups: Sequence[float], seed: int) -> dict[str, Any]:
    """Medians over interleaved rounds: seconds and speedups of each plan, realised shares of the computed speedup."""
    subject = with_steps(open_pipeline(pipe))
    setting = Setting(subject.pipe, subject.call, seed)
    case = setting.cases(shipped_captions(pipe, "held_out")[:1])[0]
    steps = int(subject.call["num_inference_steps"])
    variants: dict[str, fc.Planned | None] = {"uncached": None}
    counts = [int(steps / speedup + 1e-9) for speedup in speedups]
    variants |= {f"{count} of {steps} steps": made_up(steps, evenly(steps, count)) for count in counts}
    whole: dict[str, list[float]] = {name: [] for name in variants}
    loop: dict[str, list[float]] = {name: [] for name in variants}
    flops: dict[str, float] = {}
    with progress() as bar:
        task = bar.add_task("rounds", total=(rounds + 1) * len(variants))
        for number in range(rounds + 1):  # the first is not counted
            for name, policy in variants.items():
                with nullcontext() if policy is None else fc.attach(subject.pipe, policy) as session:
                    with beside(subject.pipe) as spent:
                        began = time.perf_counter()
                        setting.generate(case)
                        seconds = time.perf_counter() - began
                    flops[name] = 1.0 if session is None else session.last.speedup_flops
                if number:
                    whole[name].append(seconds)
                    loop[name].append(seconds - sum(spent))
                bar.advance(task)
    rows = []
    for name in list(variants)[1:]:
        row: dict[str, Any] = {"name": name, "speedup_flops": flops[name]}
        for label, times in (("whole call", whole), ("less text and decoding", loop)):
            speedup = statistics.median(times["uncached"]) / statistics.median(times[name])
            row[label] = {"speedup": speedup, "realised": speedup / flops[name]}
        rows.append(row)
    return {"pipeline": pipe, "rounds": rounds, "rows": rows}


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("plan-time"),
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 9,
    speedups: Annotated[list[float] | None, typer.Option("--speedup")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Measure realised speedups of planned steps and write DIR/time.json."""
    quiet()
    found = measure(pipe, rounds=rounds, speedups=speedups or SPEEDUPS, seed=seed)
    write_json(out / "time.json", found, "times")
    for row in found["rows"]:
        told = "  ".join(
            f"{label}: {row[label]['speedup']:.2f}x, {row[label]['realised']:.0%} realised"
            for label in ("whole call", "less text and decoding")
        )
        print(f"{row['name']:16} {row['speedup_flops']:6.2f}x FLOPs  {told}")


if __name__ == "__main__":
    typer.run(main)
