"""Who is in a call: branches told from rows, calls, contexts, texts and switches alone, without running any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastercache.model.branches import BranchFinder
from fastercache.model.families import Family, Guidance
from fastercache.policies.errors import BranchUnknown
from fastercache.policies.vocabulary import COND, UNCOND

PAIR = (UNCOND, COND)
THREE = (UNCOND, COND, "perturbed")


class Denoiser(nn.Module):
    """Is only asked for its name."""


class Contextual(nn.Module):
    """Has cache contexts, as newer diffusers models do."""

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        yield


class Pipe:
    """A pipeline of which only its methods' results and its switches count."""

    def __init__(self, **switches: Any) -> None:
        vars(self).update(switches)

    def prepare_latents(self, result: Any) -> Any:
        return result

    def check_inputs(self) -> None: ...

    def encode_prompt(self, result: Any = None) -> Any:
        return result


class StableDiffusionInstructPix2PixPipeline(Pipe):
    """Called as one whose rows stand in an order of their own."""


BATCHED, SEPARATE = Family("batched"), Family("separate", order=(COND, UNCOND))


def finder(
    pipe: Any = None,
    family: Family | None = None,
    guidance: Guidance | None = None,
    branches: Any = None,
    denoiser: nn.Module | None = None,
) -> BranchFinder:
    return BranchFinder(denoiser or Denoiser(), pipe, family, guidance, branches)


def never() -> float | None:
    raise AssertionError("the timestep is asked for only where calls are counted")


# -- the order ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({"guidance": "batched"}, (UNCOND, COND)),
        ({"guidance": "separate"}, (COND, UNCOND)),
        ({"guidance": "none"}, (COND,)),
        ({"family": Family("batched", order=(COND, UNCOND))}, (COND, UNCOND)),
        ({"family": Family("batched", order=(COND, UNCOND)), "guidance": "separate"}, (COND, UNCOND)),
        ({"family": Family("separate", order=(UNCOND, COND)), "guidance": "batched"}, (UNCOND, COND)),
        ({"family": Family("none", order=(COND,))}, (COND,)),
        ({"family": BATCHED, "branches": ["b", COND]}, ("b", COND)),
        ({"pipe": StableDiffusionInstructPix2PixPipeline(), "family": BATCHED}, (COND, "image", UNCOND)),
        ({"pipe": Pipe(), "family": BATCHED}, (UNCOND, COND)),
    ],
)
def test_the_order_is_what_was_given_or_the_pipelines_or_the_familys_or_the_usual_one(
    given: dict[str, Any], order: tuple[str, ...]
) -> None:
    found = finder(**given)
    assert found.order == found.run_order == order


def test_a_guidance_distilled_family_is_separate_in_a_pipeline_unless_it_is_said() -> None:
    distilled = Family("none", order=(COND,), true_cfg=True)
    assert finder(Pipe(), distilled).guidance == "separate" and finder(Pipe(), distilled).order == (COND, UNCOND)
    assert finder(None, distilled).guidance == "none"
    assert finder(Pipe(), distilled, "none").guidance == "none"
    assert finder(Pipe(), Family("none", order=(COND,))).guidance == "none"


@pytest.mark.parametrize("branches", [(UNCOND,), (COND, COND), (COND, UNCOND, UNCOND)])
def test_branches_are_named_once_each_with_the_conditional_one_among_them(branches: Any) -> None:
    with pytest.raises(BranchUnknown, match="different names"):
        finder(None, None, "batched", branches)


