"""What there is to choose from: the known policies with their bounds, and the sites of a pipeline.

Each function returns the object that `--json` prints; with `show` it also prints the same for a person.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

import policies as rules
from experiments.arguments import named
from experiments.console import results, words

if TYPE_CHECKING:
    from experiments.pipelines import Subject


def policies(name: str | None, *, show: bool) -> dict[str, Any]:
    """Every known policy, or one with its fields; `name` may be a file of the user's own."""
    known = rules.known_policies()
    if name is not None:
        name = named(name)
        known = {name: rules.policy_class(name)}
    entries: list[dict[str, Any]] = []
    for key, cls in known.items():
        schema = cls.model_json_schema(mode="validation")
        entries.append(
            {
                "name": key,
                "summary": _summary(cls),
                "citation": None if cls.citation is None else asdict(cls.citation),
                "fields": {field: _allowed(value) for field, value in schema["properties"].items()}
                if schema.get("properties")
                else {},
            }
        )
    if show and name is None:
        grid = Table(header_style="bold")
        for heading in ("policy", "what it does", "from"):
            grid.add_column(heading)
        for entry in entries:
            cited = entry["citation"]
            source = f"{cited['title'].partition(':')[0]}, {cited['authors']} {cited['year']}" if cited else ""
            grid.add_row(entry["name"], entry["summary"], source)
        results.print(grid)
        words.print("fastercache policies NAME shows a policy's fields; --set FIELD=VALUE sets one.")
    elif show:
        entry = entries[0]
        results.print(f"[bold]{entry['name']}[/bold]: {entry['summary']}")
        if entry["citation"]:
            results.print("{title}, {authors} {year}, {url}".format(**entry["citation"]))
        grid = Table("field", "default", "allowed", header_style="bold")
        for field, allowed in entry["fields"].items():
            grid.add_row(field, allowed["default"], allowed["allowed"])
        results.print(grid)
    return {"policies": entries}


def _summary(cls: type[rules.Policy]) -> str:
    """The docstring's first line where that is a sentence, else what the cited work reuses."""
    line = (cls.__doc__ or "").strip().splitlines()[0].replace("`", "")
    return line if line.endswith(".") or cls.citation is None else f"Reuses {cls.citation.reuses}."


def _allowed(schema: dict[str, Any]) -> dict[str, str]:
    """A field's JSON schema as two short texts: its default and what may be set."""
    texts = []
    for option in schema.get("anyOf", [schema]):
        if "const" in option:
            texts.append(json.dumps(option["const"]))
        elif "enum" in option:
            texts += [json.dumps(choice) for choice in option["enum"]]
        elif "minimum" in option or "maximum" in option:
            texts.append(f"{option.get('minimum', '')} to {option.get('maximum', '')} ({option['type']})")
        else:
            texts.append(str(option.get("type", "a policy or predictor as a JSON object")))
    return {"default": json.dumps(schema["default"]) if "default" in schema else "", "allowed": " | ".join(texts)}


def sites(subject: Subject, query: str | None, *, show: bool) -> dict[str, Any]:
    """What can be reused in a pipeline, or what a query selects of it."""
    from fastercache import find_sites

    found = find_sites(subject.pipe)
    chosen = found if query is None else rules.select(query, found)
    if show:
        grid = Table(title=f"{subject.name}: {type(subject.pipe).__name__}", title_justify="left", header_style="bold")
        for heading in ("kind", "role", "depth", "site"):
            grid.add_column(heading)
        for site in chosen:
            grid.add_row(str(site.kind), str(site.role or ""), str(site.depth) if site.depth >= 0 else "", site.name)
        results.print(grid)
        counts = Counter(str(site.role or site.kind) for site in chosen)
        results.print(f"{len(chosen)} sites: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return {
        "pipeline": subject.name,
        "class": type(subject.pipe).__name__,
        "query": query,
        "sites": [
            {
                "name": site.name,
                "kind": str(site.kind),
                "role": None if site.role is None else str(site.role),
                "depth": site.depth,
                "span": list(site.span),
            }
            for site in chosen
        ],
    }
