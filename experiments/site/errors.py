"""One page for each class of error a user can cause, made from its docstring and from where it is raised.

The sources are read, not imported: so nothing is missed because its module was not loaded.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fastercache

BASE = "FasterCacheError"
PARTS = ("Symptom", "Cause", "Fix")
"""What each docstring must tell, in this order, each at the beginning of a line."""


@dataclass(frozen=True)
class Told:
    """What is known of one class of error.

    Attributes:
        name, module: of the class. base: the class it is a kind of.
        summary: the docstring's first paragraph. parts: `PARTS` that the docstring has, with their text.
        messages: the texts it is raised with, what is filled in left as `…`.
    """

    name: str
    module: str
    base: str
    summary: str
    parts: dict[str, str]
    messages: tuple[str, ...]


@cache
def known() -> dict[str, Told]:
    """Every public class of error of the package but the base, by name."""
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in _sources()}
    classes = {
        node.name: (module, node)
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    found: dict[str, str] = {}
    while more := {
        name: base
        for name, (_, node) in classes.items()
        for base in map(_last, node.bases)
        if name not in found and (base == BASE or base in found)
    }:
        found |= more
    messages = _messages(trees, set(found))
    return {
        name: _told(name, *classes[name], base, tuple(sorted(messages.get(name, ()))))
        for name, base in sorted(found.items())
    }


def page(told: Told) -> str:
    """The page of one class, in Markdown."""
    lines = [f"# {told.name}", "", told.summary, ""]
    for part, text in told.parts.items():
        lines += [f"**{part}.** {text}", ""]
    kind = f"[{told.base}]({told.base if told.base != BASE else 'index'}.md)"
    lines += [f"`from {told.module} import {told.name}`; a kind of {kind}.", ""]
    if told.messages:
        lines += ["## What it says", "", "`…` stands for what was found.", ""]
        lines += [f"- `` {text} ``" for text in told.messages]
    return "\n".join([*lines, ""])


def overview() -> str:
    """The list of all classes, in Markdown."""
    lines = [
        "# Errors",
        "",
        f"Whatever a user can get wrong raises a `{BASE}`, whose message is one line: what was found, what was "
        "expected, what to do. The command line prints that line and exits with 2.",
        "",
        *(f"- [{told.name}]({told.name}.md): {told.summary}" for told in known().values()),
    ]
    return "\n".join([*lines, ""])


def _sources() -> Iterator[tuple[str, Path]]:
    """Name and file of every module of the package."""
    (root,) = map(Path, fastercache.__path__)
    for folder, _, files in os.walk(root, followlinks=True):  # the rooms of a checkout are links
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder, file)
                yield ".".join(("fastercache", *path.relative_to(root).with_suffix("").parts)), path


def _told(name: str, module: str, node: ast.ClassDef, base: str, messages: tuple[str, ...]) -> Told:
    text = ast.get_docstring(node) or ""
    summary, *rest = re.split(rf"^({'|'.join(PARTS)}): ", text, flags=re.MULTILINE)
    parts = {part: " ".join(said.split()) for part, said in zip(rest[::2], rest[1::2], strict=True)}
    return Told(name, module, base, " ".join(inspect.cleandoc(summary).split()), parts, messages)


def _messages(trees: dict[str, ast.Module], names: set[str]) -> dict[str, set[str]]:
    """By class of error, the texts it is raised with; texts that are made elsewhere are left out."""
    found: dict[str, set[str]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            name = _last(node.exc.func)
            if name in names and node.exc.args and (text := _template(node.exc.args[0])):
                found.setdefault(name, set()).add(text)
    return found


def _template(node: ast.expr) -> str:
    """A text with `…` for each value that is filled in; empty where it is no text, or little but filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return " ".join(text.split()) if len(text) > 3 * text.count("…") + 10 else ""


def _last(node: ast.expr) -> str:
    """`InvalidPolicy` of `InvalidPolicy` and of `fc.InvalidPolicy`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
