"""The clock by itself: where a run starts in the scheduler's list, how many steps it has, and what ends a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastercache.policies.errors import ClockError
from fastercache.policies.vocabulary import COND, UNCOND
from fastercache.run.clock import Clock

BOTH = (COND, UNCOND)


class Scheduler:
    """A list of timesteps, with whatever else a test says that it has."""

    def __init__(self, timesteps: list[float], **more: Any) -> None:
        self.timesteps = torch.tensor(timesteps)
        vars(self).update(more)

    def set_timesteps(self) -> None: ...

    def step(self) -> None: ...


class Heard:
    """A clock, and what it told: the steps that ended, and the runs that were announced."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        self.ended: list[int] = []
        self.announced = 0
        self.clock = Clock(scheduler, self.ended.append, self._announce, lambda: True)

    def _announce(self) -> None:
        self.announced += 1


def timesteps(clock: Clock) -> list[float]:
    return [step.timestep for step in clock.steps]


@pytest.mark.parametrize(
    ("listed", "given", "first"),
    [
        ([900.0, 700.0, 500.0], 700.0, 1),  # t
        ([900.0, 700.0, 500.0], 0.5, 2),  # t / 1000
        ([900.0, 700.0, 500.0], 500.0, 2),  # t, though 1000 - t is the last one too
        ([900.0, 700.0, 500.0], 300.0, 1),  # 1000 - t
        ([700.0, 500.0, 300.0], 300.0, 2),  # t before 1000 - t
        ([1000.0, 500.0, 1.0], 1.0, 0),  # t / 1000, not the end of the list
        ([1000.0, 500.0, 0.5], 0.5, 1),
        ([1000.0, 2.0, 1.001], 1.001, 2),  # above 1 it is t
        ([2000.0, 2.0], 2.0, 1),
        ([1.0, 0.5, 0.001], 0.001, 2),  # a list of sigmas, which ends at t itself
        ([900.0, 700.0, 500.0], None, 0),
        ([900.0, 700.0, 500.0], 600.0, 0),  # none of them: the whole list
        ([900.0, 700.0, 500.0], 700.0005, 1),
        ([900.0, 700.0, 500.0], 700.5, 0),
    ],
)
def test_the_first_timestep_tells_where_a_run_starts(listed: list[float], given: float | None, first: int) -> None:
    clock = Heard(Scheduler(listed)).clock
    clock.begin(given)
    assert timesteps(clock) == pytest.approx(listed[first:])
    assert [(step.index, step.count) for step in clock.steps] == [
        (i, len(clock.steps)) for i in range(len(clock.steps))
    ]


def test_a_scheduler_that_says_where_it_begins_is_believed() -> None:
    clock = Heard(Scheduler([900.0, 700.0, 500.0], begin_index=2)).clock
    clock.begin(900.0)
    assert timesteps(clock) == [500.0]
    zero = Heard(Scheduler([900.0, 700.0, 500.0], begin_index=0)).clock
    zero.begin(700.0)
    assert timesteps(zero) == [900.0, 700.0, 500.0]


def test_sigmas_stand_beside_their_timesteps_as_far_as_there_are_any() -> None:
    clock = Heard(Scheduler([900.0, 700.0, 500.0, 300.0], sigmas=torch.tensor([0.9, 0.7, 0.5]))).clock
    clock.begin(700.0)
    assert [step.sigma for step in clock.steps] == [pytest.approx(0.7), pytest.approx(0.5), None]
    without = Heard(Scheduler([900.0])).clock
    without.begin(900.0)
    assert without.steps[0].sigma is None


@pytest.mark.parametrize(
    ("told", "given", "more", "expected"),
    [
        (2, 900.0, {}, [900.0, 700.0]),  # the pipeline stops short of the end
        (2, 700.0, {}, [700.0, 500.0]),
        (3, 500.0, {}, [700.0, 500.0, 300.0]),  # so many do not remain after it: the last three
        (4, 900.0, {}, [900.0, 700.0, 500.0, 300.0]),
        (4, 700.0, {}, [900.0, 700.0, 500.0, 300.0]),
        (1, 900.0, {}, [900.0]),
        (5, 900.0, {}, [900.0, 700.0, 500.0, 300.0]),  # more than are listed: it counts something else
        (0, 700.0, {}, [700.0, 500.0, 300.0]),
        (None, 700.0, {}, [700.0, 500.0, 300.0]),
        (2, 700.0, {"order": 2}, [700.0, 500.0, 300.0]),  # lists a timestep for each of its calls
        (2, 700.0, {"order": 1}, [700.0, 500.0]),
    ],
)
def test_the_pipelines_own_number_of_steps_is_taken_where_it_counts_calls(
    told: int | None, given: float, more: dict[str, Any], expected: list[float]
) -> None:
    clock = Heard(Scheduler([900.0, 700.0, 500.0, 300.0], **more)).clock
    clock.begin(given, SimpleNamespace(_num_timesteps=told))
    assert timesteps(clock) == expected


