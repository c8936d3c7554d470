"""Every class of error says what is seen, why, and what to do; its page says so too."""

from __future__ import annotations

import ast

import pytest

import fastercache as fc
from fastercache.experiments.site import errors
from fastercache.experiments.site.errors import PARTS, Told, known, overview, page
from fastercache.policies import errors as declared


def test_every_class_that_a_user_can_meet_is_found() -> None:
    here = {
        name
        for name, cls in vars(declared).items()
        if isinstance(cls, type) and issubclass(cls, fc.FasterCacheError) and cls is not fc.FasterCacheError
    }
    assert here and here <= known().keys()
    assert {"Missing", "NotExportable", "CacheTooLarge", "LawBroken", "InvalidBudget", "Refused"} <= known().keys()
    assert (
        known()["NoGuidance"].base == "NoSiteMatched" and known()["Missing"].module == "fastercache.policies.documents"
    )


@pytest.mark.parametrize("told", known().values(), ids=lambda told: told.name)
def test_symptom_cause_and_fix(told: Told) -> None:
    assert told.summary.endswith(".")
    assert tuple(told.parts) == PARTS and all(len(text) > 20 for text in told.parts.values()), told.parts
    text = page(told)
    assert all(f"**{part}.** {told.parts[part]}" in text for part in PARTS)
    assert f"({told.name}.md): {told.summary}" in overview()


def test_the_parts_and_the_messages_are_read_off_the_source() -> None:
    source = (
        "class Odd(fc.FasterCacheError):\n"
        '    """Too\n    odd.\n\n    Symptom: it\n        shows.\n    Fix: none.\n    """\n'
        'def f(x):\n    raise Odd(f"an odd {x} was found here")\n    raise Odd(x)\n    raise KeyError("not of ours")\n'
    )
    tree = ast.parse(source)
    node = tree.body[0]
    assert isinstance(node, ast.ClassDef)
    told = errors._told("Odd", "m", node, "FasterCacheError", ())
    assert told.summary == "Too odd." and told.parts == {"Symptom": "it shows.", "Fix": "none."}
    assert errors._messages({"m": tree}, {"Odd"}) == {"Odd": {"an odd … was found here"}}
