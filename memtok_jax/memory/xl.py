"""The cache of one layer of Transformer-XL as a memory: the layer's inputs of earlier segments.

Transformer-XL (Dai et al., arXiv 1901.02860), section 3.2, the first two lines of the recurrence:

    h~_t = [stop_gradient(m_t) ; h_t]                  keys and values of segment t are made from this
    m_t+1 = the last n_m vectors of [m_t ; h_t]        the cache starts empty

| symbol | name here | where in the paper |
|---|---|---|
| h      | x, the layer's input [B, T, D] | section 3.2 |
| m      | `XlState.vectors`, the real ones at the end | section 3.2, "SG" |
| n_m    | `length` | M of the paper's section 3.2, `mem_len` of its code |

The cache holds one vector of width D for each token. It differs from a window of keys and values: keys and values are made from
the vectors at each use, so while weights change in training, old vectors are seen through the new weights, as in the paper. It
differs from the compressive memory: vectors that leave are forgotten. An empty slot is hidden, not zero, because a vector of zeros
still adds the position term to a score. No gradient enters the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.config import check_numbers, choose
from memtok_jax.numerics import DTYPES


@dataclass(frozen=True)
class XlConfig:
    """Options of the cache.

    length: n_m, vectors of the cache; 0 is no cache.
    width: D, features of a token; 0 inside a model, which fills it in.
    dtype: of the vectors, that of the model's activations.
    """

    length: int = field(metadata={"evaluation": True})
    width: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers("memory", self, at_least={"length": 0, "width": 0})
        choose("memory.dtype", self.dtype, DTYPES)

    @property
    def slots(self) -> int:
        """Vectors that a full memory shows."""
        return self.length

    @property
    def unit(self) -> int:
        """A whole call may have any number of tokens."""
        return 1


class XlState(NamedTuple):
    """Vectors from oldest to newest."""

    vectors: jax.Array  # [B, n_m, D], the real ones at the end
    count: jax.Array    # i32[B], how many of them are real


def specs(cfg: XlConfig) -> dict:
    """Nothing is learnt."""
    return {}


def state_specs(cfg: XlConfig, batch: int) -> XlState:
    """n_m vectors for each stream."""
    checks.check_width(cfg.width)
    return XlState(P.StateSpec((batch, cfg.length, cfg.width), ("batch", None, "embed"), jnp.dtype(cfg.dtype)),
                   P.StateSpec((batch,), ("batch",), jnp.int32))


def init_state(params, cfg: XlConfig, batch: int) -> XlState:
    """An empty cache."""
    return P.zero_state(state_specs(cfg, batch))


# ---------------------------------------------------------------------------------------- the queue, for other memories too

def real(state: XlState) -> jax.Array:
    """bool[B, n_m]: which vectors are real."""
    n = state.vectors.shape[1]
    return jnp.arange(n)[None] >= n - state.count[:, None]


def earlier(state: XlState, count: int, newest_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `read` gave before the last newest_B[b] vectors came: (vectors [B, count, D], bool[B, count] which of them are real).

    count + newest_B must not exceed the slots. So one queue serves a cache and the segment that is still open behind it.
    """
    n = state.vectors.shape[1]
    index = n - count - newest_B[:, None] + jnp.arange(count)[None]
    return P.take_rows(state.vectors, index), index >= n - state.count[:, None]


def push(state: XlState, x: jax.Array, length: jax.Array) -> XlState:
    """First in, first out: the last n_m vectors of [vectors ; the first length[b] vectors of x[B, T, D]]."""
    n = state.vectors.shape[1]
    stream = jnp.concatenate([state.vectors, x.astype(state.vectors.dtype)], axis=1)
    last = length[:, None] + jnp.arange(n)[None]
    return XlState(P.take_rows(stream, last), jnp.minimum(state.count + length, n))


# -------------------------------------------------------------------------------------------------------------- the memory

def read(params, state: XlState, cfg: XlConfig, *, whole: bool = False) -> tuple[jax.Array, jax.Array]:
    """(vectors [B, n_m, D], bool[B, n_m] which of them are real); the newest vector is the last. `whole` changes nothing."""
    checks.check_state(state, state_specs(cfg, checks.batch_of(state)))
    return state.vectors, real(state)


def update(params, state: XlState, x: jax.Array, cfg: XlConfig, length: jax.Array | None = None, usage: Any = None,
           attend: Any = None, *, whole: bool = False) -> tuple[XlState, dict[str, jax.Array]]:
    """`write` with statistics, of which there are none. usage, attend: for other memories of the same interface."""
    x, length = checks.checked(x, length, cfg.width, cfg.unit, whole)
    checks.check_state(state, state_specs(cfg, x.shape[0]))
    return push(state, jax.lax.stop_gradient(x), length), {}


def write(params, state: XlState, x: jax.Array, cfg: XlConfig, length: jax.Array | None = None, *, whole: bool = False) -> XlState:
    """Remember x[B, T, D], of which the first length[b] vectors are real. T may be longer than the cache."""
    return update(params, state, x, cfg, length, whole=whole)[0]


def run(params, state: XlState, x: jax.Array, cfg: XlConfig, length: jax.Array | None = None, *, whole: bool = False):
    """`apply` with statistics, of which there are none: (h~, state, {})."""
    vectors, visible = read(params, state, cfg, whole=whole)
    state, stats = update(params, state, x, cfg, length, whole=whole)
    x, _ = checks.checked(x, length, cfg.width)
    vectors = jnp.where(visible[..., None], vectors, jnp.zeros((), vectors.dtype)).astype(x.dtype)
    return jnp.concatenate([vectors, x], axis=1), state, stats


def apply(params, state: XlState, x: jax.Array, cfg: XlConfig, length: jax.Array | None = None, *, whole: bool = False):
    """Read, then write: x[B, T, D] -> (h~ [B, n_m+T, D], state); vectors that are not real are zero."""
    return run(params, state, x, cfg, length, whole=whole)[:2]
