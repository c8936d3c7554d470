"""FLOPs are counted, and counted whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

import fastercache as fc
from fastercache import zoo
from fastercache.model import flops
from fastercache.model.flops import FlopTotal, flex_as_dense, flop_counter
from fastercache.testing import check_policy
from fastercache.testing.subject import counting
from fastercache.zoo.specimen import Specimen


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_products_of_attention_are_counted(device: str, masked: bool) -> None:
    """Scores and their product with the values, 2 * 2 N^2 D a head: torch's own counter sees none of it on a CPU."""
    q = torch.zeros(1, 2, 64, 16, device=device)
    mask = torch.zeros(1, 1, 64, 64, device=device) if masked else None
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert counter.get_total_flops() == 2 * 2 * 64**2 * 16 * 2


def test_a_sites_flops_hold_its_attention(latte: Specimen) -> None:
    """Latte's spatial attention, 2 rows of 4 frames, 16 tokens of 16 channels: four projections and two products."""
    with fc.attach(latte.pipe, fc.NoCache()) as session:
        latte.generate(steps=1)
        flops = session.flop_shares()["transformer_blocks.0.attn1"] * session.last.flops_full[0]
    rows, tokens, dim = 2 * 4, 16, 16
    assert round(flops) == rows * (4 * 2 * tokens * dim * dim + 2 * 2 * tokens * tokens * dim)


def test_the_total_is_that_of_torchs_counter() -> None:
    """Products, convolutions, attention and what is made of them; nothing of torch's is passed over."""
    x = torch.randn(2, 4, 6, 6)
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten(2), torch.nn.Linear(16, 8))

    def work() -> Tensor:
        y = layers(x)
        attended = torch.nn.functional.scaled_dot_product_attention(y, y, y)
        return torch.einsum("bij,bkj->bik", attended, y) @ torch.baddbmm(y[:, :, :4], y, y.mT)

    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode(), flop_counter() as theirs:
            work()
        with mode(), FlopTotal() as ours:
            work()
        assert ours.total == theirs.get_total_flops() > 0


@pytest.mark.parametrize("family", ["latte", "wan", "sd3"])
def test_law_6_counts_a_run_as_torchs_counter_does(family: str) -> None:
    specimen = zoo.build(family)
    with counting(specimen) as ours:
        specimen.generate(steps=1)
    theirs: list[int] = []
    forward = specimen.pipe.transformer.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with flop_counter() as counter:
            output = forward(*args, **kwargs)
        theirs.append(counter.get_total_flops())
        return output

    specimen.pipe.transformer.forward = counted
    specimen.generate(steps=1)
    assert ours == theirs and min(theirs) > 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each full call that was counted."""
    made: list[int] = []
    count = flops._count

    def noting(*args: Any) -> flops.Cost:
        cost = count(*args)
        made.append(cost.total)
        return cost

    monkeypatch.setattr(flops, "_count", noting)
    return made


def test_what_one_session_counted_serves_the_next(latte: Specimen, counts: list[int]) -> None:
    traces = []
    for policy in (fc.NoCache(), fc.StaticInterval(interval=2), fc.NoCache()):
        with fc.attach(latte.pipe, policy) as session:
            assert session.flop_shares() == {}, "a session tells of its own runs only"
            latte.generate(steps=2)
            traces.append(session.last)
    assert len(counts) == 1
    assert traces[0].flops == traces[2].flops and traces[0].flops_full == traces[1].flops_full
    assert traces[0].counting_seconds > 0 == traces[1].counting_seconds


class Passing:
    """An attention processor that attends to nothing."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


def halved(pipe: Any) -> None:
    pipe.to(torch.bfloat16)


def other_processors(pipe: Any) -> None:
    for block in pipe.transformer.transformer_blocks:
        block.attn1.processor = Passing()


def deepened(pipe: Any) -> None:
    pipe.transformer.transformer_blocks[0].ff.net.append(torch.nn.Linear(16, 16))


def flag(pipe: Any) -> None:
    pipe.transformer.transformer_blocks[0].ff.lazy = True


def number(pipe: Any) -> None:
    pipe.transformer.transformer_blocks[0].ff.skips = 1


@pytest.mark.parametrize("change", [halved, other_processors, deepened, flag, number])
def test_a_model_that_changed_between_sessions_is_counted_anew(latte: Specimen, change: Callable[[Any], None]) -> None:
    """Laws 6 and 9 compare what is told with torch's counter on the real run, and with the bytes that are held."""
    part = latte.pipe.transformer.transformer_blocks[0].ff
    kind = type(part)
    lazily = lambda self, x, *rest: x if self.lazy or self.skips else kind.forward(self, x, *rest)  # noqa: E731
    part.__class__ = type("Lazy", (kind,), {"forward": lazily})
    part.lazy, part.skips = False, 0
    policy = fc.StaticInterval(sites="spatial", interval=2)
    for changed in (False, True):
        if changed:
            change(latte.pipe)
        check_policy(policy, latte, steps=3, laws=(6, 9)).raise_if_broken()
        with fc.attach(latte.pipe, policy) as session:
            latte.generate(steps=3)
            assert session.plan().per_step == session.last.bytes_per_step


def test_flex_attention_is_counted_as_attention_without_a_mask() -> None:
    """Torch's counter refuses it, so a model that uses it (AnyFlow) died. It is itself again afterwards."""
    own = flex.flex_attention
    q = torch.zeros(1, 2, 64, 16)
    with flex_as_dense(), flop_counter() as counter:
        assert flex.flex_attention(q, q, q).shape == q.shape
    assert counter.get_total_flops() == 2 * 2 * 64**2 * 16 * 2
    assert flex.flex_attention is own
