"""What attention may do when nothing is worth attending to: parameters of a softmax that need no token. Language and vision share
them.

| `sink`  | weights of a query's keys                   | parameters                       | source |
|---------|---------------------------------------------|----------------------------------|--------|
| "none"  | e^s / sum e^s                               | -                                |        |
| "zero"  | e^s / (1 + sum e^s)                         | -                                | "Zero Sink" of arXiv 2309.17453 |
| "logit" | e^s / (e^r + sum e^s), an r per query head  | `sink` [H]                       | sinks of gpt-oss |
| "kv"    | one more key and value per key head         | `sink_k` [G, K], `sink_v` [G, V] | arXiv 2402.17762, 2410.10781 |

| `gate`        | the output of head h is multiplied by   | parameters       | source |
|---------------|-----------------------------------------|------------------|--------|
| "none"        | 1                                       | -                |        |
| "elementwise" | sigmoid(u W_h), one number a feature    | `gate` [D, H, V] | Gated Attention, arXiv 2505.06708; Qwen3-Next |
| "head"        | sigmoid(u w_h), one number              | `gate` [D, H]    | the same |

"zero" is "logit" with r = 0; "logit" with r -> -infinity is "none"; "kv" with a key and a value of zeros is "zero". Each is one
more column of the softmax, so gradients are right by themselves. u is the normed layer input of the query. The key of "kv" has no
position. A learned sink token (StreamingLLM, section 3.3) is none of these: it is a prefix of one token, `model.prefix=1`.
Weights that `attend` returns are without the column, so their rows sum to less than one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models.attend import Sink, products
from memtok_jax.numerics import dense, wide

SINKS, GATES = ("none", "zero", "logit", "kv"), ("none", "elementwise", "head")


def specs(sink: str, heads: int, kv_heads: int, key_dim: int, value_dim: int) -> dict:
    """What a sink learns: `sink` [H], or `sink_k` [G, K] and `sink_v` [G, V], or nothing."""
    entry = lambda size: P.ParamSpec((kv_heads, size), ("heads", None), P.normal(0.02), decayed=False)
    return {"none": {}, "zero": {}, "logit": {"sink": P.ParamSpec((heads,), ("heads",), P.zeros, decayed=False)},
            "kv": {"sink_k": entry(key_dim), "sink_v": entry(value_dim)}}[sink]


def column(params, q: jax.Array, sink: str) -> Sink | None:
    """The column of queries q[..., T, H, K] that stands for no token; None without one."""
    *lead, tokens, heads, size = q.shape
    dtype = wide(q)
    if sink == "kv":
        score = products(q, params["sink_k"][None].astype(q.dtype), dtype)
        return Sink(score * size ** -0.5, params["sink_v"][None].astype(q.dtype))
    if sink == "none":
        return None
    score = jnp.zeros((heads,), dtype) if sink == "zero" else params["sink"].astype(dtype)
    score = score.reshape((1,) * len(lead) + (heads, 1, 1))
    return Sink(jnp.broadcast_to(score, (*lead, heads, tokens, 1)), None)


def gate_specs(gate: str, width: int, heads: int, value_dim: int, init: P.Initializer) -> dict:
    """`gate`, the projection of the layer's input to one number a feature or a head; nothing without a gate."""
    shapes = {"none": None, "elementwise": (width, heads, value_dim), "head": (width, heads)}
    shape = shapes[gate]
    return {} if shape is None else {"gate": {"w": P.ParamSpec(shape, ("embed", "heads", None)[:len(shape)], init)}}


def gated(params, y: jax.Array, u: jax.Array, dtype: str) -> jax.Array:
    """y[..., T, H, V] times the gate of its token u[..., T, D]; y as it is where there is no gate."""
    if "gate" not in params:
        return y
    gate = jax.nn.sigmoid(dense(u, params["gate"], dtype).astype(wide(y))).astype(y.dtype)
    return y * (gate if gate.ndim == y.ndim else gate[..., None])
