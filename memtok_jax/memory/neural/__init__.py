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

Three views compute the same rule: `scan.py` with `rule.py` works chunk by chunk (the default), `literal.py` token by token,
and `kernel.py` keeps the weights on the chip (TPU). `tests/test_neural_memory.py` and `tests/test_neural_kernel.py` prove them
equal. This memory differs from a linear-attention state (gated delta rule) in that it may be deep and has momentum; that state
is one of its special cases.

Functions: `specs`, `state_specs`, `init_state`, `run`, `apply`, `read`, `write`. `query` and `reads_at` serve models that read
at other weights than the current ones (MAC reads the weights of the segment's start). `stats.merge` joins the statistics of
several calls.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.memory.neural import features, kernel, literal, networks, scan, stats
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.rule import Carry, Inputs

__all__ = ["NeuralMemoryConfig", "NeuralMemoryState", "apply", "init_state", "query", "read", "reads_at", "run", "specs",
           "state_specs", "stats", "write"]

VIEWS: dict[str, ModuleType] = {"chunked": scan, "kernel": kernel, "literal": literal}


class NeuralMemoryState(NamedTuple):
    """Carry of B streams.

    Weights are stored as deviations from the learned initial weights. So a carry of zeros is the start, and every segment
    sends a gradient to `init`.
    """

    anchor: dict[str, jax.Array]    # f32[B, H, ...]  at the start of the open chunk
    weights: dict[str, jax.Array]   # f32[B, H, ...]  after the last token
    surprise: dict[str, jax.Array]  # f32[B, H, ...]  momentum
    phase: jax.Array                # i32[B]          tokens in the open chunk, 0 .. C-1
    conv: jax.Array                 # f32[B, conv-1, 3, H, K]  last inputs of the k, v, q convolutions


def specs(cfg: NeuralMemoryConfig) -> dict:
    """Parameters: `init` (initial fast weights), `slow` (gamma, beta), projections, convolutions, gates."""
    checks.check_width(cfg.width)
    return {"init": networks.fast_specs(cfg), "slow": networks.slow_specs(cfg), **features.specs(cfg)}


def state_specs(cfg: NeuralMemoryConfig, batch: int) -> NeuralMemoryState:
    """Shapes and axes of the carry. Each fast weight of each stream takes 12 bytes."""
    checks.check_width(cfg.width)
    fast = lambda: {name: P.StateSpec((batch, *s.shape), ("batch", *s.axes)) for name, s in networks.fast_specs(cfg).items()}
    return NeuralMemoryState(
        fast(), fast(), fast(),
        P.StateSpec((batch,), ("batch",), jnp.int32, phase=True),
        P.StateSpec((batch, cfg.conv - 1, 3, cfg.heads, cfg.head_dim), ("batch", None, None, "heads", None)),
    )


def init_state(params, cfg: NeuralMemoryConfig, batch: int) -> NeuralMemoryState:
    """The carry of streams before their first token."""
    return P.zero_state(state_specs(cfg, batch))


def reads_at(params, deviations: dict, q: jax.Array, cfg: NeuralMemoryConfig) -> jax.Array:
    """f_W(q) with one set of weights for each batch row: deviations [B, H, ...], q [B, T, H, K] -> [B, T, H, K]."""

    def memory(start, slow, deviation, q):
        weights = {name: w + deviation[name] for name, w in start.items()}
        return networks.forward(slow, q, networks.plain(weights, cfg.dtype), cfg)

    heads = jax.vmap(memory, in_axes=(0, 0, 0, 1), out_axes=1)
    return jax.vmap(heads, in_axes=(None, None, 0, 0))(params["init"], params["slow"], deviations, q)


def query(params, x: jax.Array, tail: jax.Array, cfg: NeuralMemoryConfig, length: jax.Array | None = None):
    """Queries of a second reader, which keeps the last inputs of its own convolution: ([B, T, H, K], tail).

    x: [B, T, D]. tail: [B, conv-1, H, K], the inputs before x.
    """
    x, length = checks.checked(x, length, cfg.width)
    return features.project(params, "q", x, tail, length, cfg)


def read(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None) -> jax.Array:
    """Read all tokens at the current weights, changing nothing: x[B, T, D] -> [B, T, D] (heads side by side)."""
    _check(params, state, cfg, x.shape[0])
    q, _ = query(params, x, state.conv[:, :, 2], cfg, length)
    return reads_at(params, state.weights, q, cfg).reshape(x.shape)


def write(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None, *,
          whole: bool = False) -> NeuralMemoryState:
    """Write all tokens: x[B, T, D] -> state."""
    return apply(params, state, x, cfg, length, whole=whole)[1]


def _check(params, state: NeuralMemoryState, cfg: NeuralMemoryConfig, batch: int) -> None:
    checks.check_params(params, specs(cfg))
    checks.check_state(state, state_specs(cfg, batch))


def _inputs(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length: jax.Array):
    """Keys, values, queries and gates of all tokens, and the last inputs of the convolutions."""
    projected = [features.project(params, name, x, state.conv[:, :, i], length, cfg) for i, name in enumerate("kvq")]
    (k, v, q), tails = zip(*projected, strict=True)
    return Inputs(k, v, q, *features.gates(params, x, cfg), None), jnp.stack(tails, axis=2)


def run(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None, *, whole: bool = False,
        view: ModuleType | None = None):
    """`apply` with statistics (`stats.py`): (y, state, name -> f32[]).

    view: the module whose `run` does the work; None is the one that `cfg.view` names.
    """
    x, length = checks.checked(x, length, cfg.width, cfg.unit, whole)
    _check(params, state, cfg, x.shape[0])
    if x.shape[1] == 0:  # one token of padding does nothing either, and leaves shapes that the views can work on
        y, state, found = run(params, state, jnp.zeros_like(x, shape=(x.shape[0], 1, cfg.width)), cfg, length, view=view)
        return y[:, :0], state, found
    inputs, conv = _inputs(params, state, x, cfg, length)
    before = Carry(state.anchor, state.weights, state.surprise)
    y, carry, phase, written = (view or VIEWS[cfg.view]).run(
        params["init"], params["slow"], before, state.phase, length, inputs, cfg, whole)
    found = stats.of_gates(inputs, P.real_tokens(x, length)) | written | stats.of_carry(carry)
    return y.reshape(x.shape), NeuralMemoryState(*carry, phase, conv), found


def apply(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None, *, whole: bool = False):
    """Write every token and read at its own weights W_t (equations 11 to 15).

    x: [B, T, D], the layer's normalised input. length: i32[B], real tokens of each row; None: all T.
    whole: promise that every row stands at a chunk border and that its T tokens, a multiple of the chunk, are real. The result
    is the same and comes sooner.
    Returns (y [B, T, D] raw reads in float32, heads side by side; state).
    Raises UserError if x, params or state do not suit the config, or if T or a length breaks the promise of `whole`.
    """
    return run(params, state, x, cfg, length, whole=whole)[:2]


def apply_literal(params, state: NeuralMemoryState, x: jax.Array, cfg: NeuralMemoryConfig, length=None):
    """`apply` computed token by token, to compare with."""
    return run(params, state, x, cfg, length, view=literal)[:2]
