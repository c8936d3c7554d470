"""Speedups at equal PSNR, beside a computation of a few lines, and the settings that are chosen."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from fastercache.experiments.bench import swept_page
from fastercache.experiments.bench.equal import Measured, Ratio, by_flops, by_time, compare, smallest
from fastercache.experiments.bench.grids import DEFAULT, GRIDS
from fastercache.experiments.bench.lineup import FEWER, PLANNED, WATCHING, Contender
from fastercache.experiments.bench.standings import Line, Results
from fastercache.experiments.bench.swept import Figures, Point, Swept, chosen, compared, front, thinned
from fastercache.experiments.bench.swept_page import shortened
from fastercache.experiments.bench.swept_picture import draw
from fastercache.experiments.bench.verdict import Baseline, Interval, mean_interval

DOCS = Path(__file__).resolve().parents[2] / "docs"


def setting(speedup: float, psnr: list[float], share: float = 1.0) -> Measured:
    """On three prompts of 10, 20 and 60 seconds; `share` of the speedup arrives as time."""
    uncached = (10.0, 20.0, 60.0)
    return Measured(speedup, tuple(psnr), tuple(s / (1.0 + share * (speedup - 1.0)) for s in uncached), uncached)


FRONT = [setting(2.0, [60.0, 62.0, 58.0]), setting(4.0, [50.0, 48.0, 52.0]), setting(8.0, [40.0, 39.0, 41.0])]


def bisected(front: list[Measured], psnr: list[float]) -> float:
    """The speedup at which the verdict's own curve has this PSNR in the mean, by halving."""
    curve = Baseline.of([(one.flops, one.psnr) for one in front])
    low, high = curve.speedups[0], curve.speedups[-1]
    for _ in range(60):
        middle = math.sqrt(low * high)
        values = curve.at(middle)
        assert values is not None
        low, high = (middle, high) if statistics.fmean(values) >= statistics.fmean(psnr) else (low, middle)
    return low


@pytest.mark.parametrize("psnr", [[55.0, 51.0, 56.0], [44.0, 45.0, 43.0], [50.0, 48.0, 52.0]])
def test_the_ratio_is_that_of_the_verdicts_own_curve(psnr: list[float]) -> None:
    other = setting(1.6, psnr)
    found = compare(FRONT, other, by_flops).ratio
    assert found.value == pytest.approx(bisected(FRONT, psnr) / 1.6, rel=1e-9) and found.bound == ""
    assert found.low is not None and found.high is not None and found.low <= found.value <= found.high


def test_the_order_of_the_front_does_not_matter() -> None:
    other = setting(1.6, [44.0, 45.0, 43.0])
    assert compare(FRONT[::-1], other, by_flops).ratio == compare(FRONT, other, by_flops).ratio


def test_by_time_the_front_lies_at_its_own_time_speedups() -> None:
    front = [setting(2.0, [60.0] * 3, 0.5), setting(4.0, [50.0] * 3, 0.5)]  # 1.5x and 2.5x in time
    found = compare(front, setting(2.0, [55.0] * 3, 0.6), by_time).ratio  # 1.6x in time
    assert found.value == pytest.approx(math.sqrt(1.5 * 2.5) / 1.6)


def test_a_front_that_never_falls_so_far_gives_a_lower_bound_and_one_that_never_rises_an_upper_one() -> None:
    low = compare(FRONT, setting(1.6, [20.0, 30.0, 25.0]), by_flops).ratio
    assert (low.value, low.bound) == (pytest.approx(5.0), "at least") and low.shown() == "at least 5.00"
    assert [low.reaches(goal) for goal in (4.9, 5.1)] == ["yes", "undecided"]
    high = compare(FRONT, setting(1.6, [70.0, 80.0, 75.0]), by_flops).ratio
    assert (high.value, high.bound) == (pytest.approx(1.25), "at most")
    assert [high.reaches(goal) for goal in (1.2, 1.3)] == ["undecided", "no"]


def test_where_fronts_cross_the_ratio_falls_below_one() -> None:
    peer = [setting(1.2, [58.0, 60.0, 56.0]), setting(7.0, [45.0, 46.0, 44.0])]
    ratios = [compare(FRONT, one, by_flops).ratio.value for one in peer]
    assert ratios[0] > 1.0 > ratios[1]


