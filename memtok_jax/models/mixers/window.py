"""Sliding-window attention with an always visible prefix (Titans, equations 27 and 31; a full Transformer is a window as long as
the sequence), and with pinned first tokens (StreamingLLM, arXiv 2309.17453).

The carry is a ring (`memory/ring.py`) of the last W keys and values and of the first `sinks` ones, all without positions. A query
sees itself, the W - 1 tokens before it, the first tokens, and the prefix. Segment borders do not matter to it. The same function in
two forms:

    one token     its key goes into its slot; then the query attends to the slots as they lie, placed by slot number
    more tokens   the ring, oldest first, and the new keys are cut into blocks of W; each block sees itself and the block before

A pinned token is a column of its own in both (`attention.Pinned`) and is hidden in the window. In the window rotary angles count
from the block's oldest key, so they stay small for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.config import check_numbers, choose
from memtok_jax.memory import ring
from memtok_jax.memory.ring import RingConfig, RingState
from memtok_jax.models import attention as A
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig
from memtok_jax.models.positions import Places
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import recompute

EVALUATION = {"evaluation": True}


@dataclass(frozen=True)
class WindowConfig(MixerConfig):
    """window: W, keys that a query may see, itself included, beside the pinned ones. It may be smaller than `sinks`.

    sinks: first tokens of a stream that every later query sees.
    positions: of the sinks, "cache" (as in the paper: no distance exceeds sinks + W - 1) or "absolute" (as in the stream).
    An evaluation may change all three: the paper adds sinks to models that were trained without.
    """

    window: int = field(default=128, metadata=EVALUATION)
    sinks: int = field(default=0, metadata=EVALUATION)
    positions: str = field(default="cache", metadata=EVALUATION)

    def __post_init__(self):
        check_ring("window", self)

    def reach(self, b: Backbone) -> int:
        """W - 1 tokens before itself."""
        return self.window - 1


def check_ring(name: str, cfg: Any) -> None:
    """Raise UserError where window, sinks or positions of a mixer's config are wrong."""
    check_numbers(name, cfg, at_least=dict(window=1, sinks=0))
    choose(f"{name}.positions", cfg.positions, ring.POSITIONS)


def ring_of(cfg: Any, b: Backbone) -> RingConfig:
    """The ring of a mixer that has the options of `WindowConfig`."""
    return RingConfig(cfg.window, cfg.sinks, cfg.positions, b.kv_heads, b.head_dim, b.value_dim, b.dtype)


class WindowState(NamedTuple):
    """Prefix and past."""

    prefix: A.Prefix
    past: RingState


def specs(cfg: WindowConfig, b: Backbone) -> dict:
    """Projections of attention."""
    return A.specs(b)


def state_specs(cfg: WindowConfig, b: Backbone, batch: int) -> WindowState:
    """Prefix and past."""
    return WindowState(A.prefix_specs(b, batch), ring.state_specs(ring_of(cfg, b), batch))


def begin(params, x_MD: jax.Array, cfg: WindowConfig, b: Backbone, batch: int, side: dict):
    """The prefix through this layer, and an empty ring."""
    y, prefix = A.prefix_pass(params, enter(params, x_MD, b), b, side)
    return A.output(params, y, b), WindowState(A.for_batch(prefix, b, batch), ring.init_state({}, ring_of(cfg, b), batch)), side


def _pinned(after: RingState, t: jax.Array, r: RingConfig) -> A.Pinned:
    """The first tokens for queries t i32[B, ..., T], from a ring that holds these tokens already."""
    lead = t.shape[1:-1]
    each = lambda x: jnp.broadcast_to(x[:, :r.sinks].reshape(x.shape[0], *(1 for _ in lead), r.sinks, *x.shape[2:]),
                                      (x.shape[0], *lead, r.sinks, *x.shape[2:]))
    token = jnp.arange(r.sinks).reshape((1,) * t.ndim + (-1,))
    return A.Pinned(each(after.k), each(after.v), ring.place(t, r), ring.visible(t[..., None], token, r))


def _one_token(params, prefix: A.Prefix, after: RingState, u: jax.Array, b: Backbone, side: dict, r: RingConfig) -> jax.Array:
    """Attention of the newest token, which is in the ring already: u[B, 1, D] -> [B, 1, H V]. Nothing is moved or copied."""
    t, token = after.count[:, None] - 1, ring.tokens_of(after.count, r)
    visible = (token >= r.sinks)[:, None]
    where = Places(jnp.full_like(t, r.window - 1), jnp.clip(r.window - 1 - t + token, 0, r.window - 1))
    return A.at_places(params, u, after.k, after.v, visible, b, side, prefix=prefix, pinned=_pinned(after, t, r), places=where)[0]


def _cut(stream: jax.Array, n: int, window: int) -> jax.Array:
    """stream[B, W + n*Q, ...] -> [B, n, W + Q, ...], block i beginning at i*Q (Q = W where n > 1)."""
    if n == 1:
        return stream[:, None]
    whole = stream.reshape(stream.shape[0], n + 1, window, *stream.shape[2:])
    return jnp.concatenate([whole[:, :-1], whole[:, 1:]], axis=2)


