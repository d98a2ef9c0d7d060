"""Recurrent Memory Transformer (RMT): a decoder whose memory tokens pass from segment to segment.

arXiv 2207.06881. One segment: [m ; x ; m] through the decoder, logits from the rows of x, the next m from the last rows. The
memory is taken after the last norm and enters again as an input embedding: N segments of L layers are N * L layers deep.

    form "paper"     memory rows see each other, tokens are causal (figure 2)
    form "causal"    the decoder's ordinary mask over [m ; x ; m], as wrappers of pretrained decoders have it
    form "encoder"   [m ; x], everything sees everything, the memory is written where it was read (2304.11062)
    form "prefix"    [m ; x] and never written: a Memory Transformer (2006.11527), no recurrence

With `cache` rows each layer also sees its own inputs at the last tokens of earlier segments, as in Transformer-XL (both together:
table 5 of the paper; `memory/xl.py`). Columns stand in the order [cache m x m]. Rows of m are not cached, unless `cache_memory`
asks for it: the released code keeps the last rows of [m x m], whatever they are. No gradient enters the cache, so that the memory
alone can be trained across segments.

No memory tokens and no cache give N independent segments, exactly. A trainer that scans `apply` over segments is the recurrence;
where the gradient is cut is the trainer's business (`training.gradient`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import rmt as memory_tokens
from memtok_jax.memory import xl
from memtok_jax.memory.rmt import RmtTokensConfig, RmtTokensState
from memtok_jax.models import decoder, masks, segments
from memtok_jax.models.decoder import View
from memtok_jax.models.segments import SegmentedConfig
from memtok_jax.numerics import affine_norm

# What an evaluation may change of a trained model: the same parameters serve any length of the cache.
EVALUATION_FIELDS = ("cache",)


@dataclass(frozen=True)
class RecurrentConfig(SegmentedConfig):
    """form: "causal", "paper", "encoder" or "prefix". init: of the first memory, "scaled", "shared" or "small". The other
    fields: `segments.SegmentedConfig`; the memory has the dtype of the activations.

    cache: tokens of earlier segments that a layer sees beside the memory; 0 is none. read_mem_from_cache: the memory's rows see
        them too, not the tokens alone. cache_memory: rows of the memory are cached like tokens; a call must be a segment then.
    """

    form: str = "causal"
    init: str = "scaled"
    cache: int = 0
    read_mem_from_cache: bool = False
    cache_memory: bool = False

    def __post_init__(self):
        segments.choose("form", self.form, masks.FORMS)
        super().__post_init__()
        if self.form == "encoder" and self.ends != "call":
            raise ValueError(f"ends={self.ends!r}: a token of an encoder sees later ones, so a call is a segment; set ends='call'")
        if self.cache < 0:
            raise ValueError(f"cache={self.cache} must not be negative")
        if self.cache and self.position != "relative":
            raise ValueError(f"position={self.position!r}: no row of a table stands for earlier segments; "
                             f"with cache={self.cache} set position='relative'")
        if self.cache_memory and not (self.cache and self.ends == "call"):
            raise ValueError(f"cache_memory=True with cache={self.cache}, ends={self.ends!r}: it needs a cache, and calls that are "
                             "segments; set cache to its rows and ends='call'")
        if self.cache and self.form == "encoder":
            raise ValueError(f"cache={self.cache}: form='encoder' has none; use a decoder or set cache=0")
        _ = self.memory

    @property
    def memory(self) -> RmtTokensConfig:
        """Options of the memory tokens."""
        layout = {"encoder": "front", "prefix": "read"}.get(self.form, "read" if self.ends == "never" else "both")
        std = segments.scale(self) * self.width ** -0.5
        return RmtTokensConfig(self.width, self.tokens, layout, self.init, std, self.dtype)

    @property
    def queue(self) -> xl.XlConfig:
        """Options of a layer's cache: behind it stand the tokens of the segment that is still open."""
        return xl.XlConfig(self.cache + (0 if self.ends == "call" else self.segment), self.width, self.dtype)

    @property
    def rows(self) -> int:
        """Rows of a full segment with its memory and what is cached."""
        return self.cache + self.tokens + self.segment + self.tail

    @property
    def window(self) -> int:
        """Tokens that a token can see without memory: those of its segment and those that the cache holds."""
        if not self.cache_memory:
            return self.cache + self.segment
        whole, rest = divmod(self.cache, self.rows - self.cache)
        return (whole + 1) * self.segment + min(max(rest - self.tail, 0), self.segment)

    @property
    def tail(self) -> int:
        """Rows of the write block."""
        return self.tokens if self.form in ("causal", "paper") and self.ends != "never" else 0


class RecurrentState(NamedTuple):
    """The carry."""

    memory: RmtTokensState  # m_n
    open: Any                     # segments.Open, or () where each call is a segment
    cache: Any                    # xl.XlState of every layer, leaves [L, B, ...], or () without a cache


def specs(cfg: RecurrentConfig) -> dict:
    """The backbone and the first memory."""
    return {"decoder": decoder.specs(cfg.decoder), "memory": memory_tokens.specs(cfg.memory)}


def state_specs(cfg: RecurrentConfig, batch: int) -> RecurrentState:
    """Memory tokens, the open segment where a call may be a part of one, and the caches where there are any."""
    return RecurrentState(memory_tokens.state_specs(cfg.memory, batch),
                          segments.open_specs(cfg.decoder, batch, cfg.segment, cfg.ends),
                          P.stack(xl.state_specs(cfg.queue, batch), cfg.layers) if cfg.cache else ())


