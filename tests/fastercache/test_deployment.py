"""Policies hold under the ways people deploy models: copies, offloading, threads, dtypes, inference mode, compile."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

import fastercache as fc
from fastercache import zoo
from fastercache.model.finder import find_blocks
from fastercache.model.hooks import SiteForward
from fastercache.policies.base import Policy
from fastercache.zoo.specimen import Specimen

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
    with fc.attach(latte.pipe, fc.StaticInterval(sites=site, interval=4)):
        latte.generate(steps=1)  # a session before the hook, whose count of the model serves the next
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
    "blocks": fc.StaticInterval(sites="block", interval=2),
    "stack over modules": fc.Compose(
        [fc.StaticInterval(sites="stack[1:3]"), fc.DynamicReuse(sites="spatial", start=0)]
    ),
    "pair": PAIR,
}


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("compile", ["modules"]),
        pytest.param("compile", [*COMPILED], marks=pytest.mark.slow),  # each policy and state has graphs of its own
        pytest.param("session", [*COMPILED], marks=pytest.mark.slow),
    ],
    ids=["compile-one", "compile", "session"],
)
def test_compiled_blocks_run_every_policy_without_a_graph_break(
    latte: Specimen, compiled: list[nn.Module], first: str, names: list[str]
) -> None:
    """`fullgraph=True` turns any graph break into an error; the eager backend keeps every bit."""
    policies = {name: COMPILED[name] for name in names}
    want = {}
    for name, policy in policies.items():
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
    for name, policy in policies.items():
        session.use(policy)
        got = latte.generate(steps=6)
        assert torch.equal(got, want[name][0]), name
        assert (session.last.codes == want[name][1]).all(), name
    session.detach()
    state = [key for module in latte.pipe.transformer.modules() for key in vars(module) if key.startswith("_fc")]
    assert not state, "detaching leaves no attribute behind"


@pytest.mark.slow  # dynamo traces the whole model first; what `torch.compile` returns is refused below
def test_a_denoiser_compiled_whole_is_refused_with_the_way_out(latte: Specimen) -> None:
    latte.pipe.transformer.compile(backend="eager")
    with fc.attach(latte.pipe, PAIR), pytest.raises(fc.AttachError, match="compile_repeated_blocks"):
        latte.generate(steps=4)
    with fc.attach(latte.pipe, fc.StaticInterval(sites="denoiser")) as session:
        latte.generate(steps=4)
        assert session.last.speedup_flops == pytest.approx(2.0)


@pytest.mark.parametrize("policy", [fc.FasterCache(), fc.TeaCache(threshold=0.2)], ids=lambda policy: policy.name)
def test_what_torch_compile_returned_is_refused_the_same_way(latte: Specimen, policy: fc.Policy) -> None:
    """`torch.compile(model)` is a wrapper: no site inside it is found at all."""
    plain = fc.tuned.model_identity(latte.pipe)
    latte.pipe.transformer = torch.compile(latte.pipe.transformer, backend="eager")
    with pytest.raises(fc.AttachError, match=r"LatteT.*compile_repeated_blocks"):
        fc.attach(latte.pipe, policy)
    with fc.attach(latte.pipe, fc.StaticInterval(sites="denoiser")) as session:
        latte.generate(steps=4)
        assert session.last.speedup_flops == pytest.approx(2.0)
    assert fc.tuned.model_identity(latte.pipe) == plain, "a config tuned on the plain model fits"


def test_a_dynamic_policy_inside_compiled_blocks_is_refused(latte: Specimen, compiled: list[nn.Module]) -> None:
    for block in compiled:
        block.compile(backend="eager")
    with fc.attach(latte.pipe, fc.SeaCache(sites="attention")), pytest.raises(fc.AttachError, match="freeze"):
        latte.generate(steps=4)


@pytest.fixture
def wan() -> Iterator[Specimen]:
    torch._dynamo.reset()
    yield zoo.build("wan")
    torch._dynamo.reset()


WATCHING = {
    "modulated input": fc.TeaCache(threshold=0.4),
    "first block's residual": fc.FirstBlockCache(threshold=0.2),
    "denoiser": fc.EasyCache(threshold=1.0),
}


@pytest.mark.slow
def test_rules_that_watch_the_first_block_decide_about_compiled_stacks(wan: Specimen) -> None:
    """`compile_repeated_blocks` as diffusers has it; a dynamic rule around the blocks needs no graph of its own."""
    want = {}
    for name, policy in WATCHING.items():
        with fc.attach(wan.pipe, policy) as session:
            want[name] = (wan.generate(), session.last.codes)
            assert 0 < session.last.share() < 1, name
    wan.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    for name, policy in WATCHING.items():
        with fc.attach(wan.pipe, policy) as session:
            assert torch.equal(wan.generate(), want[name][0]), name
            assert (session.last.codes == want[name][1]).all(), name


def test_a_copy_of_an_attached_compiled_pipeline_is_bare_and_may_be_attached_and_compiled_itself(wan: Specimen) -> None:
    policy = fc.StaticInterval(sites="attention", interval=3)
    bare = wan.generate(steps=3)
    wan.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with fc.attach(wan.pipe, policy) as session:
        expected = wan.generate(steps=3)
        copied = copy.deepcopy(wan)
        assert torch.equal(copied.generate(steps=3), bare)
        copied.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
        with fc.attach(copied.pipe, policy):
            assert torch.equal(copied.generate(steps=3), expected)
        assert len(session.traces) == 1, "the copy's runs are not the session's"


def explained(specimen: Specimen, policy: Policy) -> list[tuple[int, int]]:
    """What `torch._dynamo.explain` says of each call of the first block: graph breaks, and operations in its graph."""
    block = specimen.pipe.transformer.blocks[0]
    block.compile(backend="eager", fullgraph=True)
    found: list[tuple[int, int]] = []

    def explain(*args: Any, **kwargs: Any) -> Any:
        if not isinstance(vars(block.attn1)["forward"], SiteForward):  # which is there while FLOPs are counted
            told = torch._dynamo.explain(block._call_impl)(*args, **kwargs)
            found.append((told.graph_break_count, told.op_count))
        return block._call_impl(*args, **kwargs)

    block._compiled_call_impl = explain
    try:
        with fc.attach(specimen.pipe, policy):
            specimen.generate(steps=3)
    finally:
        block._compiled_call_impl = None
    return found


@pytest.mark.slow
def test_dynamo_explains_no_graph_break_and_a_smaller_graph_where_attention_is_reused(wan: Specimen) -> None:
    policy = fc.StaticInterval(sites="attention", interval=2)
    calls = explained(wan, policy)
    assert [breaks for breaks, _ in calls] == [0] * 6
    operations = [operations for _, operations in calls]
    stored, reused, passed = operations[:2], operations[2:4], operations[4:]
    assert max(reused) < min(stored) and max(reused) < min(passed)


def test_a_hook_that_decides_inside_the_graph_would_break_it(wan: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive hook: an object that is called within the block and asks a handler."""
    monkeypatch.setattr(SiteForward, "trace", lambda self, on: None)
    policy = fc.StaticInterval(sites="attention", interval=2)
    wan.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with fc.attach(wan.pipe, policy), pytest.raises(Exception, match=r"(?i)graph|unsupported|dynamo"):
        wan.generate(steps=3)


def test_a_compiled_block_that_diffusers_wraps_is_not_skipped_but_refused(wan: Specimen) -> None:
    wan.pipe.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1)
    wan.pipe.transformer.compile_repeated_blocks(backend="eager")
    with fc.attach(wan.pipe, fc.StaticInterval(sites="block")), pytest.raises(fc.AttachError, match="also wrapped"):
        wan.generate(steps=2)


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
