"""Attention with relative positions: a score by content and a score by distance (Transformer-XL, arXiv 1901.02860, section 3.3).

    q = h W_q,  k = h~ W_k,  v = h~ W_v                       h~ = [memory ; h]
    r_p = R_p W_r,  R_p = [sin(p f) ; cos(p f)],  f_i = 10000^(-2i/D)       sines first, then cosines
    score_ij = ((q_i + u) . k_j + (q_i + w) . r_(i - j)) / sqrt(K)
    a = softmax(score) v, joined over heads, W_o               no projection has a bias

| symbol | name here |
|---|---|
| W_q, W_{k,E}, W_{k,R}, W_v | `wq`, `wk`, `wr`, `wv` [D, H, K] |
| u, v of the paper      | `u` (content) and `w` (distance) [H, K] |
| R                      | `sinusoids` |

Distances count columns: 0 is the token itself, 1 the column before it. Only they matter, so a stream of any length gives the same
scores. `by_gather` looks r up at the distance of each pair and takes negative distances too; `by_shift` makes the same scores
for queries that are the last T of S columns, without a table of T x S rows (appendix B of the paper). Where j comes after i what
`by_shift` returns has no meaning and must be hidden.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax.numerics import HIDDEN, lift, matmul, spread, wide
from memtok_jax.params import ParamSpec, normal


def specs(width: int, heads: int, head_dim: int, std: float) -> dict[str, ParamSpec]:
    """Five projections."""
    to_heads = lambda: ParamSpec((width, heads, head_dim), ("embed", "heads", None), normal(std))
    return {name: to_heads() for name in ("wq", "wk", "wv", "wr")} | {
        "wo": ParamSpec((heads * head_dim, width), ("heads", "embed"), normal(std))}


def bias_specs(heads: int, head_dim: int, std: float) -> dict[str, ParamSpec]:
    """u and w, which every query adds to itself."""
    bias = lambda: ParamSpec((heads, head_dim), ("heads", None), normal(std), decayed=False)
    return {"u": bias(), "w": bias()}


def heads(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    """x[..., D] @ w[D, H, K] -> [..., H, K] in x's dtype."""
    y = matmul(x, w.reshape(w.shape[0], -1), dtype).astype(x.dtype)
    return y.reshape(*x.shape[:-1], *w.shape[1:])


# ------------------------------------------------------------------------------------------------------------- distances

def distances(tokens: int, columns: int) -> jax.Array:
    """i32[T, S]: how far column j lies before query i, the queries being the last T columns; negative after it."""
    return columns - tokens + jnp.arange(tokens)[:, None] - jnp.arange(columns)[None]


def sinusoids(distance: jax.Array, width: int, clamp: int, dtype) -> jax.Array:
    """R at any distances [...] -> [..., D]. clamp: farther distances count as this one; 0 clamps nothing."""
    distance = jnp.clip(distance, -clamp, clamp) if clamp else distance
    angle = distance[..., None].astype(dtype)
    angle = angle * lift(10000.0 ** (-jnp.arange(0, width, 2, dtype=dtype) / width), angle)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def by_gather(q: jax.Array, wr: jax.Array, distance: jax.Array, clamp: int, dtype: str) -> jax.Array:
    """q_i . r_(distance_ij) for any distances [T, S]: q[B, T, H, K] -> [B, H, T, S]."""
    r = heads(sinusoids(distance, wr.shape[0], clamp, wide(q)).astype(q.dtype), wr, dtype)
    return jnp.einsum("bthk,tshk->bhts", q, r, preferred_element_type=wide(q))


def by_shift(q: jax.Array, wr: jax.Array, columns: int, clamp: int, dtype: str) -> jax.Array:
    """The same for `distances(T, columns)` where they are not negative: q[B, T, H, K] -> [B, H, T, S]."""
    r = heads(sinusoids(jnp.arange(columns)[::-1], wr.shape[0], clamp, wide(q)).astype(q.dtype), wr, dtype)
    return shift(jnp.einsum("bthk,shk->bhts", q, r, preferred_element_type=wide(q)))


def shift(scores: jax.Array) -> jax.Array:
    """Row i of [..., T, S], ordered by distance S-1 ... 0, moved left by T-1-i: then column j stands for column j."""
    *lead, t, s = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(lead) + 1) + [(1, 0)])
    return padded.reshape(*lead, s + 1, t)[..., 1:, :].reshape(scores.shape)


# ------------------------------------------------------------------------------------------------------------- attention

def attend(params, bias, columns_BSD: jax.Array, tokens: int, visible_BTS: jax.Array, clamp: int,
           dtype: str) -> tuple[jax.Array, jax.Array]:
    """The last T columns attend to all S.

    visible_BTS: bool, at least one column for each query; none after it.
    Returns (a [B, T, D], weight [B, H, T, S] in float32, whose rows sum to one).
    """
    q = heads(columns_BSD[:, -tokens:], params["wq"], dtype)
    k, v = (heads(columns_BSD, params[name], dtype) for name in ("wk", "wv"))
    plus = lambda name: q + spread(bias[name], q).astype(q.dtype)
    content = jnp.einsum("bthk,bshk->bhts", plus("u"), k, preferred_element_type=wide(q))
    score = content + by_shift(plus("w"), params["wr"], columns_BSD.shape[1], clamp, dtype)
    score = jnp.where(visible_BTS[:, None], score * q.shape[-1] ** -0.5, HIDDEN)
    weight = jax.nn.softmax(score, axis=-1)
    y = _join(weight, v)
    return matmul(y, params["wo"], dtype).astype(columns_BSD.dtype), weight


def attend_by_content(params, x_BTD: jax.Array, rows_BSD: jax.Array, real_BS: jax.Array, dtype: str) -> jax.Array:
    """Attention of x to real rows without positions, mask, bias or output projection: [B, T, H * K].

    This is what the Compressive Transformer reconstructs (arXiv 1911.05507, algorithm 2), at the layer's usual scale.
    """
    q, k, v = heads(x_BTD, params["wq"], dtype), heads(rows_BSD, params["wk"], dtype), heads(rows_BSD, params["wv"], dtype)
    score = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=wide(q)) * q.shape[-1] ** -0.5
    return _join(jax.nn.softmax(jnp.where(real_BS[:, None, None], score, HIDDEN), axis=-1), v)


def _join(weight: jax.Array, v: jax.Array) -> jax.Array:
    """Weighted sums of values [B, S, H, K], heads side by side: [B, T, H * K] in v's dtype."""
    y = jnp.einsum("bhts,bshk->bthk", weight.astype(v.dtype), v, preferred_element_type=wide(v)).astype(v.dtype)
    return y.reshape(*y.shape[:2], -1)
