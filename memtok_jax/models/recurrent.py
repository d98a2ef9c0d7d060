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
from memtok_jax.models.decoder import DecoderConfig, View


@dataclass(frozen=True)
class RecurrentConfig:
    """vocabulary: V. width: D. layers: L. head_dim: K. hidden: F; 0 takes 4 D. segment: tokens of a full segment.

    tokens: M. form: "causal", "paper", "encoder" or "prefix". init: of the first memory, "scaled", "shared" or "small".
    ends: when a segment ends: "full", after `segment` tokens, however they arrive; "call", with each call of at most
        `segment` tokens (an encoder can do nothing else); "never", see `extend`.
    position: "learned" or "relative". positions: rows of the learned table, or longest distance plus one; 0 takes what a
        segment and its memory need. scaled: word embeddings are multiplied by sqrt(D), so that they enter as large as a memory.
    dtype: "float32" or "bfloat16", of activations and of the memory. remat: recompute "nothing" or each "block".
    aligned: promise that each call is one whole segment; see `for_training`.
    """

    vocabulary: int = 256
    width: int = 128
    layers: int = 4
    head_dim: int = 32
    hidden: int = 0
    segment: int = 64
    tokens: int = 8
    form: str = "causal"
    init: str = "scaled"
    ends: str = "full"
    position: str = "learned"
    positions: int = 0
    scaled: bool = True
    dtype: str = "float32"
    remat: str = "nothing"
    unroll: int = 1
    aligned: bool = False

    def __post_init__(self):
        for name in ("vocabulary", "width", "layers", "head_dim", "segment", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name, known in (("form", masks.FORMS), ("ends", segments.ENDS), ("position", ("learned", "relative")),
                            ("dtype", ("float32", "bfloat16")), ("remat", ("nothing", "block"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        if self.width % self.head_dim:
            raise ValueError(f"width={self.width} is not a multiple of head_dim={self.head_dim}")
        if self.position == "relative" and self.width % 2:
            raise ValueError(f"width={self.width} must be even: relative positions are pairs of sine and cosine")
        if self.form == "encoder" and self.ends != "call":
            raise ValueError(f"ends={self.ends!r}: in an encoder a token sees later ones, so each call is a segment; set ends='call'")
        if self.hidden < 0:
            raise ValueError(f"hidden={self.hidden} must not be negative")
        if self.positions and self.positions < self.rows:
            raise ValueError(f"positions={self.positions} is less than the {self.rows} rows of a segment and its memory")
        _ = self.memory

    @property
    def memory(self) -> RecurrentTokensConfig:
        """Options of the memory tokens."""
        layout = {"encoder": "front", "prefix": "read"}.get(self.form, "read" if self.ends == "never" else "both")
        std = self.decoder_scale * self.width ** -0.5
        return RecurrentTokensConfig(self.width, self.tokens, layout, self.init, std, self.dtype)

    @property
    def decoder_scale(self) -> float:
        """Factor of the word embeddings."""
        return self.width ** 0.5 if self.scaled else 1.0

    @property
    def decoder(self) -> DecoderConfig:
        """Options of the backbone."""
        return DecoderConfig(self.vocabulary, self.width, self.layers, self.head_dim, self.hidden or 4 * self.width,
                             self.positions or self.rows, self.position, self.decoder_scale, self.dtype, self.remat, self.unroll)

    @property
    def rows(self) -> int:
        """E: rows of a full segment with its memory."""
        return self.tokens + self.segment + self.memory_tail

    @property
    def memory_tail(self) -> int:
        """Rows of the write block."""
        return self.tokens if self.form in ("causal", "paper") and self.ends != "never" else 0

    @property
    def window(self) -> int:
        """Tokens that a token can see without memory."""
        return self.segment


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
    """The same model for calls of `tokens` tokens without padding: `aligned` where a call is one segment.

    Raises ValueError naming both numbers where the calls do not end with segments.
    """
    if cfg.ends == "call":
        return cfg
    if tokens % cfg.segment:
        raise ValueError(f"a training segment of {tokens} tokens is not a multiple of model.segment={cfg.segment}")
    return replace(cfg, aligned=tokens == cfg.segment)


def step(params, memory: RecurrentTokensState, call: segments.Call, cfg: RecurrentConfig):
    """Read block, tokens and write block once through the decoder: (logits, memory, keys and values of the tokens)."""
    x = decoder.embed(params["decoder"], call.ids, cfg.decoder)
    rows = memory_tokens.read(params["memory"], memory, x, cfg.memory)
    m, t, tail, slots = cfg.tokens, x.shape[1], cfg.memory.tail, call.past.k.shape[2]
    view = View(masks.visible(cfg.form, m, t, tail, call.length, call.phase, slots),
                *masks.positions(m, t, tail, call.length, call.phase, slots))
    h, new = decoder.run(params["decoder"], rows, call.past, view, cfg.decoder)
    h, written = memory_tokens.split(h, cfg.memory)
    memory = memory_tokens.write(params["memory"], memory, written, cfg.memory, call.closes)
    return decoder.output(params["decoder"], h, cfg.decoder), memory, jax.tree.map(lambda kv: kv[:, :, m:m + t], new)


def apply(params, state: RecurrentState, ids: jax.Array, cfg: RecurrentConfig, length=None):
    """A block of tokens.

    ids: i32[B, T]. length: i32[B], real tokens of each row (a prefix of the row); left out, all T. Where a segment ends, its
    write block makes the next memory; a row without tokens keeps its memory.
    Returns (logits f32[B, T, V], state). Raises ValueError where T does not suit `ends` or `aligned`.
    """
    tokens = ids.shape[1]
    if cfg.aligned and tokens != cfg.segment or cfg.ends == "call" and tokens > cfg.segment:
        raise ValueError(f"a call of {tokens} tokens is not one segment of model.segment={cfg.segment}")
    length = P.full_length(ids) if length is None else length
    logits, memory, opened = segments.walk(lambda memory, call: step(params, memory, call, cfg), state.memory, state.open, ids,
                                           length, cfg.decoder, cfg.segment, cfg.aligned or cfg.ends == "call")
    return logits, RecurrentState(memory, opened)


def extend(state: RecurrentState, cfg: RecurrentConfig, room: int) -> tuple[RecurrentState, RecurrentConfig]:
    """Go on inside the open segment instead of ending it: the published way to generate after the last segment.

    Returns a carry and a config with which `apply` takes up to `room` more tokens than a segment holds and computes no write
    block. Without `extend` segments end as in training, and a stream has no end.
    Raises ValueError where the learned positions do not suffice, or a call cannot be a part of a segment.
    """
    if cfg.ends == "call":
        raise ValueError("ends='call': there is no open segment to extend")
    longer = replace(cfg, segment=cfg.segment + room, ends="never", positions=0)
    have = cfg.decoder.positions
    if cfg.position == "learned" and longer.rows > have:
        raise ValueError(f"{cfg.tokens} memory tokens, {cfg.segment} tokens and {room} more need {longer.rows} positions, "
                         f"the table has {have}; set model.positions={longer.rows} before training")
    longer = replace(longer, positions=have if cfg.position == "learned" else 0)
    pad = lambda kv: jnp.pad(kv, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0)))
    past = jax.tree.map(pad, state.open.past)
    return state._replace(open=state.open._replace(past=past)), longer


def statistics(params, state: RecurrentState, ids: jax.Array, cfg: RecurrentConfig, length=None) -> dict[str, jax.Array]:
    """Size of the memory after a segment, and how far it moved: root mean squares, f32[]."""
    if not cfg.tokens or cfg.form == "prefix":
        return {}
    after = apply(params, state, ids, cfg, length)[1].memory.tokens.astype(jnp.float32)
    rms = lambda x: jnp.sqrt(jnp.square(x).mean())
    return {"memory_rms": rms(after), "memory_change": rms(after - state.memory.tokens.astype(jnp.float32))}
