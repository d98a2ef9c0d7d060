"""Axial rotary positions of patches (DINOv3, arXiv 2508.10104): no table, any image size.

The centre of patch (i, j) of an h x w grid has the coordinates 2 (i + 1/2) / h - 1 and 2 (j + 1/2) / w - 1. Each is multiplied by
2 pi base^(-4 m / K) for m = 0 .. K/4 - 1; the K/2 angles, rows first, turn the pairs (x[m], x[m + K/2]) of queries and keys. The
prefix (class token, registers) has no place in the image and is not turned.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.models import positions


class Rotation(NamedTuple):
    """Cosines and sines of every token's angles, f32[T, K]."""

    cos: jax.Array
    sin: jax.Array


NONE = Rotation(np.zeros((0, 0)), np.zeros((0, 0)))  # without rotary positions


def angles(grid: tuple[int, int], head_dim: int, base: float) -> np.ndarray:
    """float64[n, K]: the angles of each patch in radians, the K/2 different ones written twice."""
    centres = [2 * (np.arange(size) + 0.5) / size - 1 for size in grid]
    coordinates = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
    frequency = 2 * np.pi * base ** (-4 * np.arange(head_dim // 4) / head_dim)
    half = (coordinates[:, :, None] * frequency).reshape(len(coordinates), -1)
    return np.concatenate([half, half], axis=1)


def rotation(grid: tuple[int, int], prefix: int, added: int, head_dim: int, base: float) -> Rotation:
    """Of all tokens: the patches, `prefix` tokens in front of them and `added` ones behind them, both with angle 0."""
    full = np.pad(angles(grid, head_dim, base), ((prefix, added), (0, 0)))
    return Rotation(jnp.asarray(np.cos(full), jnp.float32), jnp.asarray(np.sin(full), jnp.float32))


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """x[B, T, H, K] turned; computed in float32, returned in x's dtype."""
    half = x.shape[-1] // 2
    return positions.turn(x, by.cos[None, :, None, :half], by.sin[None, :, None, :half])
