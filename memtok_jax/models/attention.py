"""Attention over explicit positions, with a prefix that every query sees.

Scores against the prefix use queries without rotation: a prefix token has no position, so the same stream gives the
same output however far it has come and however it is cut. Keys and queries are rotated in a local frame (positions
count from the oldest key at hand), which keeps rotary angles exact after millions of tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.models.config import BlockConfig
from memtok_jax.numerics import HIDDEN, lift, matmul, wide
from memtok_jax.params import ParamSpec, StateSpec, fan_in


class Prefix(NamedTuple):
    """Keys and values of the prefix tokens."""

    k: jax.Array  # [B, M, H, K]
    v: jax.Array  # [B, M, H, K]


def specs(cfg: BlockConfig) -> dict[str, ParamSpec]:
    """Query, key, value projections [D, H, K] and the output projection [D, D]."""
    d, h, k = cfg.width, cfg.heads, cfg.head_dim
    heads = {name: ParamSpec((d, h, k), ("embed", "heads", None), fan_in(0)) for name in ("wq", "wk", "wv")}
    return heads | {"wo": ParamSpec((d, d), ("heads", "embed"), fan_in(0, cfg.residual_scale))}


def prefix_specs(cfg: BlockConfig, batch: int) -> Prefix:
    """The part of a carry that depends on the parameters alone."""
    spec = lambda: StateSpec((batch, cfg.prefix, cfg.heads, cfg.head_dim), ("batch", None, "heads", None), jnp.dtype(cfg.dtype),
                             lives="derived")
    return Prefix(spec(), spec())


def heads(x: jax.Array, w: jax.Array, cfg: BlockConfig) -> jax.Array:
    """x[..., D] @ w[D, H, K] -> [..., H, K] in x's dtype."""
    y = matmul(x, w.reshape(w.shape[0], -1), cfg.dtype).astype(x.dtype)
    return y.reshape(*x.shape[:-1], *w.shape[1:])


def rotate(x: jax.Array, position: jax.Array, base: float) -> jax.Array:
    """Rotary positions (RoFormer, arXiv 2104.09864): x[..., S, H, K] turned by position[..., S] (broadcast)."""
    half = x.shape[-1] // 2
    angle = position[..., None].astype(jnp.float32)
    angle = angle * lift(base ** (-jnp.arange(half) / half), angle)
    cos, sin = (lift(f(angle)[..., None, :], x).astype(wide(x)) for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(q: jax.Array, q_position: jax.Array, k: jax.Array, v: jax.Array, prefix: Prefix, visible: jax.Array,
           cfg: BlockConfig) -> jax.Array:
    """Softmax attention to the prefix and to rotated keys.

    q: [..., T, H, K] not yet rotated, q_position [..., T]. k: [..., S, H, K] already rotated. v: [..., S, H, K].
    prefix: leaves [..., M, H, K]. visible: bool[..., T, S]. Returns [..., T, H * K]; softmax in float32.
    """
    dtype = wide(q)
    score = lambda queries, keys: jnp.einsum("...thk,...shk->...hts", queries, keys, preferred_element_type=dtype)
    near = jnp.where(jnp.expand_dims(visible, -3), score(rotate(q, q_position, cfg.rope_base), k), HIDDEN)
    scores = jnp.concatenate([score(q, prefix.k), near], axis=-1) * cfg.head_dim ** -0.5
    weight = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    values = jnp.concatenate([prefix.v, v], axis=-3)
    y = jnp.einsum("...hts,...shk->...thk", weight, values, preferred_element_type=dtype).astype(q.dtype)
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


def no_prefix(k: jax.Array) -> Prefix:
    """An empty prefix for keys [..., S, H, K]."""
    empty = jnp.zeros((*k.shape[:-3], 0, *k.shape[-2:]), k.dtype)
    return Prefix(empty, empty)


def prefix_pass(params, x_MD: jax.Array, cfg: BlockConfig) -> tuple[jax.Array, Prefix]:
    """The prefix tokens among themselves, each seeing those before it: ([M, D] attention output, keys and values [M, H, K])."""
    q, k, v = (heads(x_MD, params[name], cfg) for name in ("wq", "wk", "wv"))
    m = x_MD.shape[0]
    # Without positions: rotation by zero leaves keys and queries as they are.
    y = attend(q, jnp.zeros((m,), jnp.int32), k, v, no_prefix(k), jnp.tri(m, dtype=bool), cfg)
    return y, Prefix(k, v)


def output(y: jax.Array, params, cfg: BlockConfig) -> jax.Array:
    """The output projection [..., D] -> [..., D]."""
    return matmul(y, params["wo"], cfg.dtype).astype(jnp.dtype(cfg.dtype) if y.dtype != jnp.float64 else y.dtype)
