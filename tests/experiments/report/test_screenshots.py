"""The pictures for the docs: each is taken when the page says what the docs claim."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from fastercache.experiments.jobs.screenshots import SCALE, reduced, shots
from fastercache.experiments.pictures.browser import Browser
from fastercache.experiments.report.given import Given
from fastercache.policies.errors import ConfigUnreadable
from tests.experiments.pages import ROOT
from tests.experiments.report.conftest import STEPS

WIDTH = 860


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)]


@pytest.mark.slow
def test_each_picture_shows_what_it_claims(shown: Browser, found: Given) -> None:
    assert found.planning is not None and found.planning.planned is not None and found.profile is not None
    shown.look(WIDTH)
    taken = {shot.name: (shot, picture) for shot, picture in shots(shown)}
    assert list(taken) == ["redundant", "predictors", "matter", "cost", "edited", "front"]
    for shot, picture in taken.values():
        image = Image.open(io.BytesIO(picture))
        box = shown.run(f"return document.querySelector('{shot.part}').getBoundingClientRect().height")
        assert image.size == (round(WIDTH * SCALE), pytest.approx(box * SCALE, abs=2)), shot.name
        kept = np.asarray(Image.open(io.BytesIO(reduced(picture))).convert("RGB"), dtype=int)
        assert np.abs(kept - np.asarray(image.convert("RGB"), dtype=int)).mean() < 2.0
        assert len(reduced(picture)) < 150_000
    assert shown.run("return document.getElementById('pointer-drawn')") is None
    assert shown.errors() == []

    exported = set(found.planning.planned.computed)
    group, _ = next(found.profile.groups())
    says = taken["redundant"][0].says
    assert says.startswith(f"{group}, mean of")
    i, j = int(re.findall(r"for (\d+)", says)[0]), int(re.findall(r"step (\d+)", says)[0])
    assert numbers(says.split("relative L1")[1])[0] == pytest.approx(
        found.profile.matrix(group, "rel_l1")[i, j], rel=6e-3
    )

    assert taken["predictors"][0].says == "fitted"

    alone = found.planning.foresight.damage.alone()
    assert taken["matter"][0].says.startswith(f"step {int(np.nanargmax(alone))}: the worst step to skip")

    says, plan = taken["cost"][0].says, set(taken["cost"][0].plan)
    step, change = numbers(says)
    assert plan == exported and step not in exported and "is skipped; computing it: " in says
    foresight = found.planning.foresight
    before, after = (foresight.of(sorted(p)) for p in (exported, exported | {int(step)}))
    assert abs(change) == pytest.approx(abs(10.0 * np.log10(before / after)), abs=0.06)

    edited = set(taken["edited"][0].plan)
    added = sorted(edited - exported)
    assert edited > exported and added == list(range(added[0], added[-1] + 1))
    ends = [*sorted(exported)[1:], STEPS]
    longest = max(end - start - 1 for start, end in zip(sorted(exported), ends, strict=True))
    assert len(added) == (longest + 1) // 2
    assert f"{len(edited)} of {STEPS}" in taken["edited"][0].says

    assert taken["front"][0].plan == taken["edited"][0].plan  # only pointed at: the ring is the edited schedule
    assert taken["front"][0].says.startswith(f"planned, {len(edited)} of {STEPS} steps, predicted: ")


def test_the_docs_quote_what_the_page_said() -> None:
    folder = ROOT / "docs/images/see"
    words = " ".join((ROOT / "docs/see.md").read_text("utf-8").split())
    said = {shot["name"]: shot["says"] for shot in json.loads((folder / "shots.json").read_text("utf-8"))}
    assert {path.stem for path in folder.glob("*.png")} == set(said)
    for name in said:
        assert f"(images/see/{name}.png)" in words and (folder / f"{name}.png").stat().st_size < 150_000
    assert said["redundant"].partition(": ")[2] in words and said["cost"] in words
    assert said["matter"].split(";")[0] in words
    for name in ("edited", "front"):
        assert re.findall(r"[\d.]+ dB", said[name])[0].removesuffix(" dB") in words
        assert re.findall(r"([\d.]+)×", said[name])[0] + "x" in words


def test_a_page_without_a_profile_is_refused_by_name(shown: Browser) -> None:
    shown.run("document.getElementById('redundant').hidden = true")
    with pytest.raises(ConfigUnreadable, match=r"no section 'redundant'.*analyze"):
        next(shots(shown))
