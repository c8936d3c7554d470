"""What tells one prompt from another: what it is kept under, and what is refused before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastercache.prompts import (
    InvalidPrompt,
    Prompt,
    arguments,
    check,
    identity,
    is_image,
    plain,
    prompt_hash,
    prompt_of,
    prompts_of,
)


class Worded:
    def __call__(self, prompt: Any = None, image: Any = None, prompt_embeds: Any = None, width: int = 8) -> None: ...


class Open:
    def __call__(self, **arguments: Any) -> None: ...


class Wordless:
    def __call__(self, class_labels: Any, image: Any = None) -> None: ...


def picture(path: Path, colour: tuple[int, ...], mode: str = "RGB") -> Path:
    Image.new(mode, (2, 3), colour).save(path)
    return path


def test_prompts_that_differ_in_seed_or_arguments_have_their_own_identity() -> None:
    prompts = [
        "a",
        "A",
        Prompt("a", {}, 1),
        Prompt("a", {}, 2),
        Prompt("a", {"width": 8}, 1),
        Prompt("a", {"width": 9}, 1),
        Prompt("a", {"height": 8}, 1),
    ]
    assert len({json.dumps(identity(one), sort_keys=True) for one in prompts}) == len(prompts)
    assert identity("a") == "a"
    assert identity(Prompt("a", {"width": 8}, 1)) == {"prompt": "a", "seed": 1, "given": {"width": 8}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Prompt("a", {}), Prompt("b", {})),
        (Prompt("a", {}, 1), Prompt("a", {}, 2)),
        (Prompt("a", {}, 1), Prompt("a", {})),
        (Prompt("", {"x": 1}), Prompt(None, {"x": 1})),
        (Prompt("a", {"x": 1}), Prompt("a", {"x": 2})),
        (Prompt("a", {"x": 1}), Prompt("a", {"y": 1})),
        (Prompt("a", {"x": 1}), "a"),
        ("a", Prompt("a", {"x": 1})),
    ],
)
def test_prompts_are_equal_only_if_all_that_they_bring_is(one: str, other: str) -> None:
    assert one != other and not one == other  # noqa: SIM201
    assert one == one and other == other


def test_a_prompt_that_brings_nothing_is_its_text() -> None:
    assert Prompt("a", {}) == "a" and not Prompt("a", {}) != "a" and Prompt("a", {}) != 3  # noqa: SIM202
    assert {Prompt("a", {"x": 1}), Prompt("a", {"x": 1}), "a"} == {Prompt("a", {"x": 1}), "a"}


def test_a_digest_tells_values_by_content_shape_and_type() -> None:
    values: list[Any] = [
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(2, 3, dtype=torch.float16),
        torch.zeros(2, 3, dtype=torch.bfloat16),
        torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1e-30]]),
        [torch.zeros(2, 3)],
        [torch.zeros(2, 3), torch.zeros(2, 3)],
        {"a": torch.zeros(2, 3)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.ones(2, 3)},
        np.zeros(6),
        np.ones(6),
        Image.new("RGB", (2, 3)),
        Image.new("RGB", (3, 2)),
        None,
        True,
        1,
        "1",
        1.5,
        1j,
    ]
    digests = [json.dumps(Prompt("a", {"x": value}).digests) for value in values]
    assert len(set(digests)) == len(values)
    again = torch.zeros(3, 2).t()  # the same numbers, laid out otherwise
    assert Prompt("a", {"x": again}).digests == Prompt("a", {"x": torch.zeros(2, 3)}).digests
    assert Prompt("a", {"x": 1, "b": 2}).digests == Prompt("a", {"b": 2, "x": 1}).digests == {"b": 2, "x": 1}


def test_paths_of_images_count_by_what_the_files_hold(tmp_path: Path) -> None:
    red, same = picture(tmp_path / "red.png", (255, 0, 0)), picture(tmp_path / "same.png", (255, 0, 0))
    blue = picture(tmp_path / "blue.png", (0, 0, 255))
    for name in ("image", "control_image"):
        one, two, three = (Prompt("a", {name: str(path)}) for path in (red, same, blue))
        assert one == two != three and prompt_hash(one) == prompt_hash(two) != prompt_hash(three)
    both = [Prompt("a", {"image": [str(red), str(path)]}) for path in (same, blue)]
    assert both[0] != both[1] and both[0] == Prompt("a", {"image": [str(same), str(red)]})
    assert Prompt("a", {"style": str(red)}) != Prompt("a", {"style": str(same)})  # a text like any other
    assert [is_image(name) for name in ("image", "last_image", "image_embeds", "images", "imagery")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_a_hash_is_of_the_text_but_for_case_and_spaces_and_of_the_arguments() -> None:
    assert prompt_hash("a  Red\tSEVEN ") == prompt_hash("a red seven") == prompt_hash("A RED seven")
    assert prompt_hash("straße") == prompt_hash("STRASSE") and len(prompt_hash("a")) == 16
    assert prompt_hash(Prompt("a", {}, 1)) == prompt_hash(Prompt("a", {}, 2)) == prompt_hash("a")
    assert len({prompt_hash(Prompt("a", {"x": x})) for x in (1, 2, "1")} | {prompt_hash("a")}) == 4


def test_a_prompt_is_made_again_from_its_plain_values(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", (1, 2, 3))
    given: list[Any] = [
        "a",
        {"prompt": "a", "seed": 0},
        {"x": 1},
        {"prompt": "", "x": 1},
        {"image": str(path), "seed": 7},
    ]
    for one in prompts_of(given):
        again = prompts_of([plain(one)])[0]
        assert again == one and getattr(again, "seed", None) == getattr(one, "seed", None)
        assert getattr(again, "wordless", None) == getattr(one, "wordless", None)
    assert [plain(one) for one in prompts_of(given)] == given
    assert [one.origin for one in prompts_of(given, "case")[1:]] == [f"case {n}" for n in (2, 3, 4, 5)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_the_ends_of_what_a_seed_may_be(seed: int) -> None:
    assert prompt_of({"prompt": "a", "seed": seed}, "x").seed == seed
    for other in (-1, 2**63, float(seed), False, "1"):
        with pytest.raises(InvalidPrompt, match="key 'seed'"):
            prompt_of({"prompt": "a", "seed": other}, "x")


@pytest.mark.parametrize(
    "arguments_",
    [
        {},
        {"seed": 1},
        {"prompt": None},
        {"prompt": b"a"},
        *({"prompt": "a", name: 1} for name in ("num_inference_steps", "guidance_scale", "generator", "output_type")),
        {"prompt": "a", "return_dict": True},
        {"prompt": "a", "image": "none.png"},
        {"prompt": "a", "last_image": Path("none.png")},
    ],
)
def test_what_no_prompt_can_be_made_of_is_refused(arguments_: dict[str, Any]) -> None:
    with pytest.raises(InvalidPrompt, match=r"^here"):
        prompt_of(arguments_, "here")


def test_paths_are_relative_to_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    picture(tmp_path / "inner" / "a.png", (1, 2, 3))
    monkeypatch.chdir(tmp_path)
    expected = str((tmp_path / "inner" / "a.png").resolve())
    assert prompt_of({"image": "a.png"}, "x", tmp_path / "inner").given == {"image": expected}
    assert prompt_of({"image": Path("inner/a.png")}, "x").given == {"image": expected}
    with pytest.raises(InvalidPrompt, match="there is no image"):
        prompt_of({"image": "a.png"}, "x")


def test_arguments_hold_the_text_unless_embeddings_stand_for_it(tmp_path: Path) -> None:
    assert arguments("a") == {"prompt": "a"} and arguments(Prompt("a", {"x": 1}, 3)) == {"prompt": "a", "x": 1}
    assert arguments(Prompt(None, {"x": 1})) == {"x": 1}
    assert arguments(Prompt("a", {"prompt_embeds": 1})) == {"prompt_embeds": 1}
    path = picture(tmp_path / "a.png", (10, 200), "LA")
    found = arguments(Prompt("a", {"image": str(path), "style": str(path)}))
    assert found["image"].mode == "RGB" and found["image"].getpixel((0, 0)) == (10, 10, 10)
    assert found["style"] == str(path)


@pytest.mark.parametrize(
    ("prompt", "pipe", "says"),
    [
        ("a", Worded(), None),
        ("a", Open(), None),
        ("a", Wordless(), "takes no prompt"),
        (Prompt("a", {"width": 8}), Worded(), None),
        (Prompt("a", {"height": 8}), Worded(), "takes no such argument"),
        (Prompt("a", {"self": 8}), Worded(), "takes no such argument"),
        (Prompt(None, {"width": 8}), Worded(), "has no key 'prompt'"),
        (Prompt(None, {"width": 8}), Open(), "has no key 'prompt'"),
        (Prompt(None, {"prompt_embeds": 8}), Worded(), None),
        (Prompt("a", {"class_labels": 8}), Wordless(), "so leave it out"),
        (Prompt("", {"class_labels": 8}), Wordless(), "so leave it out"),
        (Prompt(None, {"class_labels": 8}), Wordless(), None),
    ],
)
def test_a_pipeline_is_given_what_it_takes(prompt: str, pipe: Any, says: str | None) -> None:
    if says is None:
        check(prompt, pipe)
        return
    with pytest.raises(InvalidPrompt, match=says):
        check(prompt, pipe)
