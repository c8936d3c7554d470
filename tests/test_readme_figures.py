"""Every figure of the README is found in a committed result, or is said here to be none.

A claim is a text of the README with its figures made from the results. What is left of the README when all claims are
taken out holds no digit: a figure without a source fails, and so does one that the results no longer give.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.experiments.pages import BLOCK, ROOT

DOCS = ROOT / "docs"
NAMES = (
    "Wan 2.1 1.3B", "Latte-1", "CogVideoX-2B", "Vchitect-2.0", "an H200", "Apache-2.0", "Lv et al. 2024",
    "<!-- families: begin -->", "<!-- families: end -->",
)  # fmt: skip
"""Names and citations."""
DECIDED = (
    "of 32 x 32 pixels on a CPU", "32 x 32 pixels, on a CPU",  # the models' cards
    "budget 9 times in 10", "about as much as 24 uncached generations, or 10 with",  # CONFIDENCE and EFFORTS
)  # fmt: skip
"""What was decided, not measured."""


def read(path: str) -> Any:
    return json.loads((DOCS / path).read_text(encoding="utf-8"))


def sized(value: float) -> str:
    """Bytes as tables write them."""
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.1f} {unit}".replace(".0 KiB", " KiB")
    return f"{value:.0f}"


def demo() -> Iterator[str]:
    """The demo's table, and what is said of it."""
    found = read("bench/latte-digits/demo.json")
    rows = {row["name"]: row for row in found["rows"]}
    planned, computed, steps = rows["planned"], len(found["computed_steps"]), 50
    best = rows["best published"]["policy"]
    assert best["policy"] == "hicache" and planned["speedup_flops"] == steps / computed
    labels = {
        "best published": f"best published: HiCache, interval {best['interval']}",
        "planned": f"**planned**: {computed} of {steps} steps computed",
    }
    for name, row in rows.items():
        psnr = "" if name == "uncached" else f"{row['psnr']:.2f} "
        yield (
            f"| {labels.get(name, name)} | {row['speedup_flops']:.2f}x | {row['speedup_wall']:.2f}x | {psnr}| "
            f"{row['ssim']:.4f} | {row['judge']:.0%} | {sized(row['cache_bytes'])} |".replace("% |", " % |")
        )
    search, held_out = found["prompts"]["search"], found["prompts"]["held_out"]
    budget, paper = float(found["budget"].removeprefix("psnr>=")), rows["FasterCache (paper)"]
    yield f"{held_out} held-out captions, mean; the plan was made from {search} others within psnr >= {budget:.1f}"
    yield f"cost {found['generations']:.1f} uncached generations' worth"
    yield f"records {search} search prompts uncached"
    yield (
        f"computes {computed} of {steps} steps ({planned['speedup_flops']:.2f}x in FLOPs, "
        f"{planned['speedup_wall']:.2f}x in time) at {planned['psnr']:.1f} dB to the uncached video, where FasterCache "
        f"as published has {paper['psnr']:.1f} dB at {paper['speedup_flops']:.2f}x"
    )
    assert planned["psnr"] >= budget


def real_size() -> Iterator[str]:
    """What is said of an H200."""
    models = {
        "Latte-1": "latte-1", "CogVideoX-2B": "cogvideox-2b", "Vchitect-2.0's size": "vchitect-2.0",
        "Wan 2.1 1.3B": "wan-2.1-1.3b",
    }  # fmt: skip
    found = {name: read(f"bench/size/{file}.json") for name, file in models.items()}
    assert all("H200" in one["device"] for one in found.values())

    def speedup(name: str, row: str) -> float:
        (value,) = (one["speedup"] for one in found[name]["rows"] if one["name"] == row)
        return float(value)

    yield ", ".join(f"{speedup(name, 'planned'):.2f}x on {name}" for name in models)
    paper = [speedup(name, "FasterCache") for name in models]
    yield f"gives {min(paper):.2f}x to {max(paper):.2f}x"


def planned() -> Iterator[str]:
    """What is said of both reference models at a quarter of the FLOPs: 12 of 50 steps."""
    rows = [row for model in ("latte-digits", "wan-digits") for row in read(f"bench/{model}/planned.json")["rows"]]
    ours = [row["psnr"] for row in rows if row["name"] == "planned, 12 of 50 steps"]
    fewer = [row["psnr"] for row in rows if row["name"] == "12 of 50 steps, no cache"]
    best = [row["psnr"] for row in rows if "steps" not in row["name"]]
    assert len(ours) == len(fewer) == len(best) == 2
    yield (
        f"keep {min(ours) // 10 * 10:.0f} dB and more at a quarter of the FLOPs, where the best published method keeps "
        f"{min(best):.0f} to {max(best):.0f} dB and as many uncached steps {min(fewer):.0f} to {max(fewer):.0f} dB"
    )


def models() -> Iterator[str]:
    """What is said of the families and of the sweep."""
    families, sweep = read("families.json"), read("sweep.json")
    page = (DOCS / "sweep.md").read_text(
        encoding="utf-8"
    )  # written with sweep.json, which leaves out what was not built
    pipelines = sum(bool(row["pipeline"]) for row in sweep)
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()[1:])
    assert all(row["cells"]["NoCache"] == "bit-equal" for row in sweep)
    (counted,) = re.findall(r"^(\d+) of (\d+) exported denoiser classes were built", page, flags=re.MULTILINE)
    yield f"{pipelines - len(families)} further pipelines of diffusers {pinned['diffusers']}"
    yield f"runs all {pipelines} pipelines, and {len(sweep) - pipelines} denoiser classes"
    yield f"On all {len(sweep)} a policy"
    yield f"also names the {int(counted[1]) - int(counted[0])} denoiser classes"


def package() -> Iterator[str]:
    """What is said of the trained model's size and of Python's version."""
    weights = (
        ROOT / "experiments" / "reference" / "latte-digits" / "transformer" / "diffusion_pytorch_model.safetensors"
    )
    with weights.open("rb") as file:  # eight bytes of length, then the shapes of all tensors as JSON
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    size = sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    yield f"a {size / 1e6:.0f}-million-parameter text-to-video model"
    yield f"({size / 1e6:.0f} million parameters, "
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield f"Python {project['requires-python'].removeprefix('>=')} or later"


CLAIMS = [claim for part in (demo, real_size, planned, models, package) for claim in part()]


def prose() -> str:
    """The README on one line, without code, addresses, and the rows of the families' table, which another test has."""
    text = BLOCK.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    text = re.sub(r"^\| `.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", re.sub(r"\]\([^)\s]*\)", "]", text))
    return " ".join(re.sub(r"^\d\. ", "", text, flags=re.MULTILINE).split())


def left(text: str) -> str:
    """What is left of a text without the claims, the names and what was decided."""
    for known in sorted((*CLAIMS, *DECIDED, *NAMES), key=len, reverse=True):
        text = text.replace(known, "")
    return text


@pytest.mark.parametrize("claim", [*CLAIMS, *DECIDED])
def test_the_readme_says_it_with_these_figures(claim: str) -> None:
    assert claim in prose()


def test_no_other_figure_stands_in_the_readme() -> None:
    assert re.findall(r".{0,40}\d.{0,20}", left(prose())) == []


def test_a_figure_without_a_source_is_found() -> None:
    assert re.findall(r"\d+", left(f"{prose()} It is 7.31x as fast.")) == ["7", "31"]
