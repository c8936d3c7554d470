"""The page's colours stay apart for a reader who cannot tell red from green, light and dark."""

from __future__ import annotations

import re

from fastercache.experiments.report.page import source
from tests.colour_vision import APART, nearest

SHOWN = ("computed", "damage", "fewer", "published", "predicted", "ground")


def test_the_pages_colours_are_told_apart() -> None:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", source("page.css"), re.S)
    )
    for scheme in (light, dark):
        assert scheme["measured"] == scheme["computed"] and scheme["edited"] == scheme["damage"]
        found = nearest(scheme[name] for name in SHOWN)
        assert found[0] >= APART, found
