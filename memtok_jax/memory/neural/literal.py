"""The rule token by token, as the paper writes it: one `jax.grad` with respect to the weights for every token.

It is slow and short, and tests and benchmarks compare the chunked form with it. The two forms share the network, the clip
of the steps and the types of carry and inputs, nothing else.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.features import gate_of
from memtok_jax.memory.neural.networks import forward, gate_sets, plain
from memtok_jax.memory.neural.rule import Carry, Inputs, clip_steps


def _token(start, slow, carry: Carry, phase, x, cfg: NeuralMemoryConfig):
    """Equations 12 to 15 for one token of one memory."""
    total = lambda deviations: {name: start[name] + w for name, w in deviations.items()}

    def loss(weights):
        return cfg.loss_scale * jnp.square(forward(slow, x.k[None], plain(weights, cfg.dtype), cfg)[0] - x.v).sum()

    gradient = jax.grad(loss)(total(carry.anchor))
    norm = sum(jnp.square(g).sum() for g in gradient.values())
    weights, surprise = {}, {}
    for name, gates in gate_sets(cfg).items():
        step, log_momentum, log_keep = (gate_of(gate, gates) for gate in (x.step, x.log_momentum, x.log_keep))
        surprise[name] = jnp.exp(log_momentum) * carry.surprise[name] - clip_steps(step, norm, cfg.clip) * gradient[name]
        log_keep = log_keep[:, None] if log_keep.ndim else log_keep  # channels are rows of W
        target = jnp.zeros_like(start[name]) if cfg.forget_to == "init" else -start[name]
        weights[name] = jnp.exp(log_keep) * carry.weights[name] - jnp.expm1(log_keep) * target + surprise[name]
    read_at = weights if cfg.read == "after" else carry.weights
    y = forward(slow, x.q[None], plain(total(read_at), cfg.dtype), cfg)[0]
    phase = (phase + 1) % cfg.chunk
    anchor = jax.tree.map(lambda old, new: jnp.where(phase == 0, new, old), carry.anchor, weights)
    return Carry(anchor, weights, surprise), phase, y


def run_one(start, slow, carry: Carry, phase, length, inputs: Inputs, cfg: NeuralMemoryConfig):
    """One memory of one batch row over T tokens: inputs [T, ...], phase and length i32[]."""

    def body(state, xs):
        number, x = xs
        carry, phase = state
        new_carry, new_phase, y = _token(start, slow, carry, phase, x, cfg)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(number < length, a, b), new, old)
        return keep((new_carry, new_phase), state), y

    xs = (jnp.arange(inputs.k.shape[0]), inputs._replace(real=jnp.ones(inputs.k.shape[0], bool)))
    (carry, phase), y = jax.lax.scan(body, (carry, phase), xs)
    return y, carry, phase


def run(start, slow, carry: Carry, phase_B, length_B, inputs: Inputs, cfg: NeuralMemoryConfig, whole: bool = False):
    """The same call as `scan.run`; the statistics are empty, and `whole` changes nothing."""
    per_head = Inputs(k=1, v=1, q=1, step=1, log_momentum=1, log_keep=1, real=None)
    heads = jax.vmap(lambda *a: run_one(*a, cfg), in_axes=(0, 0, 0, None, None, per_head), out_axes=(1, 0, None))
    rows = jax.vmap(heads, in_axes=(None, None, 0, 0, 0, 0))
    return *rows(start, slow, carry, phase_B, length_B, inputs._replace(real=None)), {}
