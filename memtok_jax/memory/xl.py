"""The cache of one layer of Transformer-XL as a memory: the layer's own inputs of earlier segments.

Transformer-XL (Dai et al., arXiv 1901.02860), section 3.2, the first two lines of the recurrence:

    h~_t = [stop_gradient(m_t) ; h_t]                  keys and values of segment t are made from this
    m_t+1 = the last n_m rows of [m_t ; h_t]           the cache starts empty

| symbol | name here | where in the paper |
|---|---|---|
| h      | x, the layer's input [B, T, D] | section 3.2 |
| m      | `XlState.rows`, real rows at the end | section 3.2, "SG" |
| n_m    | `length` | M of the paper's section 3.2, `mem_len` of its code |

Differs from a window of keys and values in that rows are projected again at each use: under training with changing
weights the old rows are then seen through the new weights, as in the paper. Differs from the compressive memory in that
what leaves is forgotten. An empty slot is hidden rather than zero: to the position term of a score a row of zeros is not
neutral. Gradients never enter the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P


@dataclass(frozen=True)
class XlConfig:
    """length: n_m, rows of the cache; 0 is no cache. width: D; 0 inside a model, which fills in its own.
    dtype: of the rows, that of the model's activations.
    """

    length: int
    width: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        if self.length < 0:
            raise ValueError(f"memory.length={self.length} must not be negative")

    @property
    def slots(self) -> int:
        """Rows that a full memory shows."""
        return self.length


class XlState(NamedTuple):
    """Rows from oldest to newest."""

    rows: jax.Array   # [B, n_m, D], real rows at the end
    count: jax.Array  # i32[B], how many of them are real


def specs(cfg: XlConfig) -> dict:
    """Nothing is learnt."""
    return {}


def state_specs(cfg: XlConfig, batch: int) -> XlState:
    """n_m rows for each stream."""
    return XlState(P.StateSpec((batch, cfg.length, cfg.width), ("batch", None, "embed"), jnp.dtype(cfg.dtype)),
                   P.StateSpec((batch,), ("batch",), jnp.int32))


def init_state(params, cfg: XlConfig, batch: int) -> XlState:
    """An empty cache."""
    return P.zero_state(state_specs(cfg, batch))


def for_training(cfg: XlConfig, tokens: int) -> XlConfig:
    """A cache takes segments of any length."""
    return cfg


def real(state: XlState) -> jax.Array:
    """bool[B, n_m]: which rows are real."""
    n = state.rows.shape[1]
    return jnp.arange(n)[None] >= n - state.count[:, None]


def read(params, state: XlState, cfg: XlConfig) -> tuple[jax.Array, jax.Array]:
    """(rows [B, n_m, D], bool[B, n_m] which of them are real); the newest row is the last."""
    return state.rows, real(state)


def earlier(state: XlState, count: int, newest_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `read` gave before the last newest_B[b] rows came: (rows [B, count, D], bool[B, count] which of them are real).

    count + newest_B must not exceed the slots. So one queue serves both a cache and the segment that is still open behind it.
    """
    n = state.rows.shape[1]
    index = n - count - newest_B[:, None] + jnp.arange(count)[None]
    return P.take_rows(state.rows, index), index >= n - state.count[:, None]


def push(state: XlState, x: jax.Array, length: jax.Array) -> XlState:
    """First in, first out: the last n_m rows of [rows ; the first length[b] rows of x[B, T, D]]."""
    n = state.rows.shape[1]
    stream = jnp.concatenate([state.rows, x.astype(state.rows.dtype)], axis=1)
    last = length[:, None] + jnp.arange(n)[None]
    return XlState(P.take_rows(stream, last), jnp.minimum(state.count + length, n))


def update(params, state: XlState, x: jax.Array, cfg: XlConfig, length: jax.Array, usage: Any = None,
           attend: Any = None) -> tuple[XlState, dict[str, jax.Array]]:
    """`write` with statistics, of which there are none; usage and attend are what other memories ask a layer for."""
    return push(state, jax.lax.stop_gradient(x), length), {}


def write(params, state: XlState, x: jax.Array, cfg: XlConfig, length: jax.Array | None = None) -> XlState:
    """Remember x[B, T, D], of which the first length[b] rows are real. T may be longer than the cache."""
    return update(params, state, x, cfg, P.full_length(x) if length is None else length)[0]


def apply(params, state: XlState, x: jax.Array, cfg: XlConfig, length: jax.Array | None = None):
    """Read, then write: x[B, T, D] -> (h~ [B, n_m+T, D], state); rows that are not real are zero."""
    rows, seen = read(params, state, cfg)
    rows = jnp.where(seen[..., None], rows, 0).astype(x.dtype)
    return jnp.concatenate([rows, x], axis=1), write(params, state, x, cfg, length)
