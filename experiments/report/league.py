"""The league of predictors as a table for the page: what each would leave of the steps that a schedule skips."""

from __future__ import annotations

import html
from collections.abc import Mapping

from fastercache.analysis.predictability import Predictability
from fastercache.analysis.profile import Profile
from fastercache.experiments.report.recording import Planning
from fastercache.policies.errors import RecordingError
from fastercache.policies.wording import counted

INTERVAL = 3
"""At which the roles of a feature profile are compared."""


def section(planning: Planning | None, profile: Profile | None) -> str:
    """The section, or nothing where there is nothing to compare."""
    tables = []
    if planning is not None:
        outputs = planning.profile.predictability()
        columns = {f"every {n}th" if n > 3 else f"every {'2nd' if n == 2 else '3rd'}": n for n in outputs.intervals}
        values = {name: dict(outputs.league(n)) for name, n in columns.items()}
        fit = "fitted on the other prompts" if outputs.held_out else "fitted on the prompt it is judged on"
        words = (
            f"The denoiser's outputs, {counted(outputs.runs, 'prompt')}, by which steps are computed; fitted: {fit}."
        )
        tables.append(_table(values, words))
    if profile is not None and (roles := _roles(profile)):
        runs = counted(profile.runs, "prompt")
        words = f"Features by role, every 3rd step computed, {runs}; fitted in the same recording."
        tables.append(_table({name: dict(found.league(INTERVAL)) for name, found in roles.items()}, words))
    if not tables:
        return ""
    hint = (
        "The relative error that a predictor would have made at the skipped steps, from the recording: the less the "
        "better. <b>Bold</b>: the best of its column. Holding is what a cache does that only reuses."
    )
    return f'<section id="league"><h2>Which predictor fits?</h2><p class="hint">{hint}</p>{"".join(tables)}</section>'


def _roles(profile: Profile) -> dict[str, Predictability]:
    found = {}
    for name, _ in profile.groups():
        try:
            found[name] = profile.predictability(name, intervals=(INTERVAL,))
        except RecordingError:  # not reached at every step
            continue
    return found


def _table(columns: Mapping[str, Mapping[str, float]], words: str) -> str:
    first = next(iter(columns.values()))
    head = "".join(f'<th scope="col" class="number">{html.escape(name)}</th>' for name in columns)
    body = ""
    for name in sorted(first, key=lambda one: sum(column[one] for column in columns.values())):
        cells = ""
        for column in columns.values():
            text = f"{column[name]:.3g}"
            best = column[name] <= min(column.values())
            cells += f'<td class="number">{f"<b>{text}</b>" if best else text}</td>'
        body += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    table = f'<table><tr><th scope="col">predictor</th>{head}</tr>{body}</table>'
    return f'<p class="note">{html.escape(words)}</p><div class="scroll">{table}</div>'