def test_of_a_front_that_is_not_monotone_the_fastest_setting_counts() -> None:
    front = [setting(2.0, [50.0] * 3), setting(3.0, [40.0] * 3), setting(4.0, [46.0] * 3), setting(8.0, [30.0] * 3)]
    found = compare(front, setting(1.0, [42.0] * 3), by_flops).ratio
    assert found.value == pytest.approx(4.0 * 2.0**0.25)  # a quarter of the way from 46 to 30 dB


def test_the_interval_takes_the_same_prompts_for_both() -> None:
    """A setting that is 2 dB below the front on every prompt, however much these differ, has no spread."""
    front = [setting(2.0, [80.0, 50.0, 30.0]), setting(4.0, [70.0, 40.0, 20.0])]
    found = compare(front, setting(1.5, [78.0, 48.0, 28.0]), by_flops).ratio
    assert [found.low, found.value, found.high] == pytest.approx([2.0**1.2 / 1.5] * 3)
    alone = compare([Measured(2.0, (40.0,), (1.0,), (2.0,))], Measured(1.5, (41.0,), (1.0,), (2.0,)), by_time).ratio
    assert (alone.low, alone.high) == (None, None)


def test_the_smallest_ratio_has_an_interval_of_its_own() -> None:
    others = [setting(1.5, [50.0, 40.0, 60.0]), setting(1.5, [50.0, 60.0, 40.0]), setting(1.0, [50.0] * 3)]
    drawn = [compare(FRONT, one, by_flops) for one in others]
    found, least = smallest(drawn, 3)
    assert least == 0 and found.value == drawn[0].ratio.value and found.bound == ""
    lows = [one.ratio.low for one in drawn[:2]]
    assert found.low is not None and all(low is not None and found.low <= low for low in lows)
    assert found.high is not None and found.high < max(one.ratio.high or 0.0 for one in drawn)
    assert np.minimum(drawn[0].draws, drawn[1].draws).max() < drawn[0].draws.max()
    above = compare(FRONT, setting(1.1, [90.0] * 3), by_flops)
    assert smallest([*drawn, above], 3)[0].bound == "at most"
    below = compare(FRONT, setting(1.0, [10.0] * 3), by_flops)
    assert smallest([below, drawn[0]], 3)[0].bound == "" and smallest([below], 3)[0].bound == "at least"


@pytest.mark.parametrize(
    ("ratio", "goal", "word"),
    [
        (Ratio(2.5, 2.1, 3.0), 2.0, "yes"), (Ratio(2.5, 1.9, 3.0), 2.0, "undecided"), (Ratio(1.5, 1.2, 1.9), 2.0, "no"),
        (Ratio(2.5, None, None), 2.0, "yes"), (Ratio(1.5, None, None), 2.0, "no"),
    ],
)  # fmt: skip
def test_a_goal_is_reached_where_the_whole_interval_is(ratio: Ratio, goal: float, word: str) -> None:
    assert ratio.reaches(goal) == word


# -- choosing ----------------------------------------------------------------------------------------------------------
def test_the_front_is_what_nothing_beats() -> None:
    figures = {
        "a": Figures(1.0, 60.0), "b": Figures(2.0, 50.0), "c": Figures(1.5, 49.0), "d": Figures(3.0, 40.0),
        "e": Figures(2.0, 50.0), "f": Figures(1.8, 50.0),
    }  # fmt: skip
    assert front(figures) == ["a", "b", "d"]
    assert front(figures, 2.0) == ["a", "c", "f", "b", "e", "d"]
    assert front(figures, 0.5) == ["a", "f", "b", "e", "d"]


def test_a_long_front_is_thinned_evenly_with_its_ends() -> None:
    figures = {str(n): Figures(2.0**n, -n) for n in range(9)}
    assert thinned(list(figures), figures, 3) == ["0", "4", "8"] and thinned(list(figures), figures, 9) == list(figures)


