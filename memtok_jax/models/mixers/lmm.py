"""The neural memory as a layer of its own (Titans LMM, equations 11 to 15).

    o = (rms_head(memory(u)) * SiLU(u W_Z)) W_O

The paper states "normalisation and gate before output"; norm per head and SiLU gate follow Gated DeltaNet.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.models import attention as A
from memtok_jax.models.config import BlockConfig
from memtok_jax.numerics import matmul, rms_norm


class LmmState(NamedTuple):
    """The memory; a layer without attention keeps nothing of the prefix."""

    prefix: tuple
    memory: neural.NeuralMemoryState


def specs(cfg: BlockConfig) -> dict:
    """Memory, norm per head, gate and output projection."""
    d, h, k = cfg.width, cfg.memory.heads, cfg.memory.head_dim
    return {
        "memory": neural.specs(cfg.memory),
        "norm": P.ParamSpec((h, k), ("heads", None), P.ones, decayed=False),
        "wz": P.ParamSpec((d, d), ("embed", "heads"), P.fan_in(0)),
        "wo": P.ParamSpec((d, d), ("heads", "embed"), P.fan_in(0, cfg.residual_scale)),
    }


def state_specs(cfg: BlockConfig, batch: int) -> LmmState:
    """That of the memory."""
    return LmmState((), neural.state_specs(cfg.memory, batch))


def init_state(params, cfg: BlockConfig, batch: int) -> LmmState:
    """An untouched memory."""
    return P.zero_state(state_specs(cfg, batch))


def normed_reads(r: jax.Array, weight: jax.Array) -> jax.Array:
    """RMSNorm of reads [B, T, D] within each head; weight [H, K]."""
    return rms_norm(r.reshape(*r.shape[:-1], *weight.shape), weight).reshape(r.shape)


def _branch(params, u: jax.Array, r: jax.Array, cfg: BlockConfig) -> jax.Array:
    gate = jax.nn.silu(matmul(u, params["wz"], cfg.dtype))
    return A.output(normed_reads(r, params["norm"]) * gate, params, cfg).astype(u.dtype)


def prefix(params, x_MD: jax.Array, cfg: BlockConfig):
    """Prefix tokens read the initial weights and write nothing; nothing is kept of them."""
    return _branch(params, x_MD[None], initial_reads(params["memory"], x_MD, cfg), cfg)[0], ()


def initial_reads(params, x_MD: jax.Array, cfg: BlockConfig) -> jax.Array:
    """Reads of the prefix at the learned initial weights: [M, D] -> [1, M, D]."""
    start = neural.init_state(params, cfg.memory, 1)
    return neural.read(params, start, x_MD[None], cfg.memory)


def run(params, state: LmmState, u: jax.Array, cfg: BlockConfig, length=None):
    """`apply` with statistics of the memory."""
    r, memory, seen = neural.run(params["memory"], state.memory, u, cfg.memory, length, whole=cfg.aligned)
    return _branch(params, u, r, cfg), state._replace(memory=memory), seen


def apply(params, state: LmmState, u: jax.Array, cfg: BlockConfig, length=None):
    """u[B, T, D] -> (branch [B, T, D], state)."""
    return run(params, state, u, cfg, length)[:2]
