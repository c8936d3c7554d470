"""How results show themselves: one short line as `repr`, a small table in a notebook, a data frame where pandas is."""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastercache.policies.errors import MissingDependency

LONGEST = 80
"""Characters of a value in a line."""


def shortened(value: object, longest: int = LONGEST) -> str:
    """A value's repr in one line, its middle left out where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= longest else f"{text[: longest - 13]} ... {text[-8:]}"


class Shown:
    """A result that knows a few facts of itself. Put it before other bases; a dataclass is made with `repr=False`."""

    def _facts(self) -> Mapping[str, object]:
        """A few facts by name, in the order in which they are told."""
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = ", ".join(f"{name.replace(' ', '_')}={shortened(value)}" for name, value in self._facts().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        return table(type(self).__name__, [(name, value) for name, value in self._facts().items()])


class Framed(Shown):
    """A result that is a list of rows with the same keys."""

    def rows(self) -> list[dict[str, object]]:
        """One plain dictionary for each row."""
        raise NotImplementedError

    def to_frame(self) -> Any:
        """The rows as a pandas `DataFrame`. Raises MissingDependency where pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")  # of no extra: whoever has it may use it
        except ImportError:
            name = type(self).__name__
            raise MissingDependency(
                f"{name}.to_frame needs pandas, left out of the installation: pip install pandas, or take {name}.rows()"
            ) from None
        return pandas.DataFrame(self.rows())


def table(title: str, rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A small HTML table; texts are taken as they are, other values by their repr, all escaped."""

    def cell(kind: str, value: object) -> str:
        text = value if isinstance(value, str) else shortened(value)
        return f"<{kind} style='text-align:left'>{html.escape(text)}</{kind}>"

    top = "".join(cell("th", name) for name in head)
    body = "".join(
        f"<tr>{cell('th', first)}{''.join(cell('td', value) for value in rest)}</tr>" for first, *rest in rows
    )
    caption = f"<caption style='text-align:left;font-weight:bold'>{html.escape(title)}</caption>"
    return f"<table>{caption}{f'<tr>{top}</tr>' if top else ''}{body}</table>"
