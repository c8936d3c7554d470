"""One page of all policies and predictors, from the classes' own texts and the descriptions of their fields."""

from __future__ import annotations

from typing import Any

import fastercache.policies as rules
from fastercache.experiments.jobs.catalog import described
from fastercache.policies.registry import predictors

OWN = "fastercache."


def page() -> str:
    """The page, in Markdown."""
    lines = [
        "# Policies",
        "",
        "Everything that `fastercache policies` lists, with every field, its default and what may be set. In Python a "
        "policy is a class, `fc.FasterCache(interval=3)`; in the shell it is `--policy fastercache --set interval=3`. "
        "[Methods](methods.md) says what each was checked against, and [writing a policy](writing-a-policy.md) how to "
        "add one.",
        "",
    ]
    for name, policy in rules.known_policies().items():
        if policy.__module__.startswith(OWN):
            lines += section(policy.__name__, described(name, policy))
    lines += [
        "# Predictors",
        "",
        "What stands in for a skipped value. A field of a policy that holds a predictor is written "
        """`fc.Taylor(order=1)` in Python and `--set 'stand_in={"predictor": "taylor", "order": 1}'` in the shell.""",
        "",
    ]
    for name, predictor in predictors().items():
        if predictor.__module__.startswith(OWN):
            lines += section(predictor.__name__, described(name, predictor))
    return "\n".join(lines)


def section(title: str, entry: dict[str, Any]) -> list[str]:
    """One policy or predictor: its text, its paper, and a table of its fields."""
    lines = [f"## {entry['name']}", "", f"`fc.{title}`. {entry['about']}", ""]
    if cited := entry["citation"]:
        lines += ["*{title}*, {authors} {year}, <{url}>.".format(**cited), ""]
    if entry["fields"]:
        lines += ["| field | default | allowed | meaning |", "|---|---|---|---|"]
        for field, said in entry["fields"].items():
            meaning = said["meaning"].replace("|", r"\|")  # in code a bar ends no cell, and would show its backslash
            lines.append(f"| `{field}` | {_code(said['default'])} | {_code(said['allowed'])} | {meaning} |")
        lines.append("")
    return lines


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
