"""Laws of few-step students: what they learn from, how they are trained, and what is shipped of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastercache.experiments.reference import OWN, latte, load, path, put_in
from fastercache.experiments.reference.autoencoder import build
from fastercache.experiments.reference.data import COLOURS, DIGITS, DIRECTIONS, TEMPLATES, Attributes
from fastercache.experiments.reference.distil import export_student
from fastercache.experiments.reference.distiller import Distiller
from fastercache.experiments.reference.families import build_pipeline
from fastercache.experiments.reference.spec import DISTILLED, SPECS, Distilled
from fastercache.experiments.reference.text import CaptionTable, build_encoder, build_tokenizer
from fastercache.experiments.reference.trajectories import Ladder, Trajectories, join, trace

CPU = torch.device("cpu")
TINY = replace(
    DISTILLED["latte-digits-8"], teacher_steps=8, trajectories=8, updates=6, batch=8, warm_up=2, own=0.5, ema=0.5
)


@pytest.fixture(scope="module")
def table() -> CaptionTable:
    return CaptionTable(build_tokenizer())


def teacher() -> tuple[Any, Any]:
    """A tiny transformer and text encoder; the transformer's output is not nothing, as in a new one."""
    torch.manual_seed(0)
    transformer = latte.build_transformer(replace(SPECS["latte-digits"], heads=1, layers=1, text_width=32))
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)
    return transformer.eval(), build_encoder(32).eval()


def trajectories(count: int = 8) -> Trajectories:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(count, 9, 4, 8, 8, 8, generator=generator)
    attributes = torch.stack([torch.randint(k, (count,), generator=generator) for k in (10, 6, 4)], dim=1)
    return Trajectories(latents, attributes, torch.arange(count) % len(TEMPLATES))


def distiller(table: CaptionTable, spec: Distilled = TINY) -> Distiller:
    return Distiller(spec, *teacher(), table, trajectories(), CPU)


# -- what is learned ---------------------------------------------------------------------------------------------------
def test_the_target_takes_the_schedulers_own_step_to_the_teachers_latent() -> None:
    scheduler, ladder = latte.build_scheduler(), Ladder(8)
    scheduler.set_timesteps(8)
    assert torch.equal(ladder.timesteps, scheduler.timesteps)
    generator = torch.Generator().manual_seed(0)
    for index, timestep in enumerate(scheduler.timesteps):  # from no signal at all to no noise at all
        latents, reached = torch.randn(2, 1, 4, 8, 8, 8, generator=generator)
        at = torch.tensor([index])
        velocity = ladder.velocity(latents, reached, at)
        landed = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        assert (landed - reached).abs().max() < 1e-5
        assert (ladder.step(latents, velocity, at) - reached).abs().max() < 1e-5


def test_steps_of_a_batch_are_each_their_own() -> None:
    ladder, index = Ladder(8), torch.tensor([7, 0, 3])
    latents, velocity = torch.randn(2, 3, 4, 8, 8, 8)
    together = ladder.step(latents, velocity, index)
    for i in range(3):
        assert torch.equal(together[i : i + 1], ladder.step(latents[i : i + 1], velocity[i : i + 1], index[i : i + 1]))


def test_trajectories_are_the_pipelines_own_with_guidance(table: CaptionTable) -> None:
    transformer, encoder = teacher()
    ((part, found),) = trace(TINY, transformer, encoder, table, range(4, 5), CPU)
    pipe = build_pipeline(latte, transformer, encoder, build_tokenizer(), build().eval())
    pipe.set_progress_bar_config(disable=True)
    assert part == 4 and found.latents.shape == (4, 9, 4, 8, 8, 8)
    digit, colour, direction = found.attributes[2].tolist()
    asked = Attributes(DIGITS[digit], COLOURS[colour], DIRECTIONS[direction])
    noise = found.latents[2:3, 0]
    ways: list[Tensor] = []

    def keep(pipe: Any, step: int, time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        ways.append(values["latents"])
        return {}

    made = pipe(
        asked.caption(TEMPLATES[4]),
        latents=noise,
        num_inference_steps=8,
        guidance_scale=TINY.teacher_guidance,
        height=32,
        width=32,
        video_length=8,
        clean_caption=False,
        output_type="latent",
        callback_on_step_end=keep,
    )
    assert (torch.cat(ways) - found.latents[2, 1:]).abs().max() < 1e-4
    assert made is not None and (ways[-1] - noise).abs().max() > 0.1


def test_a_teacher_with_more_steps_passes_through_the_students(table: CaptionTable) -> None:
    transformer, encoder = teacher()
    seen: list[int] = []
    transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(int(kwargs["timestep"][0])), with_kwargs=True
    )
    next(trace(replace(TINY, teacher_steps=16), transformer, encoder, table, range(1), CPU))
    assert len(seen) == 16 and seen[::2] == Ladder(8).timesteps.tolist()
    with pytest.raises(ValueError, match="20 steps cannot teach 8 steps"):
        next(trace(replace(TINY, teacher_steps=20), transformer, encoder, table, range(1), CPU))


