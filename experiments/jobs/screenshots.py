"""Pictures of a report for the docs: a newcomer's three questions, each clicked through in a real browser.

`python -m fastercache.experiments.jobs.screenshots report.html --out docs/images/see` opens the page from disk, does
what `docs/see.md` tells a reader to do, and keeps a picture of the part that answers. An arrow stands where the pointer
is, which a browser without a screen does not draw.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from fastercache.experiments.pictures.browser import Browser, browser
from fastercache.policies.documents import write_atomic, write_json
from fastercache.policies.errors import ConfigUnreadable

WIDTH, SCALE, COLOURS = 860, 1.5, 256
"""Of the page in CSS pixels; pixels of the picture for each of them; colours of the picture."""

Point = tuple[int, int]


@dataclass(frozen=True)
class Shot:
    """A picture and what the page said when it was taken.

    Attributes:
        name: of the file. part: what it shows, a CSS selector. says: the line that answers. plan: steps computed by the
            schedule in the editor.
    """

    name: str
    part: str
    says: str
    plan: tuple[int, ...]


def shots(window: Browser) -> Iterator[tuple[Shot, bytes]]:
    """Click through the three questions, with a picture of each answer, (shot, PNG).

    Args:
        window: a browser that shows a report of a feature profile and a planning folder.

    Raises:
        ConfigUnreadable: if the page lacks one of the two.
    """
    for section, source in (("redundant", "of `analyze`"), ("cost", "of `plan`"), ("front", "of `plan`")):
        if window.run("return document.getElementById(arguments[0]).hidden", section):
            raise ConfigUnreadable(
                f"this page has no section '{section}': make it with `fastercache report` from a folder {source} too"
            )
    for take in (_redundant, _predictors, _matter, _cost, _edited, _front):
        shot = take(window)
        yield shot, window.picture(shot.part, SCALE)
        window.run("document.getElementById('pointer-drawn')?.remove()")


def _redundant(window: Browser) -> Shot:
    """Which steps are alike: the map of the first role of sites, a step beside the last but one before it."""
    site, steps = window.run(
        "const s = document.getElementById('map-site'); s.selectedIndex = 0; s.dispatchEvent(new Event('change'));"
        "return [s.value, report.map.entry.steps]"
    )
    i, j = round(0.6 * steps), round(0.6 * steps) - 2
    window.centre("#map")
    x, y = window.run(
        "const r = document.getElementById('map').getBoundingClientRect(), m = report.map;"
        "return [r.left + m.edge + (arguments[1] + 0.5) * m.side, r.top + 4 + (arguments[0] + 0.5) * m.side]",
        i,
        j,
    )
    _pointed(window, (round(x), round(y)))
    return _shot(window, "redundant", "#redundant", f"{site}: {window.text('#map-readout')}")


def _predictors(window: Browser) -> Shot:
    """How much of it a forecast finds: the league."""
    best = window.run(
        "const t = [...document.querySelectorAll('#league table')].pop();return t.rows[1].cells[0].textContent"
    )
    return _shot(window, "predictors", "#league", str(best))


def _matter(window: Browser) -> Shot:
    """The step that is worst to skip."""
    window.centre("#matter-chart")
    x, y = window.run(
        "const { level, place, frame } = report.matter, worst = level.indexOf(0);"
        "const r = place.firstChild.getBoundingClientRect();"
        "return [r.left + frame.left(worst), r.top + frame.top(0)]"
    )
    _pointed(window, (round(x), round(y)))
    return _shot(window, "matter", "#matter", window.text("#matter-readout"))


def _cost(window: Browser) -> Shot:
    """The schedule that `plan` exported, and what computing one more step would change."""
    step = window.run(
        "const { plan, schedules } = report.editor, all = [...Array(schedules.steps).keys()];"
        "const runs = all.filter((k) => !plan.includes(k) && k > schedules.steps / 2);"
        "return runs[Math.floor(runs.length / 2)]"
    )
    _pointed(window, window.centre(_step(step)))
    return _shot(window, "cost", "#cost", window.text("#step-readout"))


def _edited(window: Browser) -> Shot:
    """The first half of the longest stretch computed by dragging over it."""
    first, last = window.run(
        "const { plan, schedules } = report.editor, ends = [...plan.slice(1), schedules.steps];"
        "const long = plan.map((s, q) => [ends[q] - s, s + 1, ends[q] - 1]).sort((a, b) => b[0] - a[0])[0];"
        "return [long[1], long[1] + Math.ceil((long[2] - long[1] + 1) / 2) - 1]"
    )
    window.centre(_step(first))
    _pointed(window, *(_at(window, step) for step in range(first, last + 1)), down=True)
    tiles = window.run(
        "return [...document.querySelectorAll('.tile')].map("
        "(tile) => [...tile.children].map((line) => line.textContent).join(': '))"
    )
    return _shot(window, "edited", "#cost", "; ".join(tiles))


def _front(window: Browser) -> Shot:
    """The edited schedule beside the best ones, the pointer on the best one of as many steps."""
    count = window.run("return report.editor.plan.length")
    _pointed(window, window.centre(f'[data-kind="predicted"][data-load="{count}"]'))
    return _shot(window, "front", "#front", window.text("#front-readout"))


def _step(step: int) -> str:
    return f'.step[data-step="{step}"]'


def _at(window: Browser, step: int) -> Point:
    """The middle of a step's box, without scrolling."""
    x, y = window.run(
        "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [r.left + r.width / 2, r.top + r.height / 2]",
        _step(step) + " .box",
    )
    return round(x), round(y)


