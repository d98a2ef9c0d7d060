"""Sliding-window attention with an always visible prefix (Titans, equations 27 and 31; a full Transformer is a window as long as
the sequence).

The carry is the last W keys and values, without positions, and how many of them are real: a query sees itself, the W - 1 tokens
before it, and the prefix. Segment borders do not matter to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import check_numbers
from memtok_jax.models import attention as A
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import recompute


@dataclass(frozen=True)
class WindowConfig(MixerConfig):
    """window: W, keys that a query may see, itself included."""

    window: int = 128

    def __post_init__(self):
        check_numbers("window", self, at_least=dict(window=1))

    def reach(self, b: Backbone) -> int:
        """W - 1 tokens before itself."""
        return self.window - 1


class Past(NamedTuple):
    """The past of a window attention."""

    k: jax.Array      # [B, W, G, K] oldest first, without positions
    v: jax.Array      # [B, W, G, V]
    count: jax.Array  # i32[B] real entries, at the end


class WindowState(NamedTuple):
    """Prefix and past."""

    prefix: A.Prefix
    past: Past


def specs(cfg: WindowConfig, b: Backbone) -> dict:
    """Projections of attention."""
    return A.specs(b)


def past_specs(window: int, b: Backbone, batch: int) -> Past:
    """Keys and values in the dtype of activations."""
    return Past(*A.key_specs(b, batch, window, "stream"), P.StateSpec((batch,), ("batch",), jnp.int32))


def state_specs(cfg: WindowConfig, b: Backbone, batch: int) -> WindowState:
    """Prefix and past."""
    return WindowState(A.prefix_specs(b, batch), past_specs(cfg.window, b, batch))


def begin(params, x_MD: jax.Array, cfg: WindowConfig, b: Backbone, batch: int, side: dict):
    """The prefix through this layer, and an empty window."""
    y, prefix = A.prefix_pass(params, enter(params, x_MD, b), b, side)
    empty = P.zero_state(past_specs(cfg.window, b, batch))
    return A.output(params, y, b), WindowState(A.for_batch(prefix, b, batch), empty)


def _blocks(stream: jax.Array, n: int, window: int) -> jax.Array:
    """stream[B, W + n*Q, ...] -> [B, n, W + Q, ...], block i beginning at i*Q (Q = W where n > 1)."""
    if n == 1:
        return stream[:, None]
    whole = stream.reshape(stream.shape[0], n + 1, window, *stream.shape[2:])
    return jnp.concatenate([whole[:, :-1], whole[:, 1:]], axis=2)


def visible_keys(count_B: jax.Array, n: int, window: int, size: int) -> jax.Array:
    """bool[B, n, Q, W + Q]: causal, inside the window, and not before the start of the stream."""
    query = window + jnp.arange(size)[:, None]
    key = jnp.arange(window + size)[None]
    near = (key <= query) & (query - key < window)
    real = jnp.arange(n)[None, :, None] * size + key[None] >= window - count_B[:, None, None]
    return near[None, None] & real[:, :, None]


def attend(params, prefix: A.Prefix, past: Past, u: jax.Array, b: Backbone, length: jax.Array, side: dict):
    """Attention of normed tokens u[B, T, D] before the output projection, and the new past."""
    tokens, window = u.shape[1], past.k.shape[1]
    size = max(min(tokens, window), 1)
    n = -(-tokens // size)
    q, k, v = (A.heads(params, u, name, b) for name in "qkv")
    pad = lambda x: jnp.pad(x, ((0, 0), (0, n * size - tokens), (0, 0), (0, 0)))
    streams = [jnp.concatenate([old.astype(new.dtype), pad(new)], axis=1) for old, new in ((past.k, k), (past.v, v))]
    keys, values = (_blocks(s, n, window) for s in streams)
    queries = pad(q).reshape(q.shape[0], n, size, *q.shape[2:])
    everywhere = A.Prefix(*(jnp.broadcast_to(p[:, None], (p.shape[0], n, *p.shape[1:])) for p in prefix))
    visible = visible_keys(past.count, n, window, size)
    y, _ = recompute(partial(A.at_places, b=b, prefix=everywhere))(params, queries, keys, values, visible, side=side)
    last = length[:, None] + jnp.arange(window)[None]
    k, v = (P.take_rows(s, last).astype(old.dtype) for s, old in zip(streams, past[:2], strict=True))
    return y.reshape(u.shape[0], n * size, -1)[:, :tokens], Past(k, v, jnp.minimum(past.count + length, window))


def run(params, state: WindowState, x: jax.Array, cfg: WindowConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, no statistics, side)."""
    y, past = attend(params, state.prefix, state.past, enter(params, x, b), b, call.length, side)
    return A.output(params, y, b), state._replace(past=past), {}, side
