"""What `report` does: read what was recorded, planned and measured, and write one page that shows it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastercache.analysis.plots import draw_redundancy, draw_similarity, redundancy_info, similarity_info
from fastercache.analysis.plots.front import FrontInfo, draw_front, draw_steps, steps_info
from fastercache.experiments.console import results, say
from fastercache.experiments.report import bands, maps, videos
from fastercache.experiments.report.given import Given, given
from fastercache.experiments.report.league import section
from fastercache.experiments.report.page import facts, page
from fastercache.experiments.report.recording import Planning
from fastercache.policies.documents import write_atomic
from fastercache.policies.wording import counted
from fastercache.tuned import Identity, package_versions


def report(paths: Sequence[Path], out: Path, *, title: str | None = None, show: bool = True) -> dict[str, Any]:
    """Write the page.

    Args:
        paths: what `plan`, `analyze`, `bench` or `demo` left. out: the file.

    Raises:
        ConfigUnreadable: see `given`. ReportTooLarge: if more than 5 MB would be written.
    """
    found = given(paths)
    name = title or f"{_model(found)}: what it repeats, and what reuse costs"
    text = page(
        name,
        _lead(found),
        island(found),
        made_from(found, paths, out),
        pictures(found),
        section(found.planning, found.profile),
    )
    write_atomic(out, text.encode(), "report")
    sections = [kind for kind, _ in found.sources]
    if show:
        say(f"{out}: {len(text.encode()) / 1e6:.1f} MB, from {', '.join(sections)}; open it in a browser", results)
    return {
        "report": str(out),
        "bytes": len(text.encode()),
        "from": {kind: str(place) for kind, place in found.sources},
    }


def island(found: Given) -> dict[str, Any]:
    """The data of the page."""
    planning = found.planning
    entries = [] if planning is None else list(maps.of_recording(planning.profile.trajectory))
    note = ""
    if found.profile is not None:
        of_profile, note = maps.of_profile(found.profile)
        entries = [*of_profile, *entries]
    return {
        "planning": None if planning is None else {**planning.island(), "notes": notes(planning)},
        "rivals": [rival.island() for rival in found.rivals],
        "bands": [] if found.profile is None else bands.of_profile(found.profile),
        "videos": videos.island(found.contests),
        "maps": {"entries": entries, "measures": maps.measures(), "note": note},
    }


def notes(planning: Planning) -> dict[str, str]:
    """What each view rests on, in words, by the id of its place in the page."""
    runs = counted(planning.profile.trajectory.runs, "recorded prompt")
    verified = [point for point in planning.points if point.verified and len(point.computed) < planning.steps]
    calibrated = (
        f"moved to the PSNR of {counted(len(verified), 'measured plan')}"
        if verified
        else "as the squared error of the last latent, because no plan was measured yet"
    )
    return {
        "cost-note": (
            f"Predicted from {runs}, {calibrated}, for weights fitted in cached runs, as the command plan does it. The "
            "file holds those weights where the schedule is a measured plan. An edited one gets weights from the "
            "recording alone, which keep a few dB less: measure it before you use it."
        ),
        "front-note": f"Predictions from {runs}, {calibrated}. Plans were chosen by search prompts alone.",
        "matter-note": (
            f"Each step skipped alone while all others are computed, from {runs}. Blue marks: the schedule above."
        ),
    }


def pictures(found: Given) -> Iterator[tuple[str, Any]]:
    """Figures for readers without scripts."""
    planning = found.planning
    if planning is not None:
        front = planning.front
        if front is not None:
            yield "Quality by speedup", draw_front(_front_info(found, planning))
        alone = planning.foresight.damage.alone()
        yield "Computed steps", draw_steps(steps_info(planning.chosen, alone, planning.profile.trajectory.runs))
    if found.profile is not None:
        shown = [name for name, _ in found.profile.groups()][:1]
        yield "Steps that are alike", draw_similarity([similarity_info(found.profile, name) for name in shown])
        yield "Change from step to step", draw_redundancy(redundancy_info(found.profile))


def _front_info(found: Given, planning: Planning) -> FrontInfo:
    front = planning.front
    assert front is not None
    others = [r for r in found.rivals if r.group == "fewer steps"]
    return FrontInfo(
        predicted=tuple((front.speedup(p), p.predicted_psnr) for p in front.points if p.predicted_psnr is not None),
        measured=tuple((front.speedup(p), p.psnr) for p in front.points if p.psnr is not None),
        chosen=None,
        prompts=front.prompts,
        error=front.prediction_error,
        others=tuple((f"fewer steps: {r.name}", r.speedup, r.psnr) for r in others[:4]),
    )


def _model(found: Given) -> str:
    if found.bench is not None:
        return found.bench.pipeline
    if found.planning is not None:
        return found.planning.model.pipeline or found.planning.model.denoiser.kind
    assert found.profile is not None
    return found.profile.info.pipeline or "A denoiser"


def _lead(found: Given) -> str:
    parts = []
    if found.planning is not None:
        parts.append(
            f"{found.planning.steps} steps, {counted(found.planning.profile.trajectory.runs, 'recorded prompt')}"
        )
        if measured := [point for point in found.planning.points if point.verified]:
            parts.append(counted(len(measured), "measured plan"))
    if found.profile is not None:
        sites = counted(len(found.profile.sites), "site")
        parts.append(f"a feature profile of {sites} over {counted(found.profile.runs, 'prompt')}")
    others = [rival for rival in found.rivals if rival.group != "planned"]
    if others:
        parts.append(f"{counted(len(others), 'other measured setting')}")
    return ", ".join(parts) + "."


def made_from(found: Given, paths: Sequence[Path], out: Path) -> str:
    """The last section: model, scheduler, prompts by count, versions, and how to make the page again."""
    rows: list[tuple[str, str]] = []
    planning, profile = found.planning, found.profile
    if planning is not None:
        info = planning.profile.info
        rows += [
            ("Pipeline", html.escape(info.model.pipeline or "none")),
            ("Denoiser", _identity(info.model.denoiser)),
            ("Scheduler", _identity(info.scheduler)),
            ("Steps", str(planning.steps)),
            ("Guidance scale", "none" if info.guidance_scale is None else f"{info.guidance_scale:g}"),
            ("Sampler", f"{info.kind}, {'with' if info.stochastic else 'without'} noise"),
            ("Recorded prompts", str(info.runs)),
        ]
        if planning.front is not None:
            rows.append(("Denoiser calls", f"{planning.front.generations:.1f} generations' worth, recording included"))
        rows.append(("Versions, planning", _versions(info.packages)))
    if profile is not None:
        model, scheduler = profile.info.model, profile.info.scheduler
        rows += [
            ("Feature profile", f"{profile.runs} prompts, sites <code>{html.escape(profile.info.query)}</code>"),
            (
                "Its denoiser",
                "unknown" if model is None else f"{html.escape(model.kind)} <code>{model.fingerprint:.12}</code>",
            ),
            ("Its scheduler", "unknown" if scheduler is None else html.escape(scheduler.kind)),
            (
                "Its precision",
                f"exact up to a lag of {profile.info.lags}; beyond, L2 ± {100 * profile.info.projection_error:.1f} %",
            ),
            ("Versions, profile", _versions(profile.info.packages)),
        ]
    if found.bench is not None:
        rows.append(("Bench", html.escape(found.bench.title)))
        rows.append(("Versions, bench", _versions(found.bench.versions)))
    rows.append(
        ("Read", "<br>".join(f"{html.escape(kind)}: <code>{html.escape(str(p))}</code>" for kind, p in found.sources))
    )
    command = f"fastercache report {' '.join(map(str, paths))} --out {out}"
    rows.append(
        ("This page again", f"<code>{html.escape(command)}</code> with {_versions(package_versions(('fastercache',)))}")
    )
    return facts(rows)


def _identity(one: Identity | None) -> str:
    if one is None:
        return "unknown"
    return f"{html.escape(one.kind)} <code>{one.fingerprint:.12}</code>"


def _versions(packages: dict[str, str]) -> str:
    return html.escape(", ".join(f"{name} {version}" for name, version in packages.items()) or "unknown")
