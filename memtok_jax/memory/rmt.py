"""Recurrent memory tokens: M input tokens of a segment are what the last layer wrote at the end of the segment before.

Recurrent Memory Transformer (RMT), arXiv 2207.06881, section 3.2, equations 4 to 6; 2304.11062 for the encoder.

    in_n = [m_n ; x_n ; m_n]          read:  the same vectors at both ends
    out_n = Backbone(in_n)            elsewhere: hidden states after the last norm
    m_(n+1) = out_n[M+T:]             write: the last M vectors; the first M vectors of the output are dropped

| symbol        | name here           | equation |
|---------------|---------------------|----------|
| m_0           | `tokens` (params)   | 4        |
| m_n           | `tokens` (state)    | 4, 6     |
| [m ; x ; m]   | `read`              | 4        |
| read, write   | `split`             | 5        |
| m_(n+1)       | `write`             | 6        |

Layouts: "both" is the form above. "front" (an encoder) holds the memory once, in front, and the next memory is the output at
those places. "read" never writes; these are the learned tokens of `tokens.py` (Memory Transformer), kept in the carry.
Unlike `tokens.py` this memory has a carry: M vectors of width D for each stream, the only thing that crosses segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax.config import check_numbers, choose
from memtok_jax.numerics import DTYPES
from memtok_jax.params import Initializer, ParamSpec, StateSpec, normal

LAYOUTS = ("both", "front", "read")
INITS = ("scaled", "shared", "small")


class RmtTokensState(NamedTuple):
    """The carry."""

    tokens: jax.Array  # [B, M, D] in the compute dtype: it is an input like an embedding


@dataclass(frozen=True)
class RmtTokensConfig:
    """Options of the memory tokens.

    width: D, features of a token.
    tokens: M, memory tokens; 0 is none.
    layout: "both" [m; x; m], "front" [m; x] and written there, "read" [m; x] and never written.
    init: of m_0. "scaled": independent vectors with standard deviation `std`. "shared": one standard normal vector M times,
        so that the tokens differ by position alone. "small": independent vectors with standard deviation 0.02.
    std: for "scaled", the standard deviation of the word embeddings as they enter the backbone.
    dtype: of the carry.
    """

    width: int
    tokens: int
    layout: str = "both"
    init: str = "scaled"
    std: float = 1.0
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers("", self, at_least={"width": 0, "tokens": 0, "std": 0})
        choose("layout", self.layout, LAYOUTS)
        choose("init", self.init, INITS)
        choose("dtype", self.dtype, DTYPES)

    @property
    def tail(self) -> int:
        """Memory tokens behind the tokens of the segment."""
        return self.tokens if self.layout == "both" else 0


def _shared(key, shape, dtype) -> jax.Array:
    """One vector, repeated."""
    return jnp.broadcast_to(jax.random.normal(key, (1, shape[1]), dtype), shape)


def initializer(cfg: RmtTokensConfig) -> Initializer:
    """Initialiser of m_0."""
    return {"scaled": normal(cfg.std), "shared": _shared, "small": normal(0.02)}[cfg.init]


def specs(cfg: RmtTokensConfig) -> dict[str, ParamSpec]:
    """The memory m_0 before the first segment, [M, D]; not decayed."""
    checks.check_width(cfg.width)
    return {"tokens": ParamSpec((cfg.tokens, cfg.width), ("tokens", "embed"), initializer(cfg), decayed=False)}


def state_specs(cfg: RmtTokensConfig, batch: int) -> RmtTokensState:
    """m_n of each stream."""
    lives = "derived" if cfg.layout == "read" else "stream"
    return RmtTokensState(StateSpec((batch, cfg.tokens, cfg.width), ("batch", "tokens", "embed"), jnp.dtype(cfg.dtype), lives))


def init_state(params, cfg: RmtTokensConfig, batch: int) -> RmtTokensState:
    """m_0 for each stream."""
    checks.check_params(params, specs(cfg))
    m = params["tokens"]
    m = m if m.dtype == jnp.float64 else m.astype(cfg.dtype)
    return RmtTokensState(jnp.broadcast_to(m[None], (batch, *m.shape)))


def read(params, state: RmtTokensState, x: jax.Array, cfg: RmtTokensConfig) -> jax.Array:
    """x[B, T, D] -> [m; x; m] [B, M+T+M, D], or [m; x]."""
    checks.check_tokens(x, cfg.width)
    checks.check_state(state, state_specs(cfg, x.shape[0]))
    m = state.tokens.astype(x.dtype)
    return jnp.concatenate([m, x, m] if cfg.layout == "both" else [m, x], axis=1)


def split(y: jax.Array, cfg: RmtTokensConfig) -> tuple[jax.Array, jax.Array]:
    """What `read` joined: y[B, E, D] -> (tokens of the segment [B, T, D], the next memory [B, M, D])."""
    stop = y.shape[1] - cfg.tail
    return y[:, cfg.tokens:stop], y[:, stop:] if cfg.layout == "both" else y[:, :cfg.tokens]


def write(params, state: RmtTokensState, written: jax.Array, cfg: RmtTokensConfig, closes: jax.Array) -> RmtTokensState:
    """The next memory. written: [B, M, D]. closes: bool[B], the segment ends; otherwise the stream keeps its memory."""
    checks.check_tokens(written, cfg.width, "written")
    checks.check_flags(closes, written.shape[0], "closes")
    checks.check_state(state, state_specs(cfg, written.shape[0]))
    if cfg.layout == "read":
        return state
    return RmtTokensState(jnp.where(closes[:, None, None], written.astype(state.tokens.dtype), state.tokens))


def run(params, state: RmtTokensState, x: jax.Array, cfg: RmtTokensConfig, length=None, *, whole: bool = False):
    """`apply` with statistics, of which there are none: (y, state, {})."""
    x, length = checks.checked(x, length, cfg.width, whole=whole)
    y = read(params, state, x, cfg)
    return y, write(params, state, split(y, cfg)[1], cfg, length > 0), {}


def apply(params, state: RmtTokensState, x: jax.Array, cfg: RmtTokensConfig, length=None, *, whole: bool = False):
    """Read and write with nothing between: x[B, T, D] -> ([B, E, D], state). A backbone belongs between the two."""
    return run(params, state, x, cfg, length, whole=whole)[:2]
