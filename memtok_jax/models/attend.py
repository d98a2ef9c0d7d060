"""The only softmax attention of the package: queries to keys, with columns that are no tokens of the sequence beside them.

Keys and values may have fewer heads than queries (grouped-query attention, arXiv 2305.13245): G heads, and H / G query heads read
each. Query heads are grouped by a reshape, so no key is repeated. G = H is ordinary attention.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.numerics import HIDDEN, wide


class Front(NamedTuple):
    """Columns that every query sees, scored with queries of their own: a prefix has no position."""

    q: jax.Array  # [..., T, H, K]
    k: jax.Array  # [..., M, G, K]
    v: jax.Array  # [..., M, G, V]


class Sink(NamedTuple):
    """Columns that stand for no token: attention may go there instead of to a key."""

    score: jax.Array        # f32[..., H, T, N], added to the softmax as it is (scaled already)
    v: jax.Array | None     # [N, G, V], or None where they hold nothing


def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None = None, *, bias: jax.Array | None = None,
           front: Front | None = None, sink: Sink | None = None) -> tuple[jax.Array, jax.Array]:
    """softmax((q k + bias) / sqrt(K)) v over sink, front and keys.

    q: [..., T, H, K]. k: [..., S, G, K]. v: [..., S, G, V]. visible: bool[..., T, S], without an axis for heads; None shows all
    keys. A query that sees nothing gets the mean of all values. bias: f32[..., H, T, S], added before the scale.
    Returns (y [..., T, H, V] in q's dtype, weight f32[..., H, T, S] of the keys alone). Scores and softmax are float32, or float64.
    """
    dtype, scale = wide(q), q.shape[-1] ** -0.5
    near = _scores(q, k, dtype)
    near = near if bias is None else near + bias
    near = near if visible is None else jnp.where(jnp.expand_dims(visible, -3), near, HIDDEN)
    parts = [near * scale]
    if front is not None:
        parts.insert(0, _scores(front.q, front.k, dtype) * scale)
    if sink is not None:
        parts.insert(0, sink.score.astype(dtype))
    weight = jax.nn.softmax(jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0], axis=-1)
    y = _values(weight, v, front, sink, dtype)
    return y.astype(q.dtype), weight[..., weight.shape[-1] - k.shape[-3]:]


def _scores(q: jax.Array, k: jax.Array, dtype) -> jax.Array:
    """q[..., T, H, K] . k[..., S, G, K] -> [..., H, T, S]."""
    *lead, tokens, heads, size = q.shape
    groups = k.shape[-2]
    q = jnp.moveaxis(q.reshape(*lead, tokens, groups, heads // groups, size), -4, -2)
    score = jnp.einsum("...grtk,...sgk->...grts", q, k, preferred_element_type=dtype)
    return score.reshape(*score.shape[:-4], heads, tokens, k.shape[-3])


def _sum(weight: jax.Array, v: jax.Array, dtype) -> jax.Array:
    """weight[..., H, T, S] on v[..., S, G, V] -> [..., T, H, V]."""
    *lead, heads, tokens, columns = weight.shape
    groups = v.shape[-2]
    weight = weight.reshape(*lead, groups, heads // groups, tokens, columns).astype(v.dtype)
    y = jnp.moveaxis(jnp.einsum("...grts,...sgv->...grtv", weight, v, preferred_element_type=dtype), -2, -4)
    return y.reshape(*y.shape[:-3], heads, v.shape[-1])


def _values(weight: jax.Array, v: jax.Array, front: Front | None, sink: Sink | None, dtype) -> jax.Array:
    """Weighted sums [..., T, H, V] of the values of all columns."""
    n = 0 if sink is None else sink.score.shape[-1]
    columns = v if front is None else jnp.concatenate([front.v.astype(v.dtype), v], axis=-3)
    y = _sum(weight[..., n:], columns, dtype)
    if sink is not None and sink.v is not None:
        y = y + _sum(weight[..., :n], sink.v.astype(dtype), dtype)
    return y


def flat(y: jax.Array) -> jax.Array:
    """Heads side by side: [..., H, V] -> [..., H V]."""
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
