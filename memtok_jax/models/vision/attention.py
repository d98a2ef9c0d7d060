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
from memtok_jax.models.attend import Sink, attend, flat
from memtok_jax.models.layers import layer_norm_specs
from memtok_jax.models.vision import rope
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.numerics import affine_norm, dense, wide


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
        out |= {"norm_q": layer_norm_specs(k), "norm_k": layer_norm_specs(k)}
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


def sink_of(params, q: jax.Array, cfg: VitConfig) -> Sink | None:
    """The columns that stand for no token, for queries q[B, T, H, K]; None without them."""
    b, t, h, k = q.shape
    if cfg.attention == "kv":
        score = jnp.einsum("bthk,hk->bht", q, params["sink_k"].astype(q.dtype), preferred_element_type=wide(q))[..., None]
        return Sink(score * k ** -0.5, params["sink_v"][None])
    if cfg.attention == "logit":
        return Sink(jnp.broadcast_to(params["sink"].astype(wide(q))[None, :, None, None], (b, h, t, 1)), None)
    return Sink(jnp.zeros((b, h, t, 1), wide(q)), None) if cfg.attention == "zero" else None


def run(params, u: jax.Array, turn: rope.Rotation, cfg: VitConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The attention of normalised tokens u[B, T, D]: (output [B, T, D], what can be captured on the way).

    turn: angles of all tokens; not looked at without rotary positions.
    """
    q, k, v = (dense(u, params[name], cfg.dtype) for name in "qkv")
    if cfg.qk_norm:
        q, k = affine_norm(q, params["norm_q"], cfg.epsilon), affine_norm(k, params["norm_k"], cfg.epsilon)
    captured = {"q": q, "k": k, "v": v}
    if cfg.positions == "rope":
        q, k = rope.rotate(q, turn), rope.rotate(k, turn)
        captured |= {"q_rotated": q, "k_rotated": k}
    y, weight = attend(q, k, v, sink=sink_of(params, q, cfg))
    if cfg.attention == "gate":
        y = y * jax.nn.sigmoid(dense(u, params["gate"], cfg.dtype).astype(y.dtype))
    return dense(flat(y).astype(u.dtype), params["o"], cfg.dtype), captured | {"attention": weight}
