"""What a recording holds at CogVideoX-2B's size, and how long it takes at two sizes of values.

Bytes are counted on tensors without storage, as `experiments.jobs.memory` does: the published configuration runs a few
of its 50 steps, and whatever the recorder makes is summed over distinct storages after every operation. Seconds are of
real values on this machine, fed to the recorder without a model.
`python -m fastercache.experiments.jobs.recording_size` prints both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastercache.analysis.bound import MAX_BYTES, Bound
from fastercache.analysis.record import Recorder, record
from fastercache.analysis.tape import Deck
from fastercache.experiments.jobs.memory import META, MIB, Shape

STEPS = 7  # more than the lags, so that every slot is in use


class Peak(TorchDispatchMode):
    """Counts the bytes of storages made inside it, for as long as they live, entered once or many times.

    Attributes:
        most: the most that lived at the end of any operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and _key(t) not in given]
        for tensor in made:
            storage = tensor.untyped_storage()
            self._sizes[_key(tensor)] = StorageWeakRef(storage), storage.nbytes()
        if made:
            self._sizes = {key: one for key, one in self._sizes.items() if not one[0].expired()}
            self.most = max(self.most, sum(size for _, size in self._sizes.values()))
        return result


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def counted(recorder: Recorder) -> Peak:
    """A counter of what the recorder makes while it observes."""
    peak = Peak()
    observe = recorder._watch._watcher

    def instead(seen: Any) -> None:
        with peak:
            observe(seen)

    recorder._watch.close()
    recorder._watch = recorder.session.watch("|".join(site.name for site in recorder.sites), instead)
    return peak


@dataclass(frozen=True)
class Found:
    """One recording at full size: its bound, what it held, and of how many tokens each attention kept how many."""

    max_bytes: int
    held: int
    kept: int
    tokens: int


def held(shape: Shape, max_bytes: int) -> Found:
    """Record every attention of both branches, the denoiser and the guidance difference over a few steps."""
    model = shape.transformer()
    latents = torch.empty(2, shape.frames, shape.channels, shape.height, shape.width, dtype=shape.dtype, device=META)
    text = torch.empty(2, shape.text_tokens, shape.text_size, dtype=shape.dtype, device=META)
    timestep = torch.empty(2, dtype=torch.int64, device=META)
    recorder = record(model, guidance="batched", max_bytes=max_bytes)
    try:
        peak = counted(recorder)
        recorder.session.start([float(t) for t in shape.timesteps()])
        with torch.no_grad():
            for _ in range(min(STEPS, shape.steps - 1)):
                model(hidden_states=latents, encoder_hidden_states=text, timestep=timestep, return_dict=False)
    finally:
        recorder.close()
    largest = max((deck.tokens for deck in recorder._decks), key=lambda tokens: tokens.count * tokens.width)
    return Found(max_bytes, peak.most, largest.kept, largest.count)


def seconds(tokens: int, width: int, rows: int, max_bytes: int, lags: int = 2) -> float:
    """Seconds a step takes for `rows` values (1, tokens, width) in single precision: the least of several steps."""
    widths = {"lags": lags, "sketch": 2048, "sample": 2048, "seed": 0}
    bound = Bound(max_bytes, rows, 50, **widths)
    value = torch.randn(1, tokens, width)
    deck = Deck(rows, 50, value, bound.tokens(value, "the value"), **widths)
    taken = []
    for step in range(2 * lags + 4):
        began = time.perf_counter()
        for row in range(rows):
            deck.put(row, step, value)
        deck.settle(step)
        taken.append(time.perf_counter() - began)
    return min(taken[lags + 1 :])


def main(
    layers: Annotated[int, typer.Option(min=1, help="Transformer blocks; the model has 30.")] = 30,
    rows: Annotated[int, typer.Option(min=1, help="Values a step, for the time.")] = 4,
) -> None:
    """Print what a recording holds at CogVideoX-2B's size under several bounds, and its time at two sizes."""
    console = Console(soft_wrap=True, highlight=False)
    for limit in (MAX_BYTES // 4, MAX_BYTES, 8 * MAX_BYTES):
        found = held(Shape(layers=layers), limit)
        console.print(
            f"max_bytes {limit / MIB:,.0f} MiB: held {found.held / MIB:,.0f} MiB, "
            f"{found.kept:,} of {found.tokens:,} tokens of each attention"
        )
    for tokens in (1024, 4096):
        for limit in (64 * MIB, MAX_BYTES):
            took = seconds(tokens, 1920, rows, limit) / rows
            console.print(f"{tokens} tokens of 1,920, max_bytes {limit / MIB:,.0f} MiB: {1e3 * took:.1f} ms a value")


if __name__ == "__main__":
    typer.run(main)
