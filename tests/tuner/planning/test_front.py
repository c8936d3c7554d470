"""What a front answers, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from fastercache.policies.errors import BudgetNotMet, ConfigUnreadable
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.tuned import Identity, Model
from fastercache.tuner.planning.front import Front, Point, means

WEIGHTS = Fitted(stretches=(Stretch(after=0, start=1, outputs=(1.0,), input=0.25),))


def front() -> Front:
    return Front(
        model=Model(pipeline=None, denoiser=Identity(kind="Net", fingerprint="1" * 64, config={})),
        scheduler=None,
        guidance_scale=4.0,
        steps=10,
        prompts=2,
        points=(
            Point(computed=(0,), predicted_psnr=20.0),
            Point(computed=(0, 4), predicted_psnr=31.0, quality={"psnr": (30.0, 33.0)}, predictor=WEIGHTS),
            Point(computed=(0, 3, 6), predicted_psnr=40.0),
            Point(computed=tuple(range(10))),
        ),
        generations=7.5,
    )


@pytest.mark.parametrize(
    ("speedup", "count"), [(1.0, 10), (1.5, 3), (10 / 3, 3), (3.4, 2), (5.0, 2), (5.1, 1), (10.0, 1)]
)
def test_at_a_speedup_the_most_steps_that_are_fast_enough(speedup: float, count: int) -> None:
    assert len(front().at(speedup).computed) == count


def test_faster_than_the_fastest_is_refused() -> None:
    with pytest.raises(BudgetNotMet, match="the fastest one of 10 steps is 10x"):
        front().at(10.1)


def test_points() -> None:
    found = front()
    assert [point.computed for point in found.verified] == [(0, 4)]
    assert [point.psnr for point in found.points] == [None, 31.5, None, None]
    assert found.speedup(found.points[2]) == pytest.approx(10 / 3)
    assert [row["computed"] for row in found.rows()] == [1, 2, 3, 10]
    assert found.rows()[1] == {
        "computed": 2,
        "speedup_flops": 5.0,
        "predicted_psnr": 31.0,
        "psnr": 31.5,
        "computed_steps": [0, 4],
    }
    assert means({"psnr": [30.0, 33.0], "ssim": [0.5]}) == {"psnr": 31.5, "ssim": 0.5}


def test_only_a_plan_with_weights_is_a_policy() -> None:
    found = front()
    policy = found.points[1].policy(10)
    assert (policy.steps, policy.computed, policy.stand_in) == (10, (0, 4), WEIGHTS)
    assert found.points[3].policy(10).computed == tuple(range(10))
    with pytest.raises(BudgetNotMet, match="only predicted"):
        found.points[2].policy(10)


def test_the_file_comes_back_and_anything_else_is_refused(tmp_path: Path) -> None:
    path = front().save(tmp_path / "front.json")
    assert Front.load(path) == front()
    path.write_text(path.read_text().replace('"steps": 10', '"steps": "10"'))
    with pytest.raises(ConfigUnreadable):
        Front.load(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"computed": ()},
        {"computed": (0,), "predicted_psnr": float("inf")},
        {"computed": (0,), "quality": {"psnr": (float("nan"),)}},
        {"computed": ("0",)},
        {"computed": (0,), "surprise": 1},
    ],
    ids=["no step", "infinite", "no number", "a word", "a further field"],
)
def test_what_is_no_point_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Point.model_validate(fields)
    with pytest.raises(ValidationError, match="frozen"):
        front().points[0].computed = (0, 1)  # type: ignore[misc]


def test_what_a_front_says_of_itself() -> None:
    facts = front().model_copy(update={"generations": 7.46})._facts()
    assert facts["measured"] == {"5.00x": "31.5 dB"} and facts["generations"] == 7.5
    assert (facts["steps"], facts["plans"], facts["prompts"]) == (10, 4, 2)
    assert front().prediction_error is None and Point(computed=(0,)).quality == {}


def test_a_speedup_that_is_met_but_for_rounding_is_met() -> None:
    assert len(front().at(5.0 * (1 + 1e-12)).computed) == 2
    assert len(front().at(5.0 * (1 + 1e-8)).computed) == 1
