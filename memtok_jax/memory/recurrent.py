"""Recurrent memory tokens: what the last layer wrote into M rows is read as M input rows of the next segment.

Recurrent Memory Transformer (RMT), arXiv 2207.06881, section 3.2, equations 4 to 6; 2304.11062 for the encoder.

    in_n = [m_n ; x_n ; m_n]          read:  the same vectors at both ends
    out_n = Backbone(in_n)            elsewhere: hidden states after the last norm
    m_(n+1) = out_n[M+T:]             write: the last M rows; the first M rows of the output are dropped

| symbol        | name here           | equation |
|---------------|---------------------|----------|
| m_0           | `tokens` (params)   | 4        |
| m_n           | `tokens` (state)    | 4, 6     |
| [m ; x ; m]   | `read`              | 4        |
| read, write   | `split`             | 5        |
| m_(n+1)       | `write`             | 6        |

An encoder holds the memory once, in front, and the next memory is its output at those rows (layout "front"). Layout "read" never
writes: then these are the learned tokens of `tokens.py` (Memory Transformer), standing in the carry. Unlike `tokens.py`
there is a carry: M vectors of width D for each row, the only thing that crosses segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.params import Initializer, ParamSpec, StateSpec, normal

LAYOUTS = ("both", "front", "read")
INITS = ("scaled", "shared", "small")


class RecurrentTokensState(NamedTuple):
    """The carry."""

    tokens: jax.Array  # [B, M, D] in the compute dtype: it is an input like an embedding


@dataclass(frozen=True)
class RecurrentTokensConfig:
    """width: D. tokens: M. layout: "both" [m; x; m], "front" [m; x] and written there, "read" [m; x] and never written.

    init: of m_0. "scaled", independent rows with standard deviation `std`, that of the word embeddings as they enter the
    backbone; "shared", one standard normal vector M times, so rows differ by position alone; "small", 0.02.
    dtype: of the carry.
    """

    width: int
    tokens: int
    layout: str = "both"
    init: str = "scaled"
    std: float = 1.0
    dtype: str = "float32"

    def __post_init__(self):
        if self.tokens < 0:
            raise ValueError(f"tokens={self.tokens} must not be negative")
        for name, value, known in (("layout", self.layout, LAYOUTS), ("init", self.init, INITS)):
            if value not in known:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}")

    @property
    def tail(self) -> int:
        """Rows behind the tokens of the segment."""
        return self.tokens if self.layout == "both" else 0


def _shared(key, shape, dtype) -> jax.Array:
    """One vector, repeated."""
    return jnp.broadcast_to(jax.random.normal(key, (1, shape[1]), dtype), shape)


def initializer(cfg: RecurrentTokensConfig) -> Initializer:
    """Of the initial memory."""
    return {"scaled": normal(cfg.std), "shared": _shared, "small": normal(0.02)}[cfg.init]


def specs(cfg: RecurrentTokensConfig) -> dict[str, ParamSpec]:
    """The memory m_0 before the first segment, [M, D]; not decayed."""
    return {"tokens": ParamSpec((cfg.tokens, cfg.width), ("tokens", "embed"), initializer(cfg), decayed=False)}


def state_specs(cfg: RecurrentTokensConfig, batch: int) -> RecurrentTokensState:
    """m_n of each row."""
    lives = "derived" if cfg.layout == "read" else "stream"
    return RecurrentTokensState(StateSpec((batch, cfg.tokens, cfg.width), ("batch", "tokens", "embed"), jnp.dtype(cfg.dtype),
                                          lives))


def init_state(params, cfg: RecurrentTokensConfig, batch: int) -> RecurrentTokensState:
    """m_0 in every row."""
    m = params["tokens"]
    m = m if m.dtype == jnp.float64 else m.astype(cfg.dtype)
    return RecurrentTokensState(jnp.broadcast_to(m[None], (batch, *m.shape)))


def read(params, state: RecurrentTokensState, x: jax.Array, cfg: RecurrentTokensConfig) -> jax.Array:
    """x[B, T, D] -> [m; x; m] [B, M+T+M, D], or [m; x]."""
    m = state.tokens.astype(x.dtype)
    return jnp.concatenate([m, x, m] if cfg.layout == "both" else [m, x], axis=1)


def split(y: jax.Array, cfg: RecurrentTokensConfig) -> tuple[jax.Array, jax.Array]:
    """What `read` joined: y[B, E, D] -> (rows of the segment [B, T, D], rows of the memory to come [B, M, D])."""
    stop = y.shape[1] - cfg.tail
    return y[:, cfg.tokens:stop], y[:, stop:] if cfg.layout == "both" else y[:, :cfg.tokens]


def write(params, state: RecurrentTokensState, written: jax.Array, cfg: RecurrentTokensConfig,
          rows: jax.Array) -> RecurrentTokensState:
    """The next memory. written: [B, M, D]. rows: bool[B]; where it is False (no segment ends) the memory stays as it was."""
    if cfg.layout == "read":
        return state
    return RecurrentTokensState(jnp.where(rows[:, None, None], written.astype(state.tokens.dtype), state.tokens))


def apply(params, state: RecurrentTokensState, x: jax.Array, cfg: RecurrentTokensConfig, length=None):
    """Read and write with nothing between: x[B, T, D] -> ([B, E, D], state). A backbone belongs between the two."""
    y = read(params, state, x, cfg)
    rows = jnp.ones((x.shape[0],), bool) if length is None else length > 0
    return y, write(params, state, split(y, cfg)[1], cfg, rows)