def test_most_of_what_is_measured_is_on_the_front_of_all() -> None:
    best = {str(n): Figures(1.1 + 0.1 * n, 60.0 - n) for n in range(12)}
    worse = {str(n): Figures(1.1 + 0.1 * n, 40.0 - n) for n in range(12)} | {
        "idle": Figures(1.0, 100.0),
        "mild": Figures(1.05, 90.0),
    }
    found = chosen({"best": best, "worse": worse, "idle": {"0": Figures(1.0, 100.0)}})
    assert len(found["best"]) == 5 and found["worse"] == ["0"] and found["idle"] == []


def test_grids_name_every_setting_once_and_begin_with_the_packages_own_default() -> None:
    diffusers = pytest.importorskip("diffusers")
    for grid in GRIDS:
        settings, names = grid.peer.settings, grid.peer.names
        assert len(settings) == len(names) == len(set(names)) and names[0] == DEFAULT == grid.defaults[0]
        assert len({repr(sorted(fields.items())) for fields in settings}) == len(settings) >= 13, grid.peer.label
        if grid.peer.package == "diffusers" and grid.peer.label != "PAB":  # PAB's own skips nothing: its example's
            own = vars(getattr(diffusers, f"{grid.peer.method}Config")(**_needed(grid.peer.method)))
            assert {key: own[key] for key in settings[0]} == dict(settings[0]), grid.peer.label


def _needed(method: str) -> dict[str, float]:
    return {"MagCache": {"calibrate": True}}.get(method, {})


def test_settings_are_shown_short() -> None:
    ranges = "spatial_attention_block_skip_range 2, spatial_attention_timestep_skip_range -1 to 681"
    assert shortened(f"{ranges}, unconditional_batch_timestep_skip_range -1 to 681") == "spatial 2, timesteps -1 to 681"
    assert shortened("as published") == "as published"
    assert shortened("use_lite_mode False, max_order 2, cache_interval 4") == "order 2, interval 4"


def test_the_pages_tables_are_those_of_the_committed_figures() -> None:
    page = (DOCS / "peers.md").read_text()
    folders = sorted(path.parent for path in DOCS.glob("bench/*/swept.json"))
    measured = {folder.name: swept_page.markdown(Swept.load(folder)) for folder in folders}
    places = re.findall("<!-- swept (.+) -->", page)
    assert places == ["latte-digits", "wan-digits"] and set(measured) <= set(places)
    for name in places:
        start, end = swept_page.place(name)
        _, _, rest = page.partition(f"{start}\n")
        assert rest.partition(end)[0] == measured.get(name, ""), name


# -- everything together, without a pipeline ---------------------------------------------------------------------------
RUNS = {
    ("planned", "gentle"): FRONT[0], ("planned", "middle"): FRONT[1], ("planned", "strong"): FRONT[2],
    (FEWER, "25"): setting(2.0, [45.0] * 3), (FEWER, "10"): setting(5.0, [30.0] * 3),
    ("DBCache", "1"): setting(1.6, [55.0, 51.0, 56.0]), ("DBCache", "2"): setting(3.0, [44.0, 45.0, 43.0], 0.5),
    ("SeaCache", DEFAULT): setting(1.25, [20.0] * 3), ("SeaCache", "1"): setting(1.0, [100.0] * 3),
}  # fmt: skip
KINDS = {"planned": (PLANNED, "fastercache"), FEWER: (FEWER, "fastercache"), "DBCache": (WATCHING, "cache-dit")}


def contenders() -> list[Contender]:
    other = WATCHING, "diffusers"
    return [Contender(label, f"threshold {level}", level, *KINDS.get(label, other), None) for label, level in RUNS]


