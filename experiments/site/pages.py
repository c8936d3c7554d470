"""Which file of the repository is which page of the site, and the links between them.

Files under `docs/` are pages by their own names; a few others become pages too. A link to a file that is no page cannot
be followed on the site, so there its path is written out instead.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OTHERS = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "experiments/reference/latte-digits/README.md": "models/latte-digits.md",
    "experiments/reference/latte-digits-8/README.md": "models/latte-digits-8.md",
    "experiments/reference/wan-digits/README.md": "models/wan-digits.md",
}
"""Files outside `docs/` that are pages, by the page's name."""
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?!\w+:)([^()\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", flags=re.DOTALL | re.MULTILINE)


def source(page: str) -> str | None:
    """The repository's file that a page is made of; None for one that is made from code."""
    for file, name in OTHERS.items():
        if name == page:
            return file
    return f"docs/{page}" if (ROOT / "docs" / page).is_file() else None


def target(file: str) -> str | None:
    """Where a file of the repository stands on the site; None where it is not there."""
    if file in OTHERS:
        return OTHERS[file]
    return file.removeprefix("docs/") if file.startswith("docs/") else None


def moved(text: str, file: str) -> str:
    """The text of a file with its links as they are on the site."""
    here = posixpath.dirname(target(file) or "")
    code = [match.span() for match in CODE.finditer(text)]

    def one(match: re.Match[str]) -> str:
        label, (path, mark, anchor) = match[1], match[2].partition("#")
        if not path or any(start <= match.start() < end for start, end in code):
            return match[0]
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if (page := target(linked)) is not None:
            return f"{label}({posixpath.relpath(page, here or '.')}{mark}{anchor})"
        if (ROOT / linked).exists():
            return f"{label[1:-1]} (`{linked}`)" if label[1:-1].strip("`") != linked else f"`{linked}`"
        return match[0]

    return LINK.sub(one, text)
