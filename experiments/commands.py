"""What the commands do. Imported by `experiments.cli` only when one runs, so that `--help` needs no torch.

Each function returns the object that `--json` prints; with `show` it also prints the same for a person.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

import fastercache as fc
from experiments import render
from experiments.arguments import choose, read_prompts
from experiments.console import progress, results, words
from experiments.contest import UNCACHED, Contest, described, judged, once
from experiments.pipelines import Subject
from experiments.rows import Row, table


def policies(name: str | None, *, show: bool) -> dict[str, Any]:
    """Every known policy, or one with its fields."""
    known = fc.known_policies() if name is None else {name: fc.policy_class(name)}
    entries = []
    for key, cls in known.items():
        schema = cls.model_json_schema(mode="validation")
        entries.append(
            {
                "name": key,
                "summary": (cls.__doc__ or "").strip().splitlines()[0],
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
            grid.add_row(entry["name"], entry["summary"], f"{cited['authors']} {cited['year']}" if cited else "")
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
    found = fc.find_sites(subject.pipe)
    chosen = found if query is None else fc.select(query, found)
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


def prompts_for(subject: Subject, given: Sequence[str], path: Path | None, split: str, count: int | None) -> list[str]:
    """Prompts from the command line, else from a file, else the reference model's captions of a split."""
    prompts = list(given) or (read_prompts(path) if path else subject.captions(split)[: count or 1])
    if count is not None and len(prompts) < count:
        raise fc.ConfigUnreadable(f"--count asks for {count} prompts, found {len(prompts)}")
    return prompts[:count]


def generate(
    subject: Subject,
    prompts: Sequence[str],
    policy: fc.Policy | fc.TunedConfig | None,
    *,
    out: Path,
    seed: int,
    compare: bool,
    fps: float,
    show: bool,
) -> dict[str, Any]:
    """Generate each prompt under a policy; with `compare` also uncached, side by side with the difference."""
    out.mkdir(parents=True, exist_ok=True)
    name = UNCACHED if policy is None else str(described(policy)["policy"])
    files: list[Path] = []
    if compare and policy is not None:
        with tempfile.TemporaryDirectory() as scratch, progress() as bar:
            contest = Contest(subject, {name: policy}, prompts, Path(scratch), seed=seed, keep=len(prompts))
            task = bar.add_task("generating", total=2 * len(prompts))
            contest.run(lambda: bar.advance(task))
            for i in range(len(prompts)):
                shown = contest.videos(i)
                pictures = render.comparison(shown[UNCACHED], [(name, shown[name])])
                files.append(render.save(out / f"{i:03d}-compare", pictures, fps))
                files.append(render.save_video(out / f"{i:03d}-{name}", shown[name], fps))
        row = contest.row(name)
    else:
        row = _plain(subject, prompts, policy, name, out=out, seed=seed, fps=fps, files=files)
    if show:
        results.print(table([row], f"{subject.name}, {row.prompts} prompts, seeds from {seed}"))
        for path in files:
            results.print(str(path), soft_wrap=True)
    return {"pipeline": subject.name, **row.payload(), "seed": seed, "files": [str(path) for path in files]}


def _plain(
    subject: Subject,
    prompts: Sequence[str],
    policy: fc.Policy | fc.TunedConfig | None,
    name: str,
    *,
    out: Path,
    seed: int,
    fps: float,
    files: list[Path],
) -> Row:
    """Generate without uncached runs: no quality against them and no wall-clock speedup is known."""
    flops = full = peak = 0
    right: list[bool] = []
    with progress() as bar:
        for i in bar.track(range(len(prompts)), description="generating"):
            outcome = once(subject, policy, prompts[i], seed + i)
            files.append(render.save_video(out / f"{i:03d}-{name}", outcome.video, fps))
            flops, full = flops + outcome.flops, full + outcome.flops_full
            peak = max(peak, outcome.cache_bytes)
            right += judged(subject, outcome.video[None], [prompts[i]]) or []
    return Row(
        name=name,
        speedup_flops=full / flops if flops else 1.0,
        speedup_wall=None,
        psnr=None,
        ssim=None,
        judge=sum(right) / len(right) if right else None,
        cache_bytes=peak,
        prompts=len(prompts),
        policy=described(policy),
    )


def chosen(
    policy: str | None, preset: str | None, fields: Sequence[str], config: Path | None, uncached: bool
) -> fc.Policy | fc.TunedConfig | None:
    """The policy of the common options; None for `--uncached`."""
    if not uncached:
        return choose(policy, fields, config, preset)
    if policy or preset or fields or config:
        raise fc.InvalidPolicy("--uncached runs the bare pipeline: leave out --policy, --preset, --set and --config")
    return None
