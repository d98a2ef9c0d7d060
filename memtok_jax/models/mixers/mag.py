"""Memory as a gate (Titans MAG, equations 26 to 28).

    y = window attention(u), r = memory(u)
    o = (rms(y; w_y) * sigmoid(rms(r; w_m))) W_O

The paper describes the gate as "non-linear gating" of two normalised vectors with learned weights; the sigmoid on the
memory's side is this project's reading, `combine="sum"` adds the two instead.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.models import attention as A
from memtok_jax.models.config import BlockConfig
from memtok_jax.models.mixers import attention as window
from memtok_jax.models.mixers.lmm import initial_reads
from memtok_jax.numerics import rms_norm


class MagState(NamedTuple):
    """Prefix, window and memory side by side."""

    prefix: A.Prefix
    window: window.WindowState
    memory: neural.NeuralMemoryState


def combine_specs(cfg: BlockConfig) -> dict:
    """The two learned vectors that scale attention and memory before they meet."""
    return {name: P.ParamSpec((cfg.width,), (None,), P.ones, decayed=False) for name in ("norm_attention", "norm_memory")}


def combine(params, y: jax.Array, r: jax.Array, cfg: BlockConfig) -> jax.Array:
    """(y, r) [..., D] -> the branch [..., D]: normalise both, gate (or add), project."""
    y, r = rms_norm(y, params["norm_attention"]), rms_norm(r, params["norm_memory"])
    joined = y * jax.nn.sigmoid(r) if cfg.combine == "gate" else y + r
    return A.output(joined, params, cfg).astype(y.dtype)


def specs(cfg: BlockConfig) -> dict:
    """Attention, memory and the two norms."""
    return {**A.specs(cfg), **combine_specs(cfg), "memory": neural.specs(cfg.memory)}


def state_specs(cfg: BlockConfig, batch: int) -> MagState:
    """Those of the window and of the memory."""
    return MagState(A.prefix_specs(cfg, batch), window.window_specs(cfg, batch), neural.state_specs(cfg.memory, batch))


def init_state(params, cfg: BlockConfig, batch: int) -> MagState:
    """Both empty."""
    return P.zero_state(state_specs(cfg, batch))


def prefix(params, x_MD: jax.Array, cfg: BlockConfig):
    """The prefix attends to itself and reads the initial weights."""
    y, kept = A.prefix_pass(params, x_MD, cfg)
    return combine(params, y[None], initial_reads(params["memory"], x_MD, cfg), cfg)[0], kept


def run(params, state: MagState, u: jax.Array, cfg: BlockConfig, length=None):
    """`apply` with statistics of the memory."""
    seen_length = P.full_length(u) if length is None else length
    y, past = window.window_attention(params, state.prefix, state.window, u, cfg, seen_length)
    r, memory, seen = neural.run(params["memory"], state.memory, u, cfg.memory, length, whole=cfg.aligned)
    return combine(params, y, r, cfg), state._replace(window=past, memory=memory), seen


def apply(params, state: MagState, u: jax.Array, cfg: BlockConfig, length=None):
    """u[B, T, D] -> (branch [B, T, D], state)."""
    return run(params, state, u, cfg, length)[:2]
