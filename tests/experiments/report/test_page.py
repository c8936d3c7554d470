"""The page in a real browser: it opens, answers pointer and keyboard, and its file is one that `attach` takes."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import fastercache as fc
from fastercache.analysis.plots import guidance_info
from fastercache.experiments.pictures.browser import Browser
from fastercache.experiments.pictures.render import frames
from fastercache.experiments.report.given import Given
from tests.experiments.report.conftest import PLANS, STEPS, Made


def plan(window: Browser) -> list[int]:
    return list(window.run("return report.editor.plan"))


def step(number: int) -> str:
    return f'.step[data-step="{number}"]'


def test_opens_without_a_word_and_without_network(shown: Browser, page: Path) -> None:
    assert shown.errors() == []
    assert shown.run("return performance.getEntriesByType('resource').map((e) => e.name)") == []
    visible = shown.run("return [...document.querySelectorAll('main > section:not([hidden])')].map((s) => s.id)")
    assert visible == ["cost", "front", "matter", "bands", "videos", "redundant", "trust", "league", "made"]
    assert page.stat().st_size < 5_000_000
    text = page.read_text("utf-8")
    links = re.findall(r"(?:src|href)=[\"']?([^\"'\s>]*)", text)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert "fetch(" not in text and "import(" not in text


def test_the_editor_begins_with_the_exported_plan(shown: Browser, found: Given) -> None:
    assert found.planning is not None and found.planning.planned is not None
    computed = list(found.planning.planned.computed)
    assert plan(shown) == computed
    pressed = shown.run("return [...document.querySelectorAll('.step')].map((c) => c.getAttribute('aria-pressed'))")
    assert [k for k, on in enumerate(pressed) if on == "true"] == computed
    tiles = shown.text("#tiles")
    assert f"{len(computed)} of {STEPS}" in tiles and f"{STEPS / len(computed):.2f}×" in tiles


def test_click_drag_and_undo(shown: Browser) -> None:
    first = plan(shown)
    free = next(k for k in range(1, STEPS) if k not in first)
    shown.click(step(free))
    assert plan(shown) == sorted([*first, free])
    assert f"{len(first) + 1} of {STEPS}" in shown.text("#tiles")
    shown.click("#undo")
    assert plan(shown) == first
    shown.click("#redo")
    assert plan(shown) == sorted([*first, free])
    shown.click("#reset")
    shown.run("document.getElementById('steps').scrollIntoView({block: 'center'})")
    shown.pointer(*(shown.centre(step(k)) for k in range(free, STEPS)), down=True)
    dragged = plan(shown)
    assert dragged == sorted({*first, *range(free, STEPS)})
    shown.press("Control", "z")  # the whole drag is one entry
    assert plan(shown) == first
    shown.press("Control", "Shift", "z")
    assert plan(shown) == dragged
    shown.click(step(0))  # the first step has nothing before it
    assert plan(shown) == dragged and "must be computed" in shown.text("#step-readout")
    assert shown.errors() == []


@pytest.mark.parametrize("width", [400, 860, 1600])
def test_steps_stay_where_they_are_while_they_are_edited(shown: Browser, found: Given, width: int) -> None:
    """A measured plan has more to say than an edited one, and a drag goes on over the same boxes."""
    assert found.planning is not None and found.planning.planned is not None
    shown.look(width)
    first = plan(shown)
    where = "return document.getElementById('steps').getBoundingClientRect().top + scrollY"
    before = shown.run(where)
    shown.run("report.editor.load(arguments[0])", [0, 5])
    assert shown.run(where) == pytest.approx(before, abs=0.5) and plan(shown) != first
    shown.pointer(shown.centre(step(3)))
    shown.click(step(3))
    assert shown.text("#step-readout").startswith("step 3 is computed; skipping it: ")


def test_steps_by_keyboard(shown: Browser) -> None:
    first = plan(shown)
    shown.run("document.querySelector('.step').focus()")
    for _ in range(5):
        shown.press("ArrowRight")
    assert shown.run("return document.activeElement.dataset.step") == "5"
    assert "step 5 is" in shown.text("#step-readout")
    shown.press("Space")
    assert plan(shown) == sorted({*first} ^ {5})
    shown.press("Enter")
    assert plan(shown) == first
    shown.press("End")
    assert shown.run("return document.activeElement.dataset.step") == str(STEPS - 1)
    assert shown.run("return document.querySelectorAll('.step[tabindex=\"0\"]').length") == 1


def test_a_click_on_the_front_loads_that_plan(shown: Browser, found: Given) -> None:
    assert found.planning is not None
    by_count = {len(point.computed): list(point.computed) for point in found.planning.points}
    shown.click('[data-kind="predicted"][data-load="7"]')
    assert plan(shown) == by_count[7]
    (measured,) = (len(p.computed) for p in found.planning.points if p.verified and len(p.computed) < STEPS)
    shown.run(f'document.querySelector(\'[data-kind="measured"][data-load="{measured}"]\').focus()')
    assert f"{measured} of {STEPS} steps, measured on 2 search prompts" in shown.text("#front-readout")
    shown.press("Enter")
    assert plan(shown) == by_count[measured]
    shown.run("const r = document.getElementById('count'); r.value = 5; r.dispatchEvent(new Event('input'))")
    assert plan(shown) == by_count[5] and shown.text("#count-shown") == "5 steps"


def test_hovering_the_map(shown: Browser, found: Given) -> None:
    assert found.profile is not None
    shown.run("document.getElementById('map-measure').value = 'rel_l1'")
    shown.centre("#map")
    i, j = 9, 5
    x, y = shown.run(
        "const r = document.getElementById('map').getBoundingClientRect(), m = report.map;"
        f"return [r.left + m.edge + ({j} + 0.5) * m.side, r.top + 4 + ({i} + 0.5) * m.side]"
    )
    shown.pointer((round(x), round(y)))
    label, branch = shown.run("return [report.map.entry.label, report.map.entry.branch]")
    value = found.profile.matrix(label.split(",")[0], "rel_l1", branch)[i, j]
    words = shown.text("#map-readout")
    assert words.startswith(f"step {j} standing in for {i}: relative L1 {float(f'{value:.3g}'):g}, ")
    assert re.search(r"fitted [\d.e-]+$", words)
    shown.run("document.getElementById('map').focus()")
    shown.press("ArrowDown")
    assert shown.text("#map-readout").startswith(f"step {j} standing in for {i + 1}: ")
    for select, kind in (("map-site", "label"), ("map-branch", "branch")):
        last = shown.run(
            f"const s = document.getElementById('{select}'); s.selectedIndex = s.options.length - 1;"
            "s.dispatchEvent(new Event('change')); return s.value"
        )
        assert shown.run(f"return report.map.entry.{kind}") == last
    assert shown.errors() == []


def test_the_steps_that_matter(shown: Browser) -> None:
    shown.centre("#matter-chart")
    shown.pointer(shown.centre("#matter-chart svg"))
    assert re.match(r"step \d+: .* the schedule above (computes|skips) it$", shown.text("#matter-readout"))


def test_trust_is_the_rank_correlation_of_the_journals_plans(shown: Browser, found: Given) -> None:
    from scipy.stats import spearmanr

    assert found.planning is not None
    came = {plan: 10.0 * (4 + k) / math.log(10.0) for k, plan in enumerate(PLANS)}
    assert dict(found.planning.judged) == pytest.approx(came)
    foresight = found.planning.foresight
    expected = spearmanr([-foresight.of(p) for p, _ in found.planning.judged], [v for _, v in found.planning.judged])
    assert shown.run("return report.trust.correlation") == pytest.approx(expected.statistic)
    assert "5 plans" in shown.text("#trust-note")


def test_the_downloaded_schedule_is_attached_and_runs_as_edited(shown: Browser, made: Made) -> None:
    edited = [0, 1, 3, 4, 8, 10]
    before = list(shown.downloads.iterdir())
    shown.run("report.editor.load(arguments[0])", edited)
    shown.click("#download")
    file = shown.downloaded(before)
    assert file.name == f"schedule-6-of-{STEPS}.json"
    with fc.attach(made.subject.pipe, file) as session:
        made.subject.pipe("a red seven moving left", **made.subject.call, output_type="latent")
    assert session.last.speedup_flops == pytest.approx(2.0)
    policy = fc.load(file).policy
    assert isinstance(policy, fc.Planned) and list(policy.computed) == edited
    with pytest.raises(fc.ConfigMismatch, match="steps"), fc.attach(made.subject.pipe, file):
        made.subject.pipe("a red seven", **made.subject.call | {"num_inference_steps": 6}, output_type="latent")


def test_the_exported_plan_downloads_with_its_own_weights(shown: Browser, made: Made) -> None:
    before = list(shown.downloads.iterdir())
    shown.click("#download")
    assert fc.load(shown.downloaded(before)).policy == fc.load(made.folder / "tuned.json").policy


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_narrow_and_wide_light_and_dark(shown: Browser, width: int, scheme: str) -> None:
    shown.look(width, scheme=scheme)
    assert shown.run("return document.documentElement.scrollWidth") <= width
    boxes = shown.run("return [...document.querySelectorAll('.step .box')].map((b) => b.getBoundingClientRect().width)")
    assert min(boxes) >= 20
    colours = shown.run(
        "const c = (e, k) => getComputedStyle(e)[k].match(/[\\d.]+/g).slice(0, 3).map(Number);"
        "const b = document.body, on = document.querySelector('.step[aria-pressed=true] .box');"
        "return [[c(b, 'color'), c(b, 'backgroundColor')], [c(on, 'color'), c(on, 'backgroundColor')],"
        " [c(document.querySelector('.hint'), 'color'), c(b, 'backgroundColor')]]"
    )
    assert all(contrast(*pair) >= 4.5 for pair in colours), colours
    assert (luminance(colours[0][1]) < 0.1) == (scheme == "dark")
    assert shown.errors() == []


def luminance(colour: list[float]) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[float], b: list[float]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_what_it_was_made_from_and_pictures_without_scripts(page: Path, shown: Browser) -> None:
    words = shown.text("#made")
    for fact in ("LattePipeline", "DDIMScheduler", "Recorded prompts2", "fastercache report", "torch"):
        assert fact in words
    pictures = re.search(r"<noscript>(.*?)</noscript>", page.read_text("utf-8"), re.S)
    assert pictures is not None and pictures[1].count('src="data:image/png;base64,') >= 4
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert data is not None and json.loads(data[1])["planning"]["recording"]["runs"] == 2


def test_the_league_holds_the_profiles_figures(shown: Browser, found: Given) -> None:
    assert found.planning is not None and found.profile is not None
    rows = shown.run(
        "return [...document.querySelectorAll('#league table')].map((t) => [...t.rows].map((r) => [...r.cells].map("
        "(c) => c.textContent + (c.querySelector('b') ? '*' : ''))))"
    )
    outputs = found.planning.profile.predictability()
    assert rows[0][0] == ["predictor", "every 2nd", "every 3rd", "every 4th", "every 5th", "every 6th"]
    for name, *cells in rows[0][1:]:
        figures = outputs.means[outputs.predictors.index(name)]
        assert [float(cell.rstrip("*")) for cell in cells] == pytest.approx(figures.tolist(), rel=6e-3)
    best = [outputs.league(interval)[0][0] for interval in outputs.intervals]
    marked = [next(row[0] for row in rows[0][1:] if row[k + 1].endswith("*")) for k in range(len(best))]
    assert marked == best
    assert rows[1][0][1:] == [name for name, _ in found.profile.groups()]


def test_the_guidance_bands_are_the_profiles(shown: Browser, found: Given) -> None:
    assert found.profile is not None
    info = guidance_info(found.profile, ("cosine", "rel_l1"))
    shown.run("document.querySelector('#bands-chart svg').scrollIntoView({block: 'center'})")
    shown.pointer(shown.centre("#bands-chart svg"))
    words = shown.text("#bands-readout")
    assert re.match(r"step \d+: whole ", words)
    shown.run("document.querySelector('#bands-chart svg').focus()")
    shown.press("ArrowRight")
    step = int(re.match(r"step (\d+): ", words)[1]) + 1  # type: ignore[index]
    values = {c.band: 1.0 - float(c.mean[step]) for c in info.curves["cosine"]}
    read = dict(re.findall(r"(whole|low|high)(?: band)? ([\d.e-]+)", shown.text("#bands-readout")))
    assert shown.text("#bands-readout").startswith(f"step {step}: ")
    assert {band: float(value) for band, value in read.items()} == pytest.approx(values, rel=6e-2, abs=1e-6)
    shown.run(
        "const s = document.getElementById('bands-measure'); s.value = 'rel_l1'; s.dispatchEvent(new Event('change'))"
    )
    assert "mean|a − b| / mean|b|, cond standing in for uncond" in shown.text("#bands-note")
    assert shown.run("return document.querySelectorAll('#bands-chart polyline').length") == len(values)
    assert shown.errors() == []


def pixels(window: Browser, id_: str) -> np.ndarray:
    """What a canvas shows, (H, W, 3)."""
    height, width, flat = window.run(
        f"const c = document.getElementById('{id_}'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        "return [c.height, c.width, [...d.data]]"
    )
    return np.array(flat).reshape(height, width, 4)[..., :3]


def shows(window: Browser, frame: int) -> bool:
    for _ in range(100):
        if window.run("return report.videos.shown?.at") == frame:
            return True
        time.sleep(0.05)
    return False


def test_videos_side_by_side_in_step(shown: Browser, found: Given) -> None:
    """Each frame as it was kept, and the difference of the two by the factor that is named."""
    assert found.contests
    (case,) = shown.run("return report.videos.cases.map((c) => [c.prompt, c.settings.map((s) => s.name)])")
    assert case[0] == "a cyan one" and "planned" in case[1]
    runs = json.loads((found.contests[0] / "runs.json").read_text("utf-8"))["cases"]
    ((key, kept),) = runs.items()
    files = {run["name"]: found.contests[0] / f"video-{key}-{entry}.safetensors" for entry, run in kept["runs"].items()}
    uncached, planned = (frames(load_file(files[name])["video"]) for name in ("uncached", "planned"))
    shown.run(
        "const s = document.getElementById('videos-setting'); s.value = 'planned'; s.dispatchEvent(new Event('change'))"
    )
    shown.run("document.getElementById('videos-frame').focus()")
    shown.press("ArrowRight")
    shown.press("ArrowRight")
    assert shows(shown, 2) and shown.text("#videos-at") == f"3 of {len(uncached)}"
    gain = int(re.search(r"× (\d+)", shown.text("#video-gain"))[1])  # type: ignore[index]
    np.testing.assert_array_equal(pixels(shown, "video-uncached"), uncached[2])
    np.testing.assert_array_equal(pixels(shown, "video-chosen"), planned[2])
    changed = np.abs(uncached[2].astype(int) - planned[2].astype(int)) * gain
    np.testing.assert_array_equal(pixels(shown, "video-difference"), changed.clip(0, 255))
    shown.click("#videos-play")
    assert shown.text("#videos-play") == "Pause" and (shows(shown, 3) or shows(shown, 0))
    shown.click("#videos-play")
    assert shown.text("#videos-play") == "Play" and shown.errors() == []
