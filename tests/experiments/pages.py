"""The pages of the documentation as what they tell a reader to type: Python blocks and command lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARDS = tuple(str(card.relative_to(ROOT)) for card in sorted((ROOT / "experiments" / "reference").glob("*/README.md")))
PAGES = ("README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))), *CARDS)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(fastercache [a-z][^`]*)`")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python(page: str) -> list[str]:
    """The Python blocks of a page, in order."""
    return [text for language, text in BLOCK.findall(read(page)) if language == "python"]


def typed(page: str) -> list[str]:
    """The lines of a page's shell blocks, without comments; blocks that show output or a table of modules are none."""
    blocks = [text for language, text in BLOCK.findall(read(page)) if language == "sh"]
    return [line.strip() for text in blocks for line in text.splitlines() if line.strip()]


def commands(page: str) -> list[list[str]]:
    """The words of every `fastercache` command line in a page's shell blocks."""
    lines = [shlex.split(line, comments=True) for line in typed(page)]
    return [words[1:] for words in lines if words[:1] == ["fastercache"]]


def mentioned(page: str) -> list[list[str]]:
    """The words of the commands that stand in running text."""
    return [shlex.split(text)[1:] for text in INLINE.findall(BLOCK.sub("", read(page)))]