def made_up() -> Swept:
    """A sweep as it is written, from made-up runs."""
    entries = contenders()
    ratios, goals = compared({c.name: RUNS[c.label, c.level] for c in entries}, entries, "planned", GRIDS)
    lines = [
        Line(
            label=c.label, setting=c.setting, level=c.level, family=c.family, package=c.package, prompts=3,
            speedup_flops=Interval(run.flops, None, None), speedup_wall=Interval(0.9 * run.flops, None, None),
            quality={"psnr": mean_interval(run.psnr)},
        )
        for c in entries
        if (run := RUNS[c.label, c.level])
    ]  # fmt: skip
    table = Results(
        pipeline="tiny", steps=50, prompts=3, seed=0, hardware="here", versions={}, seconds_uncached=1.0, counted=2,
        rule="", lines=tuple(lines),
    )  # fmt: skip
    points = [
        Point(method="DBCache (cache-dit)", setting="threshold 1", level="1", default=True, speedup=1.6, psnr=54.0,
              prompts=1, chosen=True),
        Point(method="DBCache (cache-dit)", setting="F 8", level=DEFAULT, default=True, refused="too many blocks"),
        Point(method="MagCache (diffusers)", setting="threshold 2", level="2", default=False, refused="raises"),
        Point(method="MagCache (diffusers)", setting="threshold 3", level="3", default=False, refused="raises"),
        Point(method="PAB (diffusers)", setting="as published", level=DEFAULT, default=True, speedup=1.0, psnr=100.0),
    ]  # fmt: skip
    return Swept(
        grids=1, search_prompts=1, search_seed=0, points=tuple(points), table=table, ratios=tuple(ratios),
        goals=tuple(goals),
    )  # fmt: skip


def test_every_setting_that_skips_anything_is_compared_and_a_refused_default_is_stood_in_for() -> None:
    rows = {(row.method, row.level): row for row in made_up().ratios}
    assert set(rows) == {
        (FEWER, "25"), (FEWER, "10"), ("DBCache (cache-dit)", "1"), ("DBCache (cache-dit)", "2"),
        ("SeaCache (diffusers)", DEFAULT),
    }  # fmt: skip
    assert {key for key, row in rows.items() if row.default} == {
        ("DBCache (cache-dit)", "1"), ("SeaCache (diffusers)", DEFAULT)
    }  # fmt: skip
    gentle = rows["DBCache (cache-dit)", "1"]
    assert gentle.by_flops.value == pytest.approx(bisected(FRONT, [55.0, 51.0, 56.0]) / 1.6)
    assert gentle.fewer_by_flops is not None and gentle.fewer_by_flops.bound == "at most"
    assert (
        rows[FEWER, "25"].fewer_by_flops is None and rows["SeaCache (diffusers)", DEFAULT].by_flops.bound == "at least"
    )


def test_each_goal_is_about_the_setting_that_comes_nearest() -> None:
    swept = made_up()
    found = {(goal.over, goal.by): goal for goal in swept.goals}
    rows = {(row.method, row.level): row for row in swept.ratios}
    gentle, strong = rows["DBCache (cache-dit)", "1"], rows["DBCache (cache-dit)", "2"]
    default, best = found["each default", "FLOPs"], found["the best swept setting", "FLOPs"]
    assert (default.ratio.value, default.settings) == (gentle.by_flops.value, 2)
    assert (best.ratio.value, best.settings) == (min(gentle.by_flops.value, strong.by_flops.value), 3)
    assert best.nearest == "DBCache (cache-dit), threshold 1" and best.reached == best.ratio.reaches(1.5)
    assert found["each default", "time"].ratio.value == gentle.by_time.value


def test_the_page_says_what_was_compared_and_what_was_not() -> None:
    text = swept_page.markdown(made_up())
    assert "| DBCache (cache-dit) | **default**: threshold 1 | 1.60× |" in text
    assert "- DBCache (cache-dit), F 8: too many blocks\n- MagCache (diffusers): raises\n" in text
    assert "- PAB (diffusers): skips nothing" in text and "2 settings of other packages ran on 1 search prompt" in text
    assert (
        text.index("DBCache (cache-dit) |") < text.index("SeaCache (diffusers) |") < text.index("| fewer steps | thr")
    )


@pytest.mark.slow
def test_the_figure_has_every_method_and_both_axes() -> None:
    swept = made_up()
    texts = [text.get_text() for axes in draw(swept).axes for text in axes.texts]
    for name in ("planned", FEWER, *(row.method for row in swept.ratios)):
        assert texts.count(name) == 2, name


