"""The Python in the documentation runs as it stands, on the model it names, with fewer steps."""

from __future__ import annotations

import ast
import json
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch.distributed.device_mesh import init_device_mesh

import fastercache as fc
from fastercache import zoo
from fastercache.experiments import reference
from fastercache.experiments.bench import standings
from fastercache.experiments.jobs import checking
from fastercache.experiments.reference.spec import DISTILLED
from tests.experiments.pages import CARDS, PAGES, ROOT, python

STEPS = 6
PROMPT = "a red seven moving left"
WITH_TESTS = (
    "README.md", "docs/quickstart.md", "docs/writing-a-policy.md", "docs/deployment.md", "docs/own-pipeline.md",
    "docs/tuning.md",
)  # fmt: skip
"""Pages whose Python needs something prepared; the blocks of any other page run one after the other, as they stand."""


def shorten(patch: pytest.MonkeyPatch) -> None:
    """The reference models' usual calls with fewer steps, for as long as the patch lasts."""
    for name, usual in reference.GENERATION.items():
        patch.setitem(reference.GENERATION, name, replace(usual, num_inference_steps=STEPS))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shorten(monkeypatch)
    monkeypatch.chdir(tmp_path)


def execute(code: str, page: str, space: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, page, "exec"), space)
    return space


def test_the_first_screen(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = python("README.md")
    assert len(code.strip().splitlines()) <= 10
    execute(code, "README.md", {})
    out, err = capsys.readouterr()
    assert out.startswith("fastercache: 6 steps") and "it/s" not in err, "no loading or progress bars"


def test_the_quickstart() -> None:
    pipe = reference.load("latte-digits")
    described = fc.TunedConfig.describe(pipe, fc.StaticInterval(), steps=STEPS, guidance_scale=4.0, guidance="batched")
    described.save("tuned.json")  # what the shell lines before the last block make
    space: dict[str, Any] = {}
    for block in python("docs/quickstart.md"):
        execute(block, "docs/quickstart.md", space)
    assert space["profile"].matrix("spatial", "rel_l1").shape == (STEPS, STEPS)
    assert space["session"].last.speedup_flops > 1


@pytest.mark.slow
def test_a_pipeline_of_ones_own_is_planned_certified_and_exported() -> None:
    """As it stands; and what the exported file gives is what the tuned config gives, bit for bit."""
    *blocks, use = python("docs/own-pipeline.md")
    space: dict[str, Any] = {}
    for block in blocks:
        execute(block, "docs/own-pipeline.md", space)
    config = fc.load("tuned.json")
    assert config.steps == 12 and len(space["found"]["computed_steps"]) == 4 and space["found"]["speedup_flops"] == 3.0
    assert config.certificate is not None and config.certificate.prompts == len(space["fresh"]) == 11
    assert config.certificate.violations == 0 and len(config.seen) == 5

    def latents() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return space["pipe"]("a red dog", generator=generator, output_type="latent", **space["call"]).frames

    bare = latents()
    with fc.attach(space["pipe"], "tuned.json"):
        cached = latents()
    execute(use, "docs/own-pipeline.md", space)
    assert torch.equal(latents(), bare), "detached"
    detach = space["cached"].attach(space["pipe"])
    assert torch.equal(latents(), cached) and not torch.equal(cached, bare)
    detach()


def test_the_dial() -> None:
    pipe = reference.load("latte-digits")
    configs = []
    for count, psnr in ((3, 50.0), (2, 30.0)):  # what the shell lines before the block make
        quality = {"quality": {"psnr": psnr}, "cached_bytes": 0, "hardware": "test", "prompts": 1, "seconds": 1.0}
        measured = {"search": {**quality, "speedup_flops": STEPS / count}}
        plan = fc.Planned(steps=STEPS, computed=range(count))
        fields = {"steps": STEPS, "guidance_scale": 4.0, "guidance": "batched", "measured": measured}
        configs.append(fc.TunedConfig.describe(pipe, plan, **fields))
    fc.Dial.of(configs, [{"psnr": (50.0,)}, {"psnr": (30.0,)}], {"psnr": ">="}).save("dial.json")
    space = {"fc": fc, "pipe": pipe, "call": reference.GENERATION["latte-digits"].kwargs()}
    (block,) = python("docs/tuning.md")
    execute(block, "docs/tuning.md", space)
    saved = [trace.speedup_flops for trace in space["session"].traces]
    assert saved == [3.0, 2.0] and isinstance(space["session"].policy, fc.FasterCache)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WITH_TESTS and python(page)])