def test_more_steps_than_timesteps_are_refused_of_frames_that_lag_only() -> None:
    clock = Heard(Scheduler([900.0, 700.0])).clock
    clock.begin(900.0, SimpleNamespace(_num_timesteps=2, generate_timestep_matrix=None))
    assert len(clock.steps) == 2
    with pytest.raises(ClockError, match="takes 3 steps for 2 timesteps"):
        clock.begin(900.0, SimpleNamespace(_num_timesteps=3, generate_timestep_matrix=None))


def test_a_scheduler_step_ends_a_step_in_which_the_denoiser_was_called() -> None:
    scheduler = Scheduler([900.0, 700.0])
    heard = Heard(scheduler)
    clock = heard.clock
    scheduler.step()  # no run has begun
    scheduler.set_timesteps()
    assert heard.announced == 1 and clock.pending and not clock.manual
    scheduler.step()  # announced, and not begun
    clock.begin(900.0)
    assert not clock.pending and clock.index == 0
    scheduler.step()  # begun, and nothing was called
    assert heard.ended == []
    assert clock.now(BOTH).index == 0 and clock.now((COND,)).index == 0  # a branch may come twice
    scheduler.step()
    scheduler.step()  # Cosmos steps twice for each call
    assert heard.ended == [0] and clock.now(BOTH).index == 1
    clock.called(BOTH)
    clock.finish()
    assert heard.ended == [0], "only the scheduler ends a step"
    scheduler.set_timesteps()
    scheduler.step()  # of the run to come
    assert heard.ended == [0]
    clock.begin(900.0)
    scheduler.step()
    assert clock.index == 0, "what the last run called is forgotten"
    clock.now(BOTH)
    scheduler.step()
    clock.now(BOTH)
    scheduler.step()
    assert heard.ended == [0, 0, 1] and clock.index == 2
    with pytest.raises(ClockError, match="after the last of 2 steps"):
        clock.now(BOTH)
    clock.remove()
    scheduler.set_timesteps()
    assert heard.announced == 2


def test_in_a_loop_of_ones_own_a_step_ends_when_a_branch_comes_again() -> None:
    heard = Heard()
    clock = heard.clock
    with pytest.raises(ClockError, match="at least one timestep"):
        clock.start([])
    with pytest.raises(ClockError, match=r"session\.start"):
        clock.begin(900.0)
    clock.start(torch.tensor([900.0, 700.0, 500.0]))
    assert clock.manual and clock.pending
    clock.begin(700.0)  # a loop's own list is the run, wherever its first call is
    assert timesteps(clock) == [900.0, 700.0, 500.0] and all(step.sigma is None for step in clock.steps)
    assert clock.now((COND,)).index == 0
    clock.called(BOTH)
    assert clock.now((UNCOND,)).index == 0
    clock.called(BOTH)  # every branch was called, and the step is not the last
    clock.finish()
    assert heard.ended == []
    assert clock.now((COND,)).index == 1 and heard.ended == [0]
    assert clock.now((COND, UNCOND)).index == 2 and heard.ended == [0, 1]
    clock.called((*BOTH, "perturbed"))
    assert heard.ended == [0, 1], "another branch is still to come"
    clock.called(BOTH)
    assert heard.ended == [0, 1, 2], "the last step ends with its last branch"
    clock.finish()
    assert heard.ended == [0, 1, 2]
    with pytest.raises(ClockError, match="after the last of 3 steps"):
        clock.now((COND,))


def test_a_last_step_that_lacks_a_branch_ends_when_it_is_said() -> None:
    heard = Heard()
    clock = heard.clock
    clock.finish()  # nothing was announced
    clock.start([900.0])
    clock.begin(None)
    clock.finish()  # nothing was called
    assert heard.ended == []
    clock.now((COND,))
    clock.called(BOTH)
    assert heard.ended == []
    clock.finish()
    assert heard.ended == [0] and clock.index == 1


def test_another_scheduler_of_the_pipeline_is_seen() -> None:
    scheduler, other = Scheduler([900.0]), Scheduler([700.0])
    heard = Heard(scheduler)
    clock = heard.clock
    assert not clock.replaced(SimpleNamespace(scheduler=scheduler)) and not clock.replaced(SimpleNamespace())
    assert clock.replaced(SimpleNamespace(scheduler=other))
    assert not Heard().clock.replaced(SimpleNamespace(scheduler=other))
    clock.tap(other)
    scheduler.set_timesteps()
    assert heard.announced == 0
    other.set_timesteps()
    assert heard.announced == 1 and clock.replaced(SimpleNamespace(scheduler=scheduler))
