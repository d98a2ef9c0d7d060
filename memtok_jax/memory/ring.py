"""A ring of keys and values with pinned first tokens: the cache of StreamingLLM, which never moves anything.

StreamingLLM (Xiao et al., arXiv 2309.17453), section 3: the keys and values of the first `sinks` tokens stay for ever, beside those
of the last W. Softmax must spend its weight somewhere, and trained models spend it on the first tokens; a window without them fails
at the moment when the first of them leaves. No token older than W is remembered: a stream may last for ever, its history may not.

| symbol | name here | where in the paper |
|---|---|---|
| sinks      | `sinks`, pinned first tokens, S below                          | section 3.2, "4" |
| W          | `window`, the last tokens, the query itself included           | section 3.2; see below |
| N          | `slots` = S + W                                                | the cache size |
| t          | number of a token in the stream, from 0                        |  |
| -          | `place`, the query's position as the sinks see it, min(t, N-1) | section 3.2, "positions within the cache" |

The paper's settings: its released code drops keys after a step, so "4+1020" lets a query see itself, four sinks and 1,020 others:
window = 1021 here. A cache of 1,024 slots is window = 1020.

    slot of token t          t if t < S, else S + (t - S) mod W
    token of ring slot n     t - (t - n) mod W after token t, if it is at least S
    token t sees token s     s <= t and (s < S or t - s < W)
    distance                 t - s in the window; place(t) - s to a sink

In the paper every key has the position that it has inside the cache. Since the window slides as a whole, distances inside it are
those of the stream: nothing but the distance to the sinks changes (positions="cache"). With "absolute" that is the stream's too,
and the ring is plain masked attention.

Keys are kept without positions. `count` is an integer that is never made a float and never overflows: past 2**30 tokens a
multiple of W is taken from it, which changes no slot and no distance in the window. With "cache" it changes nothing at all; with
"absolute" the distance to the sinks is smaller by that multiple from there on.

A mixer (`models/mixers/window.py`) uses the functions on tokens and slots. As a memory with the one signature, `run` takes keys and
values side by side, x [B, T, G (K + V)]. It differs from `xl.py`, which keeps layer inputs, moves them, and pins nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.config import check_numbers, choose
from memtok_jax.numerics import DTYPES

POSITIONS = ("cache", "absolute")
LARGEST = 2 ** 30  # of `count`


@dataclass(frozen=True)
class RingConfig:
    """Options of the ring.

    window: W, the last tokens, the query itself included. sinks: first tokens that stay. It may exceed the window.
    positions: "cache" (the paper) or "absolute", see above.
    kv_heads, key_dim, value_dim: G, K, V; 0 inside a model, which fills them in.
    dtype: of keys and values, that of the model's activations.
    """

    window: int = 128
    sinks: int = 0
    positions: str = "cache"
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers("memory", self, at_least=dict(window=1, sinks=0, kv_heads=0, key_dim=0, value_dim=0))
        choose("memory.positions", self.positions, POSITIONS)
        choose("memory.dtype", self.dtype, DTYPES)

    @property
    def slots(self) -> int:
        """N."""
        return self.sinks + self.window

    @property
    def width(self) -> int:
        """Numbers that a token leaves in the ring."""
        return self.kv_heads * (self.key_dim + self.value_dim)

    @property
    def unit(self) -> int:
        """A whole call may have any number of tokens."""
        return 1


class RingState(NamedTuple):
    """Slots of pinned tokens, then those of the ring."""

    k: jax.Array      # [B, N, G, K] without positions
    v: jax.Array      # [B, N, G, V]
    count: jax.Array  # i32[B] tokens so far (less a multiple of W from 2**30 on)


def specs(cfg: RingConfig) -> dict:
    """Nothing is learnt."""
    return {}


def state_specs(cfg: RingConfig, batch: int) -> RingState:
    """N keys and values for each stream, however long it lasts."""
    checks.check_width(cfg.width)
    one = lambda size: P.StateSpec((batch, cfg.slots, cfg.kv_heads, size), ("batch", None, "heads", None), jnp.dtype(cfg.dtype))
    return RingState(one(cfg.key_dim), one(cfg.value_dim), P.StateSpec((batch,), ("batch",), jnp.int32))


def init_state(params, cfg: RingConfig, batch: int) -> RingState:
    """An empty ring."""
    return P.zero_state(state_specs(cfg, batch))


# --------------------------------------------------------------------------------------- tokens and slots, all of them integers

def slots_of(t: jax.Array, cfg: RingConfig) -> jax.Array:
    """The slot of each token t i32[...], from 0."""
    return jnp.where(t < cfg.sinks, t, cfg.sinks + (t - cfg.sinks) % cfg.window)


def tokens_of(count: jax.Array, cfg: RingConfig) -> jax.Array:
    """i32[..., N]: the token in each slot after count[...] tokens, -1 where there is none."""
    slot, newest = jnp.arange(cfg.slots).reshape((1,) * count.ndim + (-1,)), count[..., None] - 1
    token = jnp.where(slot < cfg.sinks, slot, newest - (newest - slot) % cfg.window)
    return jnp.where((token <= newest) & ((slot < cfg.sinks) | (token >= cfg.sinks)), token, -1)


def visible(t: jax.Array, s: jax.Array, cfg: RingConfig) -> jax.Array:
    """Whether query t sees token s (both from 0, broadcast): bool[...]."""
    return (s >= 0) & (s <= t) & ((s < cfg.sinks) | (t - s < cfg.window))


def place(t: jax.Array, cfg: RingConfig) -> jax.Array:
    """Where query t stands as the pinned tokens see it, they themselves being at 0 ... sinks-1."""
    return jnp.minimum(t, cfg.slots - 1) if cfg.positions == "cache" else t


def distance(t: jax.Array, s: jax.Array, cfg: RingConfig) -> jax.Array:
    """The distance of token s from query t, if it sees it."""
    return jnp.where(s < cfg.sinks, place(t, cfg), t) - s


def advance(count: jax.Array, length: jax.Array, cfg: RingConfig) -> jax.Array:
    """The count after length[B] tokens more."""
    count = count + length
    return jnp.where(count > LARGEST, count - LARGEST // 2 // cfg.window * cfg.window, count)


# ------------------------------------------------------------------------------------------------------------------ the ring

def write(state: RingState, k: jax.Array, v: jax.Array, length: jax.Array, cfg: RingConfig) -> RingState:
    """Put the first length[b] tokens of k[B, T, G, K] and v[B, T, G, V] into their slots; T may exceed the window.

    A call that can fill the ring looks up for each slot which of its tokens belongs there; a shorter one puts its tokens into
    their slots, and moves nothing else.
    """
    put = _take if k.shape[1] >= cfg.slots else _scatter
    return RingState(*put(state, k, v, length, cfg), advance(state.count, length, cfg))


def _take(state: RingState, k: jax.Array, v: jax.Array, length: jax.Array, cfg: RingConfig) -> tuple[jax.Array, jax.Array]:
    """Each slot takes its token from the call, if it is one of the call's."""
    token = tokens_of(state.count + length, cfg) - state.count[:, None]
    new = lambda old, x: jnp.where((token >= 0)[..., None, None], P.take_rows(x, jnp.maximum(token, 0)).astype(old.dtype), old)
    return new(state.k, k), new(state.v, v)