# -- at the ends, and beside plain Python ------------------------------------------------------------------------------
def test_a_setting_that_is_as_good_as_an_end_of_the_front_is_met_there() -> None:
    slowest, fastest = (compare(FRONT, setting(1.6, list(one.psnr)), by_flops).ratio for one in (FRONT[0], FRONT[-1]))
    assert (slowest.value, slowest.bound) == (pytest.approx(2.0 / 1.6), "")
    assert (fastest.value, fastest.bound) == (pytest.approx(8.0 / 1.6), "at least")
    alone = [compare(FRONT[:1], setting(1.6, [p] * 3), by_flops).ratio for p in (60.0, 59.9, 60.1)]
    assert [(one.value, one.bound) for one in alone] == [
        (pytest.approx(1.25), "at least"), (pytest.approx(1.25), "at least"), (pytest.approx(1.25), "at most"),
    ]  # fmt: skip


def test_the_interval_is_that_of_two_thousand_draws_of_prompts() -> None:
    """Drawn from seed 0; in each draw the speedups in time, the crossing and the ratio by plain Python."""
    front = [
        Measured(2.0, (60.0, 62.0, 55.0), (4.0, 11.0, 20.0), (10.0, 20.0, 60.0)),
        Measured(4.0, (50.0, 45.0, 52.0), (3.0, 5.0, 18.0), (11.0, 19.0, 62.0)),
    ]
    other = Measured(1.6, (55.0, 58.0, 51.0), (6.0, 12.0, 38.0), (10.0, 21.0, 61.0))

    def speedup(one: Measured, drawn: list[int]) -> float:
        return statistics.median(one.uncached[i] for i in drawn) / statistics.median(one.seconds[i] for i in drawn)

    def ratio(drawn: list[int]) -> float:
        above = [statistics.fmean(one.psnr[i] - other.psnr[i] for i in drawn) for one in front]
        at = [math.log(speedup(one, drawn)) for one in front]
        (at[0], above[0]), (at[1], above[1]) = sorted(zip(at, above, strict=True))
        if above[1] >= 0:
            where = at[1]
        elif above[0] < 0:
            where = at[0]
        else:
            where = at[0] + (at[1] - at[0]) * above[0] / (above[0] - above[1])
        return math.exp(where) / speedup(other, drawn)

    drawn = np.random.default_rng(0).integers(0, 3, (2000, 3)).tolist()
    expected = [ratio(row) for row in drawn]
    found = compare(front, other, by_time)
    np.testing.assert_allclose(found.draws, expected, rtol=1e-9)
    assert found.ratio.value == pytest.approx(ratio([0, 1, 2]))
    assert (found.ratio.low, found.ratio.high) == pytest.approx(tuple(np.quantile(expected, (0.025, 0.975))))
    flops = compare(front, other, by_flops)
    least = smallest([found, flops], 3)[0]
    both = np.minimum(expected, flops.draws)
    assert (least.low, least.high) == pytest.approx(tuple(np.quantile(both, (0.025, 0.975))))
    assert smallest([found, flops], 1)[0][1:3] == (None, None)


def test_an_upper_bound_anywhere_makes_the_smallest_an_upper_bound() -> None:
    exact = compare(FRONT, setting(3.0, [50.0] * 3), by_flops)  # 4 / 3
    below, above = (
        compare(FRONT, setting(1.0, [psnr] * 3), by_flops) for psnr in (10.0, 90.0)
    )  # at least 8, at most 2
    assert [one.ratio.bound for one in (exact, below, above)] == ["", "at least", "at most"]
    for ratios in ([exact, above], [above, exact, below]):
        ratio, least = smallest(ratios, 3)
        assert (ratio.bound, ratio.value) == ("at most", exact.ratio.value) and ratios[least] is exact
    assert smallest([exact, below], 3)[0].bound == ""
    higher = compare(FRONT, setting(6.0, [10.0] * 3), by_flops)  # at least 4 / 3
    assert smallest([below, higher], 3)[0].bound == "at least"


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        (Ratio(2.0, None, None), "yes"), (Ratio(2.5, 2.0, 3.0), "yes"), (Ratio(1.5, 1.0, 2.0), "undecided"),
        (Ratio(2.5, None, None, "at most"), "undecided"), (Ratio(1.9, None, None, "at most"), "no"),
        (Ratio(2.0, None, None, "at least"), "yes"), (Ratio(1.9, None, None, "at least"), "undecided"),
        (Ratio(2.5, 1.9, 3.0, "at least"), "undecided"), (Ratio(1.5, 1.4, 2.1, "at most"), "undecided"),
    ],
)  # fmt: skip
def test_a_goal_is_reached_at_the_goal_itself(ratio: Ratio, word: str) -> None:
    assert ratio.reaches(2.0) == word


