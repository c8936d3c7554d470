"""Numbers of things are said as one says them."""

from __future__ import annotations

import pytest

from fastercache.policies.wording import counted


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
