"""Memory as a gate (Titans MAG, equations 26 to 28).

    y = window attention(u), r = memory(u)
    o = (rms(y; w_y) * sigmoid(rms(r; w_m))) W_O

The paper describes the gate as "non-linear gating" of two normalised vectors with learned weights; the sigmoid on the memory's side
is this project's reading, `combine="sum"` adds the two instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax

from memtok_jax import params as P
from memtok_jax.config import UserError, choose
from memtok_jax.memory import neural, ring
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.memory.ring import RingState
from memtok_jax.models import attention as A
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig, check_width, options, window
from memtok_jax.models.mixers.lmm import initial_reads, run_memory
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import rms_norm

COMBINE = ("gate", "sum")


@dataclass(frozen=True)
class MagConfig(MixerConfig):
    """Window attention and memory side by side.

    window: W, keys that a query may see, itself included.
    combine: "gate" (below equation 28 of the paper) or "sum".
    memory: of the neural memory; its width and dtype are filled in by the model.
    sinks, positions: of first tokens that stay in the window, as in `window.WindowConfig`.
    """

    window: int = 128
    combine: str = "gate"
    memory: NeuralMemoryConfig = field(default_factory=NeuralMemoryConfig)
    sinks: int = 0
    positions: str = "cache"

    def __post_init__(self):
        window.check_ring("mag", self)
        choose("mag.combine", self.combine, COMBINE)

    def check(self, b: Backbone) -> None:
        """Whole heads in attention and memory."""
        check_width(self.memory, b)
        check_heads(self, b)

    def unit(self, b: Backbone) -> int:
        """A chunk."""
        return self.memory.chunk

    def reach(self, b: Backbone) -> int:
        """W - 1 tokens before itself."""
        return self.window - 1


def check_heads(cfg: MixerConfig, b: Backbone) -> None:
    """Raise UserError where attention is not as wide as the memory's reads."""
    if b.heads * b.value_dim != b.width:
        raise UserError(f"{cfg.name} joins attention of {b.heads} heads of {b.value_dim} with a memory as wide as the "
                        f"model, {b.width}")


class MagState(NamedTuple):
    """Prefix, window and memory side by side."""

    prefix: A.Prefix
    past: RingState
    memory: neural.NeuralMemoryState


def combine_specs(b: Backbone) -> dict:
    """The two learned vectors that scale attention and memory before they meet."""
    return {name: P.ParamSpec((b.width,), (None,), P.ones, decayed=False) for name in ("norm_attention", "norm_memory")}


def combine(params, y: jax.Array, r: jax.Array, how: str, b: Backbone) -> jax.Array:
    """(y, r) [..., D] -> the branch [..., D]: normalise both, gate (or add), project."""
    y, r = rms_norm(y, params["norm_attention"]), rms_norm(r, params["norm_memory"])
    joined = y * jax.nn.sigmoid(r).astype(y.dtype) if how == "gate" else y + r.astype(y.dtype)
    return A.output(params, joined, b)


def specs(cfg: MagConfig, b: Backbone) -> dict:
    """Attention, memory and the two norms."""
    return {**A.specs(b), **combine_specs(b), "memory": neural.specs(options(cfg.memory, b))}


def state_specs(cfg: MagConfig, b: Backbone, batch: int) -> MagState:
    """Those of the window and of the memory."""
    return MagState(A.prefix_specs(b, batch), ring.state_specs(window.ring_of(cfg, b), batch),
                    neural.state_specs(options(cfg.memory, b), batch))


def begin(params, x_MD: jax.Array, cfg: MagConfig, b: Backbone, batch: int, side: dict):
    """The prefix attends to itself and reads the initial weights; both memories are empty."""
    u, m = enter(params, x_MD, b), options(cfg.memory, b)
    y, prefix = A.prefix_pass(params, u, b, side)
    out = combine(params, y, initial_reads(params["memory"], u, m), cfg.combine, b)
    return out, MagState(A.for_batch(prefix, b, batch), ring.init_state({}, window.ring_of(cfg, b), batch),
                         neural.init_state(params["memory"], m, batch)), side


def run(params, state: MagState, x: jax.Array, cfg: MagConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, statistics of the memory, side)."""
    u = enter(params, x, b)
    y, past = window.attend(params, state.prefix, state.past, u, b, call.length, side, window.ring_of(cfg, b))
    r, memory, stats = run_memory(params["memory"], state.memory, u, options(cfg.memory, b), call)
    return combine(params, y, r, cfg.combine, b), state._replace(past=past, memory=memory), stats, side