def test_a_ratio_is_shown_with_its_interval_or_its_bound() -> None:
    shown = [Ratio(2.0, 1.5, 2.5).shown(), Ratio(2.0, None, None).shown(), Ratio(2.0, 1.5, 2.5, "at most").shown()]
    assert shown == ["2.00 (1.50 to 2.50)", "2.00", "at most 2.00"]


def test_what_is_worth_measuring_is_a_tenth_faster_at_least() -> None:
    figures = {"0": Figures(1.0999, 90.0), "1": Figures(1.1, 80.0), "2": Figures(1.5, 70.0)}
    assert chosen({"method": figures}) == {"method": ["1", "2"]}
    own = {"0": Figures(1.2, 50.0), "1": Figures(1.4, 40.0), "2": Figures(1.6, 60.0), "3": Figures(1.8, 30.0)}
    found = chosen({"method": figures, "other": own})
    assert found == {"method": ["1", "2"], "other": ["2", "3"]}, "of the front of all, and of its own"
    behind = {"0": Figures(1.2, 50.0), "1": Figures(1.4, 40.0)}
    assert chosen({"method": figures, "other": behind})["other"] == ["0"]


def test_a_setting_is_compared_from_where_it_skips_anything_and_one_default_counts() -> None:
    """A documented default and what stands in for it both ran: the documented one is the default."""
    grid = next(grid for grid in GRIDS if grid.peer.label == "DBCache")
    assert grid.defaults == (DEFAULT, "1") and grid.scouts == (DEFAULT, "1", grid.peer.names[-1])
    runs = {
        ("planned", "gentle"): FRONT[0], ("planned", "strong"): FRONT[1],
        (FEWER, "25"): setting(2.0, [45.0] * 3), (FEWER, "45"): setting(1.001, [90.0] * 3),
        ("DBCache", DEFAULT): setting(1.005, [55.0] * 3), ("DBCache", "1"): setting(1.7, [52.0] * 3),
        ("DBCache", "2"): setting(1.0049, [52.0] * 3), ("Other", DEFAULT): setting(1.9, [52.0] * 3),
    }  # fmt: skip
    whose = {"planned": "fastercache", FEWER: "fastercache"}
    all_of = [
        Contender(label, level, level, "any", whose.get(label, "cache-dit"), None)
        for label, level in [*runs, ("DBCache", "refused")]
    ]
    ran = {one.name: runs[one.label, one.level] for one in all_of if (one.label, one.level) in runs}
    rows, goals = compared(ran, all_of, "planned", [grid])
    assert [(row.method, row.level, row.default) for row in rows] == [
        (FEWER, "25", False), ("DBCache (cache-dit)", DEFAULT, True), ("DBCache (cache-dit)", "1", False),
        ("Other (cache-dit)", DEFAULT, False),
    ]  # fmt: skip
    assert [(goal.over, goal.by, goal.goal, goal.settings) for goal in goals] == [
        ("each default", "FLOPs", 2.0, 1), ("the best swept setting", "FLOPs", 1.5, 3),
        ("each default", "time", 1.7, 1), ("the best swept setting", "time", 1.3, 3),
    ]  # fmt: skip
    default, best = goals[0], goals[1]
    assert default.ratio.value == rows[1].by_flops.value and default.nearest == f"DBCache (cache-dit), {DEFAULT}"
    ratios = {row.setting: row.by_flops.value for row in rows[1:] if row.method.startswith("DBC")}
    assert best.ratio.value == min(ratios["1"], rows[3].by_flops.value)
    assert compared({one.name: FRONT[0] for one in all_of[:2]}, all_of[:2], "planned", [grid]) == ([], [])
