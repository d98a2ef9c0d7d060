"""One layer of a vision transformer:

    x <- x + s1 * attention(LN(x))          s1, s2: LayerScale, one factor per feature
    x <- x + s2 * feed_forward(LN(x))       W_2 gelu(W_1 u + b_1) + b_2, or W_3 (silu(W_1 u + b_1) * (W_2 u + b_2)) + b_3
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models import layers
from memtok_jax.models.layers import layer_norm_specs
from memtok_jax.models.vision import attention, rope
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.numerics import affine_norm, dense, spread
from memtok_jax.sharding import constrain


def specs(cfg: VitConfig) -> dict:
    """Norms, attention, feed-forward network, and LayerScale if `layerscale` is above 0."""
    scale = lambda: P.ParamSpec((cfg.width,), (None,), P.constant(cfg.layerscale), decayed=False)
    out = {"norm_attention": layer_norm_specs(cfg.width), "attention": attention.specs(cfg),
           "norm_mlp": layer_norm_specs(cfg.width), "mlp": mlp_specs(cfg)}
    return out | ({"scale_attention": scale(), "scale_mlp": scale()} if cfg.layerscale else {})


def mlp_specs(cfg: VitConfig) -> dict:
    """up [D, F], gate [D, F] with SwiGLU, down [F, D], with biases."""
    d, f = cfg.width, cfg.hidden
    one = lambda shape, axes: {"w": P.ParamSpec(shape, axes, P.truncated_normal(cfg.std)),
                               "b": P.ParamSpec(shape[-1:], (axes[-1] if axes[-1] == "mlp" else None,), P.zeros, decayed=False)}
    out = {"up": one((d, f), ("embed", "mlp")), "down": one((f, d), ("mlp", "embed"))}
    return out | ({"gate": one((d, f), ("embed", "mlp"))} if cfg.feed_forward == "swiglu" else {})


def units(params, u: jax.Array, cfg: VitConfig) -> jax.Array:
    """Hidden units [B, T, F] of normalised tokens u[B, T, D], after the non-linearity."""
    return layers.units(params, u, {"gelu": "gelu_erf"}.get(cfg.feed_forward, cfg.feed_forward), cfg.dtype)


def add(x: jax.Array, y: jax.Array, params, scale: str, keep: jax.Array) -> jax.Array:
    """x + keep * scale * y: the residual sum. keep: f32[B], 0 where the branch is left out for an image."""
    if scale in params:
        y = y * spread(params[scale].astype(y.dtype), y)
    return constrain(x + keep.astype(y.dtype)[:, None, None] * y, "batch", "length", "embed")


def run(params, x: jax.Array, turn: rope.Rotation, keep: jax.Array, edit_units: Callable, cfg: VitConfig):
    """One layer on x[B, T, D]: (x, name -> what can be captured, see `attention.run`; "mlp" f[B, T, F]).

    turn: rotary angles. keep: f32[2, B], factors of the two branches. edit_units: function of the hidden units [B, T, F].
    """
    y, seen = attention.run(params["attention"], affine_norm(x, params["norm_attention"], cfg.epsilon), turn, cfg)
    x = add(x, y, params, "scale_attention", keep[0])
    a = edit_units(units(params["mlp"], affine_norm(x, params["norm_mlp"], cfg.epsilon), cfg))
    x = add(x, dense(a, params["mlp"]["down"], cfg.dtype), params, "scale_mlp", keep[1])
    return x, seen | {"mlp": a}


def stochastic_depth(key: jax.Array | None, cfg: VitConfig, batch: int) -> jax.Array:
    """Factors f32[L, 2, B] of the branches: 0 with probability `drop_path`, else 1 / (1 - drop_path), so that the mean is 1.

    key: one typed key, or one for each image, which makes a row's draws independent of its batch. None: all factors are 1.
    """
    if key is None or cfg.drop_path == 0:
        return jnp.ones((cfg.layers, 2, batch), jnp.float32)
    keys = key if key.ndim else jax.random.split(key, batch)
    kept = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - cfg.drop_path, (cfg.layers, 2)), out_axes=2)(keys)
    return kept.astype(jnp.float32) / (1 - cfg.drop_path)
