"""A decoder with memory: embedding, learned prefix, layers, output.

The pattern of layers is repeated; the parameters and carries of the repeats are stacked and scanned, so compile time does not
grow with depth. The prefix runs through the layers once for each parameter value, not once for each token: what the
layers keep of it stands in the carry and is renewed by `refresh`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import tokens
from memtok_jax.models import block, wavefront
from memtok_jax.models.config import LanguageModelConfig, for_training
from memtok_jax.numerics import matmul, rms_norm
from memtok_jax.sharding import constrain, look_up

__all__ = ["LanguageModelConfig", "LanguageModelState", "apply", "for_training", "init_state", "refresh", "specs",
           "state_specs", "statistics"]


class LanguageModelState(NamedTuple):
    """One carry for each kind of layer of the pattern, stacked over the repeats: leaves [L / len(pattern), B, ...]."""

    layers: tuple


def _tokens(cfg: LanguageModelConfig) -> tokens.TokensConfig:
    return tokens.TokensConfig(cfg.width, cfg.prefix)


def specs(cfg: LanguageModelConfig) -> dict:
    """Embedding [V, D], prefix [M, D], stacked layers, last norm, and an output layer where it is not tied."""
    out = {
        "embedding": P.ParamSpec((cfg.vocabulary, cfg.width), ("vocab", "embed"), P.normal(cfg.width ** -0.5), decayed=False),
        "prefix": tokens.specs(_tokens(cfg)),
        "layers": tuple(P.stack(block.specs(b), cfg.repeats) for b in cfg.blocks),
        "norm": P.ParamSpec((cfg.width,), (None,), P.ones, decayed=False),
    }
    if cfg.tied:
        return out
    return out | {"output": P.ParamSpec((cfg.width, cfg.vocabulary), ("embed", "vocab"), P.fan_in(0))}


def state_specs(cfg: LanguageModelConfig, batch: int) -> LanguageModelState:
    """Shapes and axes of the carry of `batch` streams."""
    return LanguageModelState(tuple(P.stack(block.state_specs(b, batch), cfg.repeats) for b in cfg.blocks))


def _scan_layers(body, x, layers, cfg: LanguageModelConfig):
    """Scan over repeats of the pattern; layers: a tuple with one stacked tree for each kind."""
    def repeat(x, trees):
        outs = []
        for tree, cfg_block in zip(trees, cfg.blocks, strict=True):
            x, out = body(x, tree, cfg_block)
            outs.append(out)
        return x, tuple(outs)

    repeat = jax.checkpoint(repeat, prevent_cse=False) if cfg.remat == "block" else repeat
    return jax.lax.scan(repeat, x, layers, unroll=cfg.unroll)


def refresh(params, state: LanguageModelState, cfg: LanguageModelConfig) -> LanguageModelState:
    """The carry with the part that depends on parameters alone computed anew: keys and values of the prefix.

    A carry that outlives a change of the parameters needs this; it is also how the prefix gets its gradient.
    """
    dtype = jnp.promote_types(jnp.dtype(cfg.dtype), params["prefix"]["tokens"].dtype) \
        if params["prefix"]["tokens"].dtype == jnp.float64 else jnp.dtype(cfg.dtype)
    x = params["prefix"]["tokens"].astype(dtype)
    _, kept = _scan_layers(lambda x, tree, b: block.prefix(tree, x, b), x, params["layers"], cfg)

    def renew(layer, new):
        def one(old, prefix):
            rows = jax.tree.map(lambda o, p: jnp.broadcast_to(p[:, None], o.shape).astype(o.dtype), old.prefix, prefix)
            return old._replace(prefix=rows)
        return {name: one(layer[name], new[name]) for name in layer}

    return LanguageModelState(tuple(renew(layer, new) for layer, new in zip(state.layers, kept, strict=True)))


def init_state(params, cfg: LanguageModelConfig, batch: int) -> LanguageModelState:
    """The carry of streams before their first token, prefix in place."""
    return refresh(params, P.zero_state(state_specs(cfg, batch)), cfg)


def embed(params, ids: jax.Array, cfg: LanguageModelConfig) -> jax.Array:
    """Word embeddings [B, T, D] in the compute dtype."""
    x = look_up(params["embedding"], ids) * cfg.width ** 0.5
    return constrain(x.astype(x.dtype if x.dtype == jnp.float64 else jnp.dtype(cfg.dtype)), "batch", "length", "embed")


def output(params, x: jax.Array, cfg: LanguageModelConfig) -> jax.Array:
    """Logits f32[B, T, V] of hidden states x[B, T, D] before the last norm."""
    table = params["embedding"].T if cfg.tied else params["output"]
    return constrain(matmul(rms_norm(x, params["norm"]), table, cfg.dtype), "batch", "length", "vocab")


def run(params, state: LanguageModelState, ids: jax.Array, cfg: LanguageModelConfig, length=None):
    """`apply` with the statistics of all memories, averaged over layers."""
    def body(x, tree, cfg_block):
        x, after, seen = block.run(*tree, x, cfg_block, length)
        return x, (after, seen)

    layers = tuple(zip(params["layers"], state.layers, strict=True))
    x, outs = _scan_layers(body, embed(params, ids, cfg), layers, cfg)
    state = LanguageModelState(tuple(after for after, _ in outs))
    return output(params, x, cfg), state, [seen for _, seen in outs]


def apply(params, state: LanguageModelState, ids: jax.Array, cfg: LanguageModelConfig, length=None):
    """One segment of tokens.

    ids: i32[B, T]. length: i32[B], real tokens of each row (a prefix of the row); left out, all T.
    Returns (logits f32[B, T, V], state). Raises ValueError where `aligned` is promised and T does not keep the promise.
    """
    return run(params, state, ids, cfg, length)[:2]


def unstack(params, state: LanguageModelState, cfg: LanguageModelConfig):
    """The same model as one whose pattern is all of its layers, so that each layer has arrays of its own.

    A loop over tokens would cut every layer's weights and carry out of a stack for each token, and put the carry back; arrays
    of a layer's own are read where they are. Returns (params, state, cfg); `stack` brings the carry back.
    """
    def cut(kinds):
        return tuple(jax.tree.map(lambda leaf, r=r: leaf[r:r + 1], kind) for r in range(cfg.repeats) for kind in kinds)

    return (params | {"layers": cut(params["layers"])}, LanguageModelState(cut(state.layers)),
            replace(cfg, pattern=cfg.pattern * cfg.repeats, unroll=1))


def stack(state: LanguageModelState, cfg: LanguageModelConfig) -> LanguageModelState:
    """The carry of a model of `cfg` out of that of the model which `unstack` made of it."""
    kinds = len(cfg.pattern)
    return LanguageModelState(tuple(jax.tree.map(lambda *layers: jnp.concatenate(layers), *state.layers[kind::kinds])
                                    for kind in range(kinds)))


def run_segments(params, state: LanguageModelState, ids_NBT: jax.Array, cfg: LanguageModelConfig):
    """N segments at once along the diagonals of layers and segments: what a scan of `run` over them gives.

    What runs side by side is one repeat of the pattern. ids_NBT: i32[N, B, T], all tokens real.
    Returns (logits f32[N, B, T, V], state, statistics summed over segments).
    """
    n, b, t = ids_NBT.shape

    def one(trees, states, x):
        outs = []
        for tree, old, cfg_block in zip(trees, states, cfg.blocks, strict=True):
            x, after, seen = block.run(tree, old, x, cfg_block, None)
            outs.append((after, seen))
        return x, tuple(after for after, _ in outs), [seen for _, seen in outs]

    one = jax.checkpoint(one, prevent_cse=False) if cfg.remat == "block" else one
    x = embed(params, ids_NBT.reshape(n * b, t), cfg).reshape(n, b, t, cfg.width)
    x, layers, seen = wavefront.run(one, params["layers"], state.layers, x)
    logits = output(params, x.reshape(n * b, t, cfg.width), cfg)
    return logits.reshape(n, b, t, cfg.vocabulary), LanguageModelState(layers), seen


def statistics(params, state: LanguageModelState, ids: jax.Array, cfg: LanguageModelConfig, length=None) -> dict[str, jax.Array]:
    """What the memories did with a segment: name -> f32[], mean over layers (maximum where the name says so)."""
    seen = run(params, state, ids, cfg, length)[2]
    names = sorted({name for layer in seen for name in layer})
    values = {name: jnp.concatenate([layer[name] for layer in seen if name in layer]) for name in names}
    return {name: value.max() if name.endswith("_max") else value.mean() for name, value in values.items()}
