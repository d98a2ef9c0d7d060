"""Segment borders inside a call: what every mixer with an open segment shares.

A segment is a property of the model: it ends when `segment` tokens have come (or where the caller says so), however the tokens are
cut into calls. A mixer whose memory changes at a border gives `walk` a step for tokens of one segment; the tokens of a segment that
is still open stand in buffers of `slots` places, which `walk` clears at the border.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import pieces
from memtok_jax.models.call import Call
from memtok_jax.models.style import Backbone

Step = Callable[[Any, jax.Array, Call], tuple[jax.Array, Any, dict]]


def walk(step: Step, state: Any, x: jax.Array, call: Call, b: Backbone, state_specs: Any,
         lean: tuple[Callable, Callable] = (lambda state: state, lambda state, carry: carry)) -> tuple[jax.Array, Any, dict]:
    """Run `step(state, x, call) -> (y, state, stats)` on the part of each segment that x[B, T, D] holds.

    Each step's call says which rows close their segment. lean: (of a state, what a whole segment changes; a state and that, the
    next state): a scan over whole segments then carries nothing else. Returns (y [B, T, D], state, stats).
    """
    if call.closes is not None:
        y, state, stats = step(state, x, call)
        return y, state if call.whole else P.clear_segment(state, call.closes, state_specs), stats
    if call.whole:
        return _whole_segments(step, state, x, call, b, lean)
    cut = pieces.cut(call.slot, call.length, x.shape[1], b.segment)

    def piece(carry, part):
        state, slot = carry
        x, length, closes = part
        y, state, stats = step(state, x, replace(call, length=length, closes=closes, slot=slot))
        return (P.clear_segment(state, closes, state_specs), jnp.where(closes, 0, slot + length)), (y, stats)

    parts = (pieces.split(x, cut), cut.length, cut.closes)
    if cut.length.shape[0] == 1:
        (state, _), (y, stats) = piece((state, call.slot), jax.tree.map(lambda leaf: leaf[0], parts))
        return pieces.join(y[None], cut), state, stats
    (state, _), (y, stats) = jax.lax.scan(piece, (state, call.slot), parts)
    return pieces.join(y, cut), state, join_stats(stats, cut.length.sum(1), x.shape[1] // b.segment)


def _whole_segments(step: Step, state: Any, x: jax.Array, call: Call, b: Backbone, lean) -> tuple[jax.Array, Any, dict]:
    """Segments without padding; each is computed again in the backward pass."""
    batch, tokens, width = x.shape
    n = tokens // b.segment
    length = jnp.full((batch,), b.segment, jnp.int32)
    each = replace(call, length=length, closes=length > 0, slot=jnp.zeros_like(length))
    if n == 1:
        return step(state, x, each)
    pack, unpack = lean

    def body(carry, x):
        y, after, stats = step(unpack(state, carry), x, each)
        return pack(after), (y, stats)

    grid = jnp.moveaxis(x.reshape(batch, n, b.segment, width), 1, 0)
    carry, (y, stats) = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), pack(state), grid)
    return jnp.moveaxis(y, 0, 1).reshape(x.shape), unpack(state, carry), join_stats(stats, jnp.full((n,), batch * b.segment), n)


# Names of statistics that describe the carry which a call leaves, not its tokens.
AFTERWARDS = ("weight_change", "surprise_norm", "matrix_rms", "normaliser_rms", "state_rms")


def join_stats(stats: dict, tokens_N: jax.Array, segments: int) -> dict:
    """Statistics of N pieces as those of the whole.

    The end of a name says how: the maximum of "_max", the losses per segment of "auxiliary_loss", the last value of what describes
    the carry, and the mean weighed by real tokens of all others. Pieces without tokens do not count.
    """
    real = tokens_N > 0
    last = jnp.where(real, jnp.arange(real.size), 0).max()
    share = tokens_N / jnp.maximum(tokens_N.sum(), 1)

    def joined(name: str, values: jax.Array) -> jax.Array:
        values = jnp.where(real, values, 0)
        if name.endswith("_max"):
            return values.max()
        if name.endswith("auxiliary_loss"):
            return values.sum() / max(segments, 1)
        return values[last] if name.endswith(AFTERWARDS) else (values * share.astype(values.dtype)).sum()

    return {name: joined(name, values) for name, values in stats.items()}


def store(buffer: jax.Array, new: jax.Array, call: Call) -> jax.Array:
    """Write the real tokens of new[B, T, ...] into buffer[B, slots, ...] from the call's slot on."""
    token = jnp.arange(new.shape[1])[None]
    index = jnp.where(token < call.length[:, None], call.slot[:, None] + token, buffer.shape[1])
    return jax.vmap(lambda b, n, i: b.at[i].set(n.astype(b.dtype), mode="drop"))(buffer, new, index)


def visible_slots(call: Call, tokens: int, slots: int) -> jax.Array:
    """bool[B, T, slots]: what tokens see of an open segment that holds them already."""
    place = call.slot[:, None] + jnp.arange(tokens)[None]
    two_way = call.sees == "all" or call.sees == "memory" and tokens in (call.head, call.tail)
    last = (call.slot + call.length - 1)[:, None] if two_way else place
    return jnp.arange(slots)[None, None] <= jnp.broadcast_to(last, place.shape)[..., None]


def visible_tokens(call: Call, tokens: int) -> jax.Array:
    """bool[T, T]: what the tokens of a whole segment see of one another, memory tokens included."""
    if call.sees == "all":
        return jnp.ones((tokens, tokens), bool)
    mask = jnp.tri(tokens, dtype=bool)
    if call.sees == "memory":
        mask = mask.at[:call.head, :call.head].set(True).at[tokens - call.tail:].set(True)
    return mask


def memory_tokens(call: Call, tokens: int) -> jax.Array:
    """bool[T]: which tokens of the call are memory tokens."""
    token = jnp.arange(tokens)
    return (token < call.head) | (token >= tokens - call.tail)
