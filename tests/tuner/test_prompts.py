"""Prompts with further arguments: from JSON Lines and mappings, refused by file, line and key; planned end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fastercache as fc
from fastercache import zoo
from fastercache.experiments.arguments import read_prompts
from fastercache.experiments.jobs import planning
from fastercache.experiments.pipelines import Subject
from fastercache.prompts import InvalidPrompt, Prompt, plain, prompt_hash, prompt_of, prompts_of
from fastercache.tuner import tune
from fastercache.tuner.setting import Case, References, Setting
from fastercache.tuner.study import disjoint

SIZE = {"num_inference_steps": 3, "height": 32, "width": 32, "video_length": 4, "clean_caption": False}


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def picture(path: Path, colour: str) -> Path:
    Image.new("RGB", (4, 4), colour).save(path)
    return path


def test_each_line_is_a_call(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "red")
    path = lines(tmp_path, {"prompt": "a", "seed": 7}, "", {"prompt": "b", "image": "a.png", "width": 48})
    first, second = read_prompts(path)
    assert isinstance(first, Prompt) and isinstance(second, Prompt)
    assert (first, first.seed, first.given) == (Prompt("a", {}, 7), 7, {})
    assert str(second) == "b" and second.given == {"image": str((tmp_path / "a.png").resolve()), "width": 48}
    assert second.seed is None and second.origin == f"{path}, line 3"
    assert [prompt_of(plain(one), "x") for one in (first, second)] == [first, second]  # as a study's job keeps them
    text = tmp_path / "prompts.txt"
    text.write_text('{"prompt": "a"}\n')
    assert read_prompts(text) == ['{"prompt": "a"}']  # only .jsonl is read so


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"prompt": "a"', "was cut off"),
        ('"a"', "expected an object"),
        ({}, "has no key 'prompt'"),
        ({"seed": 3}, "has no key 'prompt'"),
        ({"prompt": 3}, "key 'prompt': expected a text, found int"),
        ({"prompt": "a", "seed": 1.5}, "key 'seed': expected a whole number from 0, found 1.5"),
        ({"prompt": "a", "seed": True}, "key 'seed'"),
        ({"prompt": "a", "seed": -1}, "key 'seed'"),
        ({"prompt": "a", "image": "none.png"}, "key 'image': there is no image"),
        ({"prompt": "a", "num_inference_steps": 9}, "key 'num_inference_steps': a schedule is for one number of steps"),
        ({"prompt": "a", "guidance_scale": 9}, "key 'guidance_scale': a schedule is for one guidance scale"),
        ({"prompt": "a", "output_type": "np"}, "key 'output_type'"),
    ],
)
def test_a_bad_line_is_refused_by_file_line_and_key(tmp_path: Path, row: Any, says: str) -> None:
    path = lines(tmp_path, {"prompt": "fine"}, row)
    with pytest.raises(InvalidPrompt) as caught:
        read_prompts(path)
    assert f"{path}, line 2" in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_pipeline_does_not_take_is_refused_before_a_run(tiny_latte: Any, tmp_path: Path) -> None:
    path = lines(tmp_path, {"prompt": "a", "widht": 48})
    with pytest.raises(InvalidPrompt, match=r"line 1, key 'widht': LattePipeline takes no such argument.*'width'"):
        Setting(tiny_latte, SIZE).cases(read_prompts(path))
    with pytest.raises(InvalidPrompt, match="prompt 2, key 'widht'"):
        Setting(tiny_latte, SIZE).cases(["a", {"prompt": "b", "widht": 48}])
    with pytest.raises(InvalidPrompt, match="prompt 1 has no key 'prompt': give a text, or embeddings"):
        Setting(tiny_latte, SIZE).cases([{"text": "a"}])


def test_a_pipeline_without_prompts_is_planned_by_its_own_arguments(tmp_path: Path) -> None:
    """DiT makes images of a class: each case is a label."""
    specimen = zoo.build("dit")
    call = {"num_inference_steps": 6, "guidance_scale": specimen.inputs(1)["guidance_scale"]}
    setting = Setting(specimen.pipe, call)
    with pytest.raises(InvalidPrompt, match=r"DiTPipeline takes no prompt: .* it takes class_labels, guidance_scale, "):
        setting.cases(["a cat"])
    with pytest.raises(InvalidPrompt, match="prompt 1, key 'prompt': DiTPipeline takes no prompt, so leave it out"):
        setting.cases([{"prompt": "", "class_labels": [1]}])
    path = lines(tmp_path, {"class_labels": [1]}, {"class_labels": [2]}, {"class_labels": [3]})
    given = read_prompts(path)
    assert [prompt_of(plain(one), "x") for one in given] == given and Prompt("", {}) != Prompt(None, {})
    generator = torch.Generator().manual_seed(0)
    image = specimen.pipe(class_labels=[1], generator=generator, output_type="np", return_dict=False, **call)[0]
    made = setting.generate(setting.cases(given)[0])  # (1, 3, H, W), of the image (1, H, W, 3)
    torch.testing.assert_close(made, torch.as_tensor(image).permute(0, 3, 1, 2))

    subject = Subject("tiny-dit", specimen.pipe, call, reference=False)
    words: dict[str, Any] = {"folder": tmp_path / "study", "out": tmp_path / "tuned.json", "effort": 0, "show": False}
    found = planning.plan(subject, given[:2], speedups=[2], held_out=given[2:], **words)
    assert found["speedup_flops"] == 2.0 and found["measured_on"] == "held-out prompts" and found["prompts"] == 1
    assert fc.load(tmp_path / "tuned.json").seen == tuple(sorted(map(prompt_hash, given)))


def test_a_file_that_is_no_image(tiny_latte: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    (prompt,) = read_prompts(lines(tmp_path, {"prompt": "a", "image": "a.png"}))
    with pytest.raises(InvalidPrompt, match=r"line 1, key 'image': .*a\.png cannot be read as an image"):
        Setting(tiny_latte, SIZE).arguments(Case(prompt, 0))


def test_a_run_is_the_call_that_the_line_says(tiny_latte: Any) -> None:
    """Bit for bit; what a prompt brings goes before what is said for all."""
    setting = Setting(tiny_latte, SIZE, seed=5)
    plainly, own = setting.cases(["a", {"prompt": "b", "seed": 11, "negative_prompt": "c", "width": 48}])
    assert (plainly.seed, own.seed) == (5, 11)
    expected = tiny_latte(
        "b", negative_prompt="c", generator=torch.Generator().manual_seed(11), output_type="pt", **{**SIZE, "width": 48}
    ).frames[0]
    found = setting.generate(own)
    assert torch.equal(found, expected.float().clamp(0, 1)) and found.shape[-1] == 48


def test_what_is_kept_of_one_is_not_taken_for_another(tiny_latte: Any, tmp_path: Path) -> None:
    red, blue = picture(tmp_path / "a.png", "red"), picture(tmp_path / "b.png", "blue")
    one, other, same = (Prompt("a", {"image": str(path)}) for path in (red, blue, picture(tmp_path / "c.png", "red")))
    assert prompt_hash(one) == prompt_hash(same) != prompt_hash(other) and one != other and one == same
    assert prompt_hash(" A red\n SEVEN") == prompt_hash("a red seven") != prompt_hash("a redseven")
    assert prompt_hash("a") == prompt_hash(Prompt("a", {})) != prompt_hash(one) and Prompt("a", {}) == "a" != one
    disjoint([one], [other, "a"])
    with pytest.raises(fc.ConfigUnreadable, match="disjoint"):
        disjoint([one], [same])
    tensors = [Prompt("a", {"image": torch.full((2, 2), value)}) for value in (0.0, 0.0, 1.0)]
    assert tensors[0] == tensors[1] != tensors[2]
    references = References(Setting(tiny_latte, SIZE), tmp_path)
    places = {references._place(case)[0] for case in [Case(prompt, 0) for prompt in (one, other, same, "a")]}
    assert len(places) == 3
    red.write_bytes(blue.read_bytes())  # another picture under the same name is another input
    assert prompt_hash(one) == prompt_hash(other)


def test_image_to_video_is_planned_and_tuned_end_to_end(tmp_path: Path) -> None:
    specimen = zoo.build("cogvideox-i2v")
    usual = specimen.inputs(1)
    own = ("image", "prompt_embeds", "negative_prompt_embeds")
    call = {key: value for key, value in usual.items() if key not in (*own, "prompt", "output_type")}
    call["num_inference_steps"] = 6
    inputs = [
        {**{key: usual[key] for key in own}, "image": torch.full_like(usual["image"], x)} for x in (0.2, 0.5, 0.8)
    ]
    subject = Subject("tiny-i2v", specimen.pipe, call, reference=False)
    study, out = tmp_path / "study", tmp_path / "tuned.json"
    search, held_out = prompts_of(inputs[:2]), prompts_of(inputs[2:])
    found = planning.plan(subject, search, speedups=[2], effort=0, held_out=held_out, folder=study, out=out, show=False)
    assert found["speedup_flops"] == 2.0 and fc.load(out).seen == tuple(sorted(map(prompt_hash, (*search, *held_out))))
    assert len({prompt_hash(one) for one in (*search, *held_out)}) == 3  # the texts are the same, the images are not
    videos = [Setting(specimen.pipe, call).generate(case) for case in Setting(specimen.pipe, call).cases(inputs[:2])]
    assert not torch.equal(*videos)

    tuned = tune(
        specimen.pipe, inputs[:1], budget="psnr>=0", policy="static_interval", call=call, out=tmp_path, trials=1
    )
    assert len(tuned.search) == 1 and any(record.values for record in tuned.records)
