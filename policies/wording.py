"""How messages, titles and tables say a number of things."""

from __future__ import annotations

LONGEST = 300
"""Characters of an error of another package that are said."""


def counted(number: int, noun: str) -> str:
    """`1 prompt`, `2 prompts`, `2 stretches`, `2 policies`: a number and the noun, given in the singular."""
    return f"{number} {noun}" if number == 1 else f"{number} {_plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def lasting(seconds: float) -> str:
    """`40 s`, `3 min`."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def first_line(error: BaseException) -> str:
    """The first line of an error, or its type where it has none; a long one is cut off at a word, and shows it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if len(line) <= LONGEST:
        return line
    return f"{line[:LONGEST].rpartition(' ')[0] or line[:LONGEST]} ..."
