"""Laws of the judges, the trainer and the shipped models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from fastercache.experiments.reference import GENERATION, load, names, path
from fastercache.experiments.reference.data import Sampler, captions
from fastercache.experiments.reference.export import export
from fastercache.experiments.reference.judges import Judge, check
from fastercache.experiments.reference.spec import SPECS
from fastercache.experiments.reference.trainer import Pool, Trainer


def test_judges_know_handwriting_they_never_saw() -> None:
    accuracy = check(Judge.load(), videos=300, seed=5)
    assert accuracy["digit"] >= 0.98 and accuracy["colour"] >= 0.98 and accuracy["direction"] >= 0.98


def test_judges_reject_the_wrong_caption_and_a_reversed_video() -> None:
    batch = Sampler(split="all", strokes="test", seed=8).batch(50)
    video = (batch.video.transpose(1, 2) + 1) / 2
    judge = Judge.load()
    assert judge.score(video, batch.captions).all.mean() > 0.9
    assert judge.score(video.flip(1), batch.captions).direction.mean() < 0.1
    assert judge.score(video, batch.captions[1:] + batch.captions[:1]).all.mean() < 0.2
    assert judge.score(video[:, :, [2, 0, 1]], batch.captions).colour.mean() < 0.1


def test_judges_say_what_shape_they_need() -> None:
    with pytest.raises(ValueError, match="found shape"):
        Judge.load().predict(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match="2 videos but 1 captions"):
        Judge.load().score(torch.zeros(2, 8, 3, 32, 32), ["a red seven moving left"])


def _tiny(name: str) -> Trainer:
    spec = replace(SPECS[name], heads=1, layers=1, text_width=32, steps=6, batch=4, warm_up=2, text_steps=2)
    generator = torch.Generator().manual_seed(0)
    attributes = Sampler(seed=0).batch(8).attributes
    return Trainer(spec, Pool(torch.randn(8, *spec.latent_shape, generator=generator), attributes), torch.device("cpu"))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_resumed_training_equals_uninterrupted_training(name: str, tmp_path: Path) -> None:
    whole = _tiny(name)
    losses = [progress.loss for progress in whole.run(6)]
    first = _tiny(name)
    for _ in first.run(3):
        pass
    first.save(tmp_path / "checkpoint.pt")
    second = _tiny(name)
    second.load(tmp_path / "checkpoint.pt")
    resumed = [progress.loss for progress in second.run(6)]
    assert resumed == losses[3:]
    assert all(torch.equal(second.average[key], value) for key, value in whole.average.items())
    assert all(torch.equal(second.parameters[key], value) for key, value in whole.parameters.items())


def test_unknown_short_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no reference model 'late-digits'; shipped are: .*latte-digits"):
        path("late-digits")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "wan-digits" else []) for name in names()]
)  # four whole videos of one model by default, of both in `make test-all`
def test_shipped_model_is_small_float32_and_obeys_a_held_out_caption(name: str) -> None:
    assert sum(file.stat().st_size for file in path(name).rglob("*.safetensors")) <= 8_000_000
    pipeline = load(name)
    for part in ("transformer", "text_encoder", "vae"):
        assert {value.dtype for value in getattr(pipeline, part).parameters()} == {torch.float32}
    prompts = captions("held_out")[:4]
    call = GENERATION[name].kwargs()
    parts = [
        pipeline(p, generator=torch.Generator().manual_seed(i), output_type="pt", **call).frames
        for i, p in enumerate(prompts)
    ]
    videos = torch.cat(parts)
    assert videos.shape == (4, GENERATION[name].frames, 3, 32, 32)
    scores = Judge.load().score(videos, prompts)
    assert scores.all.sum() >= 3


def test_default_calls_are_offered_for_shipped_models_only() -> None:
    assert set(GENERATION) == set(names())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SPECS))
def test_export_of_a_run_is_an_ordinary_folder_without_traces_of_the_machine(name: str, tmp_path: Path) -> None:
    trainer = _tiny(name)
    autoencoder = trainer.family.build_autoencoder(trainer.spec).eval()
    autoencoder.save_pretrained(tmp_path / "autoencoder")
    export(trainer, trainer.family.load_autoencoder(tmp_path / "autoencoder"), tmp_path / "model")
    assert not [file for file in (tmp_path / "model").rglob("*.json") if str(tmp_path) in file.read_text()]
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    call = trainer.spec.generation.kwargs() | {"num_inference_steps": 2}
    video = pipeline("a red seven moving left", output_type="pt", **call).frames
    assert video.shape == (1, trainer.spec.generation.frames, 3, 32, 32) and video.isfinite().all()
