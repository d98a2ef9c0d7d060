"""Memory as a context (Titans MAC, equations 21 to 25).

    h = rms_head(f_{segment start}(q(u))) W_H                                   (21)  read before attention
    y = attention from u to [p, h, u], inside the segment                        (22) (23)
    memory <- y                                                                  (24)
    o = (rms(y) * sigmoid(rms(f_{after token}(q(y))))) W_O                        (25)

Two places where the equations, read loosely, would leak the future: h_j is a function of token j, so query i sees h_j
only for j <= i; and the read of (25) uses the weights as of its own token, not those at the end of the segment.
Differs from MAG in that attention never leaves the segment: everything older comes through h.

The memory is asked twice, with u and with y, through the same projection; each stream has its own convolution tail.

With `retrieved` = N_l > 0, (21) asks N_l learned questions instead of one for each token (N_l in section 4.1). The answers depend
on earlier segments alone, so that all tokens may see them: they stand beside the prefix, without positions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.memory import pieces as cutting
from memtok_jax.memory.neural.features import unit
from memtok_jax.models import attention as A
from memtok_jax.models.config import BlockConfig
from memtok_jax.models.mixers.lmm import initial_reads, normed_reads
from memtok_jax.models.mixers.mag import combine, combine_specs
from memtok_jax.numerics import matmul, rms_norm


class SegmentKeys(NamedTuple):
    """Keys (rotated) and values of the open segment, for retrieved vectors and for tokens: [B, T, H, K] each. Learned questions
    leave the first two empty."""

    retrieved_k: jax.Array
    retrieved_v: jax.Array
    token_k: jax.Array
    token_v: jax.Array


class MacState(NamedTuple):
    """The open segment and the memory."""

    prefix: A.Prefix
    memory: neural.NeuralMemoryState
    start: dict[str, jax.Array]  # f32[B, H, ...] weights (deviations) at the start of the segment, read by (21)
    conv: jax.Array              # f32[B, conv-1, H, K] tail of the query convolution over u (unused by learned questions)
    keys: SegmentKeys
    fill: jax.Array              # i32[B] tokens in the open segment, 0 .. T-1


def _own_slice(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Head h starts with features h K to (h+1) K as they are, and a little noise: [D, H, K]."""
    width, heads, head_dim = shape
    eye = jnp.eye(width, heads * head_dim, dtype=dtype).reshape(shape)
    return eye + 0.02 * jax.random.normal(key, shape, dtype)


def specs(cfg: BlockConfig) -> dict:
    """Attention, memory, the way of the retrieved vectors into attention, and the two norms of the gate."""
    h, k = cfg.memory.heads, cfg.memory.head_dim
    # Queries and keys that start alike make a token attend to itself first. The memory is written with what attention
    # returns (24); started at random, that is a blur of the whole segment, and recall is learnt several times slower.
    alike = {name: replace(spec, init=_own_slice) for name, spec in A.specs(cfg).items() if name in ("wq", "wk")}
    questions = {"questions": P.ParamSpec((cfg.retrieved, h, k), (None, "heads", None), P.normal(1.0), decayed=False)}
    return {
        **A.specs(cfg), **alike, **combine_specs(cfg), "memory": neural.specs(cfg.memory), **(questions if cfg.retrieved else {}),
        "norm_retrieved": P.ParamSpec((h, k), ("heads", None), P.ones, decayed=False),
        "wh": P.ParamSpec((cfg.width, cfg.width), ("heads", "embed"), P.fan_in(0)),
        "norm_written": P.ParamSpec((cfg.width,), (None,), P.ones, decayed=False),
    }


def state_specs(cfg: BlockConfig, batch: int) -> MacState:
    """The memory, a second set of weights (`start`), and one segment of keys and values."""
    memory = neural.state_specs(cfg.memory, batch)
    key = lambda rows=cfg.segment: P.StateSpec((batch, rows, cfg.heads, cfg.head_dim), ("batch", None, "heads", None),
                                               jnp.dtype(cfg.dtype))
    retrieved = 0 if cfg.retrieved else cfg.segment
    m = cfg.memory
    conv = P.StateSpec((batch, m.conv - 1, m.heads, m.head_dim), ("batch", None, "heads", None))
    keys = SegmentKeys(key(retrieved), key(retrieved), key(), key())
    fill = P.StateSpec((batch,), ("batch",), jnp.int32)
    return MacState(A.prefix_specs(cfg, batch), memory, dict(memory.weights), conv, keys, fill)


