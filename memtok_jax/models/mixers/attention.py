"""Sliding-window attention with an always visible prefix (Titans, equations 27 and 31; a full Transformer is a window
as long as the sequence).

The carry is the last W keys and values, not rotated, and how many of them are real: a query sees itself, the W - 1 tokens
before it, and the prefix.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models import attention as A
from memtok_jax.models.config import BlockConfig
from memtok_jax.numerics import recompute


class WindowState(NamedTuple):
    """The past of a window attention."""

    k: jax.Array      # [B, W, H, K] oldest first, not rotated
    v: jax.Array      # [B, W, H, K]
    count: jax.Array  # i32[B] real entries, at the end


class AttentionState(NamedTuple):
    """Prefix and window."""

    prefix: A.Prefix
    window: WindowState


def specs(cfg: BlockConfig) -> dict:
    """Projections of attention."""
    return A.specs(cfg)


def window_specs(cfg: BlockConfig, batch: int) -> WindowState:
    """Keys and values in the compute dtype."""
    past = lambda: P.StateSpec((batch, cfg.window, cfg.heads, cfg.head_dim), ("batch", None, "heads", None), jnp.dtype(cfg.dtype))
    return WindowState(past(), past(), P.StateSpec((batch,), ("batch",), jnp.int32))


def state_specs(cfg: BlockConfig, batch: int) -> AttentionState:
    """Prefix and window."""
    return AttentionState(A.prefix_specs(cfg, batch), window_specs(cfg, batch))


def init_state(params, cfg: BlockConfig, batch: int) -> AttentionState:
    """An empty window."""
    return P.zero_state(state_specs(cfg, batch))


def prefix(params, x_MD: jax.Array, cfg: BlockConfig):
    """The prefix through this layer."""
    y, kept = A.prefix_pass(params, x_MD, cfg)
    return A.output(y, params, cfg), kept


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


def window_attention(params, prefix: A.Prefix, state: WindowState, u: jax.Array, cfg: BlockConfig, length: jax.Array):
    """Attention output [B, T, D] before the output projection, and the new window."""
    tokens, window = u.shape[1], cfg.window
    size = min(tokens, window)
    n = -(-tokens // size)
    q, k, v = (A.heads(u, params[name], cfg) for name in ("wq", "wk", "wv"))
    pad = lambda x: jnp.pad(x, ((0, 0), (0, n * size - tokens), (0, 0), (0, 0)))
    streams = [jnp.concatenate([past.astype(new.dtype), pad(new)], axis=1) for past, new in ((state.k, k), (state.v, v))]
    keys, values = (_blocks(s, n, window) for s in streams)
    keys = A.rotate(keys, jnp.arange(window + size), cfg.rope_base)
    queries = pad(q).reshape(q.shape[0], n, size, *q.shape[2:])
    everywhere = A.Prefix(*(jnp.broadcast_to(p[:, None].astype(k.dtype), (p.shape[0], n, *p.shape[1:])) for p in prefix))
    y = recompute(partial(A.attend, cfg=cfg))(queries, window + jnp.arange(size), keys, values, everywhere,
                                              visible_keys(state.count, n, window, size))
    last = length[:, None] + jnp.arange(window)[None]
    k, v = (P.take_rows(s, last).astype(past.dtype) for s, past in zip(streams, (state.k, state.v), strict=True))
    y = y.reshape(u.shape[0], n * size, -1)[:, :tokens]
    return y, WindowState(k, v, jnp.minimum(state.count + length, window))


def run(params, state: AttentionState, u: jax.Array, cfg: BlockConfig, length=None):
    """`apply`, with an empty dict of statistics."""
    length = P.full_length(u) if length is None else length
    y, window = window_attention(params, state.prefix, state.window, u, cfg, length)
    return A.output(y, params, cfg), state._replace(window=window), {}


def apply(params, state: AttentionState, u: jax.Array, cfg: BlockConfig, length=None):
    """u[B, T, D] -> (branch [B, T, D], state)."""
    return run(params, state, u, cfg, length)[:2]