def test_the_blocks_of_a_page_run_one_after_the_other(page: str) -> None:
    space: dict[str, Any] = {}
    for block in python(page):
        execute(block, page, space)
    assert space.keys() & {"fc", "pipe", "specimen"}


def test_every_model_card_shows_how_to_call_its_own_model() -> None:
    assert len(CARDS) == len(reference.names())
    for card in CARDS:
        (block,) = python(card)
        assert f'load("{Path(card).parent.name}")' in block


# -- deployment: each way by itself, on a pipeline of its own ---------------------------------------------------------
def deployed(word: str) -> str:
    """The block of the page on deployment that holds a word."""
    (block,) = [block for block in python("docs/deployment.md") if word in block]
    return block


WAYS = ("compile_repeated_blocks", "enable_group_offload", "load_lora_weights", "enable_parallelism", "cache_device")


@pytest.fixture
def space() -> dict[str, Any]:
    """What the examples share."""
    pipe = reference.load("wan-digits")
    pipe.set_progress_bar_config(disable=True)
    call = reference.GENERATION["wan-digits"].kwargs()
    return {"fc": fc, "torch": torch, "pipe": pipe, "prompt": PROMPT, "call": call}


@pytest.fixture
def eager_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo's own capture, without a compiler for C++ behind it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_no_way_of_deployment_is_left_out() -> None:
    assert [next(word for word in WAYS if word in block) for block in python("docs/deployment.md")] == list(WAYS)


@pytest.mark.usefixtures("eager_graphs")
def test_compiling() -> None:
    space = execute(deployed("compile_repeated_blocks"), "docs/deployment.md", {})
    assert space["session"].last.speedup_flops > 1


def test_offloading(space: dict[str, Any]) -> None:
    """The device to compute on is the CPU here; everything else is as it stands."""
    execute(deployed("enable_group_offload").replace('"cuda"', '"cpu"'), "docs/deployment.md", space)
    space["pipe"](PROMPT, **space["call"])
    assert space["session"].last.speedup_flops > 1
    space["session"].detach()


def test_a_lora(space: dict[str, Any]) -> None:
    other = reference.load("wan-digits")
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"])
    other.transformer.add_adapter(config, adapter_name="style")
    state = peft.get_peft_model_state_dict(other.transformer, adapter_name="style")
    other.save_lora_weights(".", transformer_lora_layers=state, weight_name="style.safetensors")
    execute(deployed("load_lora_weights"), "docs/deployment.md", space)
    assert space["session"].last.speedup_flops > 1
    assert not any("lora" in name for name, _ in space["pipe"].transformer.named_modules())


def test_the_memory_of_a_cache(space: dict[str, Any]) -> None:
    execute(deployed("cache_device"), "docs/deployment.md", space)
    foretold = space["session"].plan(prompt=PROMPT, **space["call"])
    space["pipe"](PROMPT, **space["call"])
    assert 0 < space["session"].last.cached_bytes <= foretold.peak
    space["session"].detach()


