"""How values lie in tensors, on numbers that count up: rows of parts, leading tensors, streams, containers, tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from fastercache.model.layout import (
    BlockIO,
    canonical,
    equal_parts,
    flatten_output,
    from_canonical,
    joined,
    leading_tensor,
    per_row,
    rebuild_output,
    strip,
    take_rows,
    timestep_of,
    tokens_of,
)
from fastercache.policies.errors import AttachError


@pytest.mark.parametrize(
    ("parts", "of", "rows", "view"),
    [
        ([0], 3, [0, 1], True),
        ([2], 3, [4, 5], True),
        ([1, 2], 3, [2, 3, 4, 5], True),
        ([0, 2], 3, [0, 1, 4, 5], False),
        ([2, 0], 3, [4, 5, 0, 1], False),
        ([1, 0], 2, [3, 4, 5, 0, 1, 2], False),
        ([1, 0, 2], 3, [2, 3, 0, 1, 4, 5], False),
        ([3], 6, [3], True),
    ],
)
def test_parts_are_taken_in_the_order_given_and_are_a_view_only_side_by_side(
    parts: list[int], of: int, rows: list[int], view: bool
) -> None:
    whole = torch.arange(6.0)
    found = equal_parts(whole, parts, of)
    assert found.tolist() == rows
    assert (found.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()) is view


def test_rows_are_taken_of_every_leading_axis_that_is_named() -> None:
    pair = (torch.arange(4.0), [torch.arange(8.0), torch.arange(3.0), torch.tensor(5.0)], "word")
    first, (second, third, scalar), word = take_rows(pair, (4, 8), [1], 2)
    assert (first.tolist(), second.tolist(), third.tolist()) == ([2, 3], [4, 5, 6, 7], [0, 1, 2])
    assert scalar.item() == 5.0 and word == "word"
    assert isinstance(take_rows(pair, 4, [1], 2), tuple) and isinstance(take_rows(pair, 4, [1], 2)[1], list)
    only_four = take_rows(pair, 4, [1], 2)
    assert only_four[0].tolist() == [2, 3] and only_four[1][0].tolist() == list(range(8))


@pytest.mark.parametrize(("given", "cut"), [(None, False), (5, True), (6, False)])
def test_position_embeddings_beside_no_hidden_states_are_told_by_the_tokens_of_the_call(
    given: int | None, cut: bool
) -> None:
    values = {"rotary_emb": torch.zeros(2, 5, 3), "temb": torch.zeros(2, 1)}
    found = take_rows(values, 2, [0], 2, given)
    assert found["rotary_emb"].shape[0] == (1 if cut else 2) and found["temb"].shape[0] == 1
    nested = take_rows({"inside": values}, 2, [0], 2, given)["inside"]
    assert nested["rotary_emb"].shape[0] == (1 if cut else 2)
    listed = take_rows([values], 2, [0], 2, given)[0]
    assert listed["rotary_emb"].shape[0] == (1 if cut else 2)
    own = take_rows({**values, "hidden_states": torch.zeros(2, 5, 1)}, 2, [0], 2, given)
    assert own["rotary_emb"].shape[0] == 1, "the hidden states beside it tell more than the call"
    others = take_rows({**values, "hidden_states": torch.zeros(2, 6, 1)}, 2, [0], 2, given)
    assert others["rotary_emb"].shape[0] == 2


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 7, 2), True),
        ((8, 7, 2), True),  # a row for each frame
        ((2, 7, 2), False),
        ((4, 6, 2), False),
        ((4, 7), False),
        ((4, 1, 7, 2), True),
        ((4, 7, 1, 2), True),
        ((4, 7, 7, 2), False),
        ((4, 1, 1, 2), False),
        ((4, 1, 7, 2, 2), True),
        ((7, 4, 2), False),
    ],
)
def test_position_embeddings_of_each_row(shape: tuple[int, ...], expected: bool) -> None:
    value = torch.zeros(shape)
    assert per_row(value, (4, 8), 7) is expected
    assert per_row((value, value), (4, 8), 7) is expected
    assert per_row([value, torch.zeros(7, 2)], (4, 8), 7) is False
    assert per_row((), (4, 8), 7) is False and per_row(None, (4, 8), 7) is False


def test_only_an_input_of_three_axes_has_tokens() -> None:
    assert tokens_of(torch.zeros(2, 7, 3)) == 7
    assert tokens_of(torch.zeros(2, 7)) is None and tokens_of(torch.zeros(2, 7, 3, 3)) is None


A, B, C = torch.zeros(1), torch.ones(2), torch.ones(3)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((A,), {"hidden_states": B}, B),
        ((A,), {"sample": B}, B),
        ((A,), {"x": C}, C),
        ((), {"x": A, "sample": B, "hidden_states": C}, C),
        ((), {"x": A, "sample": B}, B),
        (("word", A), {"other": B}, A),
        ((), {"timestep": 3, "other": B, "another": C}, B),
        ((A,), {"hidden_states": None}, A),
    ],
)
def test_the_main_input_of_a_call(args: tuple[Any, ...], kwargs: dict[str, Any], expected: Tensor) -> None:
    assert leading_tensor(args, kwargs) is expected


def test_a_call_without_tensors_is_refused() -> None:
    with pytest.raises(AttachError, match="without any tensor"):
        leading_tensor((1, "word"), {"a": None})
    assert leading_tensor((A,), {"tokens": B, "hidden_states": C}, "tokens") is B


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((A,), {"timestep": torch.tensor([7.0, 9.0])}, 7.0),
        ((A,), {"timesteps": torch.tensor(8.0)}, 8.0),
        ((A,), {"timestep": torch.tensor([[3.0, 9.0], [5.0, 4.0]])}, 9.0),  # of each token: the least are conditioning
        ((A,), {"timestep": 6}, 6.0),
        ((A,), {"timestep": 6.5, "timesteps": 1.0}, 6.5),
        ((A, torch.tensor(4.0)), {}, 4.0),
        ((torch.tensor([1.0]), torch.ones(2, 2), torch.tensor([5.0, 6.0])), {}, 5.0),
        ((A,), {}, None),
        ((A,), {"timestep": torch.zeros(0)}, None),
        ((A,), {"timestep": torch.zeros(2, device="meta")}, None),
        ((A,), {"timestep": "now"}, None),
    ],
)
def test_the_timestep_of_a_call(args: tuple[Any, ...], kwargs: dict[str, Any], expected: float | None) -> None:
    assert timestep_of(args, kwargs) == expected


def test_containers_are_flattened_and_rebuilt_in_one_order() -> None:
    output = Transformer2DModelOutput(sample=A)
    rebuilt = rebuild_output(strip(output), [B])
    assert type(rebuilt) is Transformer2DModelOutput and rebuilt.sample is B
    nested = {"first": [A, "word"], "second": (B, {"third": C})}
    assert [None if t is None else t.shape[0] for t in flatten_output(nested)] == [1, None, 2, 3]
    empty = strip(nested)
    assert [t.numel() for t in flatten_output(empty) if t is not None] == [0, 0, 0]
    again = rebuild_output(empty, [B, None, C, A])
    assert again["first"][0] is B and again["first"][1] == "word"
    assert again["second"][0] is C and again["second"][1]["third"] is A
    assert rebuild_output(strip((A, B)), [None, C]) == (None, C), "a tensor that is none now leaves its place empty"
    with pytest.raises(AttachError, match="returned int"):
        flatten_output(3)


class Joint(nn.Module):
    def forward(
        self,
        temb: Tensor,
        encoder_hidden_states: Tensor,
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        *rest: Any,
    ) -> Any: ...


class Plain(nn.Module):
    def forward(self, tokens: Tensor, *, encoder_hidden_states: Tensor) -> Any: ...


class Nameless(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any: ...


def test_the_streams_of_a_block_are_its_hidden_states_then_others_then_texts() -> None:
    io = BlockIO.of(Joint())
    assert io.streams == (("hidden_states", 2), ("audio_hidden_states", 3), ("encoder_hidden_states", 1))
    assert BlockIO.of(Plain()).streams == (("tokens", 0),)
    with pytest.raises(AttachError, match="names no parameters"):
        BlockIO.of(Nameless())
    assert io.inputs((A, B), {"hidden_states": C}) == [C, None, B]
    assert io.inputs((A, B, C), {"audio_hidden_states": A}) == [C, A, B]
    assert io.inputs((A, "word"), {}) == [None, None, None]


def test_outputs_are_matched_by_shape_and_each_stream_once() -> None:
    io = BlockIO.of(Joint())
    image, text = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)
    assert io.match([text, None, image], [image, None, text], text_first=False) == [2, -1, 0]
    assert io.match([image, image], [image, None, image], text_first=False) == [0, 2]
    assert io.match([image, image], [image, None, image], text_first=True) == [2, 0]
    assert io.match([image], [image, None, image], text_first=True) == [0], "one output is the hidden states'"
    assert io.match([image, text], [image, None, text[:1]], text_first=False) == [0, 2], "one text for all rows"
    for wrong in (torch.zeros(3, 4, 3), torch.zeros(2, 4, 2)):
        with pytest.raises(AttachError, match="its residual is undefined"):
            io.match([wrong], [image, None, text], text_first=False)
    with pytest.raises(AttachError, match="its residual is undefined"):
        io.match([image, image], [image, None, text], text_first=False)


def test_tokens_by_place_become_tokens_by_frame_and_back() -> None:
    """Of 2 rows, 3 frames and 4 places, the number at (row, frame, place) is 100 row + 10 frame + place."""
    number = [[[100 * b + 10 * f + n for n in range(4)] for f in range(3)] for b in range(2)]
    by_frame = torch.tensor(number, dtype=torch.float32).reshape(6, 4, 1)
    by_place = torch.tensor(
        [[number[b][f][n] for f in range(3)] for b in range(2) for n in range(4)], dtype=torch.float32
    )[..., None]
    assert torch.equal(canonical(by_place, "tokens", 2), by_frame)
    assert torch.equal(from_canonical(by_frame, "tokens", 2), by_place)
    for layout in ("rows", "frames", "joined", "joined_last"):
        assert canonical(by_place, layout, 2) is by_place and from_canonical(by_place, layout, 2) is by_place  # type: ignore[arg-type]


def test_two_streams_in_one_have_the_text_first_or_last_and_for_every_row() -> None:
    image, text = torch.zeros(2, 3, 1), torch.ones(1, 2, 1)
    (first,) = joined([image, None, text])
    (last,) = joined([image, text], "joined_last")
    assert first is not None and last is not None
    assert first[..., 0].tolist() == [[1, 1, 0, 0, 0]] * 2 and last[..., 0].tolist() == [[0, 0, 0, 1, 1]] * 2
    alone = joined([image, None])
    assert alone[0] is image and alone[1] is None
