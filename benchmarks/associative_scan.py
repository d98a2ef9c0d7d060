"""The neural memory written the obvious way: one gradient matrix per token, then two associative scans.

Same function as the chunked form of `memtok_jax.memory.neural` (gradients at the weights of the chunk start; step
size, momentum and forgetting for every token; each read after its own token was written), but every W_t and S_t of a
chunk exists in memory. Kept only to be measured against: it needs about 24 times C * P numbers per chunk where the
chunked form needs none of that shape.

    S_t = momentum_t S_{t-1} - step_t grad_W |net(W; k_t) - v_t|^2        at W = weights of the chunk start
    W_t = origin + keep_t (W_{t-1} - origin) + S_t                        origin: what forgetting returns to
    y_t = net(W_t; q_t)

`origin` = the initial weights is the default rule ("forget to init"), zeros is the paper's. One row and one head here;
`jax.vmap` outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Weights = dict[str, jax.Array]


class Tokens(NamedTuple):
    """What the memory needs of T tokens, one row and head."""

    key: jax.Array        # f[T, K]
    value: jax.Array      # f[T, K]
    query: jax.Array      # f[T, K]
    step_size: jax.Array  # f[T]
    momentum: jax.Array   # f[T], in (0, 1)
    keep: jax.Array       # f[T], one minus forgetting


def residual_norm_mlp(scale: jax.Array, shift: jax.Array) -> Callable[[Weights, jax.Array], jax.Array]:
    """The default memory network x + LN(GELU(x w1) w2) * scale + shift, with slow scale and shift [K].

    Its weights are {"w1": [K, F], "w2": [F, K]}; x is [K].
    """

    def net(weights: Weights, x: jax.Array) -> jax.Array:
        h = jax.nn.gelu(x @ weights["w1"], approximate=False) @ weights["w2"]
        h = h - h.mean()
        return x + h * jax.lax.rsqrt((h * h).mean() + 1e-5) * scale + shift

    return net


def _recurrence(decay_T: jax.Array, push: jax.Array, start: jax.Array) -> jax.Array:
    """All y_t = decay_t y_{t-1} + push_t with y_0 = start. push: [T, ...], start: [...]; returns [T, ...]."""
    decay = decay_T.reshape(decay_T.shape + (1,) * start.ndim)
    push = push.at[0].add(decay[0] * start)

    def compose(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(compose, (jnp.broadcast_to(decay, push.shape), push))[1]


def run_chunk(net: Callable, origin: Weights, state: tuple[Weights, Weights], tokens: Tokens) -> tuple[tuple[Weights, Weights], jax.Array]:
    """One chunk. state: (W - origin, S), leaves like `origin`. Returns the new state and the reads [C, K]."""
    deviation, surprise = state

    def loss(weights, key, value):
        return jnp.sum((net(weights, key) - value) ** 2)

    anchor = jax.tree.map(jnp.add, origin, deviation)
    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(anchor, tokens.key, tokens.value)

    def one(gradient, v0, s0):
        s = _recurrence(tokens.momentum, -jax.vmap(jnp.multiply)(tokens.step_size, gradient), s0)
        return _recurrence(tokens.keep, s, v0), s

    both = {name: one(gradients[name], deviation[name], surprise[name]) for name in origin}
    deviations = {name: v for name, (v, _) in both.items()}
    reads = jax.vmap(lambda v, q: net(jax.tree.map(jnp.add, origin, v), q))(deviations, tokens.query)
    last = {name: v[-1] for name, v in deviations.items()}, {name: s[-1] for name, (_, s) in both.items()}
    return last, reads


def run(net: Callable, origin: Weights, state: tuple[Weights, Weights], tokens: Tokens, chunk: int) -> tuple[tuple[Weights, Weights], jax.Array]:
    """T tokens, T a multiple of `chunk`, from a chunk start. Backward keeps one state per chunk and recomputes the rest."""
    split = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), tokens)
    step = jax.checkpoint(lambda carry, piece: run_chunk(net, origin, carry, piece), prevent_cse=False)
    state, reads = jax.lax.scan(step, state, split)
    return state, reads.reshape(-1, *reads.shape[2:])
