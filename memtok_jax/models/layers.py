"""The parts of a layer that no memory owns: norms, projections, the feed-forward network. Each with its specs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models.style import GATED, Backbone
from memtok_jax.numerics import affine_norm, dense, layer_norm, rms_norm, spread, wide


def weight_init(b: Backbone, scale: float = 1.0) -> P.Initializer:
    """Initial values of a matrix [in, ...]."""
    return P.normal(b.style.std) if b.style.std else P.fan_in(0, scale)


def dense_specs(b: Backbone, shape: tuple[int, ...], axes: P.Axes, bias: bool, scale: float = 1.0) -> dict:
    """`w` [in, ...] and, if asked for, `b` [...] of `numerics.dense`."""
    out = {"w": P.ParamSpec(shape, axes, weight_init(b, scale))}
    return out | ({"b": P.ParamSpec(shape[1:], tuple(a if a != "embed" else None for a in axes[1:]), P.zeros, decayed=False)}
                  if bias else {})


# ------------------------------------------------------------------------------------------------------------------ norms

def layer_norm_specs(size: int, std: float = 0.0) -> dict:
    """`scale`, which starts at 1 give or take `std`, and `bias` of a LayerNorm."""
    near_one = lambda key, shape, dtype: 1 + std * jax.random.normal(key, shape, dtype)
    return {"scale": P.ParamSpec((size,), (None,), near_one, decayed=False),
            "bias": P.ParamSpec((size,), (None,), P.zeros, decayed=False)}


def norm_specs(b: Backbone) -> dict:
    """`scale` [D], and `bias` [D] of a LayerNorm."""
    if b.style.norm == "layer":
        return layer_norm_specs(b.width, b.style.std)
    return {"scale": P.ParamSpec((b.width,), (None,), P.zeros if b.style.norm == "rms_offset" else P.ones, decayed=False)}


def rms_scale(scale: jax.Array, b: Backbone) -> jax.Array:
    """What an RMS norm multiplies by, in float32 where something is added."""
    return 1 + scale.astype(wide(scale)) if b.style.norm == "rms_offset" else scale


def norm(params, x: jax.Array, b: Backbone) -> jax.Array:
    """The style's norm over the last axis, computed in float32, returned in x's dtype."""
    if b.style.norm in ("rms", "rms_offset"):
        return rms_norm(x, rms_scale(params["scale"], b), b.style.eps)
    if b.style.norm == "layer_scale":
        y = layer_norm(x.astype(wide(x)), b.style.eps)
        return (y * spread(params["scale"], y)).astype(x.dtype)
    return affine_norm(x, params, b.style.eps)


def branch_norm_specs(b: Backbone) -> dict:
    """The norms of a branch: `norm`, and `norm_after` where the order is "sandwich"."""
    return {"norm": norm_specs(b)} | ({"norm_after": norm_specs(b)} if b.style.order == "sandwich" else {})


def enter(params, x: jax.Array, b: Backbone) -> jax.Array:
    """The input of a branch: norm(x) unless the order norms later. A branch without a norm of its own takes x.

    A mixer calls this itself, because a cache of layer inputs is normed again at each use.
    """
    return norm(params["norm"], x, b) if b.style.order not in ("post", "branch") and "norm" in params else x


def add(params, x: jax.Array, y: jax.Array, b: Backbone) -> jax.Array:
    """The residual sum x + y; the sum or the branch y normed where the order says so."""
    after = {"branch": "norm", "sandwich": "norm_after"}.get(b.style.order)
    y = norm(params[after], y, b) if after else y
    x = x + y.astype(x.dtype)
    return norm(params["norm"], x, b) if b.style.order == "post" else x


# ----------------------------------------------------------------------------------------------------------- feed-forward

def feed_forward_specs(b: Backbone) -> dict:
    """Its norms, up [D, F], down [F, D], and gate [D, F] where there is one."""
    d, f, gated = b.width, b.hidden, b.style.feed_forward in GATED
    bias = {"all": True, "none": False, "ungated": not gated}[b.style.feed_forward_bias]
    out = {} if b.style.order == "parallel_shared" else branch_norm_specs(b)
    out |= {"up": dense_specs(b, (d, f), ("embed", "mlp"), bias),
            "down": dense_specs(b, (f, d), ("mlp", "embed"), bias, b.residual_scale)}
    return out | ({"gate": dense_specs(b, (d, f), ("embed", "mlp"), bias)} if gated else {})


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function at x, computed in float32; the tanh form differs by up to 5e-4."""
    h = x.astype(wide(x))
    return (0.5 * h * (1 + jax.lax.erf(h * 0.5 ** 0.5))).astype(x.dtype)


def units(params, u: jax.Array, kind: str, dtype: str) -> jax.Array:
    """Hidden units [..., F] after the non-linearity: relu(up), gelu(up) in its tanh or its erf form, silu(gate) up, or gelu(gate)
    up in its tanh form."""
    if kind in GATED:
        bend = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}[kind]
        return bend(dense(u, params["gate"], dtype)) * dense(u, params["up"], dtype)
    up = dense(u, params["up"], dtype)
    return {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "gelu_erf": gelu}[kind](up)


def feed_forward(params, u: jax.Array, kind: str, dtype: str) -> jax.Array:
    """down(units(u)): u[..., D] -> [..., D]. kind: "swiglu", "geglu" (arXiv 2002.05202), "gelu", "gelu_erf" or "relu"."""
    return dense(units(params, u, kind, dtype), params["down"], dtype)


# -------------------------------------------------------------------------------------------------------------- precision

def compute_dtype(x: jax.Array, dtype: str) -> jax.Array:
    """x in the dtype of activations; float64 stays float64, so that a model can be checked in it."""
    return x if x.dtype == jnp.float64 else x.astype(dtype)
