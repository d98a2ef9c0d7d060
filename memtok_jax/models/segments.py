"""Walk a stream segment by segment: models whose memory changes at the end of a segment share this.

A segment ends when it holds `segment` tokens ("full": any cut of a stream into calls gives the same), with each call ("call":
a call is a segment, however short its rows are), or not at all ("never": the open segment is only extended). A call that need not
be a whole segment keeps keys and values of the open segment's tokens, so that later tokens of it see them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.memory import pieces
from memtok_jax.models import decoder
from memtok_jax.numerics import REMAT
from memtok_jax.params import StateSpec

ENDS = ("full", "call", "never")
CHOICES = {"ends": ENDS, "position": ("learned", "relative"), "dtype": ("float32", "bfloat16"), "remat": REMAT}


# ------------------------------------------------------------------------------------------------------ what configs share

def choose(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError, with the nearest right word, where a field holds none of the known words."""
    if value not in known:
        near = difflib.get_close_matches(str(value), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}{hint}")


def check(cfg: Any) -> None:
    """Raise ValueError, naming value and rule, for the fields that the configs of such models share."""
    for name in ("vocabulary", "width", "layers", "head_dim", "segment", "unroll"):
        if getattr(cfg, name) < 1:
            raise ValueError(f"{name}={getattr(cfg, name)} must be at least 1")
    for name in ("tokens", "hidden", "positions"):
        if getattr(cfg, name) < 0:
            raise ValueError(f"{name}={getattr(cfg, name)} must not be negative")
    for name, known in CHOICES.items():
        choose(name, getattr(cfg, name), known)
    if cfg.width % cfg.head_dim:
        raise ValueError(f"width={cfg.width} is not a multiple of head_dim={cfg.head_dim}")
    if cfg.position == "relative" and cfg.width % 2:
        raise ValueError(f"width={cfg.width} must be even: relative positions are pairs of sine and cosine")
    if cfg.positions and cfg.positions < cfg.rows:
        raise ValueError(f"positions={cfg.positions} is less than the {cfg.rows} rows of a segment and its memory")


@dataclass(frozen=True)
class SegmentedConfig:
    """vocabulary: V. width: D. layers: L. head_dim: K. hidden: F; 0 takes 4 D. segment: tokens of a full segment. tokens: M.

    ends: when a segment ends: "full", after `segment` tokens, however they arrive; "call", with each call of at most
        `segment` tokens (an encoder can do nothing else); "never", see `extend`.
    position: "learned" or "relative". positions: rows of the learned table, or longest distance plus one; 0 takes what a
        segment and its memory need. scaled: word embeddings are multiplied by sqrt(D), so that they enter as large as a memory.
    tied: the output layer is the embedding.
    dtype: "float32" or "bfloat16", of activations. remat: as in `numerics.recompute`. unroll: layers side by side.
    aligned: promise that each call is one whole segment; see `is_one`.
    """

    vocabulary: int = 256
    width: int = 128
    layers: int = 4
    head_dim: int = 32
    hidden: int = 0
    segment: int = 64
    tokens: int = 8
    ends: str = "full"
    position: str = "learned"
    positions: int = 0
    scaled: bool = True
    tied: bool = True
    dtype: str = "float32"
    remat: str = "pointwise"
    unroll: int = 1
    aligned: bool = False

    def __post_init__(self):
        check(self)

    @property
    def decoder(self) -> decoder.DecoderConfig:
        """Options of the backbone."""
        return decoder.DecoderConfig(self.vocabulary, self.width, self.layers, self.head_dim, self.hidden or 4 * self.width,
                                     self.positions or self.rows, self.position, scale(self), self.tied, self.dtype, self.remat,
                                     self.unroll)

    @property
    def window(self) -> int:
        """Tokens that a token can see without memory."""
        return self.segment


def scale(cfg: Any) -> float:
    """Factor of the word embeddings."""
    return cfg.width ** 0.5 if cfg.scaled else 1.0


def is_one(cfg: Any, tokens: int) -> bool:
    """Whether calls of `tokens` tokens without padding are one segment each.

    Raises ValueError naming both numbers where such calls do not end with segments.
    """
    check_call(cfg, tokens)
    if cfg.ends == "full" and tokens % cfg.segment:
        raise ValueError(f"a training segment of {tokens} tokens is not a multiple of model.segment={cfg.segment}")
    return cfg.ends == "full" and tokens == cfg.segment


def check_call(cfg: Any, tokens: int) -> None:
    """Raise ValueError where a call of `tokens` tokens does not suit `ends` or `aligned`."""
    if cfg.aligned and tokens != cfg.segment or cfg.ends == "call" and tokens > cfg.segment:
        raise ValueError(f"a call of {tokens} tokens is not one segment of model.segment={cfg.segment}")


# --------------------------------------------------------------------------------------------------------------- the walk


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


def walk(step: Callable, memory: Any, opened: Any, ids: jax.Array, length: jax.Array, cfg: Any
         ) -> tuple[jax.Array, Any, Any]:
    """Run `step(memory, call) -> (logits, memory, keys and values of the tokens)` over a block of tokens.

    Where `ends` is "call" or `aligned` is promised, each row of the call is one segment (an empty row is none). Otherwise the call
    is cut at the borders of segments.
    Returns (logits f32[B, T, V], memory, open segment).
    """
    if cfg.aligned or cfg.ends == "call":
        call = Call(ids, length, length > 0, no_past(cfg.decoder, ids.shape[0]), jnp.zeros_like(length))
        logits, memory, _ = step(memory, call)
        return logits, memory, opened
    cut = pieces.cut(opened.phase, length, ids.shape[1], cfg.segment)

    def piece(carry, x):
        memory, opened = carry
        call = Call(*x, *opened)
        logits, memory, new = step(memory, call)
        past = decoder.put(opened.past, new, opened.phase, call.length)
        return (memory, Open(past, (opened.phase + call.length) % cfg.segment)), logits

    parts = (pieces.split(ids, cut), cut.length, cut.closes)
    (memory, opened), logits = jax.lax.scan(piece, (memory, opened), parts)
    return pieces.join(logits, cut), memory, opened


def extend(opened: Open, cfg: Any, room: int) -> tuple[Open, Any]:
    """The open segment with `room` more slots, and the config whose segments never end; see `recurrent.extend`.

    Raises ValueError where the learned positions do not suffice, or a call cannot be a part of a segment.
    """
    if cfg.ends == "call":
        raise ValueError("ends='call': there is no open segment to extend")
    longer = replace(cfg, segment=cfg.segment + room, ends="never", aligned=False, positions=0)
    have = cfg.decoder.positions
    if cfg.position == "learned" and longer.rows > have:
        raise ValueError(f"{cfg.segment} tokens, {room} more and the memory in front need {longer.rows} positions, "
                         f"the table has {have}; set model.positions={longer.rows} before training")
    past = jax.tree.map(lambda kv: jnp.pad(kv, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))), opened.past)
    return opened._replace(past=past), replace(longer, positions=have if cfg.position == "learned" else 0)
