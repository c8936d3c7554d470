"""What there is to choose from: the known policies with their bounds, and the sites of a pipeline.

Each function returns the object that `--json` prints; with `show` it also prints the same for a person.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

import fastercache.policies as rules
from fastercache.experiments.arguments import named
from fastercache.experiments.console import results, say
from fastercache.policies.wording import counted

if TYPE_CHECKING:
    from fastercache.experiments.pipelines import Subject
    from fastercache.inventory import Inventory

_RANK = {"block": 1, "stack": 2, "denoiser": 3, "branch": 4}
"""Kinds that hold the ones above them in the table come after those."""


def policies(name: str | None, *, show: bool) -> dict[str, Any]:
    """Every known policy, or one with its fields; `name` may be a file of the user's own."""
    known = rules.known_policies()
    if name is not None:
        name = named(name)
        known = {name: rules.policy_class(name)}
    entries = [described(key, cls) for key, cls in known.items()]
    if show and name is None:
        grid = Table(header_style="bold")
        for heading in ("policy", "what it does", "from"):
            grid.add_column(heading)
        for entry in entries:
            cited = entry["citation"]
            source = f"{cited['title'].partition(':')[0]}, {cited['authors']} {cited['year']}" if cited else ""
            grid.add_row(entry["name"], entry["summary"], source)
        results.print(grid)
        say("fastercache policies NAME shows a policy's fields; --set FIELD=VALUE sets one.")
    elif show:
        entry = entries[0]
        say(Text.assemble((entry["name"], "bold"), f": {entry['about']}"), results)
        if entry["citation"]:
            say("{title}, {authors} {year}, {url}".format(**entry["citation"]), results)
        grid = Table("field", "default", "allowed", "meaning", header_style="bold")
        for field, allowed in entry["fields"].items():
            grid.add_row(field, allowed["default"], allowed["allowed"], allowed["meaning"])
        results.print(grid)
    return {"policies": entries}


def described(name: str, cls: type[rules.Policy] | type[rules.Predictor]) -> dict[str, Any]:
    """A policy or predictor in its own words: what it does, where it is from, and its fields with their bounds."""
    schema = cls.model_json_schema(mode="validation")
    citation: rules.Citation | None = getattr(cls, "citation", None)
    return {
        "name": name,
        "summary": _summary(cls, citation),
        "about": _about(cls),
        "citation": None if citation is None else asdict(citation),
        "fields": {
            field: {**_allowed(schema["properties"][field], schema), "meaning": info.description or ""}
            for field, info in cls.model_fields.items()
        },
    }


def _about(cls: type) -> str:
    """The first paragraph of the docstring, on one line; field names stay in backquotes."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _summary(cls: type, citation: rules.Citation | None) -> str:
    """The first sentence of the docstring, or what the cited work reuses where that sentence holds a formula."""
    sentence = re.split(r"(?<=[.])\s|:(?=$)", _about(cls), maxsplit=1)[0].rstrip(":,")
    plain = "=" not in sentence and len(sentence) <= 180
    if citation is None or plain:
        return sentence if sentence.endswith(".") else f"{sentence}."
    return f"Reuses {citation.reuses}."


def _allowed(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, str]:
    """A field's JSON schema as two short texts: its default and what may be set."""
    texts = []
    for option in schema.get("anyOf", [schema]):
        if "$ref" in option:
            option = whole["$defs"][option["$ref"].rpartition("/")[2]]
        if "const" in option:
            texts.append(json.dumps(option["const"]))
        elif "enum" in option:
            texts += [json.dumps(choice) for choice in option["enum"]]
        elif "minimum" in option or "maximum" in option:
            texts.append(f"{option.get('minimum', '')} to {option.get('maximum', '')} ({option['type']})")
        elif option.get("type") == "array":
            texts.append("a JSON list")
        elif option.get("type") == "object":
            texts.append("a JSON object")
        else:
            texts.append(str(option.get("type", "a policy or predictor as a JSON object")))
    default = schema.get("default")
    text = f"{default:.4g}" if isinstance(default, float) else json.dumps(default) if "default" in schema else ""
    return {"default": text, "allowed": " | ".join(texts)}


