"""Laws of the data generator."""

from __future__ import annotations

import pytest
import torch

from fastercache.experiments.reference.data import (
    COLOURS,
    DIGITS,
    DIRECTIONS,
    TEMPLATES,
    VELOCITY,
    Sampler,
    captions,
    combinations,
    parse,
    render,
)


def test_same_seed_same_videos_and_other_seed_other_videos() -> None:
    first, again, other = (Sampler(seed=seed).batch(4) for seed in (3, 3, 4))
    assert torch.equal(first.video, again.video) and first.captions == again.captions
    assert not torch.equal(first.video, other.video)
    assert first.video.shape == (4, 3, 8, 32, 32)
    assert -1 <= first.video.min() < first.video.max() <= 1


def test_held_out_combinations_are_disjoint_balanced_and_never_sampled() -> None:
    train, held_out = combinations("train"), combinations("held_out")
    assert len(train) == 200 and len(held_out) == 40 and not set(train) & set(held_out)
    for position, words in enumerate((DIGITS, COLOURS, DIRECTIONS)):
        counts = [sum(choice[position] == word for choice in held_out) for word in words]
        assert max(counts) - min(counts) <= 1
        assert {choice[position] for choice in train} == set(words)
    seen = {parse(caption) for caption in Sampler(split="train", seed=1).batch(64).captions}
    assert not seen & set(held_out)
    assert captions("held_out") == captions("held_out")


def test_every_template_parses_back() -> None:
    for combination in combinations("train") + combinations("held_out"):
        for template in TEMPLATES:
            assert parse(combination.caption(template)) == combination


@pytest.mark.parametrize("caption", ["a red moving left", "a red blue seven moving left", "seven", ""])
def test_captions_outside_the_grammar_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        parse(caption)


def test_digit_moves_steadily_in_the_captioned_direction() -> None:
    attributes = torch.tensor([[digit, 0, direction] for direction in range(4) for digit in range(10)])
    video = render(attributes, strokes="train", generator=torch.Generator().manual_seed(0))
    ink = (video[:, 0] - video[:, 1:].amax(1)).clamp(min=0)  # red ink: (B, F, H, W)
    pixel = torch.arange(32.0)
    mass = ink.sum((-1, -2))
    centre = torch.stack([(ink.sum(-2) * pixel).sum(-1) / mass, (ink.sum(-1) * pixel).sum(-1) / mass], dim=-1)
    velocity = centre.diff(dim=1)
    along = (velocity * torch.tensor(VELOCITY)[attributes[:, 2], None]).sum(-1)
    assert along.min() > 0.7 and along.max() < 1.7
    assert (velocity.norm(dim=-1) - along).max() < 0.2


def test_test_strokes_are_other_handwriting() -> None:
    attributes = torch.tensor([[7, 0, 0]])
    videos = [
        render(attributes, strokes=part, generator=torch.Generator().manual_seed(0)) for part in ("train", "test")
    ]
    assert not torch.equal(*videos)
