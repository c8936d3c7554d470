"""`make mutate`: what counts as a mutant, where it is tried, and how its score is counted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cosmic_ray import work_item
from cosmic_ray.plugins import operator_names

from fastercache.experiments.jobs import mutating
from fastercache.experiments.jobs.deciding import ROOMS, Deciding
from fastercache.experiments.jobs.mutants import OPERATORS, change, mutated, valid
from fastercache.experiments.jobs.mutating import (
    ROOT,
    Runner,
    Tried,
    copied,
    order,
    report,
    score,
    session,
    tried_in,
    work,
)

MODULE = '''"""Says whether a number is small."""
from __future__ import annotations

BOUND: int | None = 3


def small(x: float, *, bound: int = 3) -> bool | None:
    """Below `bound`."""
    if x != x:
        raise ValueError(f"{x} is no number, {1 + 1} are")
    return x < bound
'''


def test_the_table_names_modules_and_tests_that_exist() -> None:
    every = [one for room in ROOMS.values() for one in room]
    assert len({one.module for one in every}) == len(every), "a module belongs to one room"
    for one in every:
        assert (ROOT / one.module).is_file(), one.module
        assert one.tests, f"{one.module} has no tests"
        for test in one.tests:
            assert "\ndef test_" in (ROOT / test).read_text(encoding="utf-8"), test


def test_every_operator_is_one_of_cosmic_rays() -> None:
    assert set(operator_names()) >= OPERATORS


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ("return x < bound", "return x <= bound", True),
        ("bound: int = 3", "bound: int = 4", True),
        ("BOUND: int | None = 3", "BOUND: int & None = 3", False),
        ("-> bool | None", "-> bool & None", False),
        ("*, bound", "/, bound", False),
        ("Below `bound`.", "Below.", False),
        ("{1 + 1} are", "{1 - 1} are", False),
        ("return x < bound", "return x <", False),
    ],
)
def test_only_a_change_of_what_is_decided_is_a_mutant(before: str, after: str, counts: bool) -> None:
    assert before in MODULE
    assert valid(MODULE, MODULE.replace(before, after)) is counts


def test_defaults_count_and_the_bounds_of_a_search_do_not() -> None:
    field = "class A:\n    n: Annotated[int, Field(ge=1, le=9, default=2)] = Field(default=3, ge=1)\n"
    assert valid(field, field.replace("default=2", "default=1")) and valid(
        field, field.replace("default=3", "default=4")
    )
    assert not valid(field, field.replace("ge=1", "ge=0")) and not valid(field, field.replace("le=9", "le=8"))
    cited = 'made = Citation("A paper", "Somebody et al.", 2024, "url")\n'
    assert not valid(cited, cited.replace("2024", "2025"))


def test_a_session_is_begun_anew_when_its_module_changes_and_its_order_depends_on_the_seed(tmp_path: Path) -> None:
    with session(tmp_path, "a/b.py", MODULE) as db:
        items = order(db.work_items, "a/b.py", 0)
        after = {mutated(MODULE, item.mutations[0]) for item in items}
        assert MODULE.replace("x < bound", "x <= bound") in after and MODULE.replace("x != x", "x == x") in after
        db.set_result(items[0].job_id, work_item.WorkResult(work_item.WorkerOutcome.SKIPPED))
    names = [item.mutations[0] for item in items]
    with session(tmp_path, "a/b.py", MODULE) as db:
        assert db.num_results == 1
        assert [item.mutations[0] for item in order(db.work_items, "a/b.py", 0)] == names
        assert [item.mutations[0] for item in order(db.work_items, "a/b.py", 1)] != names
    with session(tmp_path, "a/b.py", MODULE + "\n") as db:
        assert db.num_results == 0


def test_scores_count_what_was_noticed_and_leave_out_what_nobody_could(tmp_path: Path) -> None:
    module = ROOMS["policies"][0].module
    outcomes = (work_item.TestOutcome.KILLED, work_item.TestOutcome.SURVIVED, work_item.TestOutcome.SURVIVED, None)
    with session(tmp_path, module, MODULE) as db:
        items = order(db.work_items, module, 0)[: len(outcomes)]
        lines = []
        for item, outcome in zip(items, outcomes, strict=True):
            line = change(MODULE, str(mutated(MODULE, item.mutations[0])))
            lines.append(line)
            worker = work_item.WorkerOutcome.SKIPPED if outcome is None else work_item.WorkerOutcome.NORMAL
            db.set_result(item.job_id, work_item.WorkResult(worker, "", outcome, json.dumps(line)))
        judged = {module: [{"before": lines[2][0], "after": lines[2][1], "reason": "the same for every x"}]}
        found = tried_in(db, module, judged)
    assert len(found) == 3 and score(found) == (1, 2)
    assert {(one.before, one.after, one.line) for one in found} == set(lines[:3])
    _, said = report(found)
    assert f"{module}:{lines[1][2]}" in said and f"{module}:{lines[2][2]}  (equivalent: the same for every x)" in said
    (row,) = mutating.summary(found, 4, 0)["modules"]
    assert row == {"room": "policies", "module": module, "noticed": 1, "of": 2}


def test_what_is_judged_equivalent_has_a_reason_and_still_stands_in_the_code() -> None:
    judged = json.loads(mutating.EQUIVALENT.read_text(encoding="utf-8"))
    for module, ones in judged.items():
        lines = {line.strip() for line in (ROOT / module).read_text(encoding="utf-8").splitlines()}
        for one in ones:
            assert one["reason"] and one["before"] in lines, f"{module}: {one['before']}"


@pytest.mark.slow
def test_a_mutant_is_tried_in_a_copy_and_noticed_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutating, "LEAST", 3600.0)  # a busy machine is no reason to count a mutant as noticed
    source = "def small(x: float) -> bool:\n    return x < 3\n"
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "real" / "small.py").write_text(source, encoding="utf-8")
    (root / "link").symlink_to("real")
    (root / "untracked.py").write_text("", encoding="utf-8")
    (root / "test_small.py").write_text(
        "import sys\nsys.path.insert(0, 'link')\nfrom small import small\n\n\n"
        "def test_small(): assert small(2) and not small(3.5)\n",
        encoding="utf-8",
    )
    for command in (["init", "-q"], ["add", "real", "link", "test_small.py"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    tree = copied(root, tmp_path / "tree")
    assert (tree / "link").is_symlink() and not (tree / "untracked.py").exists()
    runner = Runner(tree)
    try:
        work(Deciding("real/small.py", ("test_small.py",)), runner, tmp_path, None, 0, False)
    finally:
        runner.close()
    assert (root / "real" / "small.py").read_text(encoding="utf-8") == source
    assert (tree / "real" / "small.py").read_text(encoding="utf-8") == source
    with session(tmp_path, "real/small.py", source) as db:
        found: list[Tried] = tried_in(db, "real/small.py", {})
    outcome = {" ".join(one.after.split()): one.noticed for one in found}
    assert outcome == {"return x <= 3": False, "return x >= 3": True, "return x < 2": True, "return x < 4": True}


def test_a_mutation_that_is_none_gives_no_code() -> None:
    nowhere = work_item.MutationSpec("small.py", "core/ReplaceBinaryOperator_Mul_Div", 9, (1, 0), (1, 1))
    assert mutated(MODULE, nowhere) is None