def init_state(params, cfg: RecurrentConfig, batch: int) -> RecurrentState:
    """The first memory in every row, an empty segment and empty caches."""
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


def cached(params, cache, call: segments.Call, cfg: RecurrentConfig) -> tuple[decoder.Past, jax.Array]:
    """(keys and values of what earlier segments left, [L, B, C, H, K], bool[B, C] which of them are real)."""
    if not cfg.cache:
        return segments.no_past(cfg.decoder, call.phase.shape[0]), jnp.ones((call.phase.shape[0], 0), bool)
    rows, real = jax.vmap(lambda queue: xl.earlier(queue, cfg.cache, call.phase))(cache)
    return jax.vmap(lambda p, rows: decoder.past_of(p, rows, cfg.decoder))(params["decoder"]["layers"], rows), real[0]


def view_of(real: jax.Array, call: segments.Call, cfg: RecurrentConfig) -> View:
    """Columns [cache, past, R, X, W] for the rows [R, X, W]; positions count from the first row of R, in the cache down from -1."""
    m, t, tail, slots = cfg.tokens, call.ids.shape[1], cfg.tail, call.past.k.shape[2]
    query, key = masks.positions(m, t, tail, call.length, call.phase, slots)
    before = jnp.broadcast_to(jnp.arange(-cfg.cache, 0)[None], real.shape)
    visible = [masks.visible_cache(real, m, t, tail, cfg.read_mem_from_cache),
               masks.visible(cfg.form, m, t, tail, call.length, call.phase, slots)]
    return View(jnp.concatenate(visible, axis=2), query, jnp.concatenate([before, key], axis=1))


def remembered(x: jax.Array, call: segments.Call, cfg: RecurrentConfig) -> tuple[jax.Array, jax.Array]:
    """What a cache keeps of a layer's input [B, M+T+tail, D]: (rows, i32[B] how many of them, from the first, are real)."""
    if not cfg.cache_memory:
        return x[:, cfg.tokens:cfg.tokens + call.ids.shape[1]], call.length
    # The write block moves up to the last real token.
    real = cfg.tokens + call.length[:, None]
    row = jnp.arange(x.shape[1])[None]
    row = jnp.where(row < real, row, jnp.minimum(row - call.length[:, None] + call.ids.shape[1], x.shape[1] - 1))
    return P.take_rows(x, row), jnp.where(call.length > 0, real[:, 0] + cfg.tail, 0)


def step(params, carry: tuple[RmtTokensState, Any], call: segments.Call, cfg: RecurrentConfig):
    """Read block, tokens and write block once through the decoder.

    carry: (memory, caches). Returns (logits, carry, keys and values of the tokens).
    """
    memory, cache = carry
    rows = memory_tokens.read(params["memory"], memory, decoder.embed(params["decoder"], call.ids, cfg.decoder), cfg.memory)
    far, real = cached(params, cache, call, cfg)
    view = view_of(real, call, cfg)
    past = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], axis=2), far, call.past)
    own = lambda x: x[:, cfg.tokens:cfg.tokens + call.ids.shape[1]]

    def one(x, tree):
        y, new = decoder.layer(tree[0], x, tree[1], view, cfg.decoder)
        return y, (jax.tree.map(own, new), remembered(x, call, cfg) if cfg.cache else ())

    x = decoder.place(params["decoder"], rows, view, cfg.decoder)
    x, (new, inputs) = decoder.scan_layers(one, x, (params["decoder"]["layers"], past), cfg.decoder)
    h, written = memory_tokens.split(affine_norm(x, params["decoder"]["norm"]), cfg.memory)
    memory = memory_tokens.write(params["memory"], memory, written, cfg.memory, call.closes)
    if cfg.cache:
        cache = jax.vmap(lambda queue, kept: xl.write((), queue, kept[0], cfg.queue, kept[1]))(cache, inputs)
    return decoder.output(params["decoder"], h, cfg.decoder), (memory, cache), new


def run(params, state: RecurrentState, ids: jax.Array, cfg: RecurrentConfig, length=None):
    """`apply` with statistics: the size of the memory afterwards, and how far it moved."""
    segments.check_call(cfg, ids.shape[1])
    length = P.full_length(ids) if length is None else length
    carry = (state.memory, state.cache)
    logits, (memory, cache), opened = segments.walk(lambda carry, call: step(params, carry, call, cfg), carry, state.open, ids,
                                                    length, cfg)
    return logits, RecurrentState(memory, opened, cache), _seen(state.memory, memory, cfg)


def _seen(before: RmtTokensState, after: RmtTokensState, cfg: RecurrentConfig) -> dict[str, jax.Array]:
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
    cache = state.cache
    if cfg.cache:
        cache = cache._replace(rows=jnp.pad(cache.rows, ((0, 0), (0, 0), (room, 0), (0, 0))))
    return RecurrentState(state.memory, opened, cache), longer


def statistics(params, state: RecurrentState, ids: jax.Array, cfg: RecurrentConfig, length=None) -> dict[str, jax.Array]:
    """Size of the memory after a segment, and how far it moved: root mean squares, f32[]."""
    return run(params, state, ids, cfg, length)[2]
