"""A call for some branches gets their rows of every argument, however nested; what cannot be told is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastercache as fc
from fastercache.model.rows import branch_rows
from fastercache.policies.vocabulary import COND, UNCOND

TIMES = [900.0, 700.0, 500.0, 300.0]
POLICY = fc.GuidanceReuse(start=0.0, interval=2, stand_in=fc.Hold())


class Toy(nn.Module):
    """Adds to each row of (B, C, F, H, W) the mean of that row's conditioning, wherever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2)])
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_llama3: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        image_rotary_emb: Tensor | None = None,
        samples: list[Tensor] | None = None,
        visual_rope_pos: list[Tensor] | None = None,
        text_rope_pos: Tensor | None = None,
        other: Any = None,
    ) -> tuple[Tensor]:
        rows = sample.shape[0]
        extra = timestep / 1000
        if encoder_hidden_states is not None:  # a text for each frame, as AnimateDiff's
            extra = extra + encoder_hidden_states.reshape(rows, -1).mean(1)
        if encoder_hidden_states_llama3 is not None:
            extra = extra + encoder_hidden_states_llama3.mean((0, 2))
        if joint_attention_kwargs is not None:
            first, (second, third) = joint_attention_kwargs["gligen"]["boxes"], joint_attention_kwargs["pair"]
            extra = extra + first.mean(1) + 2 * second.mean(1) + 3 * third.mean(1)
        if samples is not None:
            extra = extra + torch.stack([s.mean() for s in samples])
        if visual_rope_pos is not None and text_rope_pos is not None:
            extra = extra + visual_rope_pos[0].sum() + text_rope_pos.sum()
        if image_rotary_emb is not None:
            extra = extra + image_rotary_emb.mean()
        return (self.weight * sample + extra.reshape(-1, 1, 1, 1, 1),)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ARGUMENTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "frames": lambda rows: {"encoder_hidden_states": noise(rows * 3, 5, 2)},
    "second axis": lambda rows: {"encoder_hidden_states_llama3": noise(rows, rows, 5)},
    "nested": lambda rows: {
        "joint_attention_kwargs": {
            "scale": 0.7,
            "gligen": {"boxes": noise(rows, 4)},
            "pair": [noise(rows, 6, seed=1), noise(1, 6, seed=2).expand(rows, 6)],
        }
    },
    "one a row": lambda rows: {"samples": [noise(7, 4, seed=i) for i in range(rows)]},
    "positions": lambda rows: {"visual_rope_pos": [torch.arange(rows), torch.arange(9)], "text_rope_pos": noise(7)},
    "no rows": lambda rows: {"image_rotary_emb": noise(rows, 4)},
}


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_every_argument_that_has_rows_is_cut(name: str, prompts: int) -> None:
    """By hand: at odd steps the unconditional half is the conditional one plus the difference of the step before."""
    model = Toy()
    more = ARGUMENTS[name](2 * prompts)
    want: list[Tensor] = []
    got: list[Tensor] = []
    difference = torch.zeros(())
    inputs = [noise(2 * prompts, 4, 3, 2, 2, seed=i) for i in range(len(TIMES))]
    with torch.no_grad():
        for i, time in enumerate(TIMES):
            uncond, cond = model(inputs[i], torch.full((2 * prompts,), time), **more)[0].chunk(2)
            difference = uncond - cond if i % 2 == 0 else difference
            want.append(torch.cat([cond + difference, cond]))
        with fc.attach(model, POLICY, guidance="batched", branches=(UNCOND, COND)) as session:
            session.start(TIMES)
            for i, time in enumerate(TIMES):
                got.append(model(inputs[i], torch.full((2 * prompts,), time), **more)[0].clone())
            assert session.last.share() == 0.25
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (noise(3, 4), r"other has shape \(3, 4\) in a call of 2 rows"),
        ({"deep": [noise(6, 4)]}, r"other\['deep'\]\[0\] has shape"),
        (SimpleNamespace(mask=noise(2, 4)), "other is a SimpleNamespace that holds tensors"),
    ],
)
def test_what_cannot_be_told_is_refused(other: Any, match: str) -> None:
    model = Toy()
    time = torch.full((2,), 900.0)
    with fc.attach(model, POLICY, guidance="batched", branches=(UNCOND, COND)) as session, torch.no_grad():
        session.start(TIMES)
        model(noise(2, 4, 1, 2, 2), time, other=other)
        with pytest.raises(fc.BranchUnknown, match=match):
            model(noise(2, 4, 1, 2, 2), time, other=other)
    with fc.attach(model, fc.NoCache(), guidance="batched") as session, torch.no_grad():
        session.start(TIMES)
        model(noise(2, 4, 1, 2, 2), time, other=other)