# -- a run begins ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pipe", "family", "batch", "kwargs", "guided"),
    [
        ({}, BATCHED, 4, {"class_labels": torch.tensor([3, 5])}, True),  # without a null class labels tell nothing
        ({}, Family("batched", null_class=10), 4, {"class_labels": torch.tensor([3, 10])}, True),
        ({}, Family("batched", null_class=10), 4, {"class_labels": torch.tensor([3, 5])}, False),
        ({"do_classifier_free_guidance": False}, Family("batched", null_class=10), 4, {"class_labels": [10]}, False),
        ({"do_classifier_free_guidance": True}, BATCHED, 4, {}, True),
        ({"do_classifier_free_guidance": False}, BATCHED, 4, {}, False),
        ({"do_classifier_free_guidance": 0}, SEPARATE, 1, {}, False),
        ({"latents": torch.zeros(2, 1), "do_classifier_free_guidance": False}, BATCHED, 4, {}, True),
        ({"latents": torch.zeros(2, 1), "do_classifier_free_guidance": True}, BATCHED, 2, {}, False),
        ({"latents": (torch.zeros(2, 1), None), "do_classifier_free_guidance": True}, BATCHED, 2, {}, False),
        ({"latents": None, "do_classifier_free_guidance": True}, BATCHED, 2, {}, True),
        ({"latents": torch.zeros(1, 1), "do_classifier_free_guidance": False}, SEPARATE, 1, {}, False),
        ({"encoded": 1}, SEPARATE, 1, {}, False),  # no property: the second prompt that is encoded is the negative one
        ({"encoded": 2}, SEPARATE, 1, {}, True),
        ({"encoded": 0}, SEPARATE, 1, {}, True),
        ({"encoded": 1}, Family("separate", order=(COND, UNCOND), null_class=10), 1, {"class_labels": [10]}, False),
    ],
)
def test_whether_a_run_is_guided(
    pipe: dict[str, Any], family: Family, batch: int, kwargs: dict[str, Any], guided: bool
) -> None:
    made = Pipe(**{k: v for k, v in pipe.items() if k.startswith("do_")})
    found = finder(made, family)
    made.check_inputs()
    if "latents" in pipe:
        made.prepare_latents(pipe["latents"])
    for _ in range(pipe.get("encoded", 0)):
        made.encode_prompt()
    assert found.begin(batch, kwargs) == ((COND, UNCOND) if guided else (COND,))


def test_prompts_are_counted_from_the_beginning_of_a_pipeline_call() -> None:
    pipe = Pipe()
    found = finder(pipe, SEPARATE)
    for encoded, guided in ((2, True), (1, False)):
        pipe.check_inputs()
        for _ in range(encoded):
            pipe.encode_prompt()
        assert (len(found.begin(1, {})) == 2) is guided
    found.remove()
    pipe.check_inputs()
    assert found.begin(1, {}) == (COND,), "nothing is heard any more"


def test_a_loop_of_ones_own_has_the_guidance_that_it_names() -> None:
    assert finder(None, None, "batched").begin(2, {}) == (COND, UNCOND)
    assert finder(None, None, "none").begin(2, {}) == (COND,)
    assert finder(None, None, "separate").begin(1, {}) == (COND, UNCOND)


def test_the_groups_are_a_steps_calls() -> None:
    found = finder(None, None, "batched", THREE)
    assert found.begin(3, {}) == (COND, UNCOND, "perturbed") and found.groups == (THREE,)
    apart = finder(None, None, "separate", THREE)
    assert apart.begin(1, {}) == (COND, UNCOND, "perturbed")
    assert apart.groups == ((UNCOND,), (COND,), ("perturbed",))
    named = finder(None, None, "separate", THREE)
    named.explicit = (COND, "perturbed")
    assert named.begin(2, {}) == (COND, "perturbed", UNCOND) and named.groups == ((COND, "perturbed"), (UNCOND,))
    passes = Family("batched", passes={"skip": ("stg", "does_stg"), "alone": ("modality", "does_modality")})
    further = finder(Pipe(do_classifier_free_guidance=True, does_stg=False, does_modality=True), passes)
    assert further.begin(2, {}) == (COND, UNCOND, "modality") and further.groups == (PAIR, ("modality",))


def test_perturbed_rows_follow_in_their_pipelines() -> None:
    """Of 2 samples 4 rows are the conditional and the perturbed ones, 6 the unconditional ones too."""
    for rows, order in ((4, (COND, "perturbed")), (6, (UNCOND, COND, "perturbed"))):
        pipe = Pipe(do_perturbed_attention_guidance=True, do_classifier_free_guidance=True)
        found = finder(pipe, BATCHED)
        pipe.prepare_latents(torch.zeros(2, 1))
        found.begin(rows, {})
        assert found.coupled and found.run_order == order and found.of(0, rows, never) == order
    assert not finder(Pipe(), BATCHED).coupled
    assert not finder(Pipe(do_perturbed_attention_guidance=False), BATCHED).coupled
    assert not finder(Pipe(do_perturbed_attention_guidance=True), BATCHED, None, THREE).coupled


