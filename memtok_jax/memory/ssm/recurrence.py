"""What the selective scans share: the linear recurrence, its blocks, the convolution with a carry, initial steps.

    h_t = a_t h_{t-1} + u_t                       `linear_recurrence`
    g_t = a_{t+1} g_{t+1} + (gradient of h_t)     its derivative: the same recurrence, backwards

The derivative is written out, because what automatic differentiation makes of an associative scan stores several arrays for each
of its levels. It is a function of the same primitive, so it can be differentiated again; forward mode is not defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory.neural.features import causal_conv
from memtok_jax.numerics import spread, wide

STEPS = (1e-3, 1e-1)  # initial steps lie between these, evenly in the logarithm
LEAST_STEP = 1e-4


# ------------------------------------------------------------------------------------------------------ linear recurrence

def token_by_token(decay: jax.Array, add: jax.Array, h: jax.Array) -> jax.Array:
    """The recurrence as a loop: the least work, for a processor that gains nothing from side-by-side tokens."""

    def token(h, x):
        h = x[0] * h + x[1]
        return h, h

    return jax.lax.scan(token, h, (decay, add))[1]


def side_by_side(decay: jax.Array, add: jax.Array, h: jax.Array) -> jax.Array:
    """The recurrence in log2 Q steps over all tokens: pairs (a, u) compose as (a2 a1, a2 u1 + u2)."""
    first = (decay[:1] * h[None]) + add[:1]
    pairs = (decay, jnp.concatenate([first, add[1:]]))
    return jax.lax.associative_scan(lambda one, two: (two[0] * one[0], two[0] * one[1] + two[1]), pairs)[1]


@jax.custom_vjp
def linear_recurrence(decay: jax.Array, add: jax.Array, h: jax.Array) -> jax.Array:
    """All states of h_t = decay_t h_{t-1} + add_t: decay and add [Q, ...], h [...] before the first -> [Q, ...].

    Each platform computes it in the order that suits it; a CPU does the tokens one after the other (docs/log.md).
    """
    if decay.shape[0] == 1:
        return decay * h[None] + add
    return jax.lax.platform_dependent(decay, add, h, cpu=token_by_token, default=side_by_side)


def _forward(decay, add, h):
    states = linear_recurrence(decay, add, h)
    return states, (decay, states, h)


def _backward(kept, gradient):
    decay, states, h = kept
    later = jnp.concatenate([decay[1:], jnp.ones_like(decay[:1])])
    to_add = linear_recurrence(later[::-1], gradient[::-1], jnp.zeros_like(h))[::-1]
    before = jnp.concatenate([h[None], states[:-1]])
    return to_add * before, to_add, decay[0] * to_add[0]


linear_recurrence.defvjp(_forward, _backward)


def in_blocks(body: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]], h: jax.Array, xs: Any, block: int):
    """(y [B, T, ...], h): `body(h, block of xs) -> (h, y)` on one block of tokens after the other.

    xs: leaves [B, T, ...], given to the body as [Q, B, ...]; a last block that is short is filled with zeros, which must not
    change h. The backward pass stores h at the borders of blocks and computes each block again.
    """
    tokens = jax.tree.leaves(xs)[0].shape[1]
    size = max(1, min(block, tokens))
    n = max(1, -(-tokens // size))

    def cut(x):
        x = jnp.moveaxis(jnp.pad(x, [(0, 0), (0, n * size - tokens)] + [(0, 0)] * (x.ndim - 2)), 1, 0)
        return x.reshape(n, size, *x.shape[1:])

    xs = jax.tree.map(cut, xs)
    if n == 1:
        h, y = body(h, jax.tree.map(lambda x: x[0], xs))
    else:
        h, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), h, xs)
        y = y.reshape(n * size, *y.shape[2:])
    return jnp.moveaxis(y, 0, 1)[:, :tokens], h


# ------------------------------------------------------------------------------------------------------------ convolution

def conv_specs(width: int, channels: int, axis: str | None) -> dict:
    """`w` [width, channels], the last tap for the current token, and `b` [channels]."""
    return {"w": P.ParamSpec((width, channels), (None, axis), uniform(width ** -0.5)),
            "b": P.ParamSpec((channels,), (axis,), P.zeros, decayed=False)}


def convolve(params, x: jax.Array, tail: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """silu(conv(x) + b) in float32, and the inputs of the last real tokens: x[B, T, E], tail [B, width-1, E]."""
    x = x.astype(wide(x))
    y, tail = causal_conv(x, tail, params["w"].astype(x.dtype), length)
    return jax.nn.silu(y + spread(params["b"], y)), tail


# --------------------------------------------------------------------------------------------------------- initial values

def uniform(bound: float) -> P.Initializer:
    """Uniform between -bound and bound."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def step_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The bias whose softplus is a step exp(U(log 1e-3, log 1e-1)), at least 1e-4."""
    low, high = (math.log(s) for s in STEPS)
    step = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, dtype, low, high)), LEAST_STEP)
    return step + jnp.log(-jnp.expm1(-step))


def log_counting(axis: int) -> P.Initializer:
    """log(1), log(2), ... along one axis, the same along the others."""

    def init(key, shape, dtype):
        numbers = jnp.log(jnp.arange(1, shape[axis] + 1, dtype=dtype))
        return jnp.broadcast_to(numbers.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))]), shape)

    return init


# ------------------------------------------------------------------------------------------------------------- statistics

def statistics(step: jax.Array, h: jax.Array, length: jax.Array) -> dict[str, jax.Array]:
    """Mean step of the real tokens and the root mean square of the state afterwards, f32[]. step: 0 at padding."""
    step, h = jax.lax.stop_gradient((step, h))
    count = jnp.maximum(length.sum().astype(step.dtype) * math.prod(step.shape[2:]), 1)
    return {"step": (step.sum() / count).astype(jnp.float32),
            "state_rms": jnp.sqrt(jnp.square(h).sum() / max(h.size, 1)).astype(jnp.float32)}
