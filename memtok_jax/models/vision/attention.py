"""Attention of all tokens to all tokens, and four alternatives that may make registers unnecessary.

| name      | weights of a query's keys                          | parameters           | source |
|-----------|----------------------------------------------------|----------------------|--------|
| "softmax" | e^s / sum e^s                                      | -                    |        |
| "zero"    | e^s / (1 + sum e^s): may attend to nothing         | -                    | softmax1, "Attention Is Off By One" |
| "logit"   | e^s / (e^r + sum e^s), one r per head              | sink [H]             | attention sinks as logits |
| "kv"      | one more key and value per head, the same for all  | sink_k, sink_v [H, K] | Massive Activations, arXiv 2402.17762 |
| "gate"    | softmax; each head's output times sigmoid(W u)     | gate [D, H, K]       | Gated Attention, arXiv 2505.06708 |

The alternatives are those of `models/sinks.py`, here with keys and values for each query head. u is the normalised input of the
layer. Captured weights leave out the extra column of "zero", "logit" and "kv", so the weights of a query then sum to less than one.
"""

from __future__ import annotations

import jax

from memtok_jax import params as P
from memtok_jax.models import sinks
from memtok_jax.models.attend import attend, flat
from memtok_jax.models.layers import layer_norm_specs
from memtok_jax.models.vision import rope
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.numerics import affine_norm, dense


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


def _sink(cfg: VitConfig) -> str:
    return cfg.attention if cfg.attention in sinks.SINKS else "none"


def _alternative_specs(cfg: VitConfig) -> dict:
    gate = "elementwise" if cfg.attention == "gate" else "none"
    return sinks.specs(_sink(cfg), cfg.heads, cfg.heads, cfg.head_dim, cfg.head_dim) | sinks.gate_specs(
        gate, cfg.width, cfg.heads, cfg.head_dim, P.truncated_normal(cfg.std))


def run(params, u: jax.Array, turn: rope.Rotation, cfg: VitConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The attention of normalised tokens u[B, T, D]: (output [B, T, D], what can be captured on the way).

    turn: angles of all tokens; not used without rotary positions. Captured: q, k, v f[B, T, H, K], with rotary positions also
    q_rotated and k_rotated, and attention f32[B, H, T, T].
    """
    q, k, v = (dense(u, params[name], cfg.dtype) for name in "qkv")
    if cfg.qk_norm:
        q, k = affine_norm(q, params["norm_q"], cfg.epsilon), affine_norm(k, params["norm_k"], cfg.epsilon)
    captured = {"q": q, "k": k, "v": v}
    if cfg.positions == "rope":
        q, k = rope.rotate(q, turn), rope.rotate(k, turn)
        captured |= {"q_rotated": q, "k_rotated": k}
    y, weight = attend(q, k, v, sink=sinks.column(params, q, _sink(cfg)))
    y = sinks.gated(params, y, u, cfg.dtype)
    return dense(flat(y).astype(u.dtype), params["o"], cfg.dtype), captured | {"attention": weight}
