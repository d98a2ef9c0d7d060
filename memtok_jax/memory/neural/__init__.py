"""Neural long-term memory: weights trained at test time (Titans, arXiv 2501.00663, section 3).

Each head owns a small network f_W. Every token moves its weights one step down the gradient of
|f_W(k) - v|^2, with momentum ("surprise") and forgetting; a query reads f_W(q).

| paper        | name here                        | equation |
|--------------|----------------------------------|----------|
| M_t          | weights (deviation from `init`)  | 13       |
| S_t          | surprise                         | 10, 14   |
| M_{t'}       | anchor, weights at chunk start   | 16       |
| theta, eta, alpha | step, momentum, forget      | 13, 14   |
| k, v, q      | k, v, q                          | 11, 15   |
| b            | chunk                            | 16       |

Two views of one rule: `literal.py` (token by token), `scan.py` + `rule.py` (chunks; the default), proved equal in
`tests/test_neural_memory.py`. Differs from a linear-attention state (gated delta rule) in that the memory may be deep
and has momentum; those are its special cases.

Functions: `specs`, `state_specs`, `init_state`, `apply`, `read`, `write`, `statistics`. `reads_at` serves models that read
at weights of their own choice (MAC reads the segment-start weights).
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory.neural import features, literal, networks, scan
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.rule import Carry, Inputs

__all__ = ["NeuralMemoryConfig", "NeuralMemoryState", "apply", "init_state", "read", "reads_at", "specs", "state_specs",
           "statistics", "write"]


class NeuralMemoryState(NamedTuple):
    """Carry of B streams. Weights are stored as deviations from the learned initial weights, so zeros are the start
    and `init` keeps its gradient in every segment."""

    anchor: dict[str, jax.Array]    # f32[B, H, ...]  at the start of the open chunk
    weights: dict[str, jax.Array]   # f32[B, H, ...]  after the last token
    surprise: dict[str, jax.Array]  # f32[B, H, ...]  momentum
    phase: jax.Array                # i32[B]          tokens in the open chunk, 0 .. C-1
    conv: jax.Array                 # f32[B, conv-1, 3, H, K]  last inputs of the k, v, q convolutions


def specs(cfg: NeuralMemoryConfig) -> dict:
    """Parameters: `init` (initial fast weights), `slow` (gamma, beta), projections, convolutions, gates."""
    return {"init": networks.fast_specs(cfg), "slow": networks.slow_specs(cfg), **features.specs(cfg)}


def state_specs(cfg: NeuralMemoryConfig, batch: int) -> NeuralMemoryState:
    """Shapes and axes of the carry; 12 bytes for each fast weight of each row."""
    fast = lambda: {name: P.StateSpec((batch, *s.shape), ("batch", *s.axes)) for name, s in networks.fast_specs(cfg).items()}
    return NeuralMemoryState(
        fast(), fast(), fast(),
        P.StateSpec((batch,), ("batch",), jnp.int32),
        P.StateSpec((batch, cfg.conv - 1, 3, cfg.heads, cfg.head_dim), ("batch", None, None, "heads", None)),
    )


def init_state(params, cfg: NeuralMemoryConfig, batch: int) -> NeuralMemoryState:
    """The carry of streams that have seen nothing."""
    return P.zero_state(state_specs(cfg, batch))


def reads_at(params, deviations: dict, q: jax.Array, cfg: NeuralMemoryConfig) -> jax.Array:
    """f_W(q) at one set of weights for each row: deviations [B, H, ...], q [B, T, H, K] -> [B, T, H, K]."""

    def one(start, slow, deviation, q):
        weights = {name: w + deviation[name] for name, w in start.items()}
        return networks.forward(slow, q, networks.plain(weights, cfg.dtype), cfg)

    heads = jax.vmap(one, in_axes=(0, 0, 0, 1), out_axes=1)
    return jax.vmap(heads, in_axes=(None, None, 0, 0))(params["init"], params["slow"], deviations, q)


def query(params, x: jax.Array, tail: jax.Array, cfg: NeuralMemoryConfig, length: jax.Array | None = None):
    """Queries of a second reader with its own convolution tail [B, conv-1, H, K]: ([B, T, H, K], tail)."""
    length = P.full_length(x) if length is None else length
    return features.project(params, "q", x, tail, length, cfg)


def read(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None) -> jax.Array:
    """Read all tokens at the current weights, changing nothing: x[B, T, D] -> [B, T, D] (heads side by side)."""
    q, _ = query(params, x, state.conv[:, :, 2], cfg, length)
    return reads_at(params, state.weights, q, cfg).reshape(x.shape)


def write(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None) -> NeuralMemoryState:
    """Write all tokens: x[B, T, D] -> state."""
    return apply(params, state, x, cfg, length)[1]


def _inputs(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length: jax.Array):
    projected = [features.project(params, name, x, state.conv[:, :, i], length, cfg) for i, name in enumerate("kvq")]
    (k, v, q), tails = zip(*projected, strict=True)
    return Inputs(k, v, q, *features.gates(params, x, cfg), None), jnp.stack(tails, axis=2)


def run(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None, view: ModuleType = scan):
    """`apply` with statistics; view: the module whose `run` does the work (`scan` or `literal`)."""
    if cfg.aligned and length is not None:
        raise ValueError("aligned=True promises rows without padding, but a length was given")
    length = P.full_length(x) if length is None else length
    inputs, conv = _inputs(params, state, x, cfg, length)
    out = view.run(params["init"], params["slow"], Carry(*state[:3]), state.phase, length, inputs, cfg)
    y, carry, phase = out[:3]
    return y.reshape(x.shape), NeuralMemoryState(*carry, phase, conv), (inputs, *out[3:])


def apply(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None):
    """Write every token and read at its own weights W_t (equations 11 to 15).

    x: [B, T, D], the layer's normalised input. length: i32[B], real tokens of each row; left out, all T.
    Returns (y [B, T, D] raw reads in float32, heads side by side; state).
    Raises ValueError where `aligned` is promised and T is not a multiple of the chunk.
    """
    return run(params, state, x, cfg, length)[:2]


def apply_literal(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None):
    """`apply` computed token by token: the oracle."""
    return run(params, state, x, cfg, length, view=literal)[:2]


def summarise(after: NeuralMemoryState, seen, cfg: NeuralMemoryConfig) -> dict[str, jax.Array]:
    """Scalars from what `run` saw and the state it left: means over tokens, rows and heads, a maximum where named so."""
    inputs, surprise = seen
    heads = after.phase.shape[0] * cfg.heads
    norm = lambda tree: jnp.sqrt(sum(jnp.square(w).sum() for w in jax.tree.leaves(tree)) / heads)
    return {
        "step_size": inputs.step.mean(),
        "momentum": jnp.exp(inputs.log_momentum).mean(),
        "forget": -jnp.expm1(inputs.log_keep).mean(),
        "inner_loss": surprise.loss.mean(),
        "gradient_norm": surprise.gradient.mean(),
        "clip_rate": (surprise.gradient > cfg.clip).mean() if cfg.clip else jnp.zeros(()),
        "stability": surprise.stability.mean(),
        "stability_max": surprise.stability.max(),
        "weight_change": norm(after.weights),
        "surprise_norm": norm(after.surprise),
    }


def statistics(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None) -> dict[str, jax.Array]:
    """Gates, surprise and stability of one call; a stability above 30 for long is a warning (`docs/mathematics.md`)."""
    _, after, seen = run(params, state, x, cfg, length)
    return summarise(after, seen, cfg)