def init_state(params, cfg: BlockConfig, batch: int) -> MacState:
    """An empty segment before an untouched memory."""
    return P.zero_state(state_specs(cfg, batch))


def retrieve(params, start: dict, q: jax.Array, cfg: BlockConfig) -> jax.Array:
    """Equation 21 for queries [B, T, H, K] at the segment-start weights: h [B, T, D]."""
    reads = neural.reads_at(params["memory"], start, q, cfg.memory)
    flat = normed_reads(reads.reshape(*q.shape[:2], cfg.width), params["norm_retrieved"])
    return matmul(flat, params["wh"], cfg.dtype)


def visible_keys(position: jax.Array, segment: int) -> jax.Array:
    """bool[B, T, 2 * segment]: a query at position i sees retrieved vectors and tokens at j <= i."""
    causal = jnp.arange(segment)[None, None] <= position[:, :, None]
    return jnp.concatenate([causal, causal], axis=-1)


def _store(buffer: jax.Array, new: jax.Array, fill: jax.Array, length: jax.Array) -> jax.Array:
    """Write new[B, T, ...] behind `fill` entries of buffer[B, S, ...]; padding goes nowhere."""
    slots = jnp.arange(new.shape[1])[None]
    index = jnp.where(slots < length[:, None], fill[:, None] + slots, buffer.shape[1])
    return jax.vmap(lambda b, n, i: b.at[i].set(n.astype(b.dtype), mode="drop"))(buffer, new, index)


def _keys(params, x: jax.Array, position: jax.Array, cfg: BlockConfig) -> tuple[jax.Array, jax.Array]:
    return A.rotate(A.heads(x, params["wk"], cfg), position, cfg.rope_base), A.heads(x, params["wv"], cfg)


def _by_token(params, state: MacState, u: jax.Array, position: jax.Array, length: jax.Array, cfg: BlockConfig):
    """One retrieved vector for each token: (keys, values, the prefix as it is, conv)."""
    q, conv = neural.query(params["memory"], u, state.conv, cfg.memory, length)
    h = retrieve(params, state.start, q, cfg).astype(u.dtype)
    return *_keys(params, h, position, cfg), state.prefix, conv


def _by_question(params, state: MacState, u: jax.Array, cfg: BlockConfig):
    """One for each learned question: (no keys, no values, the prefix with the answers behind it, conv)."""
    q = unit(params["questions"]) if cfg.memory.feature_norm else params["questions"]
    q = jnp.broadcast_to(q[None], (u.shape[0], *q.shape))
    h = retrieve(params, state.start, q, cfg).astype(u.dtype)
    answers = (A.heads(h, params[name], cfg) for name in ("wk", "wv"))
    front = A.Prefix(*(jnp.concatenate([p.astype(u.dtype), a], axis=1) for p, a in zip(state.prefix, answers, strict=True)))
    return state.keys.retrieved_k, state.keys.retrieved_v, front, state.conv


def _attend(params, state: MacState, u: jax.Array, length: jax.Array, cfg: BlockConfig):
    """Equations 21 to 23 for tokens of one segment: (y [B, T, D], conv, keys)."""
    position = state.fill[:, None] + jnp.arange(u.shape[1])[None]
    if cfg.retrieved:
        *retrieved, front, conv = _by_question(params, state, u, cfg)
    else:
        *retrieved, front, conv = _by_token(params, state, u, position, length, cfg)
    new = SegmentKeys(*retrieved, *_keys(params, u, position, cfg))
    if cfg.aligned:  # a whole segment: nothing older to join
        keys = new
    else:
        keys = SegmentKeys(*(_store(b, n, state.fill, length) for b, n in zip(state.keys, new, strict=True)))
    k, v = (jnp.concatenate(pair, axis=1).astype(u.dtype) for pair in (keys[0::2], keys[1::2]))
    front = A.Prefix(*(p.astype(u.dtype) for p in front))
    visible = visible_keys(position, cfg.segment)[..., -k.shape[1]:]
    y = A.attend(A.heads(u, params["wq"], cfg), position, k, v, front, visible, cfg)
    return y, conv, keys


