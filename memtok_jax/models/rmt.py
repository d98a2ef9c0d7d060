"""Memory tokens around the segments of any stack: RMT, Memory Transformer, and the write tokens of ARMT.

RMT (arXiv 2207.06881): one segment is [m ; x ; m]; logits come from the tokens x, the next m from the last tokens, after the last
norm. The memory enters again as an input embedding, so N segments of L layers are N L layers deep.

| form | a segment | who sees whom | next m |
|---|---|---|---|
| "causal"  | [m ; x ; m] | the decoder's ordinary mask, as around pretrained decoders      | last M outputs |
| "paper"   | [m ; x ; m] | memory tokens see all of their own block (figure 2)             | last M outputs |
| "encoder" | [m ; x]     | everything sees everything (arXiv 2304.11062)                   | first M outputs |
| "prefix"  | [m ; x]     | causal; a Memory Transformer (arXiv 2006.11527), no recurrence  | never written |
| "suffix"  | [x ; m]     | causal; m is learned, and ARMT's layers write it                | never written |

At a border the M vectors are fed as the first tokens of the new segment, then come its tokens, then M write tokens where it closes;
a token costs one token. A whole segment is one call [m ; x ; m]: the same function, sooner. What the layers inside remember goes on
as they please: with a cache it is RMT with Transformer-XL (table 5 of the paper), with a neural memory the vectors are one memory
of two. Tokens in an encoder see later ones, so its call is one segment and cannot be cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.memory import pieces
from memtok_jax.memory import rmt as memory
from memtok_jax.memory.rmt import RmtTokensConfig, RmtTokensState
from memtok_jax.models import borders, stack
from memtok_jax.models import language_model as lm
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.protocol import AroundConfig
from memtok_jax.models.stack import Stack, StackState
from memtok_jax.numerics import wide

FORMS = ("causal", "paper", "encoder", "prefix", "suffix")
LAYOUTS = {"encoder": "front", "prefix": "read", "suffix": "read"}


@dataclass(frozen=True)
class RmtConfig(AroundConfig):
    """Memory tokens around a model.

    model: the language model inside; its `segment` says when memory is written.
    tokens: M, memory tokens; 0 gives independent segments, exactly.
    form: "causal", "paper", "encoder", "prefix" or "suffix", see above.
    init: of the first memory: "scaled" (as large as word embeddings), "shared" (one vector M times) or "small".
    """

    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    tokens: int = 8
    form: str = "causal"
    init: str = "scaled"

    def __post_init__(self):
        check_numbers("rmt", self, at_least=dict(tokens=0))
        choose("form", self.form, FORMS)
        if self.model.segment < 1:
            raise UserError("memory tokens need segments; set model.segment to the tokens of one")
        self.model.check_pattern(self.stack.b)
        _ = self.memory

    @property
    def head(self) -> int:
        """Memory tokens in front of a segment."""
        return 0 if self.form == "suffix" else self.tokens

    @property
    def tail(self) -> int:
        """Memory tokens behind a segment."""
        return self.tokens if self.form in ("causal", "paper", "suffix") else 0

    @property
    def memory(self) -> RmtTokensConfig:
        """Options of the memory tokens."""
        layout = LAYOUTS.get(self.form, "both")
        return RmtTokensConfig(self.model.width, self.tokens, layout, self.init, self.model.embedding_std, self.model.dtype)

    @property
    def stack(self) -> Stack:
        """The layers inside, told of the memory tokens."""
        return self.model.stack(self.head, self.tail)

    @property
    def sees(self) -> str:
        """`Call.sees` of this form."""
        return {"paper": "memory", "encoder": "all"}.get(self.form, "past")

    @property
    def call_tokens(self) -> int:
        """A training call holds whole segments."""
        return self.model.segment


class RmtState(NamedTuple):
    """The carry."""

    memory: RmtTokensState  # m_n, [B, M, D]
    stack: StackState


# ----------------------------------------------------------------------------------------------------- parameters and carry

def specs(cfg: RmtConfig) -> dict:
    """The model inside and the first memory."""
    return {"model": lm.specs(cfg.model, cfg.stack.b), "memory": memory.specs(cfg.memory)}


def state_specs(cfg: RmtConfig, batch: int) -> RmtState:
    """M vectors for each stream, and the carry of the layers."""
    return RmtState(memory.state_specs(cfg.memory, batch), stack.state_specs(cfg.stack, batch))


def init_state(params, cfg: RmtConfig, batch: int) -> RmtState:
    """The first memory in every row, before an empty segment."""
    return RmtState(memory.init_state(params["memory"], cfg.memory, batch), lm.start(params["model"], cfg.model, cfg.stack, batch))


# -------------------------------------------------------------------------------------------------------------- computation

def _layers(params, state: StackState, x: jax.Array, cfg: RmtConfig, call: Call):
    """Inputs x[B, T, D] without positions through the layers and the last norm: (h, state, stats)."""
    x = lm.placed(params["model"], x, state.slot, cfg.model)
    x, state, stats = stack.run(params["model"]["layers"], state, x, cfg.stack, call, lm.side_of(params["model"]))
    return lm.finish(params["model"], x, cfg.model), state, stats


def _vectors(state: RmtState, x: jax.Array) -> jax.Array:
    """The memory [B, M, D] as inputs."""
    return state.memory.tokens.astype(x.dtype)


def _write(params, state: RmtState, written: jax.Array, closes: jax.Array, cfg: RmtConfig) -> RmtTokensState:
    return memory.write(params["memory"], state.memory, written, cfg.memory, closes)


def _whole_segment(params, state: RmtState, x: jax.Array, cfg: RmtConfig):
    """One segment without padding as one call: (h [B, T, D], state, stats)."""
    m = _vectors(state, x)
    inputs = jnp.concatenate([part for part, there in ((m, cfg.head), (x, True), (m, cfg.tail)) if there], axis=1)
    closes = jnp.ones((x.shape[0],), bool)
    call = Call(closes=closes, whole=True, head=cfg.head, tail=cfg.tail, sees=cfg.sees)
    h, after, stats = _layers(params, state.stack, inputs, cfg, call)
    h, written = _split(h, cfg)
    return h, RmtState(_write(params, state, written, closes, cfg), after), stats


def _split(h: jax.Array, cfg: RmtConfig) -> tuple[jax.Array, jax.Array]:
    """Outputs [B, E, D] as (those of the tokens, those that become the next memory)."""
    end = h.shape[1] - cfg.tail
    return h[:, cfg.head:end], h[:, end:] if cfg.tail else h[:, :cfg.head]


def _feed(feed: Callable, state: RmtState, rows: jax.Array, none: dict) -> tuple[RmtState, dict]:
    """`feed(state) -> (state, stats)` if it concerns any of rows bool[B]; otherwise the same state, and `none` as statistics."""
    return jax.lax.cond(rows.any(), feed, lambda state: (state, none), state)


def _begin_segment(params, state: RmtState, m: jax.Array, begins: jax.Array, cfg: RmtConfig) -> tuple[RmtState, dict]:
    """Feed the memory as the first tokens of a new segment, in the rows where one begins: (state, stats)."""
    call = Call(length=jnp.where(begins, cfg.head, 0), closes=jnp.zeros_like(begins), head=cfg.head, sees=cfg.sees)

    def feed(state: RmtState):
        _, after, stats = _layers(params, state.stack, m, cfg, call)
        return state._replace(stack=after), stats

    none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(feed, state)[1])
    return _feed(feed, state, begins, none)


def _end_segment(params, state: RmtState, m: jax.Array, closes: jax.Array, none: dict, cfg: RmtConfig) -> tuple[RmtState, dict]:
    """Feed the write tokens where the segment closes; their outputs are the next memory: (state, stats).

    none: statistics of a call without tokens.
    """
    call = Call(length=jnp.where(closes, cfg.tail, 0), closes=closes, tail=cfg.tail, sees=cfg.sees)

    def feed(state: RmtState):
        h, after, stats = _layers(params, state.stack, m, cfg, call)
        return RmtState(_write(params, state, h, closes, cfg), after), stats

    return _feed(feed, state, closes, none)


def _piece(params, state: RmtState, x: jax.Array, length: jax.Array, closes: jax.Array, cfg: RmtConfig):
    """Tokens of one segment, of which any part may have come before: (h [B, T, D], state, (stats, tokens they are about)).

    A row closes no segment that is still empty.
    """
    m, begins, closes = _vectors(state, x), (state.stack.slot == 0) & (length > 0), closes & (state.stack.slot + length > 0)
    parts = []
    if cfg.head:
        state, stats = _begin_segment(params, state, m, begins, cfg)
        parts.append((stats, begins.sum() * cfg.head))
    ends_here = jnp.zeros_like(closes) if cfg.tail else closes
    h, after, stats = _layers(params, state.stack, x, cfg, Call(length=length, closes=ends_here))
    state = state._replace(stack=after)
    parts.append((stats, length.sum()))
    if cfg.tail:
        state, stats = _end_segment(params, state, m, closes, jax.tree.map(jnp.zeros_like, stats), cfg)
        parts.append((stats, closes.sum() * cfg.tail))
    stats, tokens = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    return h, state, (borders.join_stats(stats, tokens, 1), tokens.sum())


def _encode(params, state: RmtState, x: jax.Array, length: jax.Array, cfg: RmtConfig):
    """One segment of an encoder, padded or not; rows without tokens keep their memory."""
    closes = length > 0
    call = Call(length=jnp.where(closes, length + cfg.head, 0), closes=closes, head=cfg.head, sees="all")
    h, after, stats = _layers(params, state.stack, jnp.concatenate([_vectors(state, x), x], axis=1), cfg, call)
    h, written = _split(h, cfg)
    return h, RmtState(_write(params, state, written, closes, cfg), after), stats


def _whole_segments(params, state: RmtState, x: jax.Array, cfg: RmtConfig):
    """N whole segments, one after the other."""
    n = x.shape[1] // cfg.model.segment
    if n == 1:
        return _whole_segment(params, state, x, cfg)

    def one(state, x):
        h, state, stats = _whole_segment(params, state, x, cfg)
        return state, (h, stats)

    parts = jnp.moveaxis(x.reshape(x.shape[0], n, cfg.model.segment, x.shape[2]), 1, 0)
    state, (h, stats) = jax.lax.scan(one, state, parts)
    return jnp.moveaxis(h, 0, 1).reshape(x.shape), state, borders.join_stats(stats, jnp.ones((n,), jnp.int32), n)


def _cut_segments(params, state: RmtState, x: jax.Array, length: jax.Array, cfg: RmtConfig):
    """Tokens that may start and stop anywhere."""
    cut = pieces.cut(jnp.maximum(state.stack.slot - cfg.head, 0), length, x.shape[1], cfg.model.segment)
    parts = (pieces.split(x, cut), cut.length, cut.closes)

    def piece(state, part):
        h, state, about = _piece(params, state, *part, cfg)
        return state, (h, *about)

    if len(cut.length) == 1:
        state, (h, stats, _) = piece(state, jax.tree.map(lambda leaf: leaf[0], parts))
        return pieces.join(h[None], cut), state, stats
    state, (h, stats, tokens) = jax.lax.scan(piece, state, parts)
    return pieces.join(h, cut), state, borders.join_stats(stats, tokens, x.shape[1] // cfg.model.segment)


def _hidden(params, state: RmtState, x: jax.Array, cfg: RmtConfig, call: Call):
    """Embeddings x[B, T, D] -> (finished hidden states, state, stats)."""
    length = P.full_length(x) if call.length is None else call.length
    if call.whole:
        return _whole_segments(params, state, x, cfg)
    if cfg.form == "encoder":
        return _encode(params, state, x, length, cfg)
    if call.closes is not None:
        h, state, (stats, _) = _piece(params, state, x, length, call.closes, cfg)
        return h, state, stats
    return _cut_segments(params, state, x, length, cfg)


def run(params, state: RmtState, ids: jax.Array, cfg: RmtConfig, call: Call = Call()):  # noqa: B008
    """Tokens ids i32[B, T] -> (logits f32[B, T, V], state, statistics name -> f32[]).

    Where a segment ends, its write tokens make the next memory; a row without tokens keeps its memory. Any cut of a stream into
    calls gives the same, but for an encoder, whose call is one segment: raises UserError where it holds more tokens.
    """
    check_call(ids, call, cfg)
    if 0 in ids.shape:
        return jnp.zeros((*ids.shape, cfg.vocabulary), wide(params["memory"]["tokens"])), state, {}
    h, after, stats = _hidden(params, state, lm.embed(params["model"], ids, cfg.model), cfg, call)
    return lm.logits(params["model"], h, cfg.model), after, stats | _moved(state.memory, after.memory, cfg)


def hidden(params, state: RmtState, ids: jax.Array, cfg: RmtConfig, call: Call = Call()):  # noqa: B008
    """`run` without the output layer: ids i32[B, T], T at least 1 -> (finished hidden states [B, T, D], state, statistics)."""
    return _hidden(params, state, lm.embed(params["model"], ids, cfg.model), cfg, call)


def check_call(ids: jax.Array, call: Call, cfg: RmtConfig) -> None:
    """Raise UserError where a whole call is not whole segments, or a call that is a part of one segment is too long."""
    tokens, segment = ids.shape[1], cfg.model.segment
    if call.whole and tokens % segment:
        raise UserError(f"a training call of {tokens} tokens is not a multiple of model.segment={segment}")
    if (call.closes is not None or cfg.form == "encoder") and tokens > segment:
        why = "a call of an encoder is one segment and cannot be cut" if cfg.form == "encoder" else "the call ends a segment"
        raise UserError(f"a call of {tokens} tokens does not fit into a segment of {segment}: {why}")


def _moved(before: RmtTokensState, after: RmtTokensState, cfg: RmtConfig) -> dict[str, jax.Array]:
    """Root mean squares of the memory and of its change, f32[]."""
    if not cfg.tokens or cfg.memory.layout == "read":
        return {}
    rms = lambda x: jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean())
    return {"rmt.memory_rms": rms(after.tokens), "rmt.memory_change": rms(after.tokens - before.tokens)}


def run_segments(params, state: RmtState, ids_NBT: jax.Array, cfg: RmtConfig):
    """N whole segments at once along the diagonals of layers and segments, for form "suffix", whose memory stays in the layers.

    ids_NBT: i32[N, B, T] with T tokens of a segment. Returns (logits f32[N, B, T, V], state). Raises UserError for another form or
    T.
    """
    n, batch, t = ids_NBT.shape
    if cfg.form != "suffix" or t != cfg.model.segment:
        raise UserError(f"diagonals need form='suffix' and calls of model.segment={cfg.model.segment} tokens, "
                        f"not form={cfg.form!r} and {t} tokens: the first layer of another form waits for the last")
    x = lm.embed(params["model"], ids_NBT.reshape(n * batch, t), cfg.model)
    m = jnp.tile(state.memory.tokens.astype(x.dtype), (n, 1, 1))
    x = lm.placed(params["model"], jnp.concatenate([x, m], axis=1), jnp.zeros((n * batch,), jnp.int32), cfg.model)
    call = Call(closes=jnp.ones((batch,), bool), tail=cfg.tail)
    side = lm.side_of(params["model"])
    x = x.reshape(n, batch, t + cfg.tail, -1)
    h, after = stack.run_segments(params["model"]["layers"], state.stack, x, cfg.stack, call, side)
    h = lm.finish(params["model"], h[:, :, :t].reshape(n * batch, t, -1), cfg.model)
    out = lm.logits(params["model"], h, cfg.model)
    return out.reshape(n, batch, t, cfg.vocabulary), state._replace(stack=after)


def unstack(params, state: RmtState, cfg: RmtConfig):
    """The same model with arrays of its own for each layer, for a loop over tokens: (params, state, cfg); see `stack.unstack`."""
    own, after, _ = stack.unstack(params["model"]["layers"], state.stack, cfg.stack)
    model = params["model"] | {"layers": own}
    return params | {"model": model}, state._replace(stack=after), replace(cfg, model=lm.unstacked(cfg.model))


def restack(state: RmtState, cfg: RmtConfig) -> RmtState:
    """The carry of a model of `cfg` out of that of the model which `unstack` made of it."""
    return state._replace(stack=stack.restack(state.stack, cfg.stack))
