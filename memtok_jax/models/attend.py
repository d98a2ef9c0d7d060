"""The only softmax attention of the package: queries to keys, with columns that are no tokens of the sequence beside them.

Keys and values may have fewer heads than queries (grouped-query attention, arXiv 2305.13245): G heads, and H / G query heads read
each. Query heads are grouped by a reshape, so no key is repeated. G = H is ordinary attention.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.numerics import HIDDEN, lift, wide

MANY = 1024  # keys of one query from which on a copy of them costs more than G times the operations (docs/log.md, 2026-11-30)


class Front(NamedTuple):
    """Columns in front of the keys, scored with queries of their own: those of a prefix have no positions, those of pinned tokens
    others than the keys."""

    q: jax.Array  # [..., T, H, K]
    k: jax.Array  # [..., M, G, K]
    v: jax.Array  # [..., M, G, V]
    visible: jax.Array | None = None  # bool[..., T, M]; None shows all
    bias: jax.Array | None = None     # f32[..., H, T, M], added before the scale


class Sink(NamedTuple):
    """Columns that stand for no token: attention may go there instead of to a key."""

    score: jax.Array        # f32[..., H, T, N], added to the softmax as it is (scaled already)
    v: jax.Array | None     # [N, G, V], or None where they hold nothing


def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None = None, *, bias: jax.Array | None = None,
           fronts: tuple[Front, ...] = (), sink: Sink | None = None, cap: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """softmax((q k + bias) / sqrt(K)) v over sink, fronts and keys; with a cap, softmax(cap tanh((q k + bias) / sqrt(K) / cap)) v.

    q: [..., T, H, K]. k: [..., S, G, K]. v: [..., S, G, V]. visible: bool[..., T, S], without an axis for heads; None shows all
    keys. A query that sees nothing gets the mean of all values. bias: f32[..., H, T, S], added before the scale.
    Returns (y [..., T, H, V] in q's dtype, weight f32[..., H, T, S] of the keys alone). Scores and softmax are float32, or float64.
    """
    dtype, columns = wide(q), (*fronts, Front(q, k, v, visible, bias))
    scores = [_scores(part, dtype, cap) for part in columns]
    empty = 0 if sink is None else sink.score.shape[-1]  # columns of the sink, in front of all others
    if sink is not None:
        scores.insert(0, sink.score.astype(dtype))
    weight = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0], axis=-1)
    y = _weighed_parts(weight[..., empty:], [part.v for part in columns], dtype)
    if sink is not None and sink.v is not None:
        y = y + _weighed(weight[..., :empty], sink.v, dtype)
    return y.astype(q.dtype), weight[..., weight.shape[-1] - k.shape[-3]:]


def _scores(part: Front, dtype, cap: float) -> jax.Array:
    """Scaled scores [..., H, T, M] of one part of the columns."""
    score, scale = products(part.q, part.k, dtype), part.q.shape[-1] ** -0.5
    score = score if part.bias is None else score + lift(part.bias.astype(dtype), score)
    if cap:
        score, scale = cap * jnp.tanh(score * (scale / cap)), 1
    score = score if part.visible is None else jnp.where(jnp.expand_dims(part.visible, -3), score, HIDDEN)
    return score * scale


def products(q: jax.Array, k: jax.Array, dtype) -> jax.Array:
    """q[..., T, H, K] . k[..., S, G, K] -> [..., H, T, S]."""
    *lead, tokens, heads, size = q.shape
    groups = k.shape[-2]
    if tokens == 1 and k.shape[-3] >= MANY:
        q = q.reshape(*lead, groups, heads // groups, size)
        apart = jnp.einsum("...grk,gh->...gkhr", q, jnp.eye(groups, dtype=q.dtype))
        score = jnp.einsum("...sc,...ch->...hs", _rows(k), apart.reshape(*lead, groups * size, heads), preferred_element_type=dtype)
        return score[..., None, :]
    q = jnp.moveaxis(q.reshape(*lead, tokens, groups, heads // groups, size), -4, -2)
    score = jnp.einsum("...grtk,...sgk->...grts", q, k, preferred_element_type=dtype)
    return score.reshape(*score.shape[:-4], heads, tokens, k.shape[-3])


def _weighed(weight: jax.Array, v: jax.Array, dtype) -> jax.Array:
    """weight[..., H, T, S] on v[..., S, G, V] -> [..., T, H, V]."""
    *lead, heads, tokens, columns = weight.shape
    groups, size = v.shape[-2:]
    if tokens == 1 and columns >= MANY:
        y = jnp.einsum("...hs,...sc->...hc", weight[..., 0, :].astype(v.dtype), _rows(v), preferred_element_type=dtype)
        y = y.reshape(*y.shape[:-2], groups, heads // groups, groups, size)
        return jnp.einsum("...grgv->...grv", y).reshape(*y.shape[:-4], 1, heads, size)
    weight = weight.reshape(*lead, groups, heads // groups, tokens, columns).astype(v.dtype)
    y = jnp.moveaxis(jnp.einsum("...grts,...sgv->...grtv", weight, v, preferred_element_type=dtype), -2, -4)
    return y.reshape(*y.shape[:-3], heads, size)


def _weighed_parts(weight: jax.Array, values: list[jax.Array], dtype) -> jax.Array:
    """weight[..., H, T, S1 + S2 + ...] on values [..., S1, G, V], [..., S2, G, V], ... side by side -> [..., T, H, V].

    One product for many queries; for one query a product for each part, because joining would copy a whole cache for one token.
    """
    if weight.shape[-2] > 1:
        return _weighed(weight, jnp.concatenate(values, axis=-3) if len(values) > 1 else values[0], dtype)
    cuts = [sum(v.shape[-3] for v in values[:n]) for n in range(1, len(values))]
    return sum(_weighed(w, v, dtype) for w, v in zip(jnp.split(weight, cuts, axis=-1), values, strict=True))


def _rows(x: jax.Array) -> jax.Array:
    """x[..., S, G, K] as it lies in memory: [..., S, G K].

    One query to many keys takes a product of all heads with all groups, most of it zeros or unused. That is G times the operations,
    and none of the copies that a product for each group needs, because the keys of a group do not lie side by side.
    """
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def flat(y: jax.Array) -> jax.Array:
    """Heads side by side: [..., H, V] -> [..., H V]."""
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
