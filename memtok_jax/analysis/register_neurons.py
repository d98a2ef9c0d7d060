"""Which hidden units write the outlier norms of a vision transformer, and what its registers hold on average.

Test-time registers (Jiang et al., arXiv 2506.08010), for a model without registers. Let O be the patches of an image whose norm at
hidden state `layer` is above `cutoff`, and a the activations after the non-linearity:

    score(l, f) = mean over images with an O of (mean over O of |a_l[., f]|)

The units of highest score up to `highest_layer` are the register neurons; `edits.test_time_registers` moves their activations. The
search runs the model without edits.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.config import UserError
from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.edits import RegisterStatistics
from memtok_jax.models.vision.output import split

QUIET = 0.5  # an activation below this counts as silent


class Scores(NamedTuple):
    """Sums over images; divided by the number of images they give the means that `find` uses."""

    size: jax.Array    # f32[L, F]  |a| on outlier patches, over images that have one
    quiet: jax.Array   # f32[L, F]  share of tokens where |a| is below QUIET, over all images
    outliers: jax.Array  # f32[]    images with an outlier patch
    images: jax.Array  # f32[]


@partial(jax.jit, static_argnames=("cfg", "layer"))
def score(params, images: jax.Array, cfg: VitConfig, layer: int, cutoff: float) -> Scores:
    """The sums of one batch of normalised images f[B, rows, columns, C]."""
    out = vit.features(params, images, cfg, capture=("norms", "mlp"))
    is_outlier = split(out.captured["norms"][layer], out.counts)["patches"] > cutoff
    size = jnp.abs(out.captured["mlp"].astype(jnp.float32))
    on_patches = split(size, out.counts, axis=2)["patches"]
    number = is_outlier.sum(1)
    mean = jnp.einsum("lbnf,bn->lbf", on_patches, is_outlier.astype(jnp.float32)) / jnp.maximum(number, 1)[None, :, None]
    return Scores(mean.sum(1), (size < QUIET).mean(2).sum(1), (number > 0).sum().astype(jnp.float32), jnp.float32(len(images)))


def find(params, batches: Iterable[jax.Array], cfg: VitConfig, *, layer: int, cutoff: float, top_k: int, highest_layer: int,
         sparse: bool = False) -> tuple[tuple[int, int], ...]:
    """The register neurons as (layer, unit), highest score first.

    batches: normalised images f[B, rows, columns, C], of one size or several. layer: hidden state at which norms are compared with
    `cutoff` (-1 the last, -2 the one before the last block). top_k: number of units at most. highest_layer: last layer to search,
    counted from 0. sparse: only units that are silent on at least half of the tokens.
    Published: DINOv2-L layer=-2, cutoff=150, top_k=50, highest_layer=17; CLIP B/16 layer=-1, cutoff=30, top_k=10, highest_layer=5.
    Raises UserError if no patch is above the cut-off, and for a highest_layer that the model does not have.
    """
    if not 0 <= highest_layer < cfg.layers:
        raise UserError(f"highest_layer={highest_layer}: the model has layers 0 .. {cfg.layers - 1}")
    total = jax.tree.map(lambda *sums: sum(sums), *[score(params, images, cfg, layer, cutoff) for images in batches])
    if total.outliers == 0:
        raise UserError(f"no patch of {int(total.images)} images has a norm above cutoff={cutoff:g} at hidden state {layer}; "
                        "lower the cut-off, or there is nothing to repair")
    scores = np.array(total.size / total.outliers)
    scores[highest_layer + 1:] = -np.inf
    if sparse:
        scores[np.asarray(total.quiet / total.images) < 0.5] = -np.inf
    best = np.argsort(-scores, axis=None, kind="stable")[:top_k]
    return tuple((int(n) // cfg.hidden, int(n) % cfg.hidden) for n in best if np.isfinite(scores.flat[n]))


@partial(jax.jit, static_argnames=("cfg",))
def _moments(params, images: jax.Array, cfg: VitConfig) -> tuple[jax.Array, jax.Array]:
    """Sums of the registers and of their squares over a batch, f32[L+1, M, D] each."""
    out = vit.features(params, images, cfg, capture=("hidden",))
    registers = split(out.captured["hidden"].astype(jnp.float32), out.counts, axis=2)["registers"]
    return registers.sum(1), jnp.square(registers).sum(1)


def register_statistics(params, batches: Iterable[jax.Array], cfg: VitConfig) -> RegisterStatistics:
    """Mean and standard deviation of each register at each hidden state over all images, f32[L+1, M, D] each."""
    number, first, second = 0, np.zeros(()), np.zeros(())
    for images in batches:
        sums = _moments(params, images, cfg)
        number, first, second = number + len(images), first + np.float64(sums[0]), second + np.float64(sums[1])
    mean = first / number
    std = np.sqrt(np.maximum(second / number - mean ** 2, 0))
    return RegisterStatistics(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
