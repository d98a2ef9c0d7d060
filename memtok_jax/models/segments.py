"""Walk a stream segment by segment: models whose memory changes at the end of a segment share this.

A segment ends when it holds `segment` tokens ("full": any cut of a stream into calls gives the same), with each call ("call":
a call is a segment, however short its rows are), or not at all ("never": the open segment is only extended). A call that need not
be a whole segment keeps keys and values of the open segment's tokens, so that later tokens of it see them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.memory import pieces
from memtok_jax.models import decoder
from memtok_jax.params import StateSpec

ENDS = ("full", "call", "never")


class Open(NamedTuple):
    """The open segment."""

    past: decoder.Past  # keys and values of its tokens, leaves [L, B, S, H, K]
    phase: jax.Array    # i32[B] how many tokens it holds


class Call(NamedTuple):
    """Tokens of one segment, beside what is known of that segment."""

    ids: jax.Array      # i32[B, T]
    length: jax.Array   # i32[B] real tokens
    closes: jax.Array   # bool[B] the segment ends with the last of them
    past: decoder.Past  # keys and values of the segment's earlier tokens
    phase: jax.Array    # i32[B] how many of them there are


def open_specs(cfg: decoder.DecoderConfig, batch: int, segment: int, ends: str) -> Any:
    """The open segment's part of a carry; nothing where each call is a segment."""
    if ends == "call":
        return ()
    return Open(decoder.past_specs(cfg, batch, segment), StateSpec((batch,), ("batch",), jnp.int32))


def no_past(cfg: decoder.DecoderConfig, batch: int) -> decoder.Past:
    """Before the first token of a segment."""
    empty = jnp.zeros((cfg.layers, batch, 0, cfg.heads, cfg.head_dim), cfg.dtype)
    return decoder.Past(empty, empty)


def walk(step: Callable, memory: Any, opened: Any, ids: jax.Array, length: jax.Array, cfg: decoder.DecoderConfig, segment: int,
         whole: bool) -> tuple[jax.Array, Any, Any]:
    """Run `step(memory, call) -> (logits, memory, keys and values of the tokens)` over a block of tokens.

    whole: each row of the call is one segment (an empty row is none). Otherwise the call is cut at the borders of segments.
    Returns (logits f32[B, T, V], memory, open segment).
    """
    if whole:
        call = Call(ids, length, length > 0, no_past(cfg, ids.shape[0]), jnp.zeros_like(length))
        logits, memory, _ = step(memory, call)
        return logits, memory, opened
    cut = pieces.cut(opened.phase, length, ids.shape[1], segment)

    def piece(carry, x):
        memory, opened = carry
        call = Call(*x, *opened)
        logits, memory, new = step(memory, call)
        past = decoder.put(opened.past, new, opened.phase, call.length)
        return (memory, Open(past, (opened.phase + call.length) % segment)), logits

    parts = (pieces.split(ids, cut), cut.length, cut.closes)
    (memory, opened), logits = jax.lax.scan(piece, (memory, opened), parts)
    return pieces.join(logits, cut), memory, opened
