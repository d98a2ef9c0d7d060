"""Transformer-XL: a decoder whose layers see their own inputs of earlier segments; and the Compressive Transformer.

Transformer-XL (Dai et al., arXiv 1901.02860) and, with the other memory, Compressive Transformers (Rae et al., arXiv 1911.05507).

    x = sqrt(D) E[ids]
    a = attention of h to [memory ; h], relative positions                       models/relative.py
    h1 = LN(h + a),   h2 = LN(h1 + W_2 relu(W_1 h1 + b_1) + b_2)                 norm="post", as published
    h1 = h + a(LN),   h2 = h1 + W_2 relu(W_1 LN(h1) + b_1) + b_2                 norm="pre"; LN also of the memory's rows
    memory <- h, the input of this layer, without gradient                       memory/xl.py or memory/compressive.py
    logits = h E^T + b                                                           tied; no norm before; models/adaptive.py

The config's `memory` says which memory a layer has; nothing else differs between the two models. Layers are stacked and
scanned. A memory's own loss comes out of `run` as "auxiliary_loss", which the trainer adds.

Left out of the published model: dropout (a model here is a function of parameters, state and tokens alone).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import compressive, xl
from memtok_jax.models import adaptive, relative, wavefront
from memtok_jax.numerics import REMAT, affine_norm, matmul, recompute, spread
from memtok_jax.sharding import constrain

MEMORIES: dict[type, ModuleType] = {xl.XlConfig: xl, compressive.CompressiveConfig: compressive}

# What an evaluation may change of a trained model: options with which the same parameters are meant to be used.
EVALUATION_FIELDS = ("memory.length", "clamp", "same_length")


@dataclass(frozen=True)
class TransformerXlConfig:
    """A decoder with cached memory.

    vocabulary: V. width: D. layers: L. heads: H, head_dim: K; H K need not be D. hidden: F of the feed-forward.
    memory: an `XlConfig` or a `CompressiveConfig`; its width and dtype are filled in here.
    norm: "post" (published) or "pre". untie_r: each layer has its own u and w; else all share one pair.
    clamp: farther distances count as this one (`clamp_len`); 0 clamps nothing.
    same_length: columns a token sees. "off": the memory and all tokens of the call before it. "on": itself and as many before it as
        the memory has slots, so that the cut of a stream into calls changes nothing. "compat": one fewer, as in the released
        code, whose mask hides one column too many; published evaluations used that.
    cutoffs, shrink: clusters of a vocabulary sorted by frequency, see `adaptive.AdaptiveConfig`; none, a tied softmax.
    std: of the initial weights. dtype: of activations and matrix operands. remat: as in
        `numerics.recompute`. aligned: promise that every call is `whole` for its memory.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    memory: xl.XlConfig | compressive.CompressiveConfig
    norm: str = "post"
    untie_r: bool = False
    clamp: int = 0
    same_length: str = "off"
    cutoffs: tuple[int, ...] = ()
    shrink: int = 1
    std: float = 0.02
    dtype: str = "float32"
    remat: str = "pointwise"
    aligned: bool = False

    def __post_init__(self):
        for name in ("vocabulary", "width", "layers", "heads", "head_dim", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width % 2:
            raise ValueError(f"width={self.width} must be even: half of a position's features are sines, half cosines")
        if self.clamp < 0:
            raise ValueError(f"clamp={self.clamp} must not be negative")
        for name, known in (("norm", ("post", "pre")), ("same_length", ("off", "on", "compat")),
                            ("dtype", ("float32", "bfloat16")), ("remat", REMAT)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(map(repr, known))}")
        if type(self.memory) not in MEMORIES:
            raise ValueError(f"memory={self.memory!r} must be one of {', '.join(kind.__name__ for kind in MEMORIES)}")
        if self.same_length == "compat" and self.memory.slots < 1:
            raise ValueError("same_length='compat' hides a token from itself where the memory has 0 slots; use 'off' or 'on'")
        _ = self.words

    @property
    def words(self) -> adaptive.AdaptiveConfig:
        """Options of embeddings and output layer."""
        return adaptive.AdaptiveConfig(self.vocabulary, self.width, self.cutoffs, self.shrink, self.std, self.dtype)

    @property
    def layer_memory(self) -> Any:
        """Options of the memory of one layer."""
        return replace(self.memory, width=self.width, dtype=self.dtype)

    @property
    def window(self) -> int:
        """Columns that a token sees at least, itself included, once its memory is full."""
        return self.memory.slots + 1

    @property
    def segment(self) -> int:
        """The model has no segment of its own: the call is its segment."""
        return 1

    @property
    def reach(self) -> int | None:
        """The largest distance that a token sees; None where only memory and call limit it."""
        return {"off": None, "on": self.memory.slots, "compat": self.memory.slots - 1}[self.same_length]


class TransformerXlState(NamedTuple):
    """The memory of every layer, stacked: leaves [L, B, ...]."""

    layers: Any


def _memory(cfg: TransformerXlConfig) -> ModuleType:
    return MEMORIES[type(cfg.memory)]


# ---------------------------------------------------------------------------------------------------------------- a layer

def _norm_specs(width: int, std: float) -> dict:
    near_one = lambda key, shape, dtype: 1 + std * jax.random.normal(key, shape, dtype)
    return {"scale": P.ParamSpec((width,), (None,), near_one, decayed=False),
            "bias": P.ParamSpec((width,), (None,), P.zeros, decayed=False)}


def layer_specs(cfg: TransformerXlConfig) -> dict:
    """Attention, feed-forward network, their norms, and what the memory learns."""
    d, f = cfg.width, cfg.hidden
    weight = lambda shape, axes: P.ParamSpec(shape, axes, P.normal(cfg.std))
    bias = lambda size, axis: P.ParamSpec((size,), (axis,), P.zeros, decayed=False)
    out = {
        "attention": relative.specs(d, cfg.heads, cfg.head_dim, cfg.std),
        "norm_attention": _norm_specs(d, cfg.std),
        "mlp": {"w1": weight((d, f), ("embed", "mlp")), "b1": bias(f, "mlp"),
                "w2": weight((f, d), ("mlp", "embed")), "b2": bias(d, None)},
        "norm_mlp": _norm_specs(d, cfg.std),
        "memory": _memory(cfg).specs(cfg.layer_memory),
    }
    return out | ({"position": relative.bias_specs(cfg.heads, cfg.head_dim, cfg.std)} if cfg.untie_r else {})


def feed_forward(params, x: jax.Array, cfg: TransformerXlConfig) -> jax.Array:
    """W_2 relu(W_1 x + b_1) + b_2."""
    hidden = matmul(x, params["w1"], cfg.dtype)
    hidden = jax.nn.relu(hidden + spread(params["b1"], hidden)).astype(x.dtype)
    y = matmul(hidden, params["w2"], cfg.dtype)
    return (y + spread(params["b2"], y)).astype(x.dtype)


def visible_columns(real_BR: jax.Array, tokens: int, reach: int | None) -> jax.Array:
    """bool[B, T, R + T]: real rows of the memory, and tokens up to the query itself, no farther than `reach`."""
    r = real_BR.shape[1]
    distance = relative.distances(tokens, r + tokens)
    near = distance >= 0 if reach is None else (distance >= 0) & (distance <= reach)
    real = jnp.concatenate([real_BR, jnp.ones((real_BR.shape[0], tokens), bool)], axis=1)
    return near[None] & real[:, None]


def layer(params, position, state, x: jax.Array, cfg: TransformerXlConfig, length: jax.Array):
    """One layer on x[B, T, D]: (x, state of its memory, statistics). position: u and w, where all layers share them."""
    memory, tokens, pre = _memory(cfg), x.shape[1], cfg.norm == "pre"
    rows, real = memory.read(params["memory"], state, cfg.layer_memory, whole=cfg.aligned)
    normed = (lambda y: affine_norm(y, params["norm_attention"])) if pre else (lambda y: y)
    columns = normed(jnp.concatenate([rows.astype(x.dtype), x], axis=1))
    y, weight = relative.attend(params["attention"], params.get("position", position), columns, tokens,
                                visible_columns(real, tokens, cfg.reach), cfg.clamp, cfg.dtype)
    state, seen = _write(params, state, x, weight, cfg, length)
    x = constrain(x + y, "batch", "length", "embed")
    if pre:
        return x + feed_forward(params["mlp"], affine_norm(x, params["norm_mlp"]), cfg), state, seen
    x = affine_norm(x, params["norm_attention"])
    return affine_norm(x + feed_forward(params["mlp"], x, cfg), params["norm_mlp"]), state, seen


def _write(params, state, x: jax.Array, weight: jax.Array, cfg: TransformerXlConfig, length: jax.Array):
    """The layer's input into its memory, with what a compression may want to know of the layer's attention."""
    fixed = jax.lax.stop_gradient((params["attention"], params["norm_attention"]))
    normed = (lambda y: affine_norm(y, fixed[1])) if cfg.norm == "pre" else (lambda y: y)

    def attend(x_BTD, rows_BSD, real_BS):
        return relative.attend_by_content(fixed[0], normed(x_BTD), normed(rows_BSD), real_BS, cfg.dtype)

    mine = jnp.arange(x.shape[1])[None] < length[:, None]
    usage = jnp.where(mine[:, None, :, None], weight, 0).sum((1, 2)) / (cfg.heads * jnp.maximum(length, 1)[:, None])
    return _memory(cfg).update(params["memory"], state, x, cfg.layer_memory, None if cfg.aligned else length, usage, attend,
                               whole=cfg.aligned)


# -------------------------------------------------------------------------------------------------------------- the model

def specs(cfg: TransformerXlConfig) -> dict:
    """Embeddings, which are also the output layer, the stacked layers, and the u and w that they share."""
    out = adaptive.specs(cfg.words) | {"layers": P.stack(layer_specs(cfg), cfg.layers)}
    return out if cfg.untie_r else out | {"position": relative.bias_specs(cfg.heads, cfg.head_dim, cfg.std)}


def state_specs(cfg: TransformerXlConfig, batch: int) -> TransformerXlState:
    """The memory of each layer."""
    return TransformerXlState(P.stack(_memory(cfg).state_specs(cfg.layer_memory, batch), cfg.layers))


def init_state(params, cfg: TransformerXlConfig, batch: int) -> TransformerXlState:
    """Empty memories."""
    return P.zero_state(state_specs(cfg, batch))


def refresh(params, state: TransformerXlState, cfg: TransformerXlConfig) -> TransformerXlState:
    """The carry as it is: nothing in it is computed from parameters alone."""
    return state


def for_training(cfg: TransformerXlConfig, tokens: int) -> TransformerXlConfig:
    """The same model for calls of `tokens` tokens without padding; raises ValueError where its memory refuses them."""
    if tokens % cfg.memory.unit:
        raise ValueError(f"a training segment of {tokens} tokens is not a multiple of the {cfg.memory.unit} rows that "
                         "model.memory compresses together")
    return replace(cfg, aligned=True)


def embed(params, ids: jax.Array, cfg: TransformerXlConfig) -> jax.Array:
    """ids[B, T] -> [B, T, D] in the compute dtype."""
    x = adaptive.embed(params, ids, cfg.words) * cfg.width ** 0.5
    return constrain(x.astype(x.dtype if x.dtype == jnp.float64 else jnp.dtype(cfg.dtype)), "batch", "length", "embed")


def output(params, x: jax.Array, cfg: TransformerXlConfig) -> jax.Array:
    """[B, T, D] -> logits f32[B, T, V]."""
    return constrain(adaptive.logits(params, x, cfg.words), "batch", "length", "vocab")


def run(params, state: TransformerXlState, ids: jax.Array, cfg: TransformerXlConfig, length=None):
    """`apply` with the statistics of the memories, stacked over layers: name -> f32[L]."""
    length = P.full_length(ids) if length is None else length

    def body(x, tree):
        x, after, seen = layer(tree[0], params.get("position"), tree[1], x, cfg, length)
        return x, (after, seen)

    x, (after, seen) = jax.lax.scan(recompute(body, cfg.remat), embed(params, ids, cfg), (params["layers"], state.layers))
    return output(params, x, cfg), TransformerXlState(after), seen


def apply(params, state: TransformerXlState, ids: jax.Array, cfg: TransformerXlConfig, length=None):
    """One segment of tokens.

    ids: i32[B, T]. length: i32[B], real tokens of each row (a prefix of the row); left out, all T.
    Returns (logits f32[B, T, V], state).
    """
    return run(params, state, ids, cfg, length)[:2]


def run_segments(params, state: TransformerXlState, ids_NBT: jax.Array, cfg: TransformerXlConfig):
    """N segments at once along the diagonals of layers and segments: what a scan of `run` over them gives.

    ids_NBT: i32[N, B, T], all tokens real. Returns (logits f32[N, B, T, V], state, statistics summed over segments).
    """
    n, b, t = ids_NBT.shape
    full = jnp.full((b,), t, jnp.int32)

    def one(tree, state, x):
        return layer(tree, params.get("position"), state, x, cfg, full)

    one = recompute(one, cfg.remat)
    x = embed(params, ids_NBT.reshape(n * b, t), cfg).reshape(n, b, t, cfg.width)
    x, after, seen = wavefront.run(one, params["layers"], state.layers, x)
    logits = output(params, x.reshape(n * b, t, cfg.width), cfg)
    return logits.reshape(n, b, t, cfg.vocabulary), TransformerXlState(after), seen


def statistics(params, state: TransformerXlState, ids: jax.Array, cfg: TransformerXlConfig, length=None) -> dict[str, jax.Array]:
    """What the memories did with a segment: name -> f32[], summed over layers where it is a loss."""
    return {name: value.sum() for name, value in run(params, state, ids, cfg, length)[2].items()}