def test_a_part_is_the_same_whatever_was_made_before_it(table: CaptionTable, tmp_path: Path) -> None:
    parts = dict(trace(TINY, *teacher(), table, range(3), CPU))
    again = dict(trace(TINY, *teacher(), table, range(2, 3), CPU))
    assert torch.equal(parts[2].latents, again[2].latents) and not torch.equal(parts[1].latents, parts[2].latents)
    paths = [tmp_path / f"{number}.safetensors" for number in parts]
    for file, part in zip(paths, parts.values(), strict=True):
        part.save(file)
    assert torch.equal(join(paths).latents, torch.cat([part.latents for part in parts.values()]))


# -- training ----------------------------------------------------------------------------------------------------------
def test_resumed_training_equals_uninterrupted_training(table: CaptionTable, tmp_path: Path) -> None:
    whole, first = distiller(table), distiller(table)
    losses = [progress.loss for progress in whole.run(6)]
    for _ in first.run(3):
        pass
    first.save(tmp_path / "checkpoint.pt")
    second = distiller(table)
    second.load(tmp_path / "checkpoint.pt")
    assert [progress.loss for progress in second.run(6)] == losses[3:]
    assert all(torch.equal(second.average[key], value) for key, value in whole.average.items())
    assert all(torch.equal(second.parameters[key], value) for key, value in whole.parameters.items())


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_a_student_that_answers_with_the_target_has_no_loss(
    table: CaptionTable, own: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = distiller(table, replace(TINY, own=own))
    way = trained.trajectories.latents[0]
    trained.trajectories.latents[:] = way  # one trajectory, so that the right answer is known without the caption
    asked: list[Tensor] = []

    def answer(latents: Tensor, index: Tensor, embeddings: Tensor) -> Tensor:
        asked.append(index)
        slip = 0.1 if len(asked) == 1 and own else 0.0  # the student's own latents are then not the teacher's
        some = next(iter(trained.parameters.values())).sum() * 0.0
        return trained.ladder.velocity(latents, way[index + 1], index) + slip + some

    monkeypatch.setattr(trained, "_velocity", answer)
    (progress,) = trained.run(1)
    assert progress.loss < 1e-8
    assert sorted(asked[-1].tolist()) == list(range(8))
    if own:
        assert torch.equal(asked[0], (asked[1] - 1).clamp(min=0))


def test_only_what_is_shipped_is_trained(table: CaptionTable) -> None:
    trained = distiller(table, replace(TINY, rate=1e-2))
    before = {name: value.detach().clone() for name, value in trained.transformer.named_parameters()}
    for _ in trained.run(2):
        pass
    moved = {n for n, value in trained.transformer.named_parameters() if not torch.equal(value, before[n])}
    assert moved and not any(".ff." in name for name in moved) and moved <= trained.parameters.keys()
    assert {name for name in before if ".ff." not in name} == trained.parameters.keys()


def test_training_brings_the_student_closer(table: CaptionTable) -> None:
    trained = distiller(table, replace(TINY, rate=1e-2, own=0.0))
    first, *_, last = [progress.loss for progress in trained.run(6)]
    assert last < 0.99 * first


# -- what is shipped ---------------------------------------------------------------------------------------------------
def test_the_averaged_weights_that_were_trained_are_exported(table: CaptionTable, tmp_path: Path) -> None:
    trained = distiller(table)
    for value in trained.average.values():
        value += 0.01
    (tmp_path / "student").mkdir()  # what stood there before is replaced
    export_student(trained, tmp_path / "student")
    stored = load_file(tmp_path / "student" / OWN)
    assert stored.keys() == trained.parameters.keys()
    for name, value in stored.items():
        assert torch.equal(value, (trained.transformer.get_parameter(name) + 0.01).half())
    training = json.loads((tmp_path / "student" / "training.json").read_text())
    assert training["trajectories"] == 8 and training["updates"] == 0


def test_a_student_is_its_teacher_but_for_its_own_tensors(tmp_path: Path) -> None:
    theirs = load_file(path("latte-digits") / "transformer" / "diffusion_pytorch_model.safetensors")
    own = {name: value + 0.5 for name, value in theirs.items() if ".ff." not in name}
    save_file(own, tmp_path / OWN)
    student: Any = load("latte-digits-8", folder=tmp_path)
    found = student.transformer.state_dict()
    assert theirs.keys() <= found.keys()
    for name, value in theirs.items():
        assert torch.equal(found[name], own.get(name, value).float()), name
    encoder = load_file(path("latte-digits") / "text_encoder" / "model.safetensors")
    assert all(torch.equal(student.text_encoder.get_parameter(k), v.float()) for k, v in encoder.items())

    del own["proj_out.bias"]
    save_file(own, tmp_path / OWN)
    with pytest.raises(ValueError, match=r"proj_out.bias is None, expected \(32,\)"):
        put_in(student.transformer, tmp_path / OWN, DISTILLED["latte-digits-8"])
