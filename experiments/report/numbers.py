"""Arrays as text for a page's JSON: base64 of little-endian floats, which JavaScript reads without loss."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def doubles(values: ArrayLike) -> str:
    """float64 numbers in C order."""
    return _text(np.asarray(values), "<f8")


def floats(values: ArrayLike) -> str:
    """float32 numbers in C order."""
    return _text(np.asarray(values), "<f4")


def triangle(matrix: ArrayLike) -> str:
    """The lower triangle of a symmetric matrix, row by row, float64."""
    square = np.asarray(matrix)
    return doubles(square[np.tril_indices(len(square))])


def _text(values: np.ndarray[Any, Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")
