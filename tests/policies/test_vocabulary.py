"""Site queries select what they say, in execution order, and say what exists when they match nothing."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastercache.policies.errors import NoSiteMatched
from fastercache.policies.vocabulary import Kind, Role, Run, Site, Step, matches, select


def model(blocks: int = 4) -> list[Site]:
    sites = []
    for d in range(blocks):
        span = (d, d + 1)
        sites.append(Site(f"blocks.{d}", Kind.BLOCK, None, d, span))
        role = Role.SPATIAL if d % 2 == 0 else Role.TEMPORAL
        sites.append(Site(f"blocks.{d}.attn1", Kind.MODULE, role, d, span))
        sites.append(Site(f"blocks.{d}.attn2", Kind.MODULE, Role.CROSS, d, span))
        sites.append(Site(f"blocks.{d}.ff", Kind.MODULE, Role.FF, d, span))
    sites.append(Site("stack", Kind.STACK, None, 0, (0, blocks)))
    sites.append(Site("denoiser", Kind.DENOISER))
    sites.append(Site("branch", Kind.BRANCH))
    return sites


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("spatial", ["blocks.0.attn1", "blocks.2.attn1"]),
        ("temporal[2:4]", ["blocks.3.attn1"]),
        ("attention", [f"blocks.{d}.attn1" for d in range(4)]),
        ("cross[-1:]", ["blocks.3.attn2"]),
        ("blocks.*.ff", [f"blocks.{d}.ff" for d in range(4)]),
        ("block[:2]", ["blocks.0", "blocks.1"]),
        ("branch|denoiser", ["denoiser", "branch"]),
        ("ff[1:2]|spatial[0:1]", ["blocks.0.attn1", "blocks.1.ff"]),
        ("stack", ["stack"]),
        ("stack[1:-1]", ["stack[1:3]"]),
    ],
)
def test_query_selects_in_execution_order(query: str, names: list[str]) -> None:
    assert [site.name for site in select(query, model())] == names


def test_all_is_every_module_and_nothing_else() -> None:
    assert {site.kind for site in select("all", model())} == {Kind.MODULE}
    assert len(select("all", model())) == 12


def test_stack_slice_carries_its_span_and_survives_a_round_trip() -> None:
    (site,) = select("stack[1:3]", model())
    assert (site.span, site.depth, site.kind) == ((1, 3), 1, Kind.STACK)
    assert select(site.name, model()) == (site,)
    assert select(site.name, [*model(), site]) == (site,)


@pytest.mark.parametrize("query", ["joint", "block.0.attn1", "spatial[9:]", "stack[3:1]", "attention[", ""])
def test_a_term_that_matches_nothing_is_an_error(query: str) -> None:
    with pytest.raises(NoSiteMatched):
        select(query, model())


def test_the_error_names_the_nearest_site() -> None:
    with pytest.raises(NoSiteMatched, match=r"did you mean 'blocks\.0\.attn1'"):
        select("block.0.attn1", model())


def test_matches_passes_over_what_is_missing() -> None:
    assert [s.name for s in matches("joint|denoiser", model())] == ["denoiser"]
    assert matches("joint", model()) == ()


def test_inside_follows_the_nesting_of_kinds_and_spans() -> None:
    by = {site.name: site for site in model()}
    (part,) = select("stack[1:3]", model())
    assert by["blocks.1.ff"].inside(by["blocks.1"]) and by["blocks.1.ff"].inside(part)
    assert not by["blocks.3.ff"].inside(part) and not by["blocks.1.ff"].inside(by["blocks.2"])
    assert by["blocks.0"].inside(by["denoiser"]) and by["stack"].inside(by["branch"])
    assert not by["denoiser"].inside(by["blocks.0"]) and not by["stack"].inside(by["stack"])


def test_progress_runs_from_zero_to_one() -> None:
    assert [step.progress for step in Run.of(5).steps] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Step(0, 1, 999.0).progress == 0.0


def pair(blocks: tuple[int, int] = (4, 2)) -> list[Site]:
    """Two denoisers of one pipeline, the second with fewer blocks."""
    return [
        replace(site, name=f"{name}/{site.name}", denoiser=name)
        for name, count in zip(("transformer", "transformer_2"), blocks, strict=True)
        for site in model(count)
    ]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("denoiser", ["transformer/denoiser", "transformer_2/denoiser"]),
        ("branch", ["transformer/branch", "transformer_2/branch"]),
        ("stack", ["transformer/stack", "transformer_2/stack"]),
        ("stack[1:]", ["transformer/stack[1:4]", "transformer_2/stack[1:2]"]),
        ("stack[2:]", ["transformer/stack[2:4]"]),  # the second has no block there
        ("cross[-1:]", ["transformer/blocks.3.attn2", "transformer_2/blocks.1.attn2"]),
        ("blocks.1.ff", ["transformer/blocks.1.ff", "transformer_2/blocks.1.ff"]),
        ("blocks.*.ff[:1]", ["transformer/blocks.0.ff", "transformer_2/blocks.0.ff"]),
        ("transformer_2/stack[:1]", ["transformer_2/stack[0:1]"]),
        ("transformer/denoiser|transformer_2/spatial", ["transformer/denoiser", "transformer_2/blocks.0.attn1"]),
        ("transformer*/blocks.3", ["transformer/blocks.3"]),
    ],
)
def test_a_query_selects_in_every_denoiser_unless_it_names_one(query: str, names: list[str]) -> None:
    assert [site.name for site in select(query, pair())] == names


def test_every_name_is_a_query_that_selects_it_alone() -> None:
    for sites in (model(), pair()):
        for site in (*sites, *select("stack[1:]", sites)):
            assert select(site.name, sites) == (site,)


def test_an_outer_site_holds_nothing_of_another_denoiser() -> None:
    by = {site.name: site for site in pair()}
    for outer in ("denoiser", "branch", "stack", "blocks.0"):
        assert by["transformer/blocks.0.ff"].inside(by[f"transformer/{outer}"])
        assert not by["transformer_2/blocks.0.ff"].inside(by[f"transformer/{outer}"])


def test_errors_name_the_denoisers_and_count_the_blocks() -> None:
    with pytest.raises(NoSiteMatched, match=r"'vae/stack' names no denoiser.*transformer, transformer_2"):
        select("vae/stack", pair())
    with pytest.raises(NoSiteMatched, match="only one here"):
        select("transformer/stack", model())
    with pytest.raises(NoSiteMatched, match=r"counts blocks, not matches, and the model has 4 blocks$"):
        select("spatial[9:]", model())


@pytest.mark.parametrize("slice_", ["[-:]", "[:-]", "[0:" + "9" * 5000 + "]", "[a:b]", "[1]", "[1:2:3]"])
def test_a_malformed_slice_is_an_error_of_one_short_line(slice_: str) -> None:
    with pytest.raises(NoSiteMatched) as raised:
        select(f"spatial{slice_}", model())
    assert len(str(raised.value)) < 250


def test_selecting_by_name_looks_at_each_site_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = model(150)
    looked = 0

    def path(self: Site) -> str:
        nonlocal looked
        looked += 1
        return self.name

    monkeypatch.setattr(Site, "path", property(path))
    assert len(select("|".join(s.name for s in sites), sites)) == len(sites)
    assert looked <= 3 * len(sites)


HEADS = (
    "spatial", "temporal", "cross", "ff", "joint", "attention", "all", "block", "denoiser", "branch", "stack",
    "blocks.*.attn?", "blocks.1.ff", "blocks.2", "*", "nothing*",
)  # fmt: skip


def named(head: str, site: Site) -> bool:
    """Whether a term without a slice means this site."""
    if head in map(str, Kind):
        return site.kind == head
    if head == "all":
        return site.kind is Kind.MODULE
    if head == "attention":
        return site.role in (Role.SPATIAL, Role.TEMPORAL, Role.JOINT)
    if head in map(str, Role):
        return site.role == head
    return fnmatch.fnmatchcase(site.name, head)


bounds = st.one_of(st.none(), st.integers(-6, 6))


@given(
    st.lists(st.tuples(st.sampled_from(HEADS), st.booleans(), bounds, bounds), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_a_query_means_what_its_terms_mean_one_by_one(
    terms: list[tuple[str, bool, int | None, int | None]], blocks: int
) -> None:
    sites, wanted, empty, text = model(blocks), set[str](), False, []
    for head, sliced, low, high in terms:
        sliced = sliced and head != "stack"  # a part of the stack is a site of its own, see below
        mine = {s.name for s in sites if named(head, s)}
        if sliced:
            mine &= {s.name for s in sites if s.depth in range(blocks)[low:high] and s.kind is not Kind.STACK}
        text.append(head + (f"[{'' if low is None else low}:{'' if high is None else high}]" if sliced else ""))
        wanted |= mine
        empty |= not mine
    query = " | ".join(text)
    expected = [site for site in sites if site.name in wanted]
    assert list(matches(query, sites)) == expected
    if empty:
        with pytest.raises(NoSiteMatched):
            select(query, sites)
    else:
        assert list(select(query, sites)) == expected


@given(bounds, bounds, st.integers(1, 5))
def test_a_part_of_the_stack_spans_what_a_slice_of_its_blocks_holds(
    low: int | None, high: int | None, blocks: int
) -> None:
    query = f"stack[{'' if low is None else low}:{'' if high is None else high}]"
    spanned = list(range(blocks))[low:high]
    if not spanned:
        with pytest.raises(NoSiteMatched, match="spans no block"):
            select(query, model(blocks))
        return
    (site,) = select(query, model(blocks))
    assert site.span == (spanned[0], spanned[-1] + 1) and site.depth == spanned[0]
    inside = {s.depth for s in model(blocks) if s.kind is Kind.BLOCK and s.inside(site)}
    assert inside == set(spanned)


def test_a_site_and_a_step_say_nothing_that_they_were_not_given() -> None:
    site, step = Site("denoiser", Kind.DENOISER), Step(1, 4, 500.0)
    assert (site.role, site.depth, site.span, site.denoiser) == (None, -1, (0, 0), "")
    assert (step.sigma, step.denoiser) == (None, "")
    assert [Step(i, 5, 0.0).progress for i in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0] and Step(
        0, 1, 0.0
    ).progress == 0.0
    run = Run.of(4)
    assert [s.timestep for s in run.steps] == pytest.approx([999.0, 666.0, 333.0, 0.0]) and run.sites == ()
    assert Run.of(1).steps[0].timestep == 999.0


@pytest.mark.parametrize(
    ("sites", "says"),
    [
        ([Site("denoiser", Kind.DENOISER)], "the model has 0 blocks"),
        ([Site("denoiser", Kind.DENOISER), Site("blocks.0", Kind.BLOCK, None, 0, (0, 1))], "the model has 1 block in"),
        ([], "the model has 0 blocks"),
        (
            [
                Site("a/blocks.0", Kind.BLOCK, None, 0, (0, 1), "a"),
                Site("b/blocks.1", Kind.BLOCK, None, 1, (1, 2), "b"),
            ],
            "the model has 1 block in a and 2 blocks in b",
        ),
    ],
)
def test_blocks_are_counted_for_each_denoiser(sites: list[Site], says: str) -> None:
    with pytest.raises(NoSiteMatched, match=says):
        select("stack[0:1]", sites)
