"""Memory networks, written once and run by three interpreters.

A network is a function `forward(slow, x, hooks, cfg)` from keys or queries [C, K] to values [C, K] that touches its fast
weights only through three hooks, each name once:

    dense(name, h)   h @ W
    scale(name, h)   h * w
    shift(name, h)   h + w

It must treat tokens one by one, without mixing them. `plain` runs it at one set of weights. The tapped and the dual
interpreters of `rule.py` run the same function, one for the write and one for the read at each token's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.numerics import layer_norm, lift, matmul
from memtok_jax.params import ParamSpec, constant, fan_in, ones, zeros

ALL = "all"  # the set of gates of a network whose weights share one


class Hooks(NamedTuple):
    """How a network reaches its fast weights."""

    dense: Callable[[str, jax.Array], jax.Array]
    scale: Callable[[str, jax.Array], jax.Array]
    shift: Callable[[str, jax.Array], jax.Array]


def plain(weights: dict[str, jax.Array], dtype: str) -> Hooks:
    """Interpreter: every token at the same weights."""
    return Hooks(
        dense=lambda name, h: matmul(h, weights[name], dtype),
        scale=lambda name, h: h * lift(weights[name], h),
        shift=lambda name, h: h + lift(weights[name], h),
    )


def activate(h: jax.Array, activation: str) -> jax.Array:
    """The network's non-linearity; smooth, because outer gradients need its second derivative."""
    if activation == "silu":
        return jax.nn.silu(h)
    return jax.nn.gelu(h, approximate=activation == "gelu_tanh")


def _mlp(x, hooks: Hooks, cfg: NeuralMemoryConfig):
    h = x
    for layer in range(cfg.depth):
        h = hooks.dense(f"w{layer}", h if layer == 0 else activate(h, cfg.activation))
        if cfg.fast_bias:
            h = hooks.shift(f"b{layer}", h)
    return h


def _swiglu(x, hooks: Hooks, cfg: NeuralMemoryConfig):
    gate, value = jnp.split(hooks.dense("w0", x), 2, axis=-1)
    return hooks.dense("w1", jax.nn.silu(gate) * value)


def _gated(x, hooks: Hooks, cfg: NeuralMemoryConfig):
    branch = _mlp(x, hooks, cfg)
    gate = jax.nn.sigmoid(hooks.dense("gate", jnp.concatenate([branch, x], axis=-1)))
    return gate * branch + (1 - gate) * x


def _low_rank(x, hooks: Hooks, cfg: NeuralMemoryConfig):
    h = hooks.dense("b0", hooks.dense("a0", x))
    return hooks.dense("b1", hooks.dense("a1", activate(h, cfg.activation)))


_BODIES = {"mlp": _mlp, "swiglu": _swiglu, "gated": _gated, "low_rank": _low_rank}


def forward(slow: dict[str, jax.Array], x: jax.Array, hooks: Hooks, cfg: NeuralMemoryConfig) -> jax.Array:
    """f(x) for x[C, K]: body, then LayerNorm with slow gamma and beta, then the residual."""
    h = _BODIES[cfg.network](x, hooks, cfg)
    if cfg.norm:
        h = layer_norm(h)
        h = h + hooks.scale("gamma", h) if cfg.fast_norm else h * lift(slow["gamma"], h) + lift(slow["beta"], h)
    return x + h if cfg.residual else h


# ------------------------------------------------------------------------------------------------------- parameters

def dense_shapes(cfg: NeuralMemoryConfig) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of every dense layer, in the order of the network."""
    k, f, r = cfg.head_dim, cfg.hidden, cfg.rank
    if cfg.network == "swiglu":
        return {"w0": (k, 2 * f), "w1": (f, k)}
    if cfg.network == "low_rank":
        return {"a0": (k, r), "b0": (r, f), "a1": (f, r), "b1": (r, k)}
    widths = [k] + [f] * (cfg.depth - 1) + [k]
    shapes = {f"w{i}": (widths[i], widths[i + 1]) for i in range(cfg.depth)}
    return shapes | ({"gate": (2 * k, k)} if cfg.network == "gated" else {})


def gate_sets(cfg: NeuralMemoryConfig) -> dict[str, str]:
    """Fast weight -> the set of gates that moves it: ALL, or the name of its dense layer (for a vector, the one before it)."""
    if cfg.gates == "shared" and cfg.forget_by == "head":
        return dict.fromkeys(fast_specs(cfg), ALL)
    layers = list(dense_shapes(cfg))
    before = {f"b{i}": f"w{i}" for i in range(cfg.depth)} | {"gamma": layers[-1]}
    return {name: name if name in layers else before[name] for name in fast_specs(cfg)}


def fast_specs(cfg: NeuralMemoryConfig) -> dict[str, ParamSpec]:
    """The learned initial fast weights, leaves [H, ...]. Weight decay leaves them out: a deep memory at zero learns nothing."""
    h = cfg.heads
    dense = {name: ParamSpec((h, *shape), ("heads", None, None), fan_in(-2), decayed=False)
             for name, shape in dense_shapes(cfg).items()}
    vectors = {f"b{i}": cfg.hidden if i < cfg.depth - 1 else cfg.head_dim for i in range(cfg.depth)} \
        if cfg.fast_bias and cfg.network in ("mlp", "gated") else {}
    if cfg.fast_norm:
        vectors["gamma"] = cfg.head_dim
    return dense | {name: ParamSpec((h, size), ("heads", None), zeros, decayed=False) for name, size in vectors.items()}


def slow_specs(cfg: NeuralMemoryConfig) -> dict[str, ParamSpec]:
    """Parameters of the network that the inner loop does not change, leaves [H, K]."""
    if not cfg.norm or cfg.fast_norm:
        return {}
    shape, axes = (cfg.heads, cfg.head_dim), ("heads", None)
    return {"gamma": ParamSpec(shape, axes, ones, decayed=False), "beta": ParamSpec(shape, axes, constant(0.0), decayed=False)}