def sites(subject: Subject, query: str | None, *, show: bool) -> dict[str, Any]:
    """What can be reused in a pipeline, or what a query selects of it, what each costs, and what belongs to no site."""
    inventories, uncounted = _inventories(subject)
    found = tuple(site for inventory in inventories for site in inventory.sites)
    chosen = {site.name for site in (found if query is None else rules.select(query, found))}
    if show:
        if query is not None:
            say(f"'{query}' selects {counted(len(chosen), 'site')} of {len(found)}:", results)
        for inventory in inventories:
            results.print(_sites_table(subject, inventory, chosen))
            for site in inventory.sites if query is not None else ():
                if site.name in chosen:
                    say(f"  {site.name}", results)
            if query is None and inventory.rest:
                results.print(_rest_table(inventory))
        if uncounted:
            say(f"FLOPs were not counted: {uncounted}")
    return {
        "pipeline": subject.name,
        "class": type(subject.pipe).__name__,
        "query": query,
        "not_counted": uncounted,
        "denoisers": [
            {
                "class": inventory.denoiser,
                "prefix": inventory.prefix,
                "known": inventory.known,
                "flops": inventory.flops,
                "not_recognised": [asdict(part) for part in inventory.rest],
            }
            for inventory in inventories
        ],
        "sites": [
            {
                "name": site.name,
                "kind": str(site.kind),
                "role": None if site.role is None else str(site.role),
                "depth": site.depth,
                "span": list(site.span),
                "flops": inventory.site_flops.get(site.name),
            }
            for inventory in inventories
            for site in inventory.sites
            if site.name in chosen
        ],
    }


def _inventories(subject: Subject) -> tuple[list[Inventory], str]:
    """The inventories, and why FLOPs could not be counted where that is so."""
    from fastercache.inventory import take_inventory

    known = inspect.signature(type(subject.pipe).__call__).parameters
    usual = {"prompt": "a video", "num_inference_steps": 1}
    call = {**{key: value for key, value in usual.items() if key in known}, **subject.call}
    try:
        return take_inventory(subject.pipe, lambda: subject.pipe(**call)), ""
    except Exception as error:  # whatever a pipeline raises that wants arguments we do not know
        reason = (
            f"the pipeline could not be called ({' '.join(str(error).split())[:200]}); give its arguments by --call"
        )
        return take_inventory(subject.pipe), reason


def _sites_table(subject: Subject, inventory: Inventory, chosen: set[str]) -> Table:
    """One line per role and place, with the blocks they lie in."""
    groups: dict[tuple[str, str], list[rules.Site]] = {}
    for site in inventory.sites:
        if site.name in chosen:
            place = re.sub(r"\.\d+(?=\.|$)", ".*", site.name)
            groups.setdefault((str(site.role or site.kind), place), []).append(site)
    how = "known family" if inventory.known else "unknown class, found by structure"
    title = f"{subject.name}: {type(subject.pipe).__name__}, {inventory.denoiser} ({how})"
    grid = Table("kind", "where", "sites", "blocks", "FLOPs", "share", title=title, title_justify="left")
    for (what, place), members in sorted(groups.items(), key=lambda item: _RANK.get(item[0][0], 0)):
        flops = [inventory.site_flops[site.name] for site in members if site.name in inventory.site_flops]
        first, last = min(site.span[0] for site in members), max(site.span[1] for site in members) - 1
        span = "" if last < first else str(first) if first == last else f"{first}-{last}"
        grid.add_row(what, place, str(len(members)), span, *_cost(sum(flops) if flops else None, inventory.flops))
    return grid


def _rest_table(inventory: Inventory) -> Table:
    grid = Table("not recognised", "class", "FLOPs", "share", "parameters", title_justify="left")
    for part in inventory.rest:
        name = part.pattern if part.count == 1 else f"{part.pattern} ({part.count})"
        grid.add_row(name, part.kind, *_cost(part.flops, inventory.flops), _short(part.parameters))
    return grid


def _cost(flops: int | None, total: int | None) -> tuple[str, str]:
    """FLOPs, and their share of a whole call; empty where they were not counted."""
    if flops is None or not total:
        return "", ""
    return _short(flops), f"{100 * flops / total:.1f} %"


def _short(count: float) -> str:
    """A number for a person: `1.5 M`."""
    for unit in ("", " K", " M", " G"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} T"