@pytest.mark.parametrize(
    ("samples", "rows", "says"),
    [
        (2, 6, "6 rows for 2 samples, that is 3 branches, expected 2"),
        (1, 3, "3 rows for 1 samples, that is 3 branches, expected 2"),
        (None, 3, "3 rows, which is no 2 equal parts"),
        (3, 8, None),  # frames are rows too: 8 is no multiple of 3 samples, and is two equal parts
        (3, 7, "7 rows, which is no 2 equal parts"),
        (2, 4, None),
        (None, 4, None),
    ],
)
def test_rows_that_are_no_equal_parts_of_the_branches_are_refused(
    samples: int | None, rows: int, says: str | None
) -> None:
    pipe = Pipe(do_classifier_free_guidance=True)
    found = finder(pipe, BATCHED)
    if samples is not None:
        pipe.prepare_latents(torch.zeros(samples, 1))
    if says is None:
        found.begin(rows, {})
        assert found.of(0, rows, never) == PAIR
        return
    with pytest.raises(BranchUnknown, match=says):
        found.begin(rows, {})


def test_rows_of_separate_calls_are_not_counted() -> None:
    pipe = Pipe(do_classifier_free_guidance=True)
    found = finder(pipe, SEPARATE)
    pipe.prepare_latents(torch.zeros(1, 1))
    assert found.begin(3, {}) == (COND, UNCOND)


# -- the calls of a run ------------------------------------------------------------------------------------------------
def test_rows_tell_when_guidance_ends_in_a_batched_run() -> None:
    found = finder(Pipe(do_classifier_free_guidance=True), BATCHED)
    found.begin(4, {})
    assert found.of(0, 4, never) == PAIR and found.of(1, 2, never) == (COND,)
    with pytest.raises(BranchUnknown, match="8 rows in a run that began with 4"):
        found.of(2, 8, never)
    with pytest.raises(BranchUnknown, match="3 rows in a run that began with 4"):
        found.of(3, 3, never)
    found.begin(4, {})
    found.of(0, 4, never)
    with pytest.raises(BranchUnknown, match="2 times in one step of batched guidance"):
        found.of(0, 4, never)
    own = finder(None, None, "batched")
    own.begin(4, {})
    assert [own.of(0, 4, never) for _ in range(2)] == [PAIR] * 2, "a loop of one's own may call as often as it likes"


def test_separate_calls_are_counted_within_a_step() -> None:
    found = finder(Pipe(do_classifier_free_guidance=True), SEPARATE)
    found.begin(1, {})
    assert not found.cond_last
    calls = [(0, COND), (0, UNCOND), (1, COND), (2, COND), (2, UNCOND)]
    assert [(step, *found.of(step, 1, never)) for step, _ in calls] == calls
    with pytest.raises(BranchUnknown, match=r"called 3 times in step 2, expected 2 \(cond, uncond\)"):
        found.of(2, 1, never)
    found.begin(1, {})
    assert found.of(0, 1, never) == (COND,), "a new run counts anew"


def test_which_call_comes_last() -> None:
    last = finder(None, None, "separate", (UNCOND, COND))
    last.begin(1, {})
    assert last.cond_last
    batched = finder(None, None, "batched", (UNCOND, COND))
    batched.begin(2, {})
    assert not batched.cond_last
    alone = finder(None, None, "separate", (COND,))
    alone.begin(1, {})
    assert not alone.cond_last


def test_in_a_loop_of_ones_own_calls_go_round_and_a_new_timestep_begins_a_step() -> None:
    found = finder(None, None, "separate", THREE)
    found.begin(1, {})
    calls: list[tuple[float, str]] = [
        (9.0, UNCOND), (9.0, COND), (9.0, "perturbed"), (8.0, UNCOND), (7.0, UNCOND), (7.0, COND), (7.0, "perturbed"),
        (7.0, UNCOND),
    ]  # fmt: skip
    assert [(time, *found.of(0, 1, lambda t=time: t)) for time, _ in calls] == calls  # type: ignore[misc]
    found.begin(1, {})
    assert found.of(0, 1, lambda: 7.0) == (UNCOND,)
    single = finder(None, None, "none")
    single.begin(1, {})
    assert [single.of(0, 1, lambda: 7.0) for _ in range(3)] == [(COND,)] * 3


