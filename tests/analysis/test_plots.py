"""Infos hold the right numbers, and figures show them labelled, complete and without anything cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

import fastercache as fc
from fastercache.analysis import plots
from fastercache.analysis.plots.shades import difference, draw_map, shades
from fastercache.analysis.plots.style import BASELINE, new_figure, to_image
from fastercache.analysis.profile import Profile
from fastercache.analysis.record import Recorder
from fastercache.policies.errors import MeasurementError, RecordingError
from fastercache.policies.schedule import Code, compile_policy
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Role, Run, Site
from fastercache.run.trace import Trace
from tests.analysis.fakes import FakeSession, drifting

STEPS = 6


def recorded(steps: int = STEPS, sites: str | None = None, lags: int = 2) -> Profile:
    seed = [0]
    session = FakeSession(lambda site, branch, step: drifting(numel=500, seed=seed[0])(site, branch, step))
    recorder = Recorder(session, sites, lags, 256, 256, 0, None, owned=False)
    for seed[0] in (0, 1, 2):
        session.go(steps)
    return recorder.profile()


def some_trace() -> Trace:
    """FasterCache on a model of three blocks, compiled, with made-up costs."""
    sites = []
    for depth in range(3):
        span = (depth, depth + 1)
        sites.append(Site(f"blocks.{depth}.attn", Kind.MODULE, Role.SPATIAL, depth, span))
        sites.append(Site(f"blocks.{depth}.temporal", Kind.MODULE, Role.TEMPORAL, depth, span))
    sites += [Site("denoiser", Kind.DENOISER), Site("branch", Kind.BRANCH)]
    table = compile_policy(fc.FasterCache(), Run.of(12, sites=sites))
    rows = [[bytearray(branch.astype(np.int8).tobytes()) for branch in site] for site in table.codes]
    policy = {"policy": "fastercache"}
    trace = Trace(table.run, table.sites, rows, table.predictors, policy, [60] * 12, [100] * 12, [0] * 12)
    np.testing.assert_array_equal(trace.codes, table.codes)
    return trace


def check_drawn(figure: Figure, *texts: str) -> None:
    """The figure holds these texts, nothing leaves it, and the heading covers no panel."""
    pixels = to_image(figure)
    assert pixels.std() > 5
    found = " | ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_visible())
    for text in texts:
        assert text in found, found
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox(renderer)
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, box
    bottom = min(t.get_window_extent(renderer).y0 for t in figure.texts)
    panels = [a.get_tightbbox(renderer).y1 for a in figure.axes if a.get_visible()]
    assert max(panels) <= bottom + 1


# -- similarity ------------------------------------------------------------------------------------------------------
def test_similarity_is_the_mean_over_the_sites_of_a_query() -> None:
    profile = recorded()
    both = plots.similarity_info(profile, "spatial|temporal", "rel_l2")
    one, two = (plots.similarity_info(profile, q, "rel_l2").matrix for q in ("spatial", "temporal"))
    np.testing.assert_allclose(both.matrix, (one + two) / 2, rtol=1e-6)
    assert (both.sites, both.runs, both.branch, both.exact) == (2, 3, COND, 2)
    assert plots.similarity_info(profile, "branch").branch == UNCOND


@pytest.mark.parametrize("measure", ["rel_l1", "cosine"])
@pytest.mark.parametrize("count", [1, 3])
def test_similarity_is_drawn_with_denominator_axes_and_prompts(measure: str, count: int) -> None:
    profile = recorded()
    infos = [plots.similarity_info(profile, q, measure) for q in ("spatial", "temporal", "denoiser")[:count]]
    formula = {"rel_l1": "mean|Fⱼ − Fᵢ| / mean|Fᵢ|", "cosine": "1 − ⟨Fⱼ, Fᵢ⟩ / (‖Fⱼ‖ ‖Fᵢ‖)"}[measure]
    figure = plots.draw_similarity(infos)
    check_drawn(
        figure, formula, "← step i that is replaced", "step j that stands in →", "3 prompts", "spatial (1 site, cond)"
    )


def test_matrices_of_different_measures_share_no_figure() -> None:
    profile = recorded()
    with pytest.raises(MeasurementError, match="cosine, rel_l1"):
        plots.draw_similarity([plots.similarity_info(profile, "spatial", m) for m in ("rel_l1", "cosine")])
    with pytest.raises(MeasurementError, match="none"):
        plots.draw_similarity([])


def test_maps_show_differences_light_to_dark_and_arrows_where_values_go_beyond() -> None:
    matrix = np.linspace(0.9, 1.0, 2500, dtype=np.float32).reshape(50, 50)
    matrix[0, 0] = -1.0
    shown = difference("cosine", matrix)
    np.testing.assert_allclose(shown, 1.0 - matrix.astype(np.float64))
    np.testing.assert_array_equal(difference("rel_l1", matrix), matrix)
    scale = shades("cosine", shown)
    assert isinstance(scale.norm, LogNorm) and scale.extend == "both"
    assert not isinstance(shades("rel_l1", shown).norm, LogNorm) and shades("rel_l1", shown).extend == "max"
    assert shades("rel_l1", np.full((4, 4), 0.25)).extend == "neither"
    assert shades("cosine", np.full((4, 4), np.nan)).extend == "neither"
    axes = Figure().subplots()
    draw_map(axes, shown, scale)
    assert (
        [t for t in axes.get_xticks() if 0 <= t < 50]
        == list(range(0, 50, 5))
        == [t for t in axes.get_yticks() if 0 <= t < 50]
    )
    assert axes.get_ylim() == (49.5, -0.5)  # step 0 on top


# -- redundancy ------------------------------------------------------------------------------------------------------
def test_redundancy_groups_by_role_and_averages_over_prompts_then_depth() -> None:
    profile = recorded()
    info = plots.redundancy_info(profile, "rel_l1", lag=2)
    assert [(g.name, g.branch) for g in info.groups] == [
        ("spatial", COND), ("temporal", COND), ("denoiser", COND), ("branch", UNCOND),
    ]  # fmt: skip
    expected = profile.lag("spatial", "rel_l1", 2).mean(axis=0)
    np.testing.assert_allclose(info.groups[0].values, expected, rtol=1e-6)
    assert np.isnan(info.groups[0].mean[:2]).all()
    assert np.isfinite(info.groups[0].mean[2:]).all()
    only = plots.redundancy_info(profile, query="temporal")
    assert [g.name for g in only.groups] == ["temporal"]


def test_redundancy_is_drawn(tmp_path: Path) -> None:
    profile = recorded()
    for measure, lag, formula in (
        ("rel_l1", 1, "mean|Fᵢ₋₁ − Fᵢ| / mean|Fᵢ|"),
        ("cosine", 2, "1 − ⟨Fᵢ₋₂, Fᵢ⟩ / (‖Fᵢ₋₂‖ ‖Fᵢ‖)"),
    ):
        figure = plots.draw_redundancy(plots.redundancy_info(profile, measure, lag))
        check_drawn(figure, formula, "denoising step i", "3 prompts", "temporal")
    rows = figure.axes[1]
    named = dict(zip(rows.get_yticks(), (t.get_text() for t in rows.get_yticklabels()), strict=True))
    assert named == {0: "spatial block 0", 1: "temporal block 1", 2: "denoiser", 3: "branch"}
    path = plots.save_png(figure, tmp_path / "new" / "redundancy.png")
    with Image.open(path) as image:
        assert image.size[0] > 1000


def test_a_single_step_has_no_redundancy() -> None:
    with pytest.raises(RecordingError, match="two steps 1 apart"):
        plots.redundancy_info(recorded(steps=1))


# -- guidance --------------------------------------------------------------------------------------------------------
def test_guidance_curves_are_mean_and_spread_over_prompts() -> None:
    profile = recorded()
    info = plots.guidance_info(profile, measures=("rel_l2",))
    whole, low, _high = info.curves["rel_l2"]
    np.testing.assert_allclose(whole.mean, profile.guidance[:, 1, :, 0, 2].mean(0), rtol=1e-6)
    np.testing.assert_allclose(low.std, profile.guidance[:, 1, :, 1, 2].std(0, ddof=1), rtol=1e-4)
    figure = plots.draw_guidance(plots.guidance_info(profile))
    check_drawn(figure, "mean|cond − uncond| / mean|uncond|", "low band", "high band", "3 prompts", "denoising step")


def test_guidance_needs_two_branches_and_the_output() -> None:
    with pytest.raises(RecordingError, match="denoiser"):
        plots.guidance_info(recorded(sites="spatial"))
    with pytest.raises(RecordingError, match="not the conditional one"):
        plots.guidance_info(recorded(), branch=COND)
    with pytest.raises(RecordingError, match="no branch 'perturbed'"):
        plots.guidance_info(recorded(), branch="perturbed")


# -- timeline --------------------------------------------------------------------------------------------------------
def test_the_timeline_shows_every_decision_grouped_by_role() -> None:
    trace = some_trace()
    info = plots.timeline_info(trace)
    assert dict(info.groups) == {"branch": 1, "spatial": 3, "temporal": 3}
    assert info.codes.shape == (2, 7, 12)
    for name, codes in zip(info.sites, info.codes.transpose(1, 0, 2), strict=True):
        s = [site.name for site in trace.sites].index(name)
        np.testing.assert_array_equal(codes, trace.codes[s])
    np.testing.assert_allclose(info.cost, 0.6)
    assert info.speedup == pytest.approx(1 / 0.6)
    assert {Code.COMPUTED, Code.REUSED, Code.UNREACHED} == set(np.unique(info.codes).tolist())
    figure = plots.draw_timeline(info)
    check_drawn(
        figure,
        "What fastercache computed and reused",
        "1.67×",
        "computed",
        "reused",
        "not reached",
        "temporal ×3\nblocks 0-2",
    )


def test_the_timeline_of_a_real_run(latte: Any) -> None:
    with fc.attach(latte.pipe, fc.StaticInterval(interval=2)) as session:
        latte.generate(steps=4)
    info = plots.timeline_info(session.last)
    assert info.policy == "static_interval"
    assert (info.cost[1::2] < info.cost[::2]).all()
    check_drawn(plots.draw_timeline(info), "guidance branch: uncond")


# -- Pareto ----------------------------------------------------------------------------------------------------------
def points() -> list[plots.ParetoPoint]:
    return [
        plots.ParetoPoint("no cache", 1.0, 100.0),
        plots.ParetoPoint("slow", 1.4, 31.0, 0.5, "a"),
        plots.ParetoPoint("beaten", 1.3, 30.0, 0.5, "b"),
        plots.ParetoPoint("fast", 2.0, 25.0, 0.5, "a"),
        plots.ParetoPoint("twin", 2.0, 25.0, 0.5, "b"),
        plots.ParetoPoint("as fast, worse", 2.0, 24.0, 0.5, "b"),
    ]


def test_the_front_holds_what_nothing_else_beats() -> None:
    info = plots.pareto_info(points(), prompts="64 held-out prompts")
    assert [info.points[i].name for i in info.front] == ["no cache", "slow", "fast", "twin"]
    assert [info.points[i].name for i in info.exact] == ["no cache"]
    lower = [p._replace(quality=p.quality / 100) for p in points()]
    worse = plots.pareto_info(lower, metric="lpips")
    assert [worse.points[i].name for i in worse.front] == ["as fast, worse"]
    figure = plots.draw_pareto(info)
    check_drawn(
        figure, "64 held-out prompts", "standard error", "PSNR to the uncached video (dB)", "slow",
        "FLOPs without reuse / computed FLOPs", "equal to the uncached video: no cache",
    )  # fmt: skip
    check_drawn(plots.draw_pareto(worse), "lower is better")


def test_points_that_cannot_be_plotted_are_named() -> None:
    with pytest.raises(MeasurementError, match="no points"):
        plots.pareto_info([])
    with pytest.raises(MeasurementError, match="'x' has speedup nan"):
        plots.pareto_info([plots.ParetoPoint("x", float("nan"), 1.0)])
    with pytest.raises(MeasurementError, match="no quality metric is called"):
        plots.pareto_info(points(), metric="fid")


def test_the_overview_leaves_out_what_was_not_recorded() -> None:
    every = {"similarity_rel_l1", "redundancy_rel_l1", "similarity_cosine", "redundancy_cosine", "guidance"}
    assert set(plots.overview(recorded())) == every
    assert set(plots.overview(recorded(sites="spatial"))) == every - {"guidance"}
    assert set(plots.overview(recorded(steps=1, sites="spatial"))) == {"similarity_rel_l1", "similarity_cosine"}


def test_drawing_leaves_the_users_matplotlib_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    plots.draw_redundancy(plots.redundancy_info(recorded()))
    assert dict(matplotlib.rcParams) == before


def test_no_name_stands_on_another_nor_on_a_point() -> None:
    close = [plots.ParetoPoint(f"a policy with a name {i}", 2.0 + 0.01 * i, 40.0 + 0.02 * i) for i in range(5)]
    curve = [plots.ParetoPoint(f"{n} steps", x, y) for n, x, y in ((5, 4.0, 30.0), (10, 2.0, 39.9), (17, 1.2, 45.0))]
    info = plots.pareto_info([*close, plots.ParetoPoint("far", 5.0, 35.0)], curve=curve)
    assert [p.speedup for p in info.curve] == [1.2, 2.0, 4.0] and len(info.front) == 2
    figure = plots.draw_pareto(info)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = {*(p.name for p in (*info.points, *curve)), info.reference}
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text() in names]
    assert len(boxes) == len(names)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*axes.transData.transform((p.speedup, p.quality))) for p in (*info.points, *curve))
    (line,) = [line for line in axes.get_lines() if line.get_color() == BASELINE]
    assert list(line.get_xdata()) == [1.2, 2.0, 4.0]
    assert axes.collections  # what lies under it is shaded


def test_a_figure_shows_itself_in_a_notebook() -> None:
    figure = new_figure(2.0, 1.0)
    figure.subplots().plot([0, 1])
    png = figure._repr_png_()  # type: ignore[attr-defined]
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20]) == 180 and int.from_bytes(png[20:24]) == 90
