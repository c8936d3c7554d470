"""diffusers' context parallelism: ranks that hold parts of the tokens decide alike, as one process would."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import fastercache as fc
from fastercache import zoo
from fastercache.policies.base import Policy
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Scope, Step
from fastercache.run.parallel import Ranks
from fastercache.testing.probes import coarse, fine
from fastercache.zoo.specimen import Specimen

STEPS = 6
LOOKED_AT: list[float] = []


class Loud(fc.SitePolicy, fc.WatchingRule[None]):
    """Reuses where the watched value is small; notes what it looked at. It learns nothing, so parts would differ."""

    name: ClassVar[str] = "test_loud"
    sites: str = "attention"
    threshold: float = 0.0

    @property
    def query(self) -> str:
        return self.sites

    @property
    def signal(self) -> Signal:
        return Signal.MODULATED_INPUT

    @property
    def decides(self) -> Scope:
        return Scope.CALL

    def reuse(self, state: None, step: Step, seen: Tensor | None) -> bool:
        assert seen is not None
        LOOKED_AT.append(float(seen.float().mean()))
        return LOOKED_AT[-1] < self.threshold


DYNAMIC: dict[str, Policy] = {
    "modulated input": fc.TeaCache(threshold=0.4),
    "first block's residual": fc.FirstBlockCache(threshold=0.2),
    "learns values": fc.AdaCache(),
    "denoiser": fc.EasyCache(threshold=1.0),
}


def enable(specimen: Specimen) -> None:
    """diffusers asks for an accelerator's number and takes one by zero on a machine without; the mesh is the CPU's."""
    torch.accelerator.device_count = lambda: 1
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    specimen.pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh))


def run(policy: Policy, parallel: str | None) -> dict[str, Any]:
    """One process's output, decisions and looks, parallel from `before` or `after` attaching, or not at all."""
    specimen = zoo.build("wan")
    LOOKED_AT.clear()
    if parallel == "before":
        enable(specimen)
    with fc.attach(specimen.pipe, policy) as session:
        if parallel == "after":
            enable(specimen)
        outputs = [specimen.generate(steps=STEPS) for _ in range(2)]
        assert torch.equal(*outputs)
        return {
            "output": outputs[0].flatten().tolist(),
            "codes": session.last.codes.tolist(),
            "share": session.last.share(),
            "looked": list(LOOKED_AT),
            "bytes": session.last.cached_bytes,
        }


def work(rank: int, folder: str, threshold: float) -> None:
    """One of two processes: every case, written to a file of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    found = {name: run(policy, "before") for name, policy in cases().items()}
    found["modulated input, attached first"] = run(DYNAMIC["modulated input"], "after")
    found["coarse, attached first"] = run(coarse(zoo.build("wan")), "after")
    found["loud"] = run(Loud(sites="stack", threshold=threshold), "before")
    with pytest.MonkeyPatch.context() as patch:  # each rank looks at its own part, and nothing is reused
        patch.setattr(Ranks, "whole", lambda self, part: part)
        patch.setattr(Ranks, "agreed", lambda self, verdict: False)
        found["parts"] = run(Loud(sites="stack", threshold=threshold), "before")
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def cases() -> dict[str, Policy]:
    wan = zoo.build("wan")
    return {"fine": fine(wan), "coarse": coarse(wan), **DYNAMIC}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    found: dict[str, Any] = {name: run(policy, None) for name, policy in cases().items()}
    looked = run(Loud(sites="stack", threshold=-1e9), None)["looked"]
    found["threshold"] = sorted(looked)[len(looked) // 2]
    found["loud"] = run(Loud(sites="stack", threshold=found["threshold"]), None)
    return found


@pytest.fixture(scope="module")
def ranks(alone: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, str(folder), alone["threshold"])) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def near(a: list[float], b: list[float]) -> bool:
    return torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_both_ranks_decide_as_one_process_does(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for name in (*cases(), "loud"):
        assert 0 < alone[name]["share"] < 1, f"{name} must reuse some steps and not all"
        for rank in ranks:
            assert rank[name]["codes"] == alone[name]["codes"], name
            assert near(rank[name]["output"], alone[name]["output"]), name


@pytest.mark.slow
def test_attaching_before_or_after_is_the_same(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name in ("modulated input", "coarse"):
            assert rank[f"{name}, attached first"] == rank[name]


@pytest.mark.slow
def test_rules_that_look_at_their_own_part_would_part(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    """The naive rule: at some step one rank would skip an attention in which the other waits for it."""
    first, second = ([look < alone["threshold"] for look in rank["parts"]["looked"]] for rank in ranks)
    assert len(first) == len(second) > 0
    assert first != second
    assert ranks[0]["loud"]["looked"] == ranks[1]["loud"]["looked"], "agreeing ranks look at the same whole"


@pytest.mark.slow
def test_each_rank_holds_its_own_part_of_what_is_cached(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    name = "first block's residual"
    for rank in ranks:
        assert 0 < rank[name]["bytes"] < alone[name]["bytes"]


class Chosen(Ranks):
    """Ranks without processes: the whole is the part twice, and the first rank says no."""

    def whole(self, part: Tensor) -> Tensor:
        return torch.cat([part, part], 1)

    def agreed(self, verdict: bool) -> bool:
        return False


def test_the_first_rank_s_answer_about_the_whole_value_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = zoo.build("wan")
    sizes: list[int] = []

    class Sized(Loud):
        name: ClassVar[str] = "test_sized"

        def reuse(self, state: None, step: Step, seen: Tensor | None) -> bool:
            assert seen is not None
            sizes.append(seen.shape[1])
            return True

    with fc.attach(specimen.pipe, Sized(sites="stack")) as session:
        specimen.generate(steps=4)
        tokens = sizes[0]
        assert session.last.share() > 0
        chosen = Chosen(None, torch.device("cpu"))
        monkeypatch.setattr(Ranks, "of", classmethod(lambda cls, denoiser: chosen))
        sizes.clear()
        specimen.generate(steps=4)
        assert session.last.share() == 0
        assert set(sizes) == {2 * tokens}


def test_a_predictor_that_measures_hidden_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = zoo.build("wan")
    chosen = Chosen(None, torch.device("cpu"))
    monkeypatch.setattr(Ranks, "of", classmethod(lambda cls, denoiser: chosen))
    with fc.attach(specimen.pipe, fc.DiCache()), pytest.raises(fc.AttachError, match="context parallelism"):
        specimen.generate(steps=4)
