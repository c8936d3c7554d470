"""A folder for the Hugging Face hub: tuned config, model card, citations and, where possible, one plain file."""

from __future__ import annotations

from fastercache.export.python import python
from fastercache.export.recipe import Exported, NotExportable
from fastercache.export.words import made_for, promises
from fastercache.policies.base import Citation
from fastercache.policies.documents import dumped
from fastercache.policies.wrappers import citations_of
from fastercache.tuned import Measured, TunedConfig

CONFIG, CARD, CITED = "tuned.json", "README.md", "CITATION.bib"


def hub(config: TunedConfig) -> Exported:
    """The files of the folder, by name."""
    files = {CONFIG: dumped(config.model_dump(mode="json"), "tuned config") + "\n"}
    lost: tuple[str, ...] = ()
    try:
        files |= python(config).files
    except NotExportable as error:
        lost = (f"the folder holds no plain Python file: {error}",)
    cited = citations_of(config.policy)
    files[CARD] = _card(config, list(files), cited)
    files[CITED] = "\n".join(_bibtex(one) for one in cited)
    return Exported(files, lost)


def _card(config: TunedConfig, files: list[str], cited: list[Citation]) -> str:
    target = config.model.pipeline or config.model.denoiser.kind
    lines = [
        "---",
        "library_name: diffusers",
        "license: apache-2.0",
        "tags: [fastercache, caching, acceleration, diffusion]",
        "---",
        "",
        f"# A cache schedule for {target}",
        "",
        f"The policy `{config.policy.name}`, tuned for {made_for(config)}.",
        "It fits no other model, scheduler, number of steps or guidance, and says so if it is tried.",
        "",
        "## Figures",
        "",
        *promises(config),
        *_table(config),
        "",
        "## Apply it",
        "",
        "```python",
        "import fastercache as fc",
        "",
        f"with fc.attach(pipe, {CONFIG!r}) as session:",
        f"    output = pipe(prompt, num_inference_steps={config.steps})",
        "print(session.summary())",
        "```",
        "",
    ]
    if "cached.py" in files:
        lines += [
            "Without the toolkit, the same latents:",
            "",
            "```python",
            "from cached import attach",
            "",
            "detach = attach(pipe)",
            "```",
            "",
        ]
    lines += ["## Cite", "", *map(_cited, cited), ""]
    return "\n".join(lines)


def _table(config: TunedConfig) -> list[str]:
    sets: dict[str, Measured | None] = {"held-out": config.measured.held_out, "search": config.measured.search}
    rows = {name: measured for name, measured in sets.items() if measured is not None}
    if not rows:
        return []
    metrics = sorted({name for measured in rows.values() for name in measured.quality})
    head = ["prompts", "number", "FLOPs speedup", "cached MiB", *metrics]
    lines = ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, measured in rows.items():
        quality = [f"{measured.quality[m]:.4g}" if m in measured.quality else "" for m in metrics]
        cells = [name, str(measured.prompts), f"{measured.speedup_flops:.2f}x"]
        lines.append(f"| {' | '.join([*cells, f'{measured.cached_bytes / 2**20:.1f}', *quality])} |")
    return lines


def _cited(one: Citation) -> str:
    title = f"[{one.title}]({one.url})" if _published(one) else one.title
    return f"- {one.authors} {one.year}: {title}"


def _published(one: Citation) -> bool:
    """Whether its address leads anywhere outside this repository."""
    return one.url.startswith("http")


def _bibtex(one: Citation) -> str:
    key = "".join(c for c in one.authors.split()[0].lower() if c.isalpha()) + str(one.year)
    fields = {
        "title": one.title,
        "author": one.authors,
        "year": one.year,
        **({"url": one.url} if _published(one) else {}),
    }
    return f"@misc{{{key},\n" + ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items()) + "\n}\n"
