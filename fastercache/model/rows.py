"""Which rows of a denoiser call's arguments belong to which branch, for a call that is to compute some branches only.

Every argument is told one way or the other: its leading axis counts the call's rows, or their frames, or it belongs to
no row. What fits none of these is refused: rows left whole beside rows that are cut give wrong values in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastercache.model.layout import UNSLICED, leading_tensor, per_row, take_rows, tokens_of
from fastercache.policies.errors import BranchUnknown

SECOND_AXIS = frozenset({"encoder_hidden_states_llama3"})
"""Arguments (layers, B, ...) whose rows lie on their second axis."""

_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.Generator, torch.Size)


def branch_rows(
    forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any], parts: Sequence[int], of: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of `forward` with only some of `of` equal parts of its rows.

    Raises:
        BranchUnknown: for an argument whose rows cannot be told; the message names it.
    """
    cutter = _Cutter(RowAxes(args, kwargs), parts, of)
    names = positional_names(forward, len(args))
    positional = tuple(cutter.cut(value, name) for name, value in zip(names, args, strict=True))
    return positional, {name: cutter.cut(value, name) for name, value in kwargs.items()}


def positional_names(forward: Any, count: int) -> list[str]:
    """The names of the first `count` parameters of `forward`; `argument 3` where it does not tell."""
    try:
        names = list(inspect.signature(forward).parameters)
    except (TypeError, ValueError):
        names = []
    return [names[i] if i < len(names) else f"argument {i}" for i in range(count)]


class RowAxes:
    """Where the rows of one denoiser call lie in its arguments.

    Attributes:
        batch: rows of the call.
        leads: sizes that an axis of rows has: the batch, and the batch times the frames.
        tokens: of the main input (B, N, C); None for any other.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        main = leading_tensor(args, kwargs)
        self.batch = main.shape[0]
        # AnimateDiff's texts and ControlNet residuals have a row for each frame of (B, C, F, H, W) or (B, F, C, H, W).
        frames = main.shape[1:3] if main.ndim == 5 else ()
        self.leads = (self.batch, *(self.batch * f for f in frames))
        self.tokens = tokens_of(main)

    def axis(self, value: Tensor, name: str) -> int | None:
        """The axis of an argument's rows; None where it has none."""
        if name in SECOND_AXIS and value.ndim > 1:
            return 1
        if value.ndim == 0 or (name in UNSLICED and not per_row(value, self.leads, self.tokens)):
            return None
        return 0 if value.shape[0] in self.leads else None

    def one_per_row(self, value: Any) -> bool:
        """Whether a list has one tensor without a batch axis for each row, as Z-Image's inputs are."""
        if not isinstance(value, list) or len(value) != self.batch:
            return False
        return all(isinstance(v, Tensor) and v.ndim > 1 and v.shape[0] not in (1, *self.leads) for v in value)


class _Cutter:
    def __init__(self, axes: RowAxes, parts: Sequence[int], of: int) -> None:
        self.axes, self.parts, self.of = axes, parts, of

    def cut(self, value: Any, name: str, path: str = "") -> Any:
        path = path or name
        if isinstance(value, Tensor):
            return self._tensor(value, name, path)
        if name in UNSLICED:
            leads = self.axes.leads
            return take_rows(value, leads, self.parts, self.of) if per_row(value, leads, self.axes.tokens) else value
        if isinstance(value, dict):
            return type(value)((k, self.cut(v, str(k), f"{path}[{k!r}]")) for k, v in value.items())
        if isinstance(value, (tuple, list)):
            if self.axes.one_per_row(value):
                size = self.axes.batch // self.of
                return [value[i] for p in self.parts for i in range(p * size, (p + 1) * size)]
            items = [self.cut(v, name, f"{path}[{i}]") for i, v in enumerate(value)]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, _PLAIN) or not _holds_tensors(value):
            return value
        raise BranchUnknown(
            f"the denoiser's argument {path} is a {type(value).__name__} that holds tensors, so its rows cannot be "
            f"told: {_REMEDY}"
        )

    def _tensor(self, value: Tensor, name: str, path: str) -> Tensor:
        axis = self.axes.axis(value, name)
        if axis is not None:
            rows: Tensor = take_rows(value.transpose(0, axis), self.axes.leads, self.parts, self.of)
            return rows.transpose(0, axis)
        if value.ndim == 0 or name in UNSLICED or value.shape[0] == 1:  # the same for every row
            return value
        raise BranchUnknown(
            f"the denoiser's argument {path} has shape {tuple(value.shape)} in a call of {self.axes.batch} rows, "
            f"so its rows cannot be told: {_REMEDY}"
        )


_REMEDY = "use a policy that computes all branches of a call together (no CFG-Cache, no per-branch schedule)"


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(v, Tensor) for v in getattr(value, "__dict__", {}).values())
