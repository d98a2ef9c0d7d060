"""A decoder of GPT-2's shape whose mask and positions are arguments: a backbone for memories that own rows of the input.

    x <- x + attention(layer_norm(x))        biases everywhere, softmax(q k / sqrt(K)) over what `visible` shows
    x <- x + W_2 gelu(W_1 layer_norm(x))     gelu in its tanh form
    logits = layer_norm(x) E^T               the output layer is the embedding, or a matrix of its own

Positions are explicit. "learned": a row of a table is added to each input, memory included (GPT-2). "relative": the score gets
(q + v) W_r r(i - j) beside (q + u) k, as in Transformer-XL (arXiv 1901.02860, section 3.3), but with the signed distance:
r has sines (odd) and cosines (even), so a key behind its query is told from one in front of it; "paper" masks show both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.numerics import HIDDEN, affine_norm, dense, matmul, recompute, spread, wide
from memtok_jax.sharding import constrain, look_up

RELATIVE_BASE = 10000.0
# Initial standard deviation of v. The scores v W_r r(i - j) then differ by about 2 between distances, so that each head prefers a
# few distances from the start, whatever stands there: a memory is written and read by place before it can be used by content.
# From v = 0 RMT took twice as many updates to copy 12 symbols, and was still at chance with 24 after 500 (docs/log.md).
DISTANCE_STD = 3.0


@dataclass(frozen=True)
class DecoderConfig:
    """vocabulary: V. width: D. layers: L. head_dim: K. hidden: F. positions: rows of the table, or longest distance plus one.
    position: "learned" or "relative". scale: factor of the word embeddings (1 in GPT-2, sqrt(D) in Transformer-XL).
    tied: the output layer is the embedding.
    dtype: of activations and matrix operands. remat: as in `numerics.recompute`. unroll: layers side by side.
    """

    vocabulary: int
    width: int
    layers: int
    head_dim: int
    hidden: int
    positions: int
    position: str = "learned"
    scale: float = 1.0
    tied: bool = True
    dtype: str = "float32"
    remat: str = "pointwise"
    unroll: int = 1

    @property
    def heads(self) -> int:
        """H."""
        return self.width // self.head_dim


class Past(NamedTuple):
    """Keys and values of rows that earlier calls have seen, [B, S, H, K] of one layer or [L, B, S, H, K] of all."""

    k: jax.Array
    v: jax.Array


class View(NamedTuple):
    """What each row sees and where it stands: S columns of the past, then the E rows themselves."""

    visible: jax.Array  # bool[B, E, S+E]
    query: jax.Array    # i32[B, E]     positions of the rows
    key: jax.Array      # i32[B, S+E]   positions of the columns


# ----------------------------------------------------------------------------------------------------------- parameters

def specs(cfg: DecoderConfig) -> dict:
    """Embedding [V, D], output [D, V] where it is not tied, positions [P, D] where they are learned, stacked layers, last norm."""
    std = cfg.width ** -0.5
    out = {
        "embedding": P.ParamSpec((cfg.vocabulary, cfg.width), ("vocab", "embed"), P.normal(std), decayed=False),
        "layers": P.stack(layer_specs(cfg), cfg.layers),
        "norm": _norm_specs(cfg),
    }
    if not cfg.tied:
        out |= {"output": P.ParamSpec((cfg.width, cfg.vocabulary), ("embed", "vocab"), P.fan_in(0))}
    if cfg.position == "relative":
        return out
    # As large as a word embedding is when it enters: beside a memory of unit size a small position would not be seen.
    table = P.ParamSpec((cfg.positions, cfg.width), (None, "embed"), P.normal(std * cfg.scale), decayed=False)
    return out | {"positions": table}


def _norm_specs(cfg: DecoderConfig) -> dict:
    one = lambda init: P.ParamSpec((cfg.width,), (None,), init, decayed=False)
    return {"scale": one(P.ones), "bias": one(P.zeros)}


def layer_specs(cfg: DecoderConfig) -> dict:
    """One layer: projections [D, H, K] with biases [H, K], output, feed-forward, two norms."""
    d, h, k, f = cfg.width, cfg.heads, cfg.head_dim, cfg.hidden
    small = (2 * cfg.layers) ** -0.5
    bias = lambda shape, axes: P.ParamSpec(shape, axes, P.zeros, decayed=False)
    head = lambda: {"w": P.ParamSpec((d, h, k), ("embed", "heads", None), P.fan_in(0)), "b": bias((h, k), ("heads", None))}
    out = {
        "norm_attention": _norm_specs(cfg), "q": head(), "k": head(), "v": head(),
        "o": {"w": P.ParamSpec((d, d), ("heads", "embed"), P.fan_in(0, small)), "b": bias((d,), (None,))},
        "norm_mlp": _norm_specs(cfg),
        "up": {"w": P.ParamSpec((d, f), ("embed", "mlp"), P.fan_in(0)), "b": bias((f,), ("mlp",))},
        "down": {"w": P.ParamSpec((f, d), ("mlp", "embed"), P.fan_in(0, small)), "b": bias((d,), (None,))},
    }
    if cfg.position == "learned":
        return out
    return out | {"r": {"w": P.ParamSpec((d, h, k), ("embed", "heads", None), P.fan_in(0)),
                        "u": bias((h, k), ("heads", None)),
                        "v": P.ParamSpec((h, k), ("heads", None), P.normal(DISTANCE_STD), decayed=False)}}


def past_specs(cfg: DecoderConfig, batch: int, slots: int) -> Past:
    """Keys and values of `slots` rows in every layer."""
    one = lambda: P.StateSpec((cfg.layers, batch, slots, cfg.heads, cfg.head_dim), ("layers", "batch", None, "heads", None),
                              jnp.dtype(cfg.dtype))
    return Past(one(), one())


# --------------------------------------------------------------------------------------------------------- computation

def embed(params, ids: jax.Array, cfg: DecoderConfig) -> jax.Array:
    """Word embeddings [B, T, D] without positions, in the compute dtype."""
    x = look_up(params["embedding"], ids) * cfg.scale
    return x if x.dtype == jnp.float64 else x.astype(cfg.dtype)


def distance_features(cfg: DecoderConfig, dtype) -> jax.Array:
    """Sines and cosines of the signed distances -(P-1) .. P-1: [2P-1, D]."""
    distance = jnp.arange(1 - cfg.positions, cfg.positions, dtype=dtype)
    half = cfg.width // 2
    angle = distance[:, None] * (RELATIVE_BASE ** (-jnp.arange(half, dtype=dtype) / half))[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def scores(params, q: jax.Array, k: jax.Array, view: View, cfg: DecoderConfig) -> jax.Array:
    """Scores [B, H, E, S+E] before the mask, in float32."""
    dtype = wide(q)
    dot = lambda a, b: jnp.einsum("bthk,bshk->bhts", a, b, preferred_element_type=dtype)
    if cfg.position == "learned":
        return dot(q, k) * cfg.head_dim ** -0.5
    r = params["r"]
    feature = distance_features(cfg, dtype).astype(q.dtype)
    far = matmul(feature, r["w"].reshape(cfg.width, -1), cfg.dtype).astype(q.dtype).reshape(-1, cfg.heads, cfg.head_dim)
    by_distance = jnp.einsum("bthk,phk->bhtp", q + spread(r["v"], q).astype(q.dtype), far, preferred_element_type=dtype)
    index = view.query[:, :, None] - view.key[:, None, :] + cfg.positions - 1
    relative = jnp.take_along_axis(by_distance, index[:, None], axis=-1, mode="clip")
    return (dot(q + spread(r["u"], q).astype(q.dtype), k) + relative) * cfg.head_dim ** -0.5


def attention(params, x: jax.Array, past: Past, view: View, cfg: DecoderConfig) -> tuple[jax.Array, Past]:
    """The attention branch [B, E, D], and keys and values of the E rows."""
    u = affine_norm(x, params["norm_attention"])
    q, k, v = (dense(u, params[name], cfg.dtype) for name in "qkv")
    join = lambda old, new: jnp.concatenate([old.astype(new.dtype), new], axis=1)
    score = scores(params, q, join(past.k, k), view, cfg)
    weight = jax.nn.softmax(jnp.where(view.visible[:, None], score, HIDDEN), axis=-1).astype(v.dtype)
    y = jnp.einsum("bhts,bshk->bthk", weight, join(past.v, v), preferred_element_type=wide(v)).astype(x.dtype)
    return dense(y.reshape(x.shape), params["o"], cfg.dtype), Past(k, v)


def past_of(params, rows: jax.Array, cfg: DecoderConfig) -> Past:
    """Keys and values that one layer makes of inputs it had before, rows[B, S, D], with the parameters of now."""
    u = affine_norm(rows, params["norm_attention"])
    return Past(*(dense(u, params[name], cfg.dtype) for name in "kv"))


def layer(params, x: jax.Array, past: Past, view: View, cfg: DecoderConfig) -> tuple[jax.Array, Past]:
    """One layer: x[B, E, D] -> (x, keys and values of these rows). A pure function of one layer's arrays, so it can be mapped
    over layers that stand side by side."""
    y, new = attention(params, x, past, view, cfg)
    x = constrain(x + y, "batch", "length", "embed")
    hidden = jax.nn.gelu(dense(affine_norm(x, params["norm_mlp"]), params["up"], cfg.dtype), approximate=True)
    x = x + dense(hidden, params["down"], cfg.dtype)
    return constrain(x, "batch", "length", "embed"), new


def place(params, x: jax.Array, view: View, cfg: DecoderConfig) -> jax.Array:
    """The rows with their learned positions; relative positions act in the scores instead."""
    if cfg.position == "relative":
        return x
    return x + look_up(params["positions"], view.query).astype(x.dtype)


def scan_layers(step, x: jax.Array, layers, cfg: DecoderConfig):
    """`step(x, one layer of the trees) -> (x, out)` through all layers."""
    return jax.lax.scan(recompute(step, cfg.remat), x, layers, unroll=cfg.unroll)


def run(params, x: jax.Array, past: Past, view: View, cfg: DecoderConfig) -> tuple[jax.Array, Past]:
    """All layers: rows x[B, E, D] without positions -> (hidden states after the last norm, keys and values [L, B, E, H, K])."""
    x, new = scan_layers(lambda x, tree: layer(tree[0], x, tree[1], view, cfg), place(params, x, view, cfg),
                         (params["layers"], past), cfg)
    return affine_norm(x, params["norm"]), new


def output(params, h: jax.Array, cfg: DecoderConfig) -> jax.Array:
    """Logits f32[B, T, V] of hidden states after the last norm."""
    table = params["embedding"].T if cfg.tied else params["output"]
    return constrain(matmul(h, table, cfg.dtype), "batch", "length", "vocab")


def put(past: Past, new: Past, first_B: jax.Array, length_B: jax.Array) -> Past:
    """The past with the first `length_B` rows of new [L, B, T, H, K] in the slots from `first_B` on."""
    def one(old, rows):
        at = jnp.arange(old.shape[2])[None] - first_B[:, None]
        index = jnp.clip(at, 0, rows.shape[2] - 1)[None, :, :, None, None]
        chosen = jnp.take_along_axis(rows, index, axis=2).astype(old.dtype)
        inside = (at >= 0) & (at < length_B[:, None])
        return jnp.where(inside[None, :, :, None, None], chosen, old)

    return jax.tree.map(one, past, new)
