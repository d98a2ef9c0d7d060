"""The neural memory written the obvious way: one gradient matrix per token, then two associative scans per chunk.

A fourth view of the rule of `memtok_jax.memory.neural`, with the same `run` as `scan.py` and `literal.py`: gradients at
the weights of the chunk start; step size, momentum and forgetting for every token; every read at its own weights. But
each W_t and S_t of a chunk exists in memory, where the chunked form needs no array of that shape. Kept only to be
measured against, so it takes whole chunks from a chunk start and no padding.

    S_t = eta_t S_{t-1} - theta_t grad |f_W(k_t) - v_t|^2      at W = weights of the chunk start
    W_t = (1 - alpha_t) W_{t-1} + alpha_t target + S_t
    y_t = f_{W_t}(q_t)                                          or W_{t-1}, if `read` is "before"
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.networks import forward, plain
from memtok_jax.memory.neural.rule import Carry, Inputs, Weights, clip_steps


def recurrence(decay: jax.Array, push: jax.Array, start: jax.Array) -> jax.Array:
    """All y_t = decay_t y_{t-1} + push_t with y_0 = start. decay: f[C], push: f[C, ...], start: f[...]; f[C, ...]."""
    decay = decay.reshape(decay.shape + (1,) * start.ndim)
    push = push.at[0].add(decay[0] * start)

    def compose(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(compose, (jnp.broadcast_to(decay, push.shape), push))[1]


def chunk(start: Weights, slow, carry: Carry, x: Inputs, cfg: NeuralMemoryConfig) -> tuple[Carry, jax.Array]:
    """One whole chunk of one memory. start: [...] leaves; x: leaves [C, ...]. Returns the carry and reads [C, K]."""

    def total(deviations):
        return {name: start[name] + w for name, w in deviations.items()}

    def loss(weights, k, v):
        return cfg.loss_scale * jnp.square(forward(slow, k[None], plain(weights, cfg.dtype), cfg)[0] - v).sum()

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(total(carry.weights), x.k, x.v)
    step = clip_steps(x.step, sum(jax.vmap(jnp.vdot)(g, g) for g in gradients.values()), cfg.clip)
    keep = jnp.exp(x.log_keep)

    def weights_and_surprise(name):
        surprise = recurrence(
            jnp.exp(x.log_momentum), -jax.vmap(jnp.multiply)(step, gradients[name]), carry.surprise[name]
        )
        target = jnp.zeros_like(start[name]) if cfg.forget_to == "init" else -start[name]
        push = surprise + jax.vmap(jnp.multiply, in_axes=(0, None))(1 - keep, target)
        return recurrence(keep, push, carry.weights[name]), surprise

    weights, surprises = {}, {}
    for name in start:
        weights[name], surprises[name] = weights_and_surprise(name)
    last = {name: w[-1] for name, w in weights.items()}
    if cfg.read == "before":
        weights = {name: jnp.concatenate([carry.weights[name][None], w[:-1]]) for name, w in weights.items()}
    y = jax.vmap(lambda w, q: forward(slow, q[None], plain(total(w), cfg.dtype), cfg)[0])(weights, x.q)
    return Carry(last, last, {name: s[-1] for name, s in surprises.items()}), y


def run(
    start: Weights, slow, carry: Carry, phase_B: jax.Array, length_B: jax.Array, inputs: Inputs, cfg: NeuralMemoryConfig,
    whole: bool = True,
) -> tuple[jax.Array, Carry, jax.Array, dict]:
    """The memory over T tokens of every row, T a multiple of the chunk; shapes as in `scan.run`.

    phase_B and length_B must be 0 and T, as `whole` says (they are not read). The statistics are empty.
    The backward pass keeps one carry per chunk and computes the rest again.
    """
    tokens = inputs.k.shape[1]
    per_head = Inputs(1, 1, 1, 1, 1, 1, None)
    heads = jax.vmap(partial(chunk, cfg=cfg), in_axes=(0, 0, 0, per_head), out_axes=(0, 1))
    rows = jax.vmap(heads, in_axes=(None, None, 0, 0))
    by_chunk = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, cfg.chunk, *x.shape[2:]), 1, 0)
    split = jax.tree.map(by_chunk, inputs._replace(real=None))
    body = jax.checkpoint(lambda c, x: rows(start, slow, c, x), prevent_cse=False)
    carry, y = jax.lax.scan(body, carry, split)
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], tokens, *y.shape[3:]), carry, phase_B, {}