def test_positional_arguments_are_known_by_their_names() -> None:
    rotary = noise(2, 4)
    args, _ = branch_rows(Toy().forward, (noise(2, 4, 1, 2, 2), torch.ones(2), None, None, None, rotary), {}, [0], 2)
    assert args[0].shape[0] == args[1].shape[0] == 1 and args[5] is rotary


@pytest.mark.filterwarnings("ignore::fastercache.run.idle.NothingReused")  # the loops break off
def test_the_order_of_branches_of_an_unlisted_class_is_asked_for() -> None:
    """(uncond, cond) is only the usual order: nothing is predicted from a half that may not be the conditional one."""
    model = Toy()
    time = torch.full((2,), 900.0)
    for guidance in ("batched", "separate"):
        with fc.attach(model, POLICY, guidance=guidance) as session, torch.no_grad():
            session.start(TIMES)
            with pytest.raises(fc.BranchUnknown, match="branches="):
                for i in range(4):
                    model(noise(2, 4, 1, 2, 2), time - (i // 2 if guidance == "separate" else i))


class Pipe:
    """Encodes prompts and calls the toy, the conditional rows first or last."""

    def __init__(self, conditional_first: bool, style: str) -> None:
        self.transformer, self.scheduler = Toy(), Scheduler()
        self.first, self.style = conditional_first, style
        self.do_classifier_free_guidance = True

    def encode_prompt(self) -> tuple[Tensor, Tensor]:
        return noise(1, 5, 2, seed=1), noise(1, 5, 2, seed=2)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        texts = self.encode_prompt()
        texts = texts if self.first else texts[::-1]
        x = noise(1, 4, 1, 2, 2)
        self.scheduler.set_timesteps()
        for t in self.scheduler.timesteps:
            if self.style == "batched":
                out = self.transformer(torch.cat([x, x]), torch.full((2,), t), torch.cat(texts))[0]
            else:
                out = torch.cat([self.transformer(x, torch.full((1,), t), text)[0] for text in texts])
            a, b = out.chunk(2)
            x = x - 0.1 * ((2 * a - b) if self.first else (2 * b - a))
            self.scheduler.step()
        return x


class Scheduler:
    timesteps = torch.tensor(TIMES)

    def set_timesteps(self) -> None: ...

    def step(self) -> None: ...


@pytest.mark.parametrize("style", ["batched", "separate"])
def test_the_pipelines_own_texts_tell_the_order(style: str) -> None:
    first, last = Pipe(True, style), Pipe(False, style)
    usual, unusual = (last, first) if style == "batched" else (first, last)
    with fc.attach(usual, POLICY, guidance=style) as session:  # type: ignore[arg-type]
        got = usual()
        assert session.last.share() == 0.25
    named = {"batched": (UNCOND, COND), "separate": (COND, UNCOND)}[style]
    with fc.attach(usual, POLICY, guidance=style, branches=named):  # type: ignore[arg-type]
        assert torch.equal(usual(), got)
    session = fc.attach(unusual, POLICY, guidance=style)  # type: ignore[arg-type]
    with session, pytest.raises(fc.BranchUnknown, match="texts are in the order"):
        unusual()


def test_a_list_of_as_many_tensors_as_rows_is_cut_only_if_each_is_a_rows_own() -> None:
    """Z-Image's inputs have no batch axis, one for each row; tensors with an axis of one row belong to all rows."""
    latent, time = noise(2, 4, 1, 2, 2), torch.ones(2)
    shared, own = [noise(1, 7), noise(1, 7, seed=1)], [noise(3, 7), noise(5, 7)]
    for part in (0, 1):
        _, kept = branch_rows(Toy().forward, (latent, time), {"other": shared}, [part], 2)
        assert [one is other for one, other in zip(kept["other"], shared, strict=True)] == [True, True]
        _, kept = branch_rows(Toy().forward, (latent, time), {"samples": own}, [part], 2)
        assert [torch.equal(one, own[part]) for one in kept["samples"]] == [True]
