"""How many past outputs a limit of the cache leaves room for."""

from __future__ import annotations

from typing import Any

import pytest

import fastercache as fc
from fastercache.bounds import read_limit
from fastercache.tuner.planning.room import history_within
from fastercache.tuner.setting import Setting

CALL = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False}


@pytest.mark.parametrize(("steps", "most"), [(2, 1), (4, 3), (9, 5)])
def test_a_call_has_at_most_as_many_past_outputs_as_steps_before_its_last(
    tiny_latte: Any, steps: int, most: int
) -> None:
    setting = Setting(tiny_latte, {**CALL, "num_inference_steps": steps})
    case = setting.cases(["a"])[0]
    assert history_within(setting, case, read_limit("cache<=1GiB")) == most
    assert history_within(setting, case, None) == 5
    if steps == 2:
        with pytest.raises(fc.BudgetNotMet, match="more than cache<=1B: raise the limit"):
            history_within(setting, case, read_limit("cache<=1B"))
