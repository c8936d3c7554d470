"""Tables that a command writes into a Markdown page, between two comments that mark their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastercache.policies.documents import read_text, write_atomic
from fastercache.policies.errors import ConfigUnreadable


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as Markdown; the second is the line below the head, `---` or `---:` in each column."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def filled(text: str, start: str, end: str, section: str, where: str = "the page") -> str:
    """`text` with `section` between the first `start` and the next `end`, which stay.

    Raises:
        ConfigUnreadable: if the text has no such place; `where` names it.
    """
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ConfigUnreadable(f"{where} has no place for this table: add the lines '{start}' and '{end}'")
    return f"{before}{start}\n{section}{end}{after}"


def put_into(page: Path, start: str, end: str, section: str) -> None:
    """Fill the place in a file. Raises ConfigUnreadable if it is missing, or has no such place."""
    write_atomic(page, filled(read_text(page, "page"), start, end, section, str(page)), "page")
