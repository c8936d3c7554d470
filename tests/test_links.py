"""Every link within the documentation leads to a file that exists, and to a heading that exists in it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.experiments.pages import PAGES, ROOT

TEXTS = (*PAGES, "CHANGELOG.md", "CONTRIBUTING.md")
FENCED = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:)([^()\s]+)\)")


@cache
def prose(path: Path) -> str:
    """The text of a page without its code."""
    return FENCED.sub("", path.read_text(encoding="utf-8"))


@cache
def anchors(path: Path) -> frozenset[str]:
    """What may stand behind `#`: the headings in small letters, punctuation left out, a hyphen for each space."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return frozenset(found)


def broken(page: Path, text: str) -> list[str]:
    """Links of a text that lead nowhere, seen from the place of a page."""
    missing = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    return missing


@pytest.mark.parametrize("page", TEXTS)
def test_no_link_is_broken(page: str) -> None:
    assert broken(ROOT / page, prose(ROOT / page)) == []


def test_broken_ones_are_found() -> None:
    text = "[a](design.md) [b](design.md#laws) [c](#laws) [d](nothing.md) [e](design.md#nothing) `[f](g.md)` [h](https://i)"
    assert broken(ROOT / "docs" / "design.md", text) == ["nothing.md", "design.md#nothing"]
    assert sum(len(LINK.findall(prose(ROOT / page))) for page in TEXTS) > 50