def rank(number: int, folder: str) -> None:
    """One of the processes that share a run; diffusers asks for an accelerator's mesh, which is the CPU's here."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    torch.accelerator.device_count = lambda: 1
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    specimen = zoo.build("wan")  # wan-digits has five heads, which two processes cannot share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.ContextParallelConfig", partial(ContextParallelConfig, mesh=mesh))
        space = execute(deployed("enable_parallelism"), "docs/deployment.md", {"fc": fc, "pipe": specimen.pipe})
        specimen.generate()
    Path(folder, f"{number}.txt").write_text(str(space["session"].last.codes.tolist()), encoding="utf-8")
    dist.destroy_process_group()


@pytest.mark.slow
def test_context_parallelism(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=rank, args=(number, str(tmp_path))) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (Path(tmp_path, f"{number}.txt").read_text(encoding="utf-8") for number in range(2))
    assert first == second


@pytest.mark.slow
def test_the_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    """Cell by cell; what a cell ends with has something to show."""
    cells = json.loads((ROOT / "docs/explore.ipynb").read_text(encoding="utf-8"))["cells"]
    space: dict[str, Any] = {}
    shown = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        assert not cell["outputs"] and cell["execution_count"] is None, "the repository holds no outputs"
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "explore.ipynb", "exec"), space)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "explore.ipynb", "eval"), space))
    assert [type(one).__name__ for one in shown] == [
        "Profile",
        "DataFrame",
        "_Shown",
        "DataFrame",
        "Trace",
        "DataFrame",
        "Front",
        "DataFrame",
        "Trace",
    ]
    assert shown[2]._repr_png_().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("fewer FLOPs, off by 0.") == 2


# -- a policy and a metric of one's own -------------------------------------------------------------------------------
@pytest.mark.usefixtures("own_registry")
def test_the_policy_of_the_walk_through(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    policy, use, stateful, watching, predictor, needy, signal, constants, measuring, family, metric = python(
        "docs/writing-a-policy.md"
    )
    assert len(policy.strip().splitlines()) < 40
    module = ModuleType("my_policies")
    monkeypatch.setitem(sys.modules, "my_policies", module)
    execute(policy, "docs/writing-a-policy.md", module.__dict__)
    used = execute(use, "docs/writing-a-policy.md", {})
    assert capsys.readouterr().out.startswith("ends: 6 steps")
    with pytest.raises(fc.InvalidPolicy, match="did you mean 'interval'"):
        module.Ends(intervall=3)

    space: dict[str, Any] = dict(module.__dict__) | {"Tensor": torch.Tensor}
    s = zoo.build("wan")
    for code in (stateful, watching, needy, signal, constants, family):
        exec(compile(code, "writing-a-policy.md", "exec"), space)
    with_input = fc.StaticInterval(sites="denoiser", interval=2, stand_in=space["Moved"]())
    turning = execute(measuring, "docs/writing-a-policy.md", space | used)["policy"]
    assert len(turning.turns) == STEPS and turning.turns[0] == 0.0 < min(turning.turns[1:]) and turning.angle == 0.3
    resting = space["Turning"](turns=(0.0, 0.1))
    for example in (space["Rest"](), space["Still"](), space["Calm"](), with_input, resting):
        with fc.attach(s.pipe, example) as session:
            s.generate()
            assert session.last.share() > 0, example.name
    exec(compile(predictor, "writing-a-policy.md", "exec"), space)
    policy_with_it = fc.StaticInterval(interval=3, stand_in=space["Damped"]())
    assert fc.load_policy(fc.dump(policy_with_it)) == policy_with_it

    bright = execute(metric, "docs/writing-a-policy.md", {})["bright"]
    videos = torch.stack([torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)])
    assert bright.fn(videos, videos, ["a", "b"]).tolist() == [0.0, 1.0]


@pytest.mark.usefixtures("own_registry")
def test_the_walk_through_keeps_the_laws_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my_policies.py"
    path.write_text(python("docs/writing-a-policy.md")[0], encoding="utf-8")
    found = checking.check(f"{path}:Ends", [], ["latte"], steps=6, prompt="", show=False)
    assert found["passed"] and found["pipes"][0]["reused"] > 0


@pytest.mark.parametrize("name", reference.names())
def test_the_benchmark_tables_are_those_of_the_kept_results(name: str) -> None:
    results = standings.Results.load(ROOT / "docs" / "bench" / name)
    assert results.pipeline == name and results.prompts >= 12
    page = "few-steps.md" if name in DISTILLED else "benchmarks.md"
    assert standings.markdown(results) in (ROOT / "docs" / page).read_text(encoding="utf-8")