def test_named_branches_are_those_of_the_run_in_equal_parts() -> None:
    found = finder(None, None, "separate", THREE)
    found.begin(1, {})
    found.explicit = ("perturbed", UNCOND)
    assert found.of(0, 4, never) == ("perturbed", UNCOND)
    with pytest.raises(BranchUnknown, match="a call of 3 rows"):
        found.of(0, 3, never)
    found.explicit = ("other",)
    with pytest.raises(BranchUnknown, match="'other'"):
        found.of(0, 1, never)


def test_a_cache_context_names_the_branch_as_its_family_says() -> None:
    denoiser: Any = Contextual()
    family = Family(
        "separate", order=(COND, UNCOND), contexts={"pred_cond": COND, "pred_uncond": UNCOND},
        passes={"skip": ("stg", "does_stg")},
    )  # fmt: skip
    found = finder(Pipe(do_classifier_free_guidance=True, does_stg=True), family, denoiser=denoiser)
    found.begin(1, {})
    for context, branch in (("pred_uncond", UNCOND), ("pred_cond", COND), (UNCOND, UNCOND), ("skip", "stg")):
        with denoiser.cache_context(context):
            assert found.context == context and found.of(0, 1, never) == (branch,)
        assert found.context is None
    with denoiser.cache_context(name="pred_cond"), denoiser.cache_context("pred_uncond"):
        assert found.context == "pred_uncond"
    with denoiser.cache_context("elsewhere"), pytest.raises(BranchUnknown, match="'elsewhere', which names no branch"):
        found.of(0, 1, never)
    without = finder(Pipe(do_classifier_free_guidance=True, does_stg=False), family, denoiser=denoiser)
    without.begin(1, {})
    with denoiser.cache_context("skip"), pytest.raises(BranchUnknown, match="'stg', which was off when the run began"):
        without.of(0, 1, never)
    bare = finder(None, None, "separate", denoiser=denoiser)
    bare.begin(1, {})
    with denoiser.cache_context(UNCOND):
        assert bare.of(0, 1, never) == (UNCOND,)


# -- the order of a class in no family ---------------------------------------------------------------------------------
def text(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, 5, 2, generator=torch.Generator().manual_seed(seed))


POSITIVE, NEGATIVE = text(1), text(2)
Encoded = Callable[[], Any]


def asked(
    encoded: Any, values: list[Any], guidance: Guidance = "batched", branches: Any = None, rows: int = 2
) -> BranchFinder:
    """A finder after the first call of a run with these values, whose prompts were encoded so."""
    pipe = Pipe(do_classifier_free_guidance=True)
    found = finder(pipe, None, guidance, branches)
    pipe.check_inputs()
    pipe.encode_prompt(encoded)
    found.begin(rows, {})
    found.check_order((values[0],), dict(enumerate(values[1:])))  # type: ignore[arg-type]
    return found


BOTH_TEXTS = torch.cat([NEGATIVE, POSITIVE])
INPUT = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("encoded", "values", "guidance"),
    [
        ((POSITIVE, NEGATIVE), [INPUT, BOTH_TEXTS], "batched"),
        ([POSITIVE, None, "words", NEGATIVE], [INPUT, BOTH_TEXTS], "batched"),
        ((POSITIVE, torch.ones(1, 5), NEGATIVE), [INPUT, "no tensor", BOTH_TEXTS.double()], "batched"),
        ((POSITIVE, NEGATIVE.half(), NEGATIVE), [INPUT, BOTH_TEXTS], "batched"),
        ((POSITIVE, NEGATIVE), [INPUT, torch.zeros(2, 5, 2), BOTH_TEXTS], "batched"),  # one of its shape, and no text
        ((POSITIVE, NEGATIVE), [INPUT, torch.cat([BOTH_TEXTS] * 2), BOTH_TEXTS], "batched"),  # of more parts
        ((POSITIVE, NEGATIVE), [INPUT, POSITIVE], "separate"),
    ],
)
def test_the_texts_of_the_first_call_confirm_the_usual_order(
    encoded: Any, values: list[Any], guidance: Guidance
) -> None:
    assert asked(encoded, values, guidance).unsure == ""


