"""The only softmax attention of the package: queries to keys, with columns that are no tokens of the sequence beside them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.numerics import HIDDEN, wide


class Front(NamedTuple):
    """Columns that every query sees, scored with queries of their own: a prefix has no position."""

    q: jax.Array  # [..., T, H, K]
    k: jax.Array  # [..., M, H, K]
    v: jax.Array  # [..., M, H, K]


class Sink(NamedTuple):
    """Columns that stand for no token: attention may go there instead of to a key."""

    score: jax.Array        # f32[..., H, T, N], added to the softmax as it is (scaled already)
    v: jax.Array | None     # [N, H, K], or None where they hold nothing


def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None = None, *, bias: jax.Array | None = None,
           front: Front | None = None, sink: Sink | None = None) -> tuple[jax.Array, jax.Array]:
    """softmax((q k + bias) / sqrt(K)) v over sink, front and keys.

    q: [..., T, H, K]. k, v: [..., S, H, K]. visible: bool[..., T, S], without an axis for heads; None shows all keys. A query that
    sees nothing gets the mean of all values. bias: f32[..., H, T, S], added before the scale.
    Returns (y [..., T, H, K] in q's dtype, weight f32[..., H, T, S] of the keys alone). Scores and softmax are float32, or float64.
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
    return jnp.einsum("...thk,...shk->...hts", q, k, preferred_element_type=dtype)


def _values(weight: jax.Array, v: jax.Array, front: Front | None, sink: Sink | None, dtype) -> jax.Array:
    """Weighted sums [..., T, H, K] of the values of all columns."""
    n = 0 if sink is None else sink.score.shape[-1]
    columns = v if front is None else jnp.concatenate([front.v.astype(v.dtype), v], axis=-3)
    y = jnp.einsum("...hts,...shk->...thk", weight[..., n:].astype(v.dtype), columns, preferred_element_type=dtype)
    if sink is not None and sink.v is not None:
        y = y + jnp.einsum("...htn,nhk->...thk", weight[..., :n], sink.v.astype(dtype))
    return y


def flat(y: jax.Array) -> jax.Array:
    """Heads side by side: [..., H, K] -> [..., H K]."""
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
