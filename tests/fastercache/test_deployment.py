"""Policies hold under the ways people deploy models: copies, offloading, threads, dtypes, inference mode, compile."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

import fastercache as fc
from fastercache import zoo
from fastercache.finder import find_blocks
from fastercache.zoo.specimen import Specimen
from policies.base import Policy
from policies.vocabulary import Signal

PAIR = fc.FasterCache(start=0.2, cfg_start=0.2, cfg_interval=3)


@pytest.fixture
def expected(latte: Specimen) -> Tensor:
    with fc.attach(latte.pipe, PAIR):
        return latte.generate(steps=8)


def test_inference_mode_changes_nothing(latte: Specimen, expected: Tensor) -> None:
    with torch.inference_mode(), fc.attach(latte.pipe, PAIR):
        assert torch.equal(latte.generate(steps=8), expected)


def test_a_copy_of_an_attached_pipeline_is_bare_and_has_its_own_weights(latte: Specimen, expected: Tensor) -> None:
    bare = latte.generate(steps=8)
    with fc.attach(latte.pipe, PAIR) as session:
        latte.generate(steps=8)
        copied = copy.deepcopy(latte)
        traces = len(session.traces)
        assert torch.equal(copied.generate(steps=8), bare), "the copy runs without the session"
        with torch.no_grad():
            for parameter in copied.pipe.transformer.parameters():
                parameter.zero_()
        assert not torch.equal(copied.generate(steps=8), bare), "the copy runs its own weights"
        assert len(session.traces) == traces, "the copy's runs are not the session's"
        assert torch.equal(latte.generate(steps=8), expected)


@pytest.mark.parametrize("first", ["hook", "session"])
def test_offloading_hooks_may_come_before_or_after_and_be_put_on_again(
    latte: Specimen, expected: Tensor, first: str
) -> None:
    """Model offload takes its hook off and on after each pipeline call, which drops hooks installed after it."""
    denoiser = latte.pipe.transformer
    if first == "hook":
        add_hook_to_module(denoiser, ModelHook())
    session = fc.attach(latte.pipe, PAIR)
    if first == "session":
        add_hook_to_module(denoiser, ModelHook())
    for _ in range(2):
        assert torch.equal(latte.generate(steps=8), expected)
        assert session.last.speedup_flops > 1.0
        remove_hook_from_module(denoiser)
        add_hook_to_module(denoiser, ModelHook())
    assert len(session.traces) == 2
    session.detach()
    remove_hook_from_module(denoiser)
    latte.generate(steps=2)
    assert len(session.traces) == 2, "nothing of the session is left under the offloading hook"


def test_two_sessions_in_two_threads_do_not_meet(latte: Specimen, expected: Tensor) -> None:
    other = zoo.build("latte")
    stack = fc.StaticInterval(sites="stack")
    with fc.attach(other.pipe, stack):
        alone = other.generate(steps=8)
    results: dict[str, Tensor] = {}

    def work(name: str, specimen: Specimen, policy: Policy) -> None:
        with fc.attach(specimen.pipe, policy):
            for _ in range(3):
                results[name] = specimen.generate(steps=8)

    threads = [
        threading.Thread(target=work, args=("pair", latte, PAIR)),
        threading.Thread(target=work, args=("stack", other, stack)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results["pair"], expected)
    assert torch.equal(results["stack"], alone)


def test_values_the_model_changes_in_place_are_copied(latte: Specimen) -> None:
    """A model that changes an attention's output in place would otherwise change what is cached."""
    site = "transformer_blocks.0.attn1"
    latte.pipe.transformer.get_submodule(site).register_forward_hook(lambda module, args, output: output.mul_(0.5))
    with fc.attach(latte.pipe, fc.StaticInterval(sites=site, interval=4)) as session:
        seen: list[Tensor] = []
        session.watch(site, lambda o: seen.append(o.value.clone()) if o.branch == "cond" else None)
        first = latte.generate(steps=4)
        assert torch.equal(latte.generate(steps=4), first)
    assert all(torch.equal(seen[0], held) for held in seen[1:4]), "a held value is the one that was computed"


@pytest.fixture
def compiled(latte: Specimen) -> Iterator[list[nn.Module]]:
    torch._dynamo.reset()
    blocks = [block.module for block in find_blocks(latte.pipe.transformer)]
    yield blocks
    torch._dynamo.reset()


COMPILED = {
    "nothing reused": fc.NoCache(),
    "modules": fc.StaticInterval(sites="all", interval=2),
    "stack over modules": fc.Compose(
        [fc.StaticInterval(sites="stack[1:3]"), fc.DynamicReuse(sites="spatial", start=0)]
    ),
    "pair": PAIR,
}


@pytest.mark.parametrize("first", ["compile", "session"])
def test_compiled_blocks_run_every_policy_without_a_graph_break(
    latte: Specimen, compiled: list[nn.Module], first: str
) -> None:
    """`fullgraph=True` turns any graph break into an error; the eager backend keeps every bit."""
    want = {}
    for name, policy in COMPILED.items():
        with fc.attach(latte.pipe, policy) as session:
            want[name] = (latte.generate(steps=6), session.last.codes)

    def compile_blocks() -> None:
        for block in compiled:
            block.compile(backend="eager", fullgraph=True)

    if first == "compile":
        compile_blocks()
    session = fc.attach(latte.pipe, fc.NoCache())
    if first == "session":
        compile_blocks()
    for name, policy in COMPILED.items():
        session.use(policy)
        got = latte.generate(steps=6)
        assert torch.equal(got, want[name][0]), name
        assert (session.last.codes == want[name][1]).all(), name
    session.detach()
    state = [key for module in latte.pipe.transformer.modules() for key in vars(module) if key.startswith("_fc")]
    assert not state, "detaching leaves no attribute behind"


def test_a_denoiser_compiled_whole_is_refused_with_the_way_out(latte: Specimen) -> None:
    latte.pipe.transformer.compile(backend="eager")
    with fc.attach(latte.pipe, PAIR), pytest.raises(fc.AttachError, match="compile_repeated_blocks"):
        latte.generate(steps=4)
    with fc.attach(latte.pipe, fc.StaticInterval(sites="denoiser")) as session:
        latte.generate(steps=4)
        assert session.last.speedup_flops == pytest.approx(2.0)


def test_a_dynamic_policy_inside_compiled_blocks_is_refused(latte: Specimen, compiled: list[nn.Module]) -> None:
    class Dynamic(fc.StaticInterval):
        name = "test_dynamic_inside"

        @property
        def signal(self) -> Signal:
            return Signal.INPUT

    for block in compiled:
        block.compile(backend="eager")
    with fc.attach(latte.pipe, Dynamic()), pytest.raises(fc.AttachError, match="freeze"):
        latte.generate(steps=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_stays_in_its_dtype(latte: Specimen, dtype: torch.dtype) -> None:
    latte.pipe.transformer.to(dtype)
    with fc.attach(latte.pipe, PAIR) as session:
        seen: set[torch.dtype] = set()
        session.watch("attention|denoiser|branch", lambda o: seen.add(o.value.dtype))
        try:
            latte.pipe.to(dtype)
            out = latte.generate(steps=6)
        finally:
            latte.pipe.to(torch.float32)
    assert seen == {dtype}
    assert torch.isfinite(out.float()).all()
