"""What a pipeline is called with, what determines its output, and what is made of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastercache.policies.errors import NotFinite, PipelineUnreadable
from fastercache.prompts import Prompt
from fastercache.tuner.setting import Case, References, Setting, as_video, lacking, run_under, weights_digest
from tests.tuner.conftest import CALL

VIDEO = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
"""Two frames."""


class Pipe:
    """Notes what it is called with, and returns what it is told."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompt: Any = None, height: int = 8, steps: int = 4, **words: Any) -> Any:
        self.calls.append({"prompt": prompt, "height": height, "steps": steps, **words})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ((VIDEO[None], "the rest"), VIDEO),
        (SimpleNamespace(frames=torch.stack([VIDEO, VIDEO + 1.0])), VIDEO),
        (SimpleNamespace(images=VIDEO), VIDEO[:1]),
        (VIDEO, VIDEO[:1]),
        (VIDEO[1].double(), VIDEO[1:]),
        (SimpleNamespace(frames=VIDEO[None].numpy()), VIDEO),
    ],
    ids=["a tuple", "two videos", "two images", "a batch", "one image", "an array"],
)
def test_the_first_video_of_an_output(output: Any, expected: Tensor) -> None:
    found = as_video(output)
    assert torch.equal(found, expected) and found.dtype is torch.float32


def modules(**weights: list[float]) -> dict[str, nn.Module]:
    """A module for each name, whose one weight has these values."""
    made: dict[str, nn.Module] = {}
    for name, values in weights.items():
        made[name] = nn.Module()
        made[name].register_buffer("w", torch.tensor(values))
    return made


@pytest.mark.parametrize(
    "other",
    [
        {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.5]},
        {"a": [1.5, 2.0, 3.0], "b": [4.0, 5.0]},
        {"a": [4.0, 5.0], "b": [1.0, 2.0, 3.0]},
        {"a": [1.0, 2.0, 3.0], "c": [4.0, 5.0]},
        {"a": [1.0, 2.0, 3.0]},
        {"a": [3.0, 2.0, 1.0], "b": [4.0, 5.0]},
    ],
    ids=["the last value", "the first value", "exchanged", "another name", "one less", "another order"],
)
def test_other_weights_have_another_digest(other: dict[str, list[float]]) -> None:
    known = modules(a=[1.0, 2.0, 3.0], b=[4.0, 5.0])
    assert weights_digest(known) == weights_digest(dict(reversed(known.items())))
    assert weights_digest(modules(**other)) != weights_digest(known)


def test_shapes_and_types_of_weights_count_and_few_samples_reach_both_ends() -> None:
    flat, square = nn.Module(), nn.Module()
    flat.register_buffer("w", torch.zeros(4))
    square.register_buffer("w", torch.zeros(2, 2))
    half = nn.Module()
    half.register_buffer("w", torch.zeros(4, dtype=torch.float16))
    assert len({weights_digest({"a": one}) for one in (flat, square, half)}) == 3
    long = torch.zeros(1000)
    digests = set()
    for place in (0, 999):
        changed = nn.Module()
        changed.register_buffer("w", long.clone().index_fill(0, torch.tensor([place]), 1.0))
        digests.add(weights_digest({"a": changed}, samples=3))
    same = nn.Module()
    same.register_buffer("w", long)
    assert len(digests | {weights_digest({"a": same}, samples=3)}) == 3
    empty = nn.Module()
    empty.register_buffer("w", torch.zeros(0))
    assert weights_digest({"a": empty}) != weights_digest({})


def test_a_prompts_own_arguments_stand_before_the_calls_and_the_toolkits_before_both() -> None:
    pipe = Pipe((VIDEO[None] / 1e3,))
    setting = Setting(pipe, {"height": 16, "steps": 9, "output_type": "latent"}, seed=7)
    setting.generate(Case(Prompt("a", {"height": 32}), 5))
    (call,) = pipe.calls
    assert (call["prompt"], call["height"], call["steps"]) == ("a", 32, 9)
    assert (call["output_type"], call["return_dict"]) == ("pt", False)
    assert torch.equal(torch.rand(3, generator=call["generator"]), torch.rand(3, generator=seeded(5)))
    assert setting.calling(steps=3).call == {"height": 16, "steps": 3, "output_type": "latent"}
    assert setting.on("another").call == setting.call and setting.on("another").seed == 7


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_case_has_the_seed_of_its_place_or_its_own() -> None:
    found = Setting(Pipe(), seed=10).cases(["a", {"prompt": "b", "seed": 3}, "c", {"prompt": "d", "seed": 0}])
    assert [case.seed for case in found] == [10, 3, 12, 0]


