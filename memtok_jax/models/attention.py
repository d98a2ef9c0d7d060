"""Attention of any style: projections to heads, positions, a prefix that every query sees, and the output projection.

Every mixer that attends uses these parts; they differ in which keys and values they keep, and for how long.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.models import layers, positions
from memtok_jax.models.attend import Front, attend, flat
from memtok_jax.models.positions import Places
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import dense
from memtok_jax.params import StateSpec


class Prefix(NamedTuple):
    """Keys and values of the prefix tokens, without positions."""

    k: jax.Array  # [B, M, G, K]
    v: jax.Array  # [B, M, G, V]


def specs(b: Backbone) -> dict:
    """q [D, H, K], k [D, G, K], v [D, G, V], o [H V, D], with biases where the style has them, and relative positions."""
    shapes = {"q": (b.heads, b.head_dim), "k": (b.kv_heads, b.head_dim), "v": (b.kv_heads, b.value_dim)}
    out = {name: layers.dense_specs(b, (b.width, *shape), ("embed", "heads", None), b.style.bias) for name, shape in shapes.items()}
    out["o"] = layers.dense_specs(b, (b.heads * b.value_dim, b.width), ("heads", "embed"), b.style.bias, b.residual_scale)
    return out | ({"position": positions.specs(b)} if b.style.positions == "relative" else {})


def key_specs(b: Backbone, batch: int, slots: int, lives: str) -> tuple[StateSpec, StateSpec]:
    """Keys [B, slots, G, K] and values [B, slots, G, V], in the dtype of activations."""
    one = lambda size: StateSpec((batch, slots, b.kv_heads, size), ("batch", None, "heads", None), jnp.dtype(b.dtype), lives)
    return one(b.head_dim), one(b.value_dim)


def prefix_specs(b: Backbone, batch: int) -> Prefix:
    """The part of a carry that depends on the parameters alone."""
    return Prefix(*key_specs(b, batch, b.prefix, "derived"))


def heads(params, x: jax.Array, name: str, b: Backbone) -> jax.Array:
    """x[..., D] -> queries [..., H, K], keys [..., G, K] or values [..., G, V] by the projection `name`."""
    return dense(x, params[name], b.dtype)


def output(params, y: jax.Array, b: Backbone) -> jax.Array:
    """The output projection [..., H V] -> [..., D]."""
    return dense(y, params["o"], b.dtype)


def at_places(params, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, b: Backbone, side: dict, *,
              prefix: Prefix | None = None, places: Places | None = None, ahead: bool = False) -> tuple[jax.Array, jax.Array]:
    """Attention with the style's positions and the prefix.

    q: [..., T, H, K]. k: [..., S, G, K]. v: [..., S, G, V]; none has positions yet. visible: bool[..., T, S]. places: where they
    stand; None: the queries are the last T of the S columns. ahead: whether a query may see columns behind it. side: holds the
    biases that layers share. Returns (y [..., T, H V], weight f32[..., H, T, S]).
    """
    where, bias, own = places or positions.last(q.shape[-3], k.shape[-3]), None, q
    if b.style.positions == "rope":
        q, k = (positions.rotate(x, at, b.style.rope_base) for x, at in ((q, where.query), (k, where.key)))
    elif b.style.positions == "relative":
        p = params["position"] | side.get("position", {})
        far, own = positions.with_bias(q, p["distance"]), positions.with_bias(q, p["content"])
        bias = positions.scores_at(p, far, places, b) if places else positions.scores_of_last(p, far, k.shape[-3], ahead, b)
        q = own
    front = None if prefix is None or prefix.k.shape[-3] == 0 else Front(own, *(p.astype(q.dtype) for p in prefix))
    y, weight = attend(q, k.astype(q.dtype), v.astype(q.dtype), visible, bias=bias, front=front)
    return flat(y), weight


def prefix_pass(params, u_MD: jax.Array, b: Backbone, side: dict) -> tuple[jax.Array, Prefix]:
    """The prefix tokens among themselves, without positions, each seeing those before it.

    Returns (attention output [M, H V] before the output projection, keys [M, G, K] and values [M, G, V]).
    """
    q, k, v = (heads(params, u_MD, name, b) for name in "qkv")
    if b.style.positions == "relative":
        q = positions.with_bias(q, (params["position"] | side.get("position", {}))["content"])
    y, _ = attend(q, k, v, jnp.tri(len(u_MD), dtype=bool))
    return flat(y), Prefix(k, v)


def for_batch(prefix: Prefix, b: Backbone, batch: int) -> Prefix:
    """Keys and values [M, G, ...] as the derived part of a carry: [B, M, G, ...]."""
    dtype = lambda x: x.dtype if x.dtype == jnp.float64 else jnp.dtype(b.dtype)
    return Prefix(*(jnp.broadcast_to(x[None].astype(dtype(x)), (batch, *x.shape)) for x in prefix))
