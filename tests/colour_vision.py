"""How far colours are apart for an eye without the pigment for green (deuteranopia), the commonest blindness."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
"""Of linear RGB, at severity 1: Machado, Oliveira and Fernandes 2009, table 1."""
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
APART = 20.0
"""CIELAB distance of colours that serve as thin lines and small marks; 2.3 is just noticeable on large patches."""


def nearest(colours: Iterable[str]) -> tuple[float, str, str]:
    """The two of these (`#rrggbb`) that are least apart, by the smaller of both eyes' distances."""
    pairs = itertools.combinations(colours, 2)
    return min((min(_distance(a, b, np.eye(3)), _distance(a, b, DEUTERANOPIA)), a, b) for a, b in pairs)


def _distance(a: str, b: str, eye: np.ndarray) -> float:
    return float(np.linalg.norm(_lab(eye @ _linear(a)) - _lab(eye @ _linear(b))))


def _linear(colour: str) -> np.ndarray:
    part = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    ratio = TO_XYZ @ np.clip(linear, 0.0, 1.0) / WHITE
    bent = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * bent[1] - 16, 500 * (bent[0] - bent[1]), 200 * (bent[1] - bent[2])])
