"""The pages of the Python API: which names stand on which page, and whether each says what it is.

The texts are the docstrings, which mkdocstrings reads; here is only what it is told to read.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fastercache as fc

JOBS = (
    "fastercache.experiments.pipelines.Subject",
    "fastercache.experiments.pipelines.open_pipeline",
    "fastercache.experiments.jobs.planning.plan",
    "fastercache.experiments.jobs.certifying.request_of",
    "fastercache.experiments.jobs.certifying.chosen",
    "fastercache.experiments.jobs.certifying.certify",
    "fastercache.export.targets.exported",
    "fastercache.export.recipe.Exported",
)
PLANNING = (
    "fastercache.tuner.planning.opening.opened",
    "fastercache.tuner.planning.planner.Planner",
    "fastercache.tuner.planning.planner.Effort",
    "fastercache.tuner.planning.front.Front",
    "fastercache.tuner.planning.front.Point",
)
TRAJECTORIES = (
    "fastercache.analysis.sampling.record_trajectory",
    "fastercache.analysis.trajectory_profile.TrajectoryProfile",
)


@dataclass(frozen=True)
class Page:
    """One page: its title, what it begins with, and the full names of what stands on it."""

    title: str
    begins: str
    names: tuple[str, ...]


def pages() -> dict[str, Page]:
    """The pages by the name of their file."""
    own = [value for value in _public(fc) if not issubclass(_kind(value), (fc.FasterCacheError, fc.Predictor))]
    runtime = [value for value in own if not issubclass(_kind(value), fc.Policy) or value in (fc.Policy, fc.SitePolicy)]
    return {
        "fastercache": Page(
            "fastercache",
            "`import fastercache as fc`: the runtime, and the parts that policies are made of. "
            "[Policies](../policies.md) has the methods and predictors.",
            (*map(full_name, runtime), full_name(fc.Predictor)),
        ),
        "analysis": Page(
            "fastercache.analysis",
            "Recordings, what is computed from them, and the quality of videos.",
            (*map(full_name, _public(importlib.import_module("fastercache.analysis"))), *TRAJECTORIES),
        ),
        "tuner": Page(
            "fastercache.tuner",
            "Searching and planning within a budget, and certificates.",
            (*map(full_name, _public(importlib.import_module("fastercache.tuner"))), *PLANNING),
        ),
        "commands": Page(
            "Plan, certify and export",
            "What the commands of these names call; [your own pipeline](../own-pipeline.md) is an example.",
            JOBS,
        ),
    }


def markdown(page: Page) -> str:
    """A page, in Markdown with mkdocstrings' marks."""
    return "\n\n".join([f"# {page.title}", page.begins, *(f"::: {name}" for name in page.names), ""])


def silent(names: tuple[str, ...]) -> list[str]:
    """What of these names has no docstring: a class or function, a public method or a property of one."""
    found = []
    for name in names:
        value = named(name)
        found += [] if inspect.getdoc(value) else [name]
        for member, what in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith("_") and _speaks(what) and not inspect.getdoc(getattr(value, member)):
                found.append(f"{name}.{member}")
    return found


def named(name: str) -> Any:
    """The object of a full name."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def full_name(value: Any) -> str:
    """Where a class or function is defined."""
    return f"{value.__module__}.{value.__qualname__}"


def _public(module: Any) -> Iterator[Any]:
    """The public classes and functions of a module, by name."""
    for name in sorted(module.__all__, key=str.lower):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield value


def _kind(value: Any) -> type:
    return value if inspect.isclass(value) else type(value)


def _speaks(member: Any) -> bool:
    """Whether a member of a class is one that a docstring is asked of."""
    return inspect.isfunction(inspect.unwrap(getattr(member, "__func__", member))) or isinstance(member, property)