def test_what_comes_out_is_clamped_and_finite() -> None:
    pipe = Pipe((torch.tensor([-0.5, 0.25, 1.5]).reshape(1, 1, 3, 1, 1),))
    setting = Setting(pipe)
    assert setting.generate(Case("a", 0)).flatten().tolist() == [0.0, 0.25, 1.0]
    for wrong in (torch.nan, torch.inf):
        pipe.answer = (torch.tensor([0.5, wrong, 0.5]).reshape(1, 1, 3, 1, 1),)
        with pytest.raises(NotFinite, match=r"'a' \(seed 4\) contains NaN or infinity"):
            setting.generate(Case("a", 4))
    own = Setting(pipe, video=lambda output: torch.full((1, 3, 1, 1), 0.75))
    assert own.generate(Case("a", 0)).unique().tolist() == [0.75]


def test_a_pipeline_without_the_parts_that_read_prompts_is_told() -> None:
    pipe: Any = Pipe(AttributeError("'NoneType' object has no attribute 'dtype'"))
    pipe.components = {"text_encoder": None, "tokenizer_2": None, "vae": None, "transformer": 1}
    with pytest.raises(PipelineUnreadable, match="has no text_encoder and no tokenizer_2, so it cannot read prompts"):
        Setting(pipe).generate(Case("a", 0))
    assert lacking(pipe, AttributeError("'int' object has no attribute 'dtype'")) is None
    pipe.components = {"text_encoder": 1, "vae": None}
    with pytest.raises(AttributeError, match="NoneType"):
        Setting(pipe).generate(Case("a", 0))


def test_the_seconds_of_a_run_are_without_counting_and_its_trace_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 15.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    traces: list[Any] = [SimpleNamespace(counting_seconds=99.0)]
    kept: list[int] = []

    def run(self: Setting, case: Case) -> Tensor:
        kept.append(len(traces))
        traces.append(SimpleNamespace(counting_seconds=2.0))
        return VIDEO

    monkeypatch.setattr(Setting, "generate", run)

    class Session:
        """Of which the traces are asked."""

        def __init__(self) -> None:
            self.traces = traces

        @property
        def last(self) -> Any:
            return self.traces[-1]

    session: Any = Session()
    video, trace, seconds = run_under(session, Setting(Pipe()), Case("a", 0))
    assert torch.equal(video, VIDEO) and trace.counting_seconds == 2.0 and seconds == 3.0
    assert kept == [0], "of earlier runs nothing is kept"


def test_references_are_told_apart_by_seed_and_by_a_prompts_arguments(tiny_latte: Any, tmp_path: Path) -> None:
    setting = Setting(tiny_latte, CALL)
    cases = [Case("a", 0), Case("a", 1), Case("b", 0), Case(Prompt("a", {"negative_prompt": "b"}), 0)]
    cases.append(Case(Prompt("a", {"negative_prompt": "c"}), 0))
    references = References(setting, tmp_path)
    for place, case in enumerate(cases):
        assert references.read(case) is None
        references.write(case, torch.full((1, 3, 2, 2), place / 8))
    assert [float(references.read(case).mean()) * 8 for case in cases] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    other = References(setting.calling(guidance_scale=2.0), tmp_path)
    assert other.read(cases[0]) is None
    plain = Case(Prompt("a", {}), 0)
    assert references.read(plain) is not None, "without further arguments it is the same prompt"


def test_every_part_of_a_pipeline_determines_its_output(tiny_latte: Any) -> None:
    found = [Setting(tiny_latte, CALL).identity]
    changes: list[Callable[[], Any]] = [
        lambda: tiny_latte.text_encoder.half(),
        lambda: next(tiny_latte.vae.parameters()).data.add_(0.5),
        lambda: tiny_latte.scheduler.register_to_config(beta_end=0.5),
        lambda: tiny_latte.transformer.register_to_config(sample_size=16),
    ]
    for change in changes:
        change()
        found.append(Setting(tiny_latte, CALL).identity)
    differ = [{key for key in b if a[key] != b[key]} for a, b in itertools.pairwise(found)]
    assert differ[1:] == [{"weights"}, {"scheduler"}, {"model"}] and "weights" in differ[0]
    call = {"height": 32, "image": [1], "callback": None}
    assert Setting(tiny_latte, call).identity["call"] == {"height": 32, "image": "[1]", "callback": None}
    assert found[0]["pipeline"] == "LattePipeline" and found[0]["device"] == "cpu"
