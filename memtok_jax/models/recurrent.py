"""Recurrent Memory Transformer (RMT): a decoder whose memory tokens pass from segment to segment.

arXiv 2207.06881. One segment: [m ; x ; m] through the decoder, logits from the rows of x, the next m from the last rows. The
memory is taken after the last norm and enters again as an input embedding: N segments of L layers are N * L layers deep.

    form "paper"     memory rows see each other, tokens are causal (figure 2)
    form "causal"    the decoder's ordinary mask over [m ; x ; m], as wrappers of pretrained decoders have it
    form "encoder"   [m ; x], everything sees everything, the memory is written where it was read (2304.11062)
    form "prefix"    [m ; x] and never written: a Memory Transformer (2006.11527), no recurrence

No memory tokens give N independent segments, exactly. A trainer that scans `apply` over segments is the recurrence; where the
gradient is cut is the trainer's business (`training.gradient`). The published cache beside the memory is not built.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import recurrent as memory_tokens
from memtok_jax.memory.recurrent import RecurrentTokensConfig, RecurrentTokensState
from memtok_jax.models import decoder, masks, segments
from memtok_jax.models.decoder import View
from memtok_jax.models.segments import SegmentedConfig


@dataclass(frozen=True)
class RecurrentConfig(SegmentedConfig):
    """form: "causal", "paper", "encoder" or "prefix". init: of the first memory, "scaled", "shared" or "small". The other
    fields: `segments.SegmentedConfig`; the memory has the dtype of the activations.
    """

    form: str = "causal"
    init: str = "scaled"

    def __post_init__(self):
        segments.choose("form", self.form, masks.FORMS)
        super().__post_init__()
        if self.form == "encoder" and self.ends != "call":
            raise ValueError(f"ends={self.ends!r}: a token of an encoder sees later ones, so a call is a segment; set ends='call'")
        _ = self.memory

    @property
    def memory(self) -> RecurrentTokensConfig:
        """Options of the memory tokens."""
        layout = {"encoder": "front", "prefix": "read"}.get(self.form, "read" if self.ends == "never" else "both")
        std = segments.scale(self) * self.width ** -0.5
        return RecurrentTokensConfig(self.width, self.tokens, layout, self.init, std, self.dtype)

    @property
    def rows(self) -> int:
        """E: rows of a full segment with its memory."""
        return self.tokens + self.segment + self.tail

    @property
    def tail(self) -> int:
        """Rows of the write block."""
        return self.tokens if self.form in ("causal", "paper") and self.ends != "never" else 0


class RecurrentState(NamedTuple):
    """The carry."""

    memory: RecurrentTokensState  # m_n
    open: Any                     # segments.Open, or () where each call is a segment


def specs(cfg: RecurrentConfig) -> dict:
    """The backbone and the first memory."""
    return {"decoder": decoder.specs(cfg.decoder), "memory": memory_tokens.specs(cfg.memory)}


def state_specs(cfg: RecurrentConfig, batch: int) -> RecurrentState:
    """Memory tokens, and the open segment where a call may be a part of one."""
    return RecurrentState(memory_tokens.state_specs(cfg.memory, batch),
                          segments.open_specs(cfg.decoder, batch, cfg.segment, cfg.ends))


def init_state(params, cfg: RecurrentConfig, batch: int) -> RecurrentState:
    """The first memory in every row, and an empty segment."""
    zero = P.zero_state(state_specs(cfg, batch))
    return zero._replace(memory=memory_tokens.init_state(params["memory"], cfg.memory, batch))


def refresh(params, state: RecurrentState, cfg: RecurrentConfig) -> RecurrentState:
    """A memory that is only read is made from the parameters anew; one that was written belongs to the stream and stays."""
    if cfg.form != "prefix":
        return state
    return state._replace(memory=memory_tokens.init_state(params["memory"], cfg.memory, state.memory.tokens.shape[0]))


def for_training(cfg: RecurrentConfig, tokens: int) -> RecurrentConfig:
    """The same model for calls of `tokens` tokens without padding; see `segments.is_one`."""
    return replace(cfg, aligned=segments.is_one(cfg, tokens))


def step(params, memory: RecurrentTokensState, call: segments.Call, cfg: RecurrentConfig):
    """Read block, tokens and write block once through the decoder: (logits, memory, keys and values of the tokens)."""
    x = decoder.embed(params["decoder"], call.ids, cfg.decoder)
    rows = memory_tokens.read(params["memory"], memory, x, cfg.memory)
    m, t, tail, slots = cfg.tokens, x.shape[1], cfg.tail, call.past.k.shape[2]
    view = View(masks.visible(cfg.form, m, t, tail, call.length, call.phase, slots),
                *masks.positions(m, t, tail, call.length, call.phase, slots))
    h, new = decoder.run(params["decoder"], rows, call.past, view, cfg.decoder)
    h, written = memory_tokens.split(h, cfg.memory)
    memory = memory_tokens.write(params["memory"], memory, written, cfg.memory, call.closes)
    return decoder.output(params["decoder"], h, cfg.decoder), memory, jax.tree.map(lambda kv: kv[:, :, m:m + t], new)


def run(params, state: RecurrentState, ids: jax.Array, cfg: RecurrentConfig, length=None):
    """`apply` with statistics: the size of the memory afterwards, and how far it moved."""
    segments.check_call(cfg, ids.shape[1])
    length = P.full_length(ids) if length is None else length
    logits, memory, opened = segments.walk(lambda memory, call: step(params, memory, call, cfg), state.memory, state.open, ids,
                                           length, cfg)
    return logits, RecurrentState(memory, opened), _seen(state.memory, memory, cfg)


def _seen(before: RecurrentTokensState, after: RecurrentTokensState, cfg: RecurrentConfig) -> dict[str, jax.Array]:
    """Root mean squares of the memory and of its change, f32[]."""
    if not cfg.tokens or cfg.form == "prefix":
        return {}
    rms = lambda x: jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean())
    return {"memory_rms": rms(after.tokens), "memory_change": rms(after.tokens - before.tokens)}


def apply(params, state: RecurrentState, ids: jax.Array, cfg: RecurrentConfig, length=None):
    """A block of tokens.

    ids: i32[B, T]. length: i32[B], real tokens of each row (a prefix of the row); left out, all T. Where a segment ends, its
    write block makes the next memory; a row without tokens keeps its memory.
    Returns (logits f32[B, T, V], state). Raises ValueError where T does not suit `ends` or `aligned`.
    """
    return run(params, state, ids, cfg, length)[:2]


def extend(state: RecurrentState, cfg: RecurrentConfig, room: int) -> tuple[RecurrentState, RecurrentConfig]:
    """Go on inside the open segment instead of ending it: the published way to generate after the last segment.

    Returns a carry and a config with which `apply` takes up to `room` more tokens than a segment holds and computes no write
    block. Without `extend` segments end as in training, and a stream has no end.
    Raises ValueError where the learned positions do not suffice, or a call cannot be a part of a segment.
    """
    opened, longer = segments.extend(state.open, cfg, room)
    return state._replace(open=opened), longer


def statistics(params, state: RecurrentState, ids: jax.Array, cfg: RecurrentConfig, length=None) -> dict[str, jax.Array]:
    """Size of the memory after a segment, and how far it moved: root mean squares, f32[]."""
    return run(params, state, ids, cfg, length)[2]
