"""The rule over a whole block of tokens: `lax.scan` over pieces, `vmap` over rows and heads inside.

Carries of the backward pass are kept at the borders of groups of chunks and recomputed inside them, so memory grows
with the square root of the length where that is long.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from memtok_jax.memory import pieces as cutting
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.rule import Carry, Inputs, Surprise, Weights, piece

FEW = 16  # so many carries are stored without a second thought; more of them cost more to write than to compute again


def _all_heads(cfg: NeuralMemoryConfig):
    """`piece` over rows and heads: start and slow [H, ...], carry [B, H, ...], inputs [B, H, C, ...], real [B, C]."""
    real_shared = Inputs(0, 0, 0, 0, 0, 0, None)
    heads = jax.vmap(partial(piece, cfg=cfg), in_axes=(0, 0, 0, real_shared))
    return jax.vmap(heads, in_axes=(None, None, 0, 0))


def _body(start: Weights, slow, cfg: NeuralMemoryConfig):
    """Scan body: one piece of every row and head."""

    def body(carry: Carry, xs: tuple[Inputs, jax.Array]):
        x, closes = xs
        weights, surprise, y, stats = _all_heads(cfg)(start, slow, carry, x)
        anchor = jax.tree.map(lambda old, new: jnp.where(_rows(closes, new), new, old), carry.anchor, weights)
        return Carry(anchor, weights, surprise), (y, stats)

    return body


def _aligned_body(start: Weights, slow, cfg: NeuralMemoryConfig):
    """The same for whole chunks: the weights are the anchor, so that one copy of them is carried and stored."""

    def body(carry: tuple[Weights, Weights], xs: tuple[Inputs, jax.Array]):
        weights, surprise = carry
        *carry, y, stats = _all_heads(cfg)(start, slow, Carry(weights, weights, surprise), xs[0])
        return tuple(carry), (y, stats)

    return body


def _rows(flags: jax.Array, like: jax.Array) -> jax.Array:
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))


def group_size(chunks: int, wanted: int) -> int:
    """Divisor of the number of chunks nearest to `wanted`, for two-level recomputation.

    wanted 0: every carry is stored as long as they are few (a second recomputation costs more than that memory), and the
    square root of the number of chunks beyond.
    """
    target = wanted or (1 if chunks <= FEW else math.isqrt(chunks))
    return min((d for d in range(1, chunks + 1) if chunks % d == 0), key=lambda d: abs(d - target))


def _scan_recomputed(body, carry, xs, group: int):
    """`lax.scan` that stores carries only at group borders and recomputes the rest in the backward pass."""
    if group < 0:
        return jax.lax.scan(body, carry, xs)
    body = jax.checkpoint(body, prevent_cse=False)
    chunks = jax.tree.leaves(xs)[0].shape[0]
    if group in (1, chunks):
        return jax.lax.scan(body, carry, xs)
    grouped = jax.tree.map(lambda x: x.reshape(chunks // group, group, *x.shape[1:]), xs)
    carry, ys = jax.lax.scan(jax.checkpoint(lambda c, x: jax.lax.scan(body, c, x), prevent_cse=False), carry, grouped)
    return carry, jax.tree.map(lambda y: y.reshape(chunks, *y.shape[2:]), ys)


def _per_head(x: jax.Array) -> jax.Array:
    """[N, B, C, H, ...] -> [N, B, H, C, ...]."""
    return jnp.moveaxis(x, 3, 2)


def run(start: Weights, slow, carry: Carry, phase_B: jax.Array, length_B: jax.Array, inputs: Inputs,
        cfg: NeuralMemoryConfig) -> tuple[jax.Array, Carry, jax.Array, Surprise]:
    """The memory over T tokens of every row.

    start, slow: leaves [H, ...]. carry: leaves [B, H, ...]. phase_B, length_B: i32[B].
    inputs: k, v, q [B, T, H, K]; step, log_momentum, log_keep [B, T, H]; `real` is computed here.
    Returns reads [B, T, H, K], the carry, the phase, and statistics with leaves [N, B, H, ...].
    """
    tokens = inputs.k.shape[1]
    if cfg.aligned:
        if tokens % cfg.chunk:
            raise ValueError(f"aligned=True needs a multiple of chunk={cfg.chunk} tokens, got {tokens}")
        n = tokens // cfg.chunk
        grid = lambda x: jnp.moveaxis(x.reshape(x.shape[0], n, cfg.chunk, *x.shape[2:]), 1, 0)
        ungrid = lambda y: jnp.moveaxis(y, 0, 1).reshape(y.shape[1], tokens, *y.shape[3:])
        real = jnp.ones((n, inputs.k.shape[0], cfg.chunk), bool)
        closes = jnp.ones((n, inputs.k.shape[0]), bool)
    else:
        cut = cutting.cut(phase_B, length_B, tokens, cfg.chunk)
        grid, ungrid = partial(cutting.split, pieces=cut), partial(cutting.join, pieces=cut)
        real = jnp.arange(cut.index.shape[-1])[None, None] < cut.length[:, :, None]
        closes, phase_B = cut.closes, cut.phase
    xs = Inputs(*(_per_head(grid(x)) for x in inputs[:-1]), real)
    group = group_size(closes.shape[0], cfg.remat_group) if cfg.remat_group >= 0 else -1
    if cfg.aligned:
        (weights, surprise), (y, stats) = _scan_recomputed(_aligned_body(start, slow, cfg), carry[1:], (xs, closes), group)
        carry = Carry(weights, weights, surprise)
    else:
        carry, (y, stats) = _scan_recomputed(_body(start, slow, cfg), carry, (xs, closes), group)
    return ungrid(jnp.moveaxis(y, 2, 3)), carry, phase_B, stats
