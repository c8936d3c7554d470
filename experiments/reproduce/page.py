"""The results as Markdown: verdicts, figures of all variants, and the reasons that the recording gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastercache.experiments import pages
from fastercache.experiments.bench.contest import UNCACHED
from fastercache.experiments.bench.entries import in_words
from fastercache.experiments.bench.rows import column
from fastercache.experiments.bench.verdict import Interval
from fastercache.experiments.reproduce.results import TIME, Compared, Findings, Outcome, Variant
from fastercache.experiments.reproduce.why import LAST, Band
from fastercache.policies.wording import counted

END = "<!-- end findings -->"
FORMS = {"psnr": "{:+.2f} dB", "tpsnr": "{:+.2f} dB", "ssim": "{:+.4f}", TIME: "{:.3f}×"}


def start(pipeline: str) -> str:
    """The comment that a model's section stands behind."""
    return f"<!-- findings {pipeline} -->"


def put_into(page: Path, results: Findings) -> None:
    """Fill the model's place in a page. Raises ConfigUnreadable if it is missing, or has no such place."""
    pages.put_into(page, start(results.pipeline), END, markdown(results))


def markdown(results: Findings) -> str:
    """A model's section."""
    return "\n\n".join([title(results), verdicts(results), figures(results), reasons(results)]) + "\n"


def title(results: Findings) -> str:
    """What was measured on what."""
    again = f", {counted(results.captions, 'caption')}" if results.captions < results.prompts else ""
    return (
        f"{results.pipeline}, {results.steps} steps, {counted(results.prompts, 'held-out prompt')}{again}, "
        f"uncached {results.seconds_uncached:.2f} s, {results.hardware}."
    )


def spread(value: Interval | None, form: str) -> str:
    """`+0.52 dB (+0.31 to +0.73)`."""
    if value is None:
        return "-"
    ends = [form.format(end).removesuffix(" dB") for end in value[1:] if end is not None]
    return form.format(value.value) + (f" ({' to '.join(ends)})" if ends else "")


def verdicts(results: Findings) -> str:
    """A bold line for each finding, and below it one for each of its claims."""
    lines = ["| finding | difference | verdict | SSIM | temporal PSNR |", "| --- | --- | --- | --- | --- |"]
    for finding in results.findings:
        lines.append(f"| **{finding.title}** | | **{finding.word}** | {_others(finding.words)} |")
        for claim in finding.claims:
            first = next(iter(claim.by.items()), None)
            shown = "- | not comparable | |" if first is None else _row(first[0], first[1], claim.by)
            lines.append(f"| {claim.worse} < {claim.better} | {shown} |")
    return "\n".join(lines)


def _row(metric: str, found: Compared, by: dict[str, Compared]) -> str:
    words = {name: one.word for name, one in by.items()}
    return f"{spread(found.difference, FORMS[metric])} | {found.word} | {_others(words)}"


def _others(words: dict[str, str]) -> str:
    return " | ".join(words.get(metric, "") for metric in ("ssim", "tpsnr"))


def figures(results: Findings) -> str:
    """A line for each variant."""
    metrics = list(next(one for one in results.variants if one.refused is None).quality)
    heads = ["variant", "setting", "FLOPs ↑", "time ↑", *map(column, metrics), "judge ↑", "over fewer steps"]
    lines = [f"| {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * (len(heads) - 2)]
    refused = []
    for one in results.variants:
        if one.refused is not None:
            refused.append(f"- {one.name}: {one.refused}")
            continue
        quality = [_plain(one.quality[metric], "{:.4f}" if metric == "ssim" else "{:.2f}") for metric in metrics]
        cells = [
            one.name,
            _setting(one, results.steps),
            f"{one.speedup_flops:.3f}×",
            _plain(one.speedup_wall, "{:.2f}", "×"),
        ]
        cells += [*quality, "-" if one.judge is None else f"{one.judge:.0%}", spread(one.over_fewer, "{:+.2f} dB")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + ("\n\nDid not run:\n\n" + "\n".join(refused) if refused else "")


def _plain(value: Interval | None, form: str, unit: str = "") -> str:
    return "-" if value is None else value.shown(form, unit)


def _setting(one: Variant, steps: int) -> str:
    if one.name == UNCACHED:
        return "as it is"
    if (count := one.policy.get("num_inference_steps")) is not None:
        return f"{count} of {steps} steps, no cache"
    return in_words(one.policy).replace("_", r"\_")


def reasons(results: Findings) -> str:
    """What the recording says, as a list."""
    why = results.why
    hold, ramp = why.stand_ins["hold"], why.stand_ins["ramp"]
    fixed, local = why.stand_ins["constant 0.5"], why.local
    errors = sorted(((name, error) for name, error in local.items() if name != LAST), key=lambda item: item[1])
    items = [
        f"Looked at on {why.prompts} training captions, every step on the uncached trajectory.",
        f"Attention outputs of adjacent steps have a cosine of {why.cosine:.4f} on average ({why.cosine_least:.4f} at "
        f"the least alike step) and differ by {why.rel_l1:.1%} (relative L1). All self-attentions are {why.share:.0%} "
        "of a step's FLOPs.",
        f"At every second step a hold is wrong by {hold:.2%} of an attention output (relative L2), a constant weight "
        f"of 0.5 by {fixed:.2%}, the ramp by {ramp:.2%}. The best constant weight is {why.best_weight:.2f} "
        f"({why.best_error:.2%}).",
        "With the ramp at intervals of 2, 3, 4 and 5 steps the error is "
        + ", ".join(f"{why.stand_ins[name]:.2%}" for name in ("ramp", "reuse 3", "reuse 4", "reuse 5"))
        + ".",
        f"What this makes of the guided output at the steps concerned: hold {local['hold']:.2%}, constant 0.5 "
        f"{local['constant 0.5']:.2%}, ramp {local['ramp']:.2%}. Keeping the whole guided output of the step "
        f"before, which saves all of the step, is wrong by {local[LAST]:.2%}.",
        *(_band(band) for band in why.bands),
        "Error of the guided output at the steps that reuse anything: "
        + ", ".join(f"{name} {error:.2%}" for name, error in errors)
        + ".",
    ]
    return "\n".join(f"- {item}" for item in items)


def _band(band: Band) -> str:
    when = "before" if band.stage == "early" else "after"
    return (
        f"Guidance difference, {band.band} band, {when} the switch: the kept one is wrong by {band.plain:.1%}, with "
        f"the paper's factor {band.factor:g} by {band.weighted:.1%}; the best factor is {band.best:.2f} "
        f"({band.fitted:.1%})."
    )


def in_short(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """(finding, verdict) for a terminal."""
    return [(one.title, one.word) for one in outcomes]
