"""Does the joint space pay? Whole-step plans beside mixtures of whole steps, single branches and parts of the layers.

`python -m fastercache.experiments.jobs.mixtures latte-digits --out DIR` searches, at the FLOPs of n computed steps,
once among words of F and `.` alone (whole-step plans) and once among all words of `mixed.LETTERS`, beginning from the
best whole-step plan and from mixtures made of denser plans. Both searches may run as many words, on the same search
prompts; every word has the best linear stand-ins that it can have. The two best are then run on held-out prompts with
the weights that were fitted on the search prompts. Each search is kept in DIR, and not run again.

The seconds of each letter are measured beside its FLOPs: a mixture that does not pay at equal FLOPs cannot pay at equal
time where its letters take a larger share of a whole step's time than of its FLOPs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import BaseModel, Field
from torch.utils.flop_counter import FlopCounterMode

from fastercache.analysis.quality import psnr
from fastercache.experiments.bench.verdict import Interval, mean_interval
from fastercache.experiments.console import progress, quiet, say
from fastercache.experiments.jobs.mixed import LETTERS, SKIP, WHOLE, Known, Mixer, Prompt, Ran, decoded
from fastercache.experiments.pipelines import open_pipeline, shipped_captions, with_steps
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.tuner.planning.material import Material, material
from fastercache.tuner.planning.portfolio import portfolio
from fastercache.tuner.planning.rehearsal import Foresight
from fastercache.tuner.setting import References, Setting

COUNTS = (10, 5)
"""Whole steps of 50 whose FLOPs are to be spent: 5x and 10x."""
ROUNDS = 9
WHAT = "searched mixtures"
NONE = "no mixture was better than the whole-step plan that the search began with"
DECIBELS = 10.0 / np.log(10.0)


class Searched(BaseModel):
    """One search: its best word, the words run, and the score of the best by words run and by letter mixed in."""

    word: str
    score: float
    run: int
    course: list[float]
    by_letter: dict[str, float] = Field(default_factory=dict)


class Kept(BaseModel):
    """The searches so far, by `COUNT whole` and `COUNT mixed`."""

    made_for: list[int]
    searches: dict[str, Searched] = Field(default_factory=dict)


def flops(mixer: Mixer) -> dict[str, float]:
    """FLOPs of each letter over those of F, counted on the first prompt."""
    found, begun = {}, mixer.begun
    for letter in LETTERS:
        with FlopCounterMode(display=False) as counter:
            _step(mixer, letter, begun)
        found[letter] = float(counter.get_total_flops())
    return {letter: value / found[WHOLE] for letter, value in found.items()}


def seconds(mixer: Mixer, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each letter's denoiser calls over those of F, in turn."""
    taken: dict[str, list[float]] = {letter: [] for letter in LETTERS if letter != SKIP}
    begun = mixer.begun
    for _ in range(rounds + 1):
        for letter, values in taken.items():
            started = time.perf_counter()
            _step(mixer, letter, begun)
            values.append(time.perf_counter() - started)
    medians = {letter: statistics.median(values[1:]) for letter, values in taken.items()}
    return {letter: value / medians[WHOLE] for letter, value in medians.items()}


def _step(mixer: Mixer, letter: str, begun: tuple[Prompt, Known]) -> None:
    """What one step of a letter computes, after two F."""
    prompt, known = begun
    if letter == SKIP:
        return
    with mixer.wrapped():
        for conditional in (True,) if letter == "C" else (True, False):
            mixer.computed(prompt, known, 2, WHOLE if letter == "C" else letter, conditional)


def cost(word: str, shares: Mapping[str, float]) -> float:
    """FLOPs of a word in whole steps."""
    return sum(shares[letter] for letter in word)


def spelled(computed: tuple[int, ...], steps: int) -> str:
    """The word of a whole-step plan."""
    return "".join(WHOLE if k in computed else SKIP for k in range(steps))


