"""Where is the object? LOST: one box from the features of one layer, without any training.

Localizing Objects with Self-Supervised Transformers and no Labels (arXiv 2109.14279), with its published code for what the paper
leaves open; the bias on the Gram matrix is that of Vision Transformers Need Registers (arXiv 2309.16588). F[n, d]: features of the
patches alone, usually the keys of the last layer with heads side by side, neither normalised nor scaled.

    A = F F^T + b;   degree_i = number of j != i with A_ij > 0;   seed = lowest degree (ties: lowest index)
    D_k = the k patches of lowest degree;   S = {q in D_k : A[seed, q] > 0};   mask_j = (sum over q in S of A[q, j]) > 0
    box = that of the 4-connected component of the mask that holds the seed

Everything is one jitted program for one image; `jax.vmap` runs it over images of equal grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Found(NamedTuple):
    """One object. Where `valid` is False (the seed is not in the mask) the box is empty."""

    box: jax.Array       # i32[4] x_min, y_min, x_max + 1, y_max + 1 in patches
    seed: jax.Array      # i32[] index of the patch to start from
    object: jax.Array    # bool[h, w] the component
    valid: jax.Array     # bool[]


@partial(jax.jit, static_argnames=("grid", "k"))
def lost(features_nd: jax.Array, grid: tuple[int, int], bias: float = 0.0, k: int = 100) -> Found:
    """The object of one image. features: f[n, d]. grid: (h, w) with h w = n. bias: b. k: size of D_k, at most n."""
    n = features_nd.shape[0]
    gram = jnp.matmul(features_nd, features_nd.T, precision="highest") + bias
    positive = gram > 0
    degree = positive.sum(1) - jnp.diagonal(positive)
    lowest = jnp.argsort(degree, stable=True)[:min(k, n)]
    seed = lowest[0]
    similar = jnp.zeros(n, gram.dtype).at[lowest].set(positive[seed, lowest].astype(gram.dtype))
    mask = jnp.matmul(similar, gram, precision="highest") > 0
    labels = components(mask.reshape(grid)).reshape(-1)
    inside = (labels == labels[seed]) & mask & mask[seed]
    return _found(inside.reshape(grid), seed)


@partial(jax.jit, static_argnames=("grid",))
def attention_object(attention_n: jax.Array, grid: tuple[int, int], share: float = 0.6) -> Found:
    """The baseline "DINO-seg": the largest component of the patches that hold the top `share` of one head's attention.

    attention: f[n] of one query (CLS) to the patches, not negative. grid: (h, w) with h w = n. A patch is kept if the patches with
    more attention sum to less than the share.
    """
    order = jnp.argsort(-attention_n, stable=True)
    before = jnp.cumsum(attention_n[order]) - attention_n[order]
    kept = jnp.zeros(attention_n.shape, bool).at[order].set(before < share * attention_n.sum())
    labels = components(kept.reshape(grid)).reshape(-1)
    sizes = jnp.zeros(labels.size, jnp.int32).at[labels].add(kept.astype(jnp.int32), mode="drop")
    largest = sizes.argmax()
    return _found((kept & (labels == largest)).reshape(grid), largest)


def components(mask_hw: jax.Array) -> jax.Array:
    """Labels i32[h, w] of the 4-connected components of mask bool[h, w]: their lowest index; h w outside the mask."""
    n = mask_hw.size
    outside = jnp.int32(n)
    first = jnp.where(mask_hw, jnp.arange(n, dtype=jnp.int32).reshape(mask_hw.shape), outside)

    def spread(labels):
        padded = jnp.pad(labels, 1, constant_values=n)
        around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        lowest = jnp.minimum(labels, jnp.stack(around).min(0))
        return jnp.where(mask_hw, lowest, outside)

    def step(both):
        return both[1], spread(both[1])

    return jax.lax.while_loop(lambda both: (both[0] != both[1]).any(), step, (first, spread(first)))[1]


def _found(inside_hw: jax.Array, seed: jax.Array) -> Found:
    """`Found` with the box around the cells that are True."""

    def ends(line):
        return line.argmax(), line.size - line[::-1].argmax()

    (y0, y1), (x0, x1) = ends(inside_hw.any(1)), ends(inside_hw.any(0))
    valid = inside_hw.any()
    box = jnp.stack([x0, y0, x1, y1]).astype(jnp.int32)
    return Found(jnp.where(valid, box, 0), seed.astype(jnp.int32), inside_hw, valid)


# -------------------------------------------------------------------------------------------------------- boxes in pixels

def pixel_box(box_4: np.ndarray, patch: int, size: tuple[int, int]) -> np.ndarray:
    """Patches to pixels, clipped to the image before it was padded. size: (rows, columns). Works on [..., 4]."""
    rows, columns = size
    return np.minimum(np.asarray(box_4) * patch, np.array([columns, rows, columns, rows]))


def overlap(box_4: Sequence[float], others_K4: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with each of the others, all x_min, y_min, x_max, y_max: f64[K]."""
    box, others = np.asarray(box_4, np.float64), np.asarray(others_K4, np.float64).reshape(-1, 4)
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def corloc(boxes_B4: np.ndarray, truth: Sequence[np.ndarray], least: float = 0.5) -> float:
    """Share of the images whose box has an intersection over union of at least `least` with one of the true boxes.

    truth: for each image [K, 4]. Images without a true box are left out; nan if none has one.
    """
    hits = [overlap(box, true).max() >= least for box, true in zip(boxes_B4, truth, strict=True) if len(true)]
    return float(np.mean(hits)) if hits else float("nan")
