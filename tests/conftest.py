"""Fixtures for every room: small random pipelines, built in well under a second."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

from fastercache import zoo
from fastercache.analysis import metrics
from fastercache.model import families
from fastercache.policies import files, registry, signals
from fastercache.zoo.specimen import Specimen

# The same examples on every machine, and nothing that depends on its speed. `make mutate` wants to know whether a test
# fails, and no smaller example of it.
PHASES = (Phase.explicit, Phase.generate) if "FASTERCACHE_MUTANT" in os.environ else tuple(Phase)
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=40, phases=PHASES)
settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not go through it again, which took a twentieth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and sums are then the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_latte() -> Any:
    """A random LattePipeline of 32x32 pixels and 4 frames that takes prompts in words or as embeddings.

    Call it with `height=32, width=32, video_length=4, clean_caption=False`; its latent is 8x8 with 4 channels.
    """
    return zoo.build("latte").pipe


@pytest.fixture
def latte() -> Specimen:
    """The same with its call: `latte.generate(steps=6, seed=0, prompts=1, **overrides)` gives latents."""
    return zoo.build("latte")


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is registered in a test is forgotten after it, and files and plug-ins are loaded anew."""
    tables = ((registry, "_POLICIES"), (registry, "_PREDICTORS"), (signals, "_SIGNALS"), (families, "FAMILIES"))
    for module, table in (*tables, (metrics, "_METRICS")):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))

    def reset() -> None:
        files._run.cache_clear()
        for module in (registry, signals, families, metrics):
            module.PLUGINS.reset()

    reset()
    yield
    reset()
