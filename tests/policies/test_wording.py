"""Numbers of things are said as one says them."""

from __future__ import annotations

import pytest

from fastercache.policies.wording import LONGEST, counted, first_line


@pytest.mark.parametrize(
    ("noun", "several"),
    [
        ("prompt", "prompts"),
        ("held-out prompt", "held-out prompts"),
        ("stretch", "stretches"),
        ("guess", "guesses"),
        ("policy", "policies"),
        ("way", "ways"),
    ],
)
def test_one_and_several(noun: str, several: str) -> None:
    assert [counted(n, noun) for n in (0, 1, 2)] == [f"0 {several}", f"1 {noun}", f"2 {several}"]


def test_a_long_error_ends_with_a_whole_word() -> None:
    """It was cut off in the middle of one, and nothing told that there was more."""
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(ValueError()) == "ValueError"
    found = first_line(ValueError("passed " * 100))
    assert found.endswith("passed ...") and len(found) <= LONGEST + 4
    assert first_line(ValueError("x" * 400)) == "x" * LONGEST + " ..."
    assert first_line(ValueError("x" * LONGEST)) == "x" * LONGEST
