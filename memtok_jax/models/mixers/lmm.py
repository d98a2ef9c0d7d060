"""The neural memory as a layer of its own (Titans LMM, equations 11 to 15).

    o = (rms_head(memory(u)) * SiLU(u W_Z)) W_O

The paper states "normalisation and gate before output"; norm per head and SiLU gate follow Gated DeltaNet.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.memory.neural import NeuralMemoryConfig, NeuralMemoryState
from memtok_jax.models import layers
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig, check_width, options
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import dense, rms_norm


@dataclass(frozen=True)
class LmmConfig(MixerConfig):
    """memory: of the neural memory; its width and dtype are filled in by the model."""

    memory: NeuralMemoryConfig = field(default_factory=NeuralMemoryConfig)

    def check(self, b: Backbone) -> None:
        """Whole heads."""
        check_width(self.memory, b)

    def unit(self, b: Backbone) -> int:
        """A chunk."""
        return self.memory.chunk

    @property
    def attends(self) -> bool:
        """The memory alone, which does not read the prefix."""
        return False


def specs(cfg: LmmConfig, b: Backbone) -> dict:
    """Memory, norm per head, gate and output projection."""
    m = options(cfg.memory, b)
    return {
        "memory": neural.specs(m),
        "norm_reads": P.ParamSpec((m.heads, m.head_dim), ("heads", None), P.ones, decayed=False),
        "z": layers.dense_specs(b, (b.width, b.width), ("embed", "heads"), False),
        "o": layers.dense_specs(b, (b.width, b.width), ("heads", "embed"), False, b.residual_scale),
    }


def state_specs(cfg: LmmConfig, b: Backbone, batch: int) -> NeuralMemoryState:
    """That of the memory."""
    return neural.state_specs(options(cfg.memory, b), batch)


def normed_reads(r: jax.Array, weight: jax.Array) -> jax.Array:
    """RMSNorm of reads [..., D] within each head; weight [H, K]."""
    return rms_norm(r.reshape(*r.shape[:-1], *weight.shape), weight).reshape(r.shape)


def _branch(params, u: jax.Array, r: jax.Array, b: Backbone) -> jax.Array:
    gated = normed_reads(r, params["norm_reads"]) * jax.nn.silu(dense(u, params["z"], b.dtype)).astype(r.dtype)
    return dense(gated.astype(u.dtype), params["o"], b.dtype)


def initial_reads(params, u_MD: jax.Array, memory: NeuralMemoryConfig) -> jax.Array:
    """Reads of the prefix at the learned initial weights: [M, D] -> [M, D]."""
    return neural.read(params, neural.init_state(params, memory, 1), u_MD[None], memory)[0]


def begin(params, x_MD: jax.Array, cfg: LmmConfig, b: Backbone, batch: int, side: dict):
    """Prefix tokens read the initial weights and write nothing; an untouched memory."""
    u, m = enter(params, x_MD, b), options(cfg.memory, b)
    y = _branch(params, u, initial_reads(params["memory"], u, m), b)
    return y, neural.init_state(params["memory"], m, batch), side


def run_memory(params, state: NeuralMemoryState, u: jax.Array, memory: NeuralMemoryConfig, call: Call):
    """The neural memory on the tokens of a call: (reads [B, T, D], state, stats).

    Whole chunks take the fast path: a call that is whole begins at a chunk's border if all such calls hold whole chunks.
    """
    if call.whole and u.shape[1] % memory.chunk == 0:
        return neural.run(params, state, u, memory, whole=True)
    return neural.run(params, state, u, memory, call.length)


def run(params, state: NeuralMemoryState, x: jax.Array, cfg: LmmConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, statistics of the memory, side)."""
    u = enter(params, x, b)
    r, state, stats = run_memory(params["memory"], state, u, options(cfg.memory, b), call)
    return _branch(params, u, r, b), state, stats, side
