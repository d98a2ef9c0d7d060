"""Attention of any style: projections to heads, positions, a prefix that every query sees, and the output projection.

Every mixer that attends uses these parts; they differ in which keys and values they keep, and for how long.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models import layers, positions, sinks
from memtok_jax.models.attend import Front, attend, flat
from memtok_jax.models.positions import Places
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import dense, rms_norm, wide
from memtok_jax.params import StateSpec


class Prefix(NamedTuple):
    """Keys and values of the prefix tokens, without positions."""

    k: jax.Array  # [B, M, G, K]
    v: jax.Array  # [B, M, G, V]


class Pinned(NamedTuple):
    """Keys and values of the first tokens of a stream, which stand at 0 ... M-1, and the queries as these tokens see them."""

    k: jax.Array        # [..., M, G, K] without positions
    v: jax.Array        # [..., M, G, V]
    place: jax.Array    # i32[..., T] where the queries stand, from 0 and however large
    visible: jax.Array  # bool[..., T, M]


def specs(b: Backbone) -> dict:
    """q [D, H, K], k [D, G, K], v [D, G, V], o [H V, D], with biases if the style has them; `norm_q`, `norm_k`; relative
    positions, sink and gate."""
    style = b.style
    shapes = {"q": (b.heads, b.head_dim), "k": (b.kv_heads, b.head_dim), "v": (b.kv_heads, b.value_dim)}
    out = {name: layers.dense_specs(b, (b.width, *shape), ("embed", "heads", None), style.bias) for name, shape in shapes.items()}
    out["o"] = layers.dense_specs(b, (b.heads * b.value_dim, b.width), ("heads", "embed"), style.bias and style.output_bias,
                                  b.residual_scale)
    out |= _head_norm_specs(b)
    out |= sinks.specs(style.sink, b.heads, b.kv_heads, b.head_dim, b.value_dim)
    out |= sinks.gate_specs(style.gate, b.width, b.heads, b.value_dim, layers.weight_init(b))
    return out | ({"position": positions.specs(b)} if style.positions == "relative" else {})


def _head_norm_specs(b: Backbone) -> dict:
    """`norm_q` and `norm_k`: [K] for every head alike, or [H, K] and [G, K] for all heads together; nothing without such norms."""
    init = P.zeros if b.style.norm == "rms_offset" else P.ones
    spec = lambda *shape: P.ParamSpec(shape, ("heads", None)[2 - len(shape):], init, decayed=False)
    sizes = {"none": {}, "head": {"q": (b.head_dim,), "k": (b.head_dim,)},
             "all": {"q": (b.heads, b.head_dim), "k": (b.kv_heads, b.head_dim)}}[b.style.norm_heads]
    return {f"norm_{name}": spec(*shape) for name, shape in sizes.items()}


def key_specs(b: Backbone, batch: int, slots: int, lives: str) -> tuple[StateSpec, StateSpec]:
    """Keys [B, slots, G, K] and values [B, slots, G, V], in the dtype of activations."""
    one = lambda size: StateSpec((batch, slots, b.kv_heads, size), ("batch", None, "heads", None), jnp.dtype(b.dtype), lives)
    return one(b.head_dim), one(b.value_dim)


def prefix_specs(b: Backbone, batch: int) -> Prefix:
    """The part of a carry that depends on the parameters alone."""
    return Prefix(*key_specs(b, batch, b.prefix, "derived"))


def heads(params, x: jax.Array, name: str, b: Backbone) -> jax.Array:
    """x[..., D] -> queries [..., H, K], keys [..., G, K] or values [..., G, V] by the projection `name`, without positions.

    Queries are multiplied by what the style's scale of scores is more than 1 / sqrt(K), by which `attend` multiplies.
    """
    y, style = dense(x, params[name], b.dtype), b.style
    y = jnp.clip(y, -style.clip, style.clip) if style.clip else y
    if f"norm_{name}" in params:
        scale = layers.rms_scale(params[f"norm_{name}"], b)
        y = rms_norm(flat(y) if scale.ndim == 2 else y, scale.reshape(-1), style.eps).reshape(y.shape)
    return y * jnp.asarray(style.score_scale * b.head_dim ** 0.5, y.dtype) if name == "q" and style.score_scale else y


def output(params, y: jax.Array, b: Backbone) -> jax.Array:
    """The output projection [..., H V] -> [..., D]."""
    return dense(y, params["o"], b.dtype)


def _biases(params, side: dict) -> dict:
    """Parameters of relative positions; the two biases may be those that all layers share."""
    return params["position"] | side.get("position", {})


def at_places(params, u: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, b: Backbone, side: dict, *,
              prefix: Prefix | None = None, pinned: Pinned | None = None, places: Places | None = None,
              ahead: bool = False) -> tuple[jax.Array, jax.Array]:
    """Attention with the style's positions, sink and gate, and the prefix.

    u: [..., T, D], normed inputs of the queries. k: [..., S, G, K]. v: [..., S, G, V]; none has positions yet. visible:
    bool[..., T, S]. pinned: the first tokens of the stream, if they are columns of their own. places: where queries and keys stand,
    from 0 and below S; None: the queries are the last T of the S columns. ahead: whether a query may see columns behind it. side:
    holds the biases that layers share. Returns (y [..., T, H V], weight f32[..., H, T, S]).
    """
    q, where, bias = heads(params, u, "q", b), places or positions.last(u.shape[-2], k.shape[-3]), None
    own = near = q
    if b.style.positions == "rope":
        turn = partial(positions.rotate_at, below=k.shape[-3]) if places else positions.rotate
        near, k = (turn(x, at, b.style.rope_base, b.style.rotary) for x, at in ((q, where.query), (k, where.key)))
    elif b.style.positions == "alibi":
        bias = positions.linear_bias(where, b, wide(q))
    elif b.style.positions == "relative":
        p = _biases(params, side)
        far, own = positions.with_bias(q, p["distance"]), positions.with_bias(q, p["content"])
        bias = positions.scores_at(p, far, places, b) if places else positions.scores_of_last(p, far, k.shape[-3], ahead, b)
        near = own
    fronts = () if prefix is None or prefix.k.shape[-3] == 0 else (Front(own, *(p.astype(q.dtype) for p in prefix)),)
    if pinned is not None and pinned.k.shape[-3]:
        fronts += (_pinned_front(params, q, pinned, b, side),)
    y, weight = attend(near, k.astype(q.dtype), v.astype(q.dtype), visible, bias=bias, fronts=fronts,
                       sink=sinks.column(params, own, b.style.sink), cap=b.style.score_cap)
    return flat(sinks.gated(params, y, u, b.dtype)), weight


def _pinned_front(params, q: jax.Array, pinned: Pinned, b: Backbone, side: dict) -> Front:
    """Columns of pinned tokens for queries without positions."""
    k, v, kind, bias = pinned.k.astype(q.dtype), pinned.v.astype(q.dtype), b.style.positions, None
    at = Places(pinned.place, jnp.arange(k.shape[-3]).reshape((1,) * (pinned.place.ndim - 1) + (-1,)))
    if kind == "rope":
        q = positions.rotate_at(q, jnp.maximum(at.query, 0), b.style.rope_base, b.style.rotary)
        k = positions.rotate(k, at.key, b.style.rope_base, b.style.rotary)
    elif kind == "alibi":
        bias = positions.linear_bias(at, b, wide(q))
    elif kind == "relative":
        p = _biases(params, side)
        distance = jnp.maximum(at.query[..., :, None] - at.key[..., None, :], 0)
        bias = positions.scores_far(p, positions.with_bias(q, p["distance"]), distance, b)
        q = positions.with_bias(q, p["content"])
    return Front(q, k, v, pinned.visible, bias)


def prefix_pass(params, u_MD: jax.Array, b: Backbone, side: dict, shared: Prefix | None = None) -> tuple[jax.Array, Prefix]:
    """The prefix tokens among themselves, without positions, each seeing those before it.

    shared: keys and values of another layer, in the place of this layer's own. Returns (attention output [M, H V] before the output
    projection, keys [M, G, K] and values [M, G, V]).
    """
    q = heads(params, u_MD, "q", b)
    prefix = Prefix(*(heads(params, u_MD, name, b) for name in "kv")) if shared is None else shared
    if b.style.positions == "relative":
        q = positions.with_bias(q, _biases(params, side)["content"])
    y, _ = attend(q, *prefix, jnp.tri(len(u_MD), dtype=bool), sink=sinks.column(params, q, b.style.sink), cap=b.style.score_cap)
    return flat(sinks.gated(params, y, u_MD, b.dtype)), prefix


def for_batch(prefix: Prefix, b: Backbone, batch: int) -> Prefix:
    """Keys and values [M, G, ...] as the derived part of a carry: [B, M, G, ...]."""
    dtype = lambda x: x.dtype if x.dtype == jnp.float64 else jnp.dtype(b.dtype)
    return Prefix(*(jnp.broadcast_to(x[None].astype(dtype(x)), (batch, *x.shape)) for x in prefix))
