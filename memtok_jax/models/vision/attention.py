"""Attention of all tokens to all tokens, and four alternatives that may make registers unnecessary.

| name      | weights of a query's keys                          | parameters           | source |
|-----------|----------------------------------------------------|----------------------|--------|
| "softmax" | e^s / sum e^s                                      | -                    |        |
| "zero"    | e^s / (1 + sum e^s): may attend to nothing         | -                    | softmax1, "Attention Is Off By One" |
| "logit"   | e^s / (e^r + sum e^s), one r per head              | sink [H]             | attention sinks as logits |
| "kv"      | one more key and value per head, the same for all  | sink_k, sink_v [H, K] | Massive Activations, arXiv 2402.17762 |
| "gate"    | softmax; each head's output times sigmoid(W u)     | gate [D, H, K]       | Gated Attention, arXiv 2505.06708 |

"zero", "logit" and "kv" are one softmax over one more column, so gradients are right by themselves. u is the normalised input of
the layer. Captured weights are without that column, so their rows sum to less than one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models.vision import rope
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.numerics import affine_norm, dense, wide


def norm_specs(size: int) -> dict:
    """Scale and bias of a LayerNorm."""
    one = lambda init: P.ParamSpec((size,), (None,), init, decayed=False)
    return {"scale": one(P.ones), "bias": one(P.zeros)}


def specs(cfg: VitConfig) -> dict:
    """q, k, v [D, H, K] and o [D, D] with their biases, the norms of queries and keys, and what the alternative learns."""
    d, h, k = cfg.width, cfg.heads, cfg.head_dim
    bias = lambda shape, axes: {"b": P.ParamSpec(shape, axes, P.zeros, decayed=False)}
    out = {name: {"w": P.ParamSpec((d, h, k), ("embed", "heads", None), P.truncated_normal(cfg.std))} for name in "qkv"}
    for name in "qkv":
        if cfg.qkv_bias and (name != "k" or cfg.key_bias):
            out[name] |= bias((h, k), ("heads", None))
    out["o"] = {"w": P.ParamSpec((d, d), ("heads", "embed"), P.truncated_normal(cfg.std)), **bias((d,), (None,))}
    if cfg.qk_norm:
        out |= {"norm_q": norm_specs(k), "norm_k": norm_specs(k)}
    return out | _alternative_specs(cfg)


def _alternative_specs(cfg: VitConfig) -> dict:
    d, h, k = cfg.width, cfg.heads, cfg.head_dim
    sink = lambda: P.ParamSpec((h, k), ("heads", None), P.normal(0.02), decayed=False)
    return {
        "softmax": {}, "zero": {},
        "logit": {"sink": P.ParamSpec((h,), ("heads",), P.zeros, decayed=False)},
        "kv": {"sink_k": sink(), "sink_v": sink()},
        "gate": {"gate": {"w": P.ParamSpec((d, h, k), ("embed", "heads", None), P.truncated_normal(cfg.std))}},
    }[cfg.attention]


def sink_scores(params, q: jax.Array, cfg: VitConfig) -> jax.Array:
    """Scores [B, H, T, S] of the columns that stand for no token; S is 0 or 1. q[B, T, H, K] is scaled."""
    b, t, h, _ = q.shape
    if cfg.attention == "kv":
        return jnp.einsum("bthk,hk->bht", q, params["sink_k"].astype(q.dtype), preferred_element_type=wide(q))[..., None]
    if cfg.attention == "logit":
        return jnp.broadcast_to(params["sink"].astype(wide(q))[None, :, None, None], (b, h, t, 1))
    return jnp.zeros((b, h, t, int(cfg.attention == "zero")), wide(q))


def weights(params, q: jax.Array, k: jax.Array, cfg: VitConfig) -> tuple[jax.Array, jax.Array]:
    """Attention weights [B, H, T, T] in float32, and those of the columns that stand for no token [B, H, T, S]."""
    q = q * cfg.head_dim ** -0.5
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=wide(q))
    sinks = sink_scores(params, q, cfg)
    all_weights = jax.nn.softmax(jnp.concatenate([sinks, scores], axis=-1), axis=-1)
    return all_weights[..., sinks.shape[-1]:], all_weights[..., :sinks.shape[-1]]


def run(params, u: jax.Array, turn: rope.Rotation, cfg: VitConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The attention of normalised tokens u[B, T, D]: (output [B, T, D], what can be captured on the way).

    turn: angles of all tokens; not looked at without rotary positions.
    """
    q, k, v = (dense(u, params[name], cfg.dtype) for name in "qkv")
    if cfg.qk_norm:
        q, k = affine_norm(q, params["norm_q"], cfg.epsilon), affine_norm(k, params["norm_k"], cfg.epsilon)
    seen = {"q": q, "k": k, "v": v}
    if cfg.positions == "rope":
        q, k = rope.rotate(q, turn), rope.rotate(k, turn)
        seen |= {"q_rotated": q, "k_rotated": k}
    weight, sink = weights(params, q, k, cfg)
    y = jnp.einsum("bhts,bshk->bthk", weight.astype(v.dtype), v, preferred_element_type=wide(v))
    if cfg.attention == "kv":
        y = y + jnp.einsum("bhts,hk->bthk", sink, params["sink_v"].astype(sink.dtype))
    if cfg.attention == "gate":
        y = y * jax.nn.sigmoid(dense(u, params["gate"], cfg.dtype).astype(y.dtype))
    return dense(y.astype(u.dtype).reshape(u.shape), params["o"], cfg.dtype), seen | {"attention": weight}