def _scatter(state: RingState, k: jax.Array, v: jax.Array, length: jax.Array, cfg: RingConfig) -> tuple[jax.Array, jax.Array]:
    """Each token goes into its slot."""
    slot = targets(state.count, length, k.shape[1], cfg)
    if slot.size == 1:
        # XLA turns a scatter of one entry into an update that it computes anew for each reader, with a copy of the ring each time.
        # So there are two entries, the second without a place.
        k, v, slot = jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1), jnp.pad(slot, ((0, 0), (0, 1)), constant_values=cfg.slots)
    put = jax.vmap(lambda old, new, slot: old.at[slot].set(new.astype(old.dtype), mode="drop"))
    return put(state.k, k, slot), put(state.v, v, slot)


def targets(count: jax.Array, length: jax.Array, tokens: int, cfg: RingConfig) -> jax.Array:
    """i32[B, T]: the slot into which each of T new tokens is written, N where it is not.

    No slot comes twice, because a scatter has no order: of tokens that share a slot only the last is written. Slot N does not
    exist, so a scatter drops it; -1 would be the last slot.
    """
    token = jnp.arange(tokens)[None]
    t = count[:, None] + token
    stays = (token < length[:, None]) & ((t < cfg.sinks) | (token >= length[:, None] - cfg.window))
    return jnp.where(stays, slots_of(t, cfg), cfg.slots)


def in_order(state: RingState, cfg: RingConfig) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the last W tokens, oldest first: entry n is token count - W + n, which has no meaning below `sinks`."""
    slot = cfg.sinks + (state.count[:, None] - cfg.sinks + jnp.arange(cfg.window)[None]) % cfg.window
    return P.take_rows(state.k, slot), P.take_rows(state.v, slot)


# ---------------------------------------------------------------------------------------------------- with the one signature

def _split(x: jax.Array, cfg: RingConfig) -> tuple[jax.Array, jax.Array]:
    """x[B, T, G (K + V)] as keys [B, T, G, K] and values [B, T, G, V]."""
    keys = cfg.kv_heads * cfg.key_dim
    parts = (x[..., :keys], cfg.key_dim), (x[..., keys:], cfg.value_dim)
    return tuple(part.reshape(*x.shape[:2], cfg.kv_heads, size) for part, size in parts)


def read(params, state: RingState, cfg: RingConfig) -> tuple[jax.Array, jax.Array]:
    """(pinned tokens and ring [B, N, G (K + V)], oldest first, bool[B, N] which of them are real)."""
    checks.check_state(state, state_specs(cfg, checks.batch_of(state)))
    ring = jnp.arange(cfg.window)[None] + state.count[:, None] - cfg.window
    real = jnp.concatenate([jnp.arange(cfg.sinks)[None] < state.count[:, None], ring >= cfg.sinks], axis=1)
    both = (jnp.concatenate([old[:, :cfg.sinks], new], axis=1) for old, new in zip(state[:2], in_order(state, cfg), strict=True))
    return jnp.concatenate([x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]) for x in both], axis=-1), real


def run(params, state: RingState, x: jax.Array, cfg: RingConfig, length: jax.Array | None = None, *, whole: bool = False):
    """`apply` with statistics, of which there are none."""
    rows, real = read(params, state, cfg)
    x, length = checks.checked(x, length, cfg.width, cfg.unit, whole)
    rows = jnp.where(real[..., None], rows, jnp.zeros((), rows.dtype)).astype(x.dtype)
    return jnp.concatenate([rows, x], axis=1), write(state, *_split(x, cfg), length, cfg), {}


def apply(params, state: RingState, x: jax.Array, cfg: RingConfig, length: jax.Array | None = None, *, whole: bool = False):
    """Read, then write: keys and values x[B, T, G (K + V)] -> ([ring ; x] [B, N+T, G (K + V)], state); what is not real is zero."""
    return run(params, state, x, cfg, length, whole=whole)[:2]