@pytest.mark.parametrize(
    ("encoded", "values"),
    [
        (None, [INPUT, BOTH_TEXTS]),
        ((), [INPUT, BOTH_TEXTS]),
        (("words",), [INPUT, BOTH_TEXTS]),
        ((POSITIVE,), [INPUT, BOTH_TEXTS]),
        ((POSITIVE, POSITIVE.clone()), [INPUT, BOTH_TEXTS]),  # both alike tell nothing
        ((POSITIVE, NEGATIVE[:, :4]), [INPUT, BOTH_TEXTS]),
        ((POSITIVE, NEGATIVE), [INPUT, torch.cat([NEGATIVE, text(3)])]),
        ((POSITIVE, NEGATIVE), [INPUT]),
    ],
)
def test_where_no_text_tells_the_order_that_is_said(encoded: Any, values: list[Any]) -> None:
    found = asked(encoded, values)
    assert "nothing tells which branch" in found.unsure and "branches=(...)" in found.unsure


@pytest.mark.parametrize(
    ("guidance", "values", "says"),
    [
        ("batched", [INPUT, torch.cat([POSITIVE, NEGATIVE])], r"order \(cond, uncond\), not \(uncond, cond\)"),
        ("batched", [INPUT, torch.cat([POSITIVE, POSITIVE])], r"order \(cond, cond\), not \(uncond, cond\)"),
        ("separate", [INPUT, NEGATIVE], r"order \(uncond\), not \(cond\)"),
    ],
)
def test_texts_in_another_order_are_refused(guidance: Guidance, values: list[Any], says: str) -> None:
    with pytest.raises(BranchUnknown, match=says):
        asked((POSITIVE, NEGATIVE), values, guidance)


def test_two_prompts_are_two_rows_of_each_part() -> None:
    positive, negative = text(1, rows=2), text(2, rows=2)
    assert asked((positive, negative), [INPUT, torch.cat([negative, positive])], rows=4).unsure == ""
    with pytest.raises(BranchUnknown, match="texts are in the order"):
        asked((positive, negative), [INPUT, torch.cat([positive, negative])], rows=4)


def test_what_is_known_is_not_asked_for() -> None:
    wrong = [INPUT, torch.cat([POSITIVE, NEGATIVE])]
    assert asked((POSITIVE, NEGATIVE), wrong, branches=PAIR).unsure == ""
    listed = finder(Pipe(do_classifier_free_guidance=True), BATCHED)
    listed.begin(2, {})
    listed.check_order((INPUT,), {})
    assert listed.unsure == ""
    alone = finder(Pipe(do_classifier_free_guidance=False), None, "batched")
    alone.begin(2, {})
    alone.check_order((INPUT,), {})
    assert alone.unsure == ""
    single = finder(Pipe(), None, "none")
    single.begin(2, {})
    single.check_order((INPUT,), {})
    assert single.unsure == ""
    named = finder(None, None, "separate")
    named.begin(1, {})
    named.explicit = (COND,)
    named.check_order((INPUT,), {})
    assert named.unsure == ""


def test_texts_are_those_of_the_newest_call() -> None:
    pipe = Pipe(do_classifier_free_guidance=True)
    found = finder(pipe, None, "batched")
    pipe.encode_prompt((POSITIVE, NEGATIVE))
    for _ in range(2):
        found.begin(2, {})
        found.check_order((INPUT,), {"text": BOTH_TEXTS})
    assert "nothing tells" in found.unsure, "a second run has no texts of its own"
    pipe.encode_prompt((POSITIVE, NEGATIVE))
    found.begin(2, {})
    found.check_order((INPUT,), {"text": BOTH_TEXTS})
    assert found.unsure == ""
    pipe.encode_prompt((POSITIVE, NEGATIVE))
    pipe.check_inputs()
    found.check_order((INPUT,), {"text": BOTH_TEXTS})
    assert "nothing tells" in found.unsure, "a call's own inputs were checked after them"


def test_a_pipeline_without_these_methods_is_followed_all_the_same() -> None:
    found = finder(SimpleNamespace(do_classifier_free_guidance=True), BATCHED)
    assert found.begin(2, {}) == (COND, UNCOND) and found.of(0, 2, never) == PAIR
