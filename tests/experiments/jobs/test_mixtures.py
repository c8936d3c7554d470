"""Mixtures beside the planner's own fit, and the search's words within their budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastercache import zoo
from fastercache.experiments.bench.verdict import Interval
from fastercache.experiments.jobs.mixed import LETTERS, Mixer, shared
from fastercache.experiments.jobs.mixtures import NONE, answer, cost, denser, flops, neighbour, spelled
from fastercache.policies.documents import read_json
from fastercache.tuner.planning.fitting import fit
from fastercache.tuner.planning.material import Material, material
from fastercache.tuner.setting import References, Setting

DOCS = Path(__file__).resolve().parents[3] / "docs"
STEPS = 8
WHOLE = "F.FF..F."
SHARES = {"F": 1.0, "C": 0.5, "H": 0.5, "Q": 0.25, "A": 0.4, "M": 0.6, ".": 0.0}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Setting, Material]:
    pipe = zoo.build("latte").pipe
    pipe.set_progress_bar_config(disable=True)
    call = {
        "height": 32,
        "width": 32,
        "video_length": 4,
        "num_inference_steps": STEPS,
        "clean_caption": False,
        "guidance_scale": 4.0,
    }
    setting = Setting(pipe, call)
    references = References(setting, tmp_path_factory.mktemp("references"))
    return setting, material(references, setting.cases(("one", "two")))


@pytest.fixture(scope="module")
def mixer(recorded: tuple[Setting, Material]) -> Mixer:
    return Mixer(*recorded)


def test_computing_every_step_gives_the_uncached_runs(mixer: Mixer) -> None:
    ran = mixer.run("F" * STEPS, [0, 1])
    for end, prompt in zip(ran.ends, mixer.prompts, strict=True):
        assert float((end - prompt.end).abs().max()) < 1e-4 * float(prompt.end.abs().max())


def test_a_word_of_whole_steps_is_the_planners_fit(recorded: tuple[Setting, Material], mixer: Mixer) -> None:
    setting, found = recorded
    computed = tuple(k for k, at in enumerate(WHOLE) if at == "F")
    fitted = fit(setting.pipe, found.runs, found.sampler, computed, finish=False)
    np.testing.assert_allclose(mixer.run(WHOLE, [0, 1]).errors, fitted.errors[-1], rtol=2e-2)


@pytest.mark.parametrize("letter", list("CHQAM"))
def test_a_letter_adds_what_it_computes(mixer: Mixer, letter: str) -> None:
    """At the last step, least squares with more features is no worse; given weights give the same run again."""
    held = mixer.run("FF......", [0, 1])
    word = f"FF.....{letter}"
    ran = mixer.run(word, [0, 1], begun=held)
    assert ran.errors.sum() < held.errors.sum()
    np.testing.assert_allclose(mixer.run(word, [0, 1], weights=ran.weights).errors, ran.errors, rtol=1e-4)
    np.testing.assert_allclose(mixer.run(word, [0, 1]).errors, ran.errors, rtol=1e-3)


def test_what_two_words_share_ends_before_a_stretch_that_may_end_elsewhere() -> None:
    assert shared("F..F..F.", "F..F...F") == 4
    assert shared("F..F..F.", "F..FC.F.") == 4
    assert shared("FF.F", "F..F") == 1
    assert shared("F.F.", "F.F.") == 3


def test_letters_cost_what_they_compute(mixer: Mixer) -> None:
    shares = flops(mixer)
    assert shares["F"] == 1.0 and shares["."] == 0.0 and shares["C"] == pytest.approx(0.5)
    assert 0.0 < shares["Q"] < shares["H"] < 1.0
    # attention and feed-forwards are each computed once, what is in neither by both
    assert 1.0 < shares["A"] + shares["M"] < 2.0


def test_denser_plans_are_thinned_to_the_budget() -> None:
    plan = spelled((0, 2, 4, 5, 7), STEPS)
    words = list(denser(plan, "C", SHARES, 4.0))
    assert words[0] == "F.F.FC.C" and len(words) == 4  # two of five become half steps
    assert all(cost(word, SHARES) <= 4.0 for word in words)
    assert not list(denser(plan, "C", SHARES, 2.0))


def test_neighbours_keep_the_budget_and_the_first_step() -> None:
    rng, word = np.random.default_rng(0), "F.F.F..."
    for _ in range(200):
        other = neighbour(word, LETTERS.replace(".", ""), SHARES, 3.0, rng)
        assert other[0] == "F" and len(other) == STEPS and 2.0 < cost(other, SHARES) <= 3.0 + 1e-9
        assert set(neighbour(word, "F", SHARES, 3.0, rng)) == {"F", "."}


def test_the_answer_is_that_of_the_interval() -> None:
    assert answer(Interval(0.5, 0.1, 0.9)) == "mixtures are better"
    assert answer(Interval(-0.5, -0.9, -0.1)) == "whole steps are better"
    assert answer(Interval(0.1, -0.3, 0.5)) == answer(Interval(0.1, None, None)) == "undecided"


def test_the_page_says_what_was_measured() -> None:
    found = [read_json(DOCS / f"bench/{model}/mixtures.json", "mixtures") for model in ("latte-digits", "wan-digits")]
    page = (DOCS / "planning.md").read_text(encoding="utf-8")
    rows = [row for one in found for row in one["counts"]]
    assert [row["speedup_flops"] for row in rows] == [5.0, 10.0] * 2 and {row["answer"] for row in rows} == {NONE}
    for letter in "CHQAM":
        shares = sorted({f"{one['flops_of_letters'][letter]:.2f}" for one in found})
        gains = " | ".join(f"{row['best_with_letter_db'][letter]:.1f}" for row in rows)
        assert f"| {' to '.join(shares)} | {gains} |" in page
    plans = [f"{row['whole']['psnr']['value']:.1f}" for row in rows]
    said = "{} and {} dB on 24 held-out prompts of latte-digits, {} and {} dB of wan-digits".format(*plans)
    assert said in page and {one["held_out_prompts"] for one in found} == {24}
    assert {(one["search_prompts"], one["words"]) for one in found} == {(4, 80)}
