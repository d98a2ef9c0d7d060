"""Positions from a table that was trained on one grid, for images of any size.

Bicubic resizing is linear along each axis, so it is a product with one matrix for the rows and one for the columns:

    resized[y, x] = sum_ij A[y, i] B[x, j] table[i, j]

The matrices are computed with NumPy while the program is traced. Three conventions are in use, and each checkpoint needs the one
that it was trained with:

| interpolation | used by                                                          | kernel                      |
|---------------|------------------------------------------------------------------|-----------------------------|
| "size_aa"     | models with registers (transformers, facebookresearch), timm     | a = -1/2, widened to shrink |
| "size_noaa"   | Dinov2Model of transformers (no registers)                       | a = -3/4, border clamped    |
| "offset_noaa" | facebookresearch/dinov2 without registers                        | the same, scale G / (size + 0.1) |

"Size" and "offset" say how torch's bicubic `interpolate` gets its scale, "aa" and "noaa" whether it antialiases. G is the side of
the trained table. With antialiasing the weights of a target are divided by their sum; without it they already sum to one.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

OFFSET = 0.1  # added to the size in "offset_noaa"


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (1981) with parameter a."""
    x = np.abs(x)
    near = (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1
    far = a * (x ** 3 - 5 * x ** 2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def resize_matrix(source: int, target: int, interpolation: str) -> np.ndarray:
    """float64[target, source]: weights of the `source` positions for each `target` position; they sum to one."""
    if interpolation == "size_aa":
        return _antialiased(source, target)
    ratio = source / (target + OFFSET) if interpolation == "offset_noaa" else source / target
    return _clamped(source, target, ratio)


def _antialiased(source: int, target: int) -> np.ndarray:
    ratio = source / target
    width = max(ratio, 1.0)
    out = np.zeros((target, source))
    for i in range(target):
        centre = ratio * (i + 0.5)
        first, end = max(int(centre - 2 * width + 0.5), 0), min(int(centre + 2 * width + 0.5), source)
        columns = np.arange(first, end)
        weight = cubic((columns - centre + 0.5) / width, -0.5)
        out[i, columns] = weight / weight.sum()
    return out


def _clamped(source: int, target: int, ratio: float) -> np.ndarray:
    out = np.zeros((target, source))
    for i in range(target):
        centre = ratio * (i + 0.5) - 0.5
        left = math.floor(centre)
        for column in range(left - 1, left + 3):
            # Columns beyond the border take the value of the border column, so several weights may add up there.
            out[i, min(max(column, 0), source - 1)] += cubic(np.float64(centre - column), -0.75)
    return out


def resize(table: jax.Array, grid: tuple[int, int], interpolation: str) -> jax.Array:
    """table[rows, columns, D] -> [*grid, D] in its dtype; the table itself if it has this grid."""
    if grid == table.shape[:2]:
        return table
    rows, columns = (jnp.asarray(resize_matrix(source, target, interpolation), table.dtype)
                     for source, target in zip(table.shape[:2], grid, strict=True))
    return jnp.einsum("yi,xj,ijd->yxd", rows, columns, table, precision="highest")
