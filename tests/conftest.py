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

# Tiny tensors are slower on many threads, and sums are then the same on every machine. Here, before any test's file is
# imported, so that what such a file asks of the machine is what its tests see.
torch.set_num_threads(1)
TABLES = {
    registry: ("_POLICIES", "_PREDICTORS"),
    signals: ("_SIGNALS",),
    families: ("FAMILIES",),
    metrics: ("_METRICS",),
}


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not go through it again, which took a twentieth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Whatever a test sets, the next one has one thread again."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    """A name that a test adds would be seen by whichever tests follow; `own_registry` takes it away again."""
    tables = [getattr(module, name) for module, names in TABLES.items() for name in names]
    before = [set(table) for table in tables]
    yield
    left = {name for table, known in zip(tables, before, strict=True) for name in set(table) - known}
    ours = {name for table in tables for name in left & set(table) if _is_ours(table[name])}
    assert left == ours, f"registered and left behind: {sorted(left - ours)}; the test needs the fixture own_registry"


def _is_ours(entry: object) -> bool:
    """A class that the import of one of our modules registered, which a test may be the first to need."""
    return isinstance(entry, type) and entry.__module__.startswith("fastercache.")


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
    for module, names in TABLES.items():
        for name in names:
            monkeypatch.setattr(module, name, dict(getattr(module, name)))

    def reset() -> None:
        files._run.cache_clear()
        for module in TABLES:
            module.PLUGINS.reset()

    reset()
    yield
    reset()
