"""Random compositions, wrappers and schedules decide as an interpreter of a few lines does, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st

import fastercache as fc
from fastercache.policies.schedule import LETTERS, Code, Row, Schedule, compile_policy, last_reads
from fastercache.policies.vocabulary import Branch, Run, Site, Step

SITES = (
    Site("denoiser", fc.Kind.DENOISER),
    Site("branch", fc.Kind.BRANCH),
    Site("stack", fc.Kind.STACK, None, 0, (0, 2)),
    *(Site(f"blocks.{d}", fc.Kind.BLOCK, None, d, (d, d + 1)) for d in range(2)),
    *(Site(f"blocks.{d}.ff", fc.Kind.MODULE, fc.Role.FF, d, (d, d + 1)) for d in range(2)),
)
AROUND = {
    "denoiser": (),
    "branch": ("denoiser",),
    "stack": ("denoiser", "branch"),
    **{f"blocks.{d}": ("denoiser", "branch", "stack") for d in range(2)},
    **{f"blocks.{d}.ff": ("denoiser", "branch", "stack", f"blocks.{d}") for d in range(2)},
}
"""What each site lies inside of, by hand."""
BRANCHES = ("cond", "uncond")


class Pattern(fc.SitePolicy, fc.StaticRule[int]):
    """Reuses where `bits` says so; its place in them moves on by one a step and by two for every computed value."""

    name: ClassVar[str] = "pattern"
    sites: str
    bits: tuple[bool, ...]

    @property
    def query(self) -> str:
        return self.sites

    def begin(self, site: Site, branch: Branch, run: Run) -> int:
        return BRANCHES.index(branch)

    def reuse(self, state: int, step: Step) -> bool:
        return self.bits[(step.index + 2 * state) % len(self.bits)]

    def update(self, state: int, step: Step) -> int:
        return state + 1


def wrapped(inner: fc.Policy, wrappers: list[tuple[str, Any]]) -> fc.Policy:
    for kind, value in wrappers:
        if kind == "warm_up":
            inner = fc.WarmUp(inner=inner, steps=value)
        elif kind == "window":
            inner = fc.Window(inner=inner, start=value[0], stop=value[1])
        else:
            inner = fc.MaxConsecutive(inner=inner, limit=value)
    return inner


def interpreted(parts: list[tuple[list[str], list[bool], list[tuple[str, Any]]]], count: int) -> dict[str, list[str]]:
    """Letters by site, one string a branch: every site asked by itself, the outermost first."""
    mine = {site: part for part in parts for site in part[0]}
    letters = {site: ["", ""] for site in mine}
    computed = {(site, b): b for site in mine for b in range(2)}  # the place in the bits begins at the branch's number
    row = {(site, b, level): 0 for site in mine for b in range(2) for level in range(len(mine[site][2]))}
    seen = set()
    for i in range(count):
        now: dict[tuple[str, int], str] = {}
        for b in range(2):
            for site in (name for name in AROUND if name in mine):
                _, bits, wrappers = mine[site]
                if (site == "branch" and b == 0) or any(now.get((outer, b)) == "R" for outer in AROUND[site]):
                    now[site, b] = "-"
                    continue
                wants = bits[(i + 2 * computed[site, b]) % len(bits)]
                for level, (kind, value) in enumerate(wrappers):
                    u = i / (count - 1)
                    if kind == "warm_up":
                        allowed = i >= value
                    elif kind == "window":
                        allowed = value[0] <= u and (u < value[1] or value[1] == 1.0)
                    else:
                        allowed = row[site, b, level] < value
                    wants = wants and allowed
                    row[site, b, level] += wants
                now[site, b] = "R" if wants and (site, b) in seen else "C"
                if site == "branch" and now[site, b] == "R" and "denoiser" in mine:
                    now["denoiser", b] = "-"  # predicted, so the denoiser does not run for it
        for (site, b), letter in now.items():
            letters[site][b] += letter
            if letter == "C":
                seen.add((site, b))
                computed[site, b] += 1
                for level in range(len(mine[site][2])):
                    row[site, b, level] = 0
    return letters


progress = st.integers(0, 8).map(lambda n: n / 8)
wrapping = st.one_of(
    st.tuples(st.just("warm_up"), st.integers(0, 4)),
    st.tuples(st.just("window"), st.tuples(progress, progress)),
    st.tuples(st.just("limit"), st.integers(1, 3)),
)


@st.composite
def compositions(draw: st.DrawFn) -> list[tuple[list[str], list[bool], list[tuple[str, Any]]]]:
    """Up to three parts with sites of their own, each with its bits and up to three wrappers, innermost first."""
    names = draw(st.permutations(list(AROUND)))[: draw(st.integers(1, len(AROUND)))]
    cuts = sorted(draw(st.lists(st.integers(0, len(names)), max_size=2)))
    shares = [names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    return [
        (share, draw(st.lists(st.booleans(), min_size=1, max_size=7)), draw(st.lists(wrapping, max_size=3)))
        for share in shares
        if share
    ]


def compiled(policy: fc.Policy, count: int) -> dict[str, list[str]]:
    table = compile_policy(policy, Run.of(count, branches=BRANCHES, sites=SITES))
    return {
        site.name: ["".join(LETTERS[Code(code)] for code in row) for row in rows]
        for site, rows in zip(table.sites, table.codes.tolist(), strict=True)
    }


@given(compositions(), st.integers(2, 10))
def test_compositions_and_wrappers_decide_as_the_interpreter(parts: Any, count: int) -> None:
    policies = [wrapped(Pattern(sites="|".join(names), bits=tuple(bits)), around) for names, bits, around in parts]
    expected = interpreted(parts, count)
    assert compiled(fc.Compose(policies), count) == expected
    # what it did is a schedule, which does the same again
    table = compile_policy(fc.Compose(policies), Run.of(count, branches=BRANCHES, sites=SITES))
    assert compiled(Schedule.of(table), count) == expected


@given(st.data(), st.integers(2, 8))
def test_schedules_with_rows_for_each_branch_decide_as_the_interpreter(data: st.DataObject, count: int) -> None:
    names = data.draw(st.lists(st.sampled_from(list(AROUND)), min_size=1, unique=True))
    steps = st.text("CR", min_size=count, max_size=count)
    rows, asked = [], dict[tuple[str, int], str]()
    for name in names:
        if data.draw(st.booleans()):
            letters = data.draw(steps)
            rows.append(Row(sites=name, steps=letters))
            asked |= {(name, 0): letters, (name, 1): letters}
        else:
            for b, branch in enumerate(BRANCHES):
                if data.draw(st.booleans()):
                    asked[name, b] = data.draw(steps)
                    rows.append(Row(sites=name, branch=branch, steps=asked[name, b]))
    if not rows:
        return
    told = sorted({row.sites for row in rows}, key=list(AROUND).index)
    expected, seen = {name: ["", ""] for name in told}, set()
    for i in range(count):
        now: dict[tuple[str, int], str] = {}
        for b in range(2):
            for name in told:
                if (name == "branch" and b == 0) or any(now.get((outer, b)) == "R" for outer in AROUND[name]):
                    now[name, b] = "-"
                else:
                    reuse = asked.get((name, b), "C" * count)[i] == "R" and (name, b) in seen
                    now[name, b] = "R" if reuse else "C"
                    if name == "branch" and reuse and "denoiser" in told:
                        now["denoiser", b] = "-"
        for (name, b), letter in now.items():
            expected[name][b] += letter
            if letter == "C":
                seen.add((name, b))
    schedule = Schedule(rows=tuple(rows))
    assert compiled(schedule, count) == expected
    assert fc.load_policy(fc.dump(schedule)) == schedule


@given(st.lists(st.sampled_from("CR-"), min_size=1, max_size=14), st.integers(1, 4))
def test_what_is_read_is_what_a_replay_with_a_short_memory_reads(letters: list[str], depth: int) -> None:
    codes = [Code("CR-".index(letter)) for letter in letters]
    expected: Mapping[int, int] = {}
    for i, letter in enumerate(letters):
        if letter == "R":
            newest = [j for j in range(i) if letters[j] == "C"][-depth:]
            expected = {**expected, **{j: i for j in newest}}
    assert last_reads(codes, depth) == expected