def visible_keys(count_B: jax.Array, n: int, size: int, r: RingConfig) -> jax.Array:
    """bool[B, n, Q, W + Q]: causal, inside the window, tokens of the stream, not pinned. count: tokens before the call."""
    query = r.window + jnp.arange(size)[:, None]
    key = jnp.arange(r.window + size)[None]
    near = (key <= query) & (query - key < r.window)
    real = jnp.arange(n)[None, :, None] * size + key[None] >= r.window + r.sinks - count_B[:, None, None]
    return near[None, None] & real[:, :, None]


def _blocks(params, prefix: A.Prefix, past: RingState, after: RingState, new: tuple, u: jax.Array, b: Backbone, side: dict,
            r: RingConfig) -> jax.Array:
    """Attention of tokens u[B, T, D] with keys and values `new`, in blocks of at most W: [B, T, H V]."""
    tokens, batch = u.shape[1], u.shape[0]
    size = max(min(tokens, r.window), 1)
    n = -(-tokens // size)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, n * size - tokens)) + ((0, 0),) * (x.ndim - 2))
    streams = (jnp.concatenate([old.astype(x.dtype), pad(x)], axis=1) for old, x in zip(ring.in_order(past, r), new, strict=True))
    keys, values = (_cut(s, n, r.window) for s in streams)
    everywhere = A.Prefix(*(jnp.broadcast_to(p[:, None], (p.shape[0], n, *p.shape[1:])) for p in prefix))
    pinned = _pinned(after, (past.count[:, None] + jnp.arange(n * size)[None]).reshape(batch, n, size), r)
    attend = recompute(partial(A.at_places, b=b, prefix=everywhere, pinned=pinned))
    y, _ = attend(params, pad(u).reshape(batch, n, size, -1), keys, values, visible_keys(past.count, n, size, r), side=side)
    return y.reshape(batch, n * size, -1)[:, :tokens]


def _first(params, keys: Keys, u: jax.Array, b: Backbone, side: dict, r: RingConfig) -> jax.Array:
    """`_blocks` of at most W tokens where the ring is empty: they see one another alone."""
    tokens = u.shape[1]
    visible = jnp.tri(tokens, dtype=bool) & (jnp.arange(tokens)[None] >= r.sinks)
    pinned = _pinned(keys.after, jnp.broadcast_to(jnp.arange(tokens)[None], u.shape[:2]), r)
    return A.at_places(params, u, *keys.new, jnp.broadcast_to(visible[None], (len(u), tokens, tokens)), b, side, prefix=keys.prefix,
                       pinned=pinned)[0]


class Keys(NamedTuple):
    """All that the queries of a call may see, made by one layer; layers behind it may use it too."""

    prefix: A.Prefix
    past: RingState    # before the call
    after: RingState   # with the tokens of the call
    new: tuple         # keys [B, T, G, K] and values [B, T, G, V] of the call


def keys_of(params, prefix: A.Prefix, past: RingState, u: jax.Array, b: Backbone, length: jax.Array, r: RingConfig) -> Keys:
    """Keys and values of normed tokens u[B, T, D], the first length[b] of them real, and the ring that holds them."""
    new = tuple(A.heads(params, u, name, b) for name in "kv")
    return Keys(prefix, past, ring.write(past, *new, length, r), new)


def attend_to(params, keys: Keys, u: jax.Array, b: Backbone, side: dict, r: RingConfig) -> jax.Array:
    """Attention of normed tokens u[B, T, D] before the output projection: [B, T, H V]."""
    if u.shape[1] == 1:
        return _one_token(params, keys.prefix, keys.after, u, b, side, r)
    return _blocks(params, *keys, u, b, side, r)


def attend(params, prefix: A.Prefix, past: RingState, u: jax.Array, b: Backbone, length: jax.Array, side: dict, r: RingConfig):
    """Attention of normed tokens u[B, T, D] before the output projection, and the new past."""
    keys = keys_of(params, prefix, past, u, b, length, r)
    return attend_to(params, keys, u, b, side, r), keys.after


def run(params, state: WindowState, x: jax.Array, cfg: WindowConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, no statistics, side).

    The beginning of a stream, most of all a long prompt, leaves the empty ring out of its products. Training does not: its calls go
    on with streams.
    """
    r, u = ring_of(cfg, b), enter(params, x, b)
    keys = keys_of(params, state.prefix, state.past, u, b, call.length, r)
    later = lambda: attend_to(params, keys, u, b, side, r)
    if call.training or not 1 < u.shape[1] <= r.window:
        y = later()
    else:
        y = jax.lax.cond((state.past.count == 0).all(), lambda: _first(params, keys, u, b, side, r), later)
    return A.output(params, y, b), state._replace(past=keys.after), {}, side
