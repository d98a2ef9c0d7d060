"""Random weights and images that every side of a comparison draws for itself, so that files hold results only.

NumPy's `RandomState` gives the same numbers in every version. Initial weights would hide mistakes (registers and biases are 0,
LayerScale is constant), so no parameter stays at its initial value. Needs NumPy only.
"""

from __future__ import annotations

import zlib

import numpy as np


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Name -> float32 array, of a size at which each one matters; each from a generator of its own."""
    return {name: _one(name, tuple(shape), np.random.RandomState([seed, zlib.crc32(name.encode())]))
            for name, shape in sorted(shapes.items())}


def _one(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    noise = random.standard_normal(shape)
    if name.endswith((".gamma", ".lambda1")):
        return (0.5 + 0.25 * noise).astype(np.float32)
    if "norm" in name and name.endswith("weight"):
        return (1 + 0.2 * noise).astype(np.float32)
    if name.endswith("bias"):
        return (0.1 * noise).astype(np.float32)
    if "token" in name or "pos" in name:
        return (0.5 * noise).astype(np.float32)
    return (noise / np.prod(shape[1:]) ** 0.5).astype(np.float32)


def images(batch: int, rows: int, columns: int, seed: int) -> np.ndarray:
    """float32[batch, rows, columns, 3], normal."""
    return np.random.RandomState([seed, rows, columns]).standard_normal((batch, rows, columns, 3)).astype(np.float32)


def mask(batch: int, patches: int, seed: int) -> np.ndarray:
    """bool[batch, patches], about a third True."""
    return np.random.RandomState([seed, patches]).random_sample((batch, patches)) < 1 / 3