def denser(plan: str, letter: str, shares: Mapping[str, float], budget: float) -> Iterator[str]:
    """Mixtures of a letter made of a plan with more whole steps than the budget holds: as few of them as need be become
    that letter, the last ones, every other one, or those that are nearest to another computed step."""
    places = [k for k, at in enumerate(plan) if at == WHOLE][1:]
    saved = 1.0 - shares[letter]
    count = int(np.ceil((cost(plan, shares) - budget) / saved - 1e-9))
    if not 0 < count <= len(places):
        return
    spread = [places[i] for i in np.linspace(0, len(places) - 1, count).round().astype(int)]
    gaps = {k: min(abs(k - j) for j, at in enumerate(plan) if at == WHOLE and j != k) for k in places}
    near = sorted(places, key=lambda k: (gaps[k], k))[:count]
    for turned in (places[-count:], places[:count], spread, near):
        yield "".join(letter if k in turned else at for k, at in enumerate(plan))


def neighbour(word: str, letters: str, shares: Mapping[str, float], budget: float, rng: np.random.Generator) -> str:
    """A word near another: one or two computed steps are cleared, and what they cost is spent again."""
    found = list(word)
    computed = [k for k, at in enumerate(word) if at != SKIP and k]
    cleared = rng.choice(computed, min(int(rng.integers(1, 3)), len(computed)), replace=False)
    for k in cleared:
        found[int(k)] = SKIP
    letter = str(rng.choice(list(letters)))
    for one in (letter, letter, letter, letter, WHOLE, *letters):
        while cost("".join(found), shares) + shares[one] <= budget + 1e-9:
            free = [k for k, at in enumerate(found) if at == SKIP]
            if not free:
                break
            if rng.random() < 0.5:  # near what was cleared
                free = sorted(free, key=lambda k: (min(abs(k - int(c)) for c in cleared), k))[:6]
            found[int(rng.choice(free))] = one
            if one != WHOLE and rng.random() < 0.3:
                break
    return "".join(found)


def searched(
    mixer: Mixer, starts: list[str], letters: str, budget: float, words: int, shares: Mapping[str, float], tick: Any
) -> Searched:
    """Run the starts, then neighbours of the best so far, until so many words were run."""
    rng, prompts = np.random.default_rng(0), range(len(mixer.prompts))
    best: Ran | None = None
    seen: set[str] = set()
    course: list[float] = []
    by_letter: dict[str, float] = {}
    queue = list(dict.fromkeys(starts))[:words]
    while len(course) < words:
        word = queue.pop(0) if queue else ""
        for _ in range(1000):
            if word and word not in seen:
                break
            assert best is not None
            word = neighbour(best.mix, letters, shares, budget, rng)
        else:
            break  # nothing new is near
        seen.add(word)
        ran = mixer.run(word, prompts, begun=best)
        if best is None or ran.score < best.score:
            best = ran
        for letter in set(word) - {SKIP, WHOLE}:
            by_letter[letter] = min(by_letter.get(letter, np.inf), ran.score)
        course.append(best.score)
        tick()
    assert best is not None
    return Searched(word=best.mix, score=best.score, run=len(course), course=course, by_letter=by_letter)


def held_out(setting: Setting, mixer: Mixer, others: Mixer, held: Material, word: str) -> list[float]:
    """PSNR of each held-out video under a word, with weights fitted on the search prompts."""
    weights = mixer.run(word, range(len(mixer.prompts))).weights
    ran = others.run(word, range(len(others.prompts)), weights=weights)
    pairs = zip(held.cases, ran.ends, held.videos, strict=True)
    return [float(psnr(decoded(setting, case, end)[None], video[None])[0]) for case, end, video in pairs]


