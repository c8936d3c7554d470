"""Exported settings, run by the packages they are for: the same steps computed, and the same latents as our own run."""

from __future__ import annotations

import copy
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fastercache as fc
from fastercache.export import exported
from fastercache.policies.base import Hold
from fastercache.tuned import TunedConfig

STEPS, COMPUTED = 12, (0, 1, 2, 3, 4, 7, 9)


def config(lab: Any, policy: fc.Policy, guidance: Any) -> TunedConfig:
    return TunedConfig.describe(lab.pipe, policy, steps=STEPS, guidance_scale=4.0, guidance=guidance)


@pytest.mark.parametrize("stand_in", [Hold(), fc.Taylor(order=1), fc.Taylor(order=2)], ids=["hold", "one", "two"])
@pytest.mark.parametrize(("name", "guidance"), [("cogvideox", "batched"), ("wan", "separate")])
def test_a_mask_in_cache_dit(
    request: pytest.FixtureRequest, name: str, guidance: str, stand_in: fc.Predictor, tmp_path: Path, agree: Any
) -> None:
    """The YAML file through `load_configs`: the plan's steps are computed, and the latents are those of the nearest
    policy here, which reuses the blocks after the first at the same steps."""
    cache_dit = pytest.importorskip("cache_dit", reason="the extra 'peers' installs it")
    lab = request.getfixturevalue(name)
    found = exported(config(lab, fc.Planned(steps=STEPS, computed=COMPUTED, stand_in=stand_in), guidance), "cache-dit")
    assert not any("fourth step" in line for line in found.lost)
    path = tmp_path / "cache-dit.yaml"
    path.write_text(found.files["cache-dit.yaml"])
    pipe = copy.deepcopy(lab.pipe)
    watched = lab.watched(pipe)  # before cache-dit replaces the block list
    cache_dit.enable_cache(pipe, **cache_dit.load_configs(str(path)))
    theirs = lab.run(STEPS, pipe, watched)
    letters = "".join("C" if i in COMPUTED else "R" for i in range(STEPS))
    row = fc.Row(sites="stack[1:]", steps=letters, predictor=stand_in)
    ours = lab.ours(fc.Schedule(rows=(row,)), STEPS)
    assert tuple(theirs.steps("block1")) == COMPUTED
    assert theirs.steps("block0") == list(range(STEPS))
    agree(ours, theirs)


def test_sglangs_bins_are_the_mask_in_cache_dit(wan: Any) -> None:
    """SGLang gives its bins to `cache_dit.steps_mask`."""
    cache_dit = pytest.importorskip("cache_dit", reason="the extra 'peers' installs it")
    plan = fc.Planned(steps=STEPS, computed=COMPUTED)
    found = exported(config(wan, plan, "separate"), "sglang").files["sglang.env"]
    told = dict(line.split("=") for line in found.splitlines() if line.startswith("SGLANG"))
    lists = {
        name: [int(n) for n in told[f"SGLANG_CACHE_DIT_SCM_{name.upper()}"].split(",")]
        for name in ("compute_bins", "cache_bins")
    }
    mask = cache_dit.steps_mask(total_steps=STEPS, **lists)
    written = yaml.safe_load(exported(config(wan, plan, "separate"), "cache-dit").files["cache-dit.yaml"])
    assert mask == written["cache_config"]["steps_computation_mask"] == [int(i in COMPUTED) for i in range(STEPS)]


def enabled(lab: Any, policy: fc.Policy, guidance: str, steps: int = STEPS) -> Any:
    """A run of a copy of the pipeline under the exported snippet."""
    text = exported(
        TunedConfig.describe(lab.pipe, policy, steps=steps, guidance_scale=4.0, guidance=guidance), "diffusers"
    ).files["diffusers_cache.py"]
    made = types.ModuleType("diffusers_cache")
    exec(compile(text, "diffusers_cache.py", "exec"), made.__dict__)
    pipe = copy.deepcopy(lab.pipe)
    made.enable(pipe)
    return lab.run(steps, pipe)


RATIOS = (1.0, 1.2, 1.1, 1.05, 0.98, 1.02, 1.01, 0.99, 0.97, 0.95, 0.93, 0.9)


@pytest.mark.parametrize(
    "policy",
    [
        fc.FirstBlockCache(threshold=0.2),
        fc.MagCache(ratios={"*": RATIOS}, threshold=0.1),
        fc.PyramidAttentionBroadcast(spatial=3, joint=3),
        fc.TaylorSeer(sites="attention", interval=2, start=2 / 11),
        fc.TaylorSeer(sites="attention", interval=3, start=3 / 11, offset=4, order=2),
    ],
    ids=["first block", "magcache", "pab", "taylorseer", "taylorseer of order 2"],
)
def test_diffusers_snippets(cogvideox: Any, policy: fc.Policy, agree: Any) -> None:
    ours = cogvideox.ours(policy)
    agree(ours, enabled(cogvideox, policy, "batched"))
    assert len(ours.steps("block1")) < STEPS


@pytest.mark.parametrize("stand_in", [Hold(), fc.Linear()], ids=["hold", "line"])
def test_diffusers_seacache(wan: Any, stand_in: fc.Predictor, agree: Any) -> None:
    policy = fc.SeaCache(threshold=0.8, scope=fc.Scope.BRANCH, stand_in=stand_in)
    ours = wan.ours(policy)
    agree(ours, enabled(wan, policy, "separate"))
    assert len(ours.steps("block1")) < STEPS


def test_diffusers_fastercache(cogvideox: Any, agree: Any) -> None:
    """Where nothing of diffusers' own differs (see test_diffusers): attention held, a full step every 4 of 20."""
    policy = fc.FasterCache(
        interval=2, start=7 / 19, offset=0, weight=0.0, order=0, cfg_interval=4, cfg_start=7 / 19,
        cfg_offset=0, alpha_low=0.1, alpha_high=0.1, switch=17 / 19, switch_high=13 / 19, weighting="repo",
    )  # fmt: skip
    ours = cogvideox.ours(policy, 20)
    agree(ours, enabled(cogvideox, policy, "batched", 20))
    assert ours.steps("block1", rows=1) and len(ours.steps("block1")) < 16


def test_a_snippet_runs_in_float32_on_its_own(cogvideox: Any) -> None:
    """And leaves the original pipeline as it was."""
    before = cogvideox.run(STEPS).latents
    enabled(cogvideox, fc.FirstBlockCache(threshold=0.5), "batched")
    assert torch.equal(cogvideox.run(STEPS).latents, before)