def _segment(params, state: MacState, xs, cfg: BlockConfig):
    """Tokens that stay inside one segment. xs: u [B, T, D], length i32[B], closes bool[B]."""
    u, length, closes = xs
    y, conv, keys = _attend(params, state, u, length, cfg)
    written = rms_norm(y, params["norm_written"])
    r, memory, seen = neural.run(params["memory"], state.memory, written, cfg.memory, None if cfg.aligned else length,
                                  whole=cfg.aligned)
    out = combine(params, y, r, cfg)
    per_row = lambda flag, x: flag.reshape(flag.shape + (1,) * (x.ndim - 1))
    start = jax.tree.map(lambda old, new: jnp.where(per_row(closes, new), new, old), state.start, memory.weights)
    keys = jax.tree.map(lambda old, b: jnp.where(per_row(closes, b), 0, b).astype(old.dtype), state.keys, keys)
    fill = jnp.where(closes, 0, state.fill + length)
    return state._replace(memory=memory, start=start, conv=conv, keys=keys, fill=fill), (out, seen)


def prefix(params, x_MD: jax.Array, cfg: BlockConfig):
    """The prefix attends to itself and reads the initial weights; it is never written."""
    y, kept = A.prefix_pass(params, x_MD, cfg)
    r = initial_reads(params["memory"], rms_norm(y, params["norm_written"]), cfg)
    return combine(params, y[None], r, cfg)[0], kept


def _whole_segments(params, state: MacState, u: jax.Array, cfg: BlockConfig):
    """Segments that start at a border and are full: the weights are at once anchor and segment start, so that one copy of
    them is carried; each segment is computed again in the backward pass."""
    batch, tokens, width = u.shape
    n = tokens // cfg.segment
    cfg = replace(cfg, memory=replace(cfg.memory, remat_group=-1))
    length, closes = jnp.full((batch,), cfg.segment, jnp.int32), jnp.ones((batch,), bool)

    def body(carry, u):
        weights, surprise, memory_conv, conv = carry
        memory = state.memory._replace(anchor=weights, weights=weights, surprise=surprise, conv=memory_conv)
        whole = state._replace(memory=memory, start=weights, conv=conv)
        after, out = _segment(params, whole, (u, length, closes), cfg)
        return (after.memory.weights, after.memory.surprise, after.memory.conv, after.conv), out

    grid = jnp.moveaxis(u.reshape(batch, n, cfg.segment, width), 1, 0)
    carry = (state.memory.weights, state.memory.surprise, state.memory.conv, state.conv)
    (weights, surprise, memory_conv, conv), (out, seen) = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), carry, grid)
    memory = state.memory._replace(anchor=weights, weights=weights, surprise=surprise, conv=memory_conv)
    seen = neural.stats.merge(seen, jnp.full((n,), batch * cfg.segment))
    return jnp.moveaxis(out, 0, 1).reshape(u.shape), state._replace(memory=memory, start=weights, conv=conv), seen


def _open_segments(params, state: MacState, u: jax.Array, cfg: BlockConfig, length: jax.Array):
    """Tokens that may start and stop anywhere."""
    cut = cutting.cut(state.fill, length, u.shape[1], cfg.segment)
    xs = (cutting.split(u, cut), cut.length, cut.closes)
    state, (out, seen) = jax.lax.scan(partial(_segment, params, cfg=cfg), state, xs)
    return cutting.join(out, cut), state, neural.stats.merge(seen, cut.length.sum(1))


def run(params, state: MacState, u: jax.Array, cfg: BlockConfig, length=None):
    """`apply` with statistics of the memory."""
    if cfg.aligned:
        if u.shape[1] % cfg.segment or length is not None:
            raise ValueError(f"aligned=True needs whole segments of {cfg.segment} tokens without padding, got {u.shape[1]}")
        return _whole_segments(params, state, u, cfg)
    return _open_segments(params, state, u, cfg, P.full_length(u) if length is None else length)


def apply(params, state: MacState, u: jax.Array, cfg: BlockConfig, length=None):
    """u[B, T, D] -> (branch [B, T, D], state)."""
    return run(params, state, u, cfg, length)[:2]
