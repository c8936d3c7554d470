"""What a recording may hold: how many of each value's tokens are kept so that all its bytes stay below one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fastercache.analysis.sketch import Tokens, width_of
from fastercache.analysis.tape import Deck, deck_bytes
from fastercache.policies.errors import RecordingError

MAX_BYTES = 4 * 2**30
"""The default: beside a model of 2 billion parameters in half precision and its text encoder on a card of 24 GB."""
LEAST = 64
"""Tokens below which a sample says too little: with fewer, a recording is refused."""
_SMALLER = 0.97


@dataclass(frozen=True, slots=True)
class Layout:
    """What decides how values are kept together: `count` tokens of `width` elements, their type and device."""

    count: int
    width: int
    dtype: object
    device: object

    @classmethod
    def of(cls, value: Tensor) -> Layout:
        width = width_of(value)
        return cls(value.numel() // max(width, 1), width, value.dtype, value.device)


class Bound:
    """Keeps a recording below `max_bytes`, by the number of tokens of each value.

    Every one of `rows` sites and branches may take an equal share, whether it was seen already or not: a second
    transformer is first reached in the middle of a run. Within the shares of those seen, large values give up tokens
    first.

    Args:
        max_bytes: of values, their summaries and the working copies that statistics are taken on.
        rows: how many sites and branches there are at most. steps: T.
        lags, sketch, sample, seed: of `Deck`.
    """

    def __init__(
        self, max_bytes: int, rows: int, steps: int, *, lags: int, sketch: int, sample: int, seed: int
    ) -> None:
        self.max_bytes, self.rows, self.steps = max_bytes, rows, steps
        self.widths = {"lags": lags, "sketch": sketch, "sample": sample}
        self._seed, self._lags = seed, lags
        summaries = 4 * rows * steps * (sketch + sample + 3 + 2 * lags)
        self._cap = max(0.0, 0.9 * (max_bytes - summaries) / rows / (lags + 1))  # bytes of one value, at first
        self._copy = 0  # the largest value that has to be copied to be read as tokens
        self.beside = 0

    def tokens(self, value: Tensor, site: str) -> Tokens:
        """Which tokens of a value to keep. Raises RecordingError where they would be fewer than `LEAST`."""
        layout = Layout.of(value)
        if not value.is_contiguous():
            self._copy = max(self._copy, value.nbytes)
        return Tokens(
            layout.count, layout.width, self._kept(layout, value.element_size(), site), self._seed, value.device
        )

    def fit(self, fresh: Mapping[Layout, tuple[int, int, str]], decks: Iterable[Deck]) -> dict[Layout, int]:
        """How many tokens to keep of new values beside decks: layout -> number.

        `fresh`: layout -> how many values, bytes of an element, a site's name. Raises RecordingError where none fits.
        """
        old = [(d.rows, d.tokens.kept, d.tokens.width, d.dtype.itemsize) for d in decks]
        seen = sum(rows for rows, *_ in old) + sum(rows for rows, *_ in fresh.values())
        allowed = self.max_bytes * min(1.0, seen / self.rows)
        while True:
            kept = {layout: self._kept(layout, size, site) for layout, (_, size, site) in fresh.items()}
            new = [(rows, kept[layout], layout.width, size) for layout, (rows, size, _) in fresh.items()]
            found = [deck_bytes(rows, self.steps, *rest, **self.widths) for rows, *rest in (*old, *new)]
            total = sum(held for held, _ in found) + max(besides for _, besides in found) + self._copy + self.beside
            if total <= allowed:
                return kept
            self._cap *= _SMALLER

    def pairs(self, one: int, least: int) -> int:
        """How many pairs of guidance outputs to keep until they are compared, each taking `one` byte count."""
        together = max(least, min(8, int(self.max_bytes / 8) // max(one, 1)))
        self.beside = together * one
        if self.beside > self.max_bytes / 2:
            raise RecordingError(
                f"max_bytes={self.max_bytes} is too little to compare the denoiser's outputs by branch, which takes "
                f"{self.beside} bytes: leave out the sites 'denoiser' and 'branch', or raise max_bytes"
            )
        return together

    def _kept(self, layout: Layout, itemsize: int, site: str) -> int:
        one = max(1, layout.width * itemsize)
        least = min(layout.count, LEAST)
        if least * one > self._cap:
            raise RecordingError(
                f"max_bytes={self.max_bytes} leaves {int(self._cap)} bytes for a value of each of {self.rows} sites "
                f"and branches, at {self._lags + 1} steps, and {least} tokens of {site} take {least * one}: record "
                "fewer sites or lags, take smaller sketch and sample, or raise max_bytes"
            )
        return min(layout.count, int(self._cap // one))