def measure(pipe: str, folder: Path, *, search: int, fresh: int, words: int, seed: int) -> dict[str, Any]:
    """Search whole-step plans and mixtures at each of `COUNTS`, and compare them on held-out prompts."""
    subject = with_steps(open_pipeline(pipe))
    setting = Setting(subject.pipe, subject.call, seed)
    references = References(setting, folder / "references")
    say(f"recording {search} search prompts and {fresh} held-out prompts")
    found = material(references, setting.cases(shipped_captions(pipe, "train")[:search]))
    others = Setting(subject.pipe, subject.call, seed + 100_000)
    held = material(References(others, folder / "references"), others.cases(shipped_captions(pipe, "held_out")[:fresh]))
    mixer, fresh_mixer = Mixer(setting, found), Mixer(others, held)
    shares, times = flops(mixer), seconds(mixer)
    made_for = [search, words, seed]
    try:
        kept = read_model(folder / "searches.json", Kept, WHAT)
        if kept.made_for != made_for:
            kept = Kept(made_for=made_for)
    except Missing:
        kept = Kept(made_for=made_for)
    foresight = Foresight.recorded(found.profile.trajectory, found.sampler)
    steps = mixer.steps
    rows = []
    with progress() as bar:
        task = bar.add_task("words", total=2 * words * len(COUNTS))
        for count in COUNTS:
            for arm in ("whole", "mixed"):
                name = f"{count} {arm}"
                if name not in kept.searches:
                    letters = WHOLE if arm == "whole" else LETTERS.replace(SKIP, "")
                    starts = [spelled(plan, steps) for plan in portfolio(foresight, count)]
                    if arm == "mixed":
                        starts = [kept.searches[f"{count} whole"].word]
                        for letter in letters.replace(WHOLE, ""):
                            for more in (1, 2, 4):
                                plan = spelled(portfolio(foresight, count + more)[0], steps)
                                starts += denser(plan, letter, shares, count)
                    kept.searches[name] = searched(
                        mixer, starts, letters, count, words, shares, lambda: bar.advance(task)
                    )
                    write_json(folder / "searches.json", kept.model_dump(), WHAT)
            rows.append(_compared(setting, mixer, fresh_mixer, held, count, kept, shares))
    return {
        "pipeline": pipe,
        "steps": steps,
        "search_prompts": search,
        "held_out_prompts": fresh,
        "words": words,
        "flops_of_letters": shares,
        "seconds_of_letters": times,
        "counts": rows,
    }


def _compared(
    setting: Setting,
    mixer: Mixer,
    others: Mixer,
    held: Material,
    count: int,
    kept: Kept,
    shares: Mapping[str, float],
) -> dict[str, Any]:
    """The best whole-step plan and the best word of all at one budget, on held-out prompts."""
    whole, mixed = (kept.searches[f"{count} {arm}"] for arm in ("whole", "mixed"))
    values = {word: held_out(setting, mixer, others, held, word) for word in {whole.word, mixed.word}}
    gain = mean_interval([a - b for a, b in zip(values[mixed.word], values[whole.word], strict=True)])
    return {
        "count": count,
        "speedup_flops": len(whole.word) / count,
        **{
            arm: {
                "word": one.word,
                "flops": cost(one.word, shares),
                "search_score_db": -one.score * DECIBELS,
                "psnr": mean_interval(values[one.word])._asdict(),
            }
            for arm, one in (("whole", whole), ("mixed", mixed))
        },
        "gain_db": gain._asdict(),
        "best_with_letter_db": {
            letter: (whole.score - score) * DECIBELS for letter, score in sorted(mixed.by_letter.items())
        },
        "answer": NONE if mixed.word == whole.word else answer(gain),
    }


def answer(gain: Interval) -> str:
    """Whether mixtures are better, from the paired difference and its 95 % interval."""
    if gain.low is None or gain.high is None or gain.low <= 0.0 <= gain.high:
        return "undecided"
    return "mixtures are better" if gain.low > 0.0 else "whole steps are better"


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE", help="latte-digits or wan-digits.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("mixtures"),
    search: Annotated[int, typer.Option("--search-count", min=2, help="Prompts that words are searched on.")] = 6,
    held_out_count: Annotated[int, typer.Option("--held-out-count", min=2)] = 24,
    words: Annotated[int, typer.Option("--words", min=2, help="Words that each search may run.")] = 100,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Compare whole-step plans with mixtures at equal FLOPs and write DIR/mixtures.json."""
    quiet()
    found = measure(pipe, out, search=search, fresh=held_out_count, words=words, seed=seed)
    write_json(out / "mixtures.json", found, "mixtures")
    for row in found["counts"]:
        gain = row["gain_db"]
        between = f"[{gain['low']:+.2f}, {gain['high']:+.2f}]"
        print(f"{row['speedup_flops']:.1f}x: mixed - whole = {gain['value']:+.2f} dB {between}: {row['answer']}")
        print(f"  whole {row['whole']['psnr']['value']:.1f} dB  {row['whole']['word']}")
        print(f"  mixed {row['mixed']['psnr']['value']:.1f} dB  {row['mixed']['word']}")


if __name__ == "__main__":
    typer.run(main)