def _pointed(window: Browser, *points: Point, down: bool = False) -> None:
    """Move the pointer, and draw its way and where it stands."""
    window.pointer(*points, down=down)
    window.run(
        "const p = arguments[0].map(([x, y]) => [x + scrollX, y + scrollY]), [x, y] = p[p.length - 1];"
        "const size = document.documentElement, box = document.createElement('div'); box.id = 'pointer-drawn';"
        "box.style.cssText = 'position:absolute;left:0;top:0;pointer-events:none;z-index:9';"
        "const way = p.map((q) => q.join()).join(' ');"
        "box.innerHTML = `<svg width='${size.scrollWidth}' height='${size.scrollHeight}' style='display:block'>"
        "<polyline points='${way}' fill='none' stroke='#000' stroke-opacity='.25' stroke-width='5'/>"
        "<path transform='translate(${x} ${y})' d='M0 0V17L4 13.4L6.8 19.6L9.6 18.4L6.8 12.4H12Z' fill='#000' "
        "stroke='#fff' stroke-width='1.3'/></svg>`;"
        "document.body.append(box)",
        [list(point) for point in points],
    )


def _shot(window: Browser, name: str, part: str, says: str) -> Shot:
    return Shot(name, part, says, tuple(window.run("return report.editor.plan")))


def taken(report: Path, out: Path) -> list[Shot]:
    """Write `NAME.png` of each shot into a folder, and `shots.json`: what the page said in each.

    Raises:
        MissingDependency: without Chromium. ConfigUnreadable: if there is no such page, or it lacks a section.
    """
    if not report.is_file():
        raise ConfigUnreadable(f"there is no page {report}: make it with `fastercache report`")
    found = []
    with tempfile.TemporaryDirectory() as downloads, browser(Path(downloads)) as window:
        window.look(WIDTH)
        window.open(report)
        for shot, picture in shots(window):
            write_atomic(out / f"{shot.name}.png", reduced(picture), "screenshot")
            found.append(shot)
    write_json(out / "shots.json", [asdict(shot) for shot in found], "screenshots")
    return found


def reduced(picture: bytes) -> bytes:
    """A PNG of `COLOURS` colours: half the size, and no difference that an eye sees."""
    buffer = io.BytesIO()
    whole = Image.open(io.BytesIO(picture)).convert("RGB")
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A page of `fastercache report`.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("docs/images/see"),
) -> None:
    """Take the pictures of the three questions."""
    for shot in taken(report, out):
        path = out / f"{shot.name}.png"
        print(f"{path}: {path.stat().st_size // 1024} KiB, {shot.says}")


if __name__ == "__main__":
    typer.run(main)
