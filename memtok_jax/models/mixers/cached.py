"""Attention to a layer's own inputs of earlier segments: Transformer-XL (arXiv 1901.02860) and the Compressive Transformer
(1911.05507).

    y = attention of the segment's tokens to [memory ; open segment], keys and values projected anew at each use
    at a border:  memory <- the segment's layer inputs, without gradient        memory/xl.py or memory/compressive.py

The config's `memory` says which memory a layer has; nothing else differs between the two. The inputs of the open segment are
carried, so that a stream may be cut anywhere. A memory's own loss is the statistic "auxiliary_loss", which the trainer adds.

With memory tokens in the segment (RMT with a cache, arXiv 2207.06881, table 5) the cache keeps tokens alone and is seen by tokens
alone, unless the options say otherwise. Left out of the published models: dropout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.memory import compressive, xl
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import attention as A
from memtok_jax.models import borders, sinks
from memtok_jax.models.attend import attend, flat
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig, need_segment, options
from memtok_jax.models.positions import Places
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import recompute

MEMORIES: dict[type, ModuleType] = {XlConfig: xl, CompressiveConfig: compressive}
EVALUATION = {"evaluation": True}


@dataclass(frozen=True)
class CachedConfig(MixerConfig):
    """Attention with a cache of layer inputs.

    memory: an `XlConfig` or a `CompressiveConfig`; its width and dtype are filled in by the model.
    same_length: what a token sees. "off": the memory and its segment up to itself. "on": itself and as many tokens before it as the
        memory has slots, wherever borders lie. "compat": one fewer, as in the released code, whose mask hides one column too many.
    memory_tokens_see: the memory tokens of a segment see the cache too, not the tokens alone (`read_mem_from_cache`).
    keep_memory_tokens: the cache keeps a segment's memory tokens like its tokens, as the released code of RMT does.
    """

    memory: XlConfig | CompressiveConfig = field(default_factory=lambda: XlConfig(64))
    same_length: str = field(default="off", metadata=EVALUATION)
    memory_tokens_see: bool = False
    keep_memory_tokens: bool = False

    def __post_init__(self):
        if type(self.memory) not in MEMORIES:
            raise UserError(f"cached.memory is {self.memory!r}; it must be one of {', '.join(kind.__name__ for kind in MEMORIES)}")
        check_numbers("cached", self)
        choose("cached.same_length", self.same_length, ("off", "on", "compat"))
        if self.same_length == "compat" and self.memory.slots < 1:
            raise UserError("same_length='compat' hides a token from itself where the memory has 0 slots; use 'off' or 'on'")

    def check(self, b: Backbone) -> None:
        """Segments are needed, and positions that reach beyond them."""
        need_segment(self, b)
        if b.style.positions == "table":
            raise UserError("style.positions is 'table', which has no row for earlier segments; set 'relative' or 'rope'")

    def unit(self, b: Backbone) -> int:
        """A segment."""
        return b.segment

    @property
    def by_segment(self) -> bool:
        """The memory is written at a border."""
        return True


class CachedState(NamedTuple):
    """Prefix, memory and open segment."""

    prefix: A.Prefix
    memory: Any       # XlState or CompressiveState
    inputs: jax.Array  # [B, slots, D] inputs of the layer in the open segment
    usage: jax.Array   # f32[B, columns] attention that each column has received in it; no columns unless a compression asks


def _module(cfg: CachedConfig) -> ModuleType:
    return MEMORIES[type(cfg.memory)]


def _wants_usage(cfg: CachedConfig) -> bool:
    return getattr(cfg.memory, "compression", "") == "most_used"


def specs(cfg: CachedConfig, b: Backbone) -> dict:
    """Projections of attention, and what the memory learns."""
    return A.specs(b) | {"memory": _module(cfg).specs(options(cfg.memory, b))}


def state_specs(cfg: CachedConfig, b: Backbone, batch: int) -> CachedState:
    """The memory's vectors, and one segment of layer inputs."""
    m = options(cfg.memory, b)
    inputs = P.StateSpec((batch, b.slots, b.width), ("batch", None, "embed"), jnp.dtype(b.dtype), "segment")
    columns = m.slots + getattr(m, "waiting", 0) + b.slots if _wants_usage(cfg) else 0
    return CachedState(A.prefix_specs(b, batch), _module(cfg).state_specs(m, batch), inputs,
                       P.StateSpec((batch, columns), ("batch", None), jnp.float32, "segment"))


def begin(params, x_MD: jax.Array, cfg: CachedConfig, b: Backbone, batch: int, side: dict):
    """The prefix through this layer, and an empty memory."""
    y, prefix = A.prefix_pass(params, enter(params, x_MD, b), b, side)
    empty = P.zero_state(state_specs(cfg, b, batch))
    return A.output(params, y, b), empty._replace(prefix=A.for_batch(prefix, b, batch)), side


# --------------------------------------------------------------------------------------------------------------- attention

def _near(places: Places, cfg: CachedConfig) -> jax.Array:
    """bool[B or 1, T, S]: columns that same_length allows."""
    distance = places.query[..., :, None] - places.key[..., None, :]
    if cfg.same_length == "off":
        return jnp.ones_like(distance, bool)
    return distance <= cfg.memory.slots - (cfg.same_length == "compat")


def _visible(real_BC: jax.Array, inside: jax.Array, places: Places, call: Call, cfg: CachedConfig) -> jax.Array:
    """bool[B, T, C + S]: real vectors of the cache, and what `inside` [B, T, S] shows of the segment, no farther than allowed."""
    tokens = inside.shape[1]
    own = borders.memory_tokens(call, tokens) & (not cfg.memory_tokens_see)
    cache = real_BC[:, None] & ~own[None, :, None]
    return jnp.concatenate([jnp.broadcast_to(cache, (*inside.shape[:2], real_BC.shape[1])), inside], axis=2) & _near(places, cfg)


def _attend(params, state: CachedState, x: jax.Array, call: Call, cfg: CachedConfig, b: Backbone, side: dict, blocks: bool):
    """Tokens of one segment see cache and segment: (branch, weight [B, H, T, C + S], inputs of the open segment)."""
    tokens, m = x.shape[1], options(cfg.memory, b)
    vectors, real = _module(cfg).read(params["memory"], state.memory, m, whole=blocks)
    c = vectors.shape[1]
    if call.whole:
        inputs, own = state.inputs, x
        where = Places(c + jnp.arange(tokens)[None], jnp.arange(c + tokens)[None])
        inside = jnp.broadcast_to(borders.visible_tokens(call, tokens)[None], (x.shape[0], tokens, tokens))
    else:
        inputs = own = borders.store(state.inputs, x, call)
        place = call.slot[:, None] + jnp.arange(tokens)[None]
        where = Places(c + place, jnp.broadcast_to(jnp.arange(c + b.slots)[None], (x.shape[0], c + b.slots)))
        inside = borders.visible_slots(call, tokens, b.slots)
    columns = enter(params, jnp.concatenate([vectors.astype(x.dtype), own.astype(x.dtype)], axis=1), b)
    k, v = (A.heads(params, columns, name, b) for name in "kv")
    y, weight = A.at_places(params, enter(params, x, b), k, v, _visible(real, inside, where, call, cfg), b, side,
                            prefix=state.prefix, places=None if call.whole else where, ahead=call.sees != "past")
    return A.output(params, y, b), weight, inputs


# ------------------------------------------------------------------------------------------------------------------ writing

def attend_by_content(params, u_BTD: jax.Array, rows_BSD: jax.Array, real_BS: jax.Array, b: Backbone) -> jax.Array:
    """Attention to real vectors without positions, mask, gate or output projection: [B, T, H V].

    This is what the Compressive Transformer reconstructs (arXiv 1911.05507, algorithm 2), at the layer's usual scale.
    """
    q, k, v = A.heads(params, u_BTD, "q", b), A.heads(params, rows_BSD, "k", b), A.heads(params, rows_BSD, "v", b)
    visible = jnp.broadcast_to(real_BS[:, None], (*q.shape[:2], k.shape[1]))
    return flat(attend(q, k, v, visible, sink=sinks.column(params, q, b.style.sink), cap=b.style.score_cap)[0])


def _kept(inputs: jax.Array, filled: jax.Array, cfg: CachedConfig, b: Backbone) -> tuple[jax.Array, jax.Array]:
    """(what the memory keeps of a closed segment's inputs [B, slots, D], i32[B] how many are real). filled: i32[B] used slots."""
    if cfg.keep_memory_tokens:
        return inputs, filled
    return inputs[:, b.head:inputs.shape[1] - b.tail], jnp.maximum(filled - b.head - b.tail, 0)


def _write(params, state: CachedState, inputs: jax.Array, filled: jax.Array, usage: jax.Array | None, call: Call,
           cfg: CachedConfig, b: Backbone, blocks: bool):
    """The segment's inputs into the memory, for rows whose segment closes: (memory, statistics)."""
    fixed = jax.lax.stop_gradient(params)
    attend_fixed = lambda x, vectors, real: attend_by_content(fixed, enter(fixed, x, b), enter(fixed, vectors, b), real, b)
    kept, length = _kept(inputs, jnp.where(call.closes, filled, 0), cfg, b)
    m = options(cfg.memory, b)
    length = None if blocks else length
    write = lambda memory: _module(cfg).update(params["memory"], memory, kept, m, length, usage, attend_fixed, whole=blocks)
    if call.whole:
        return write(state.memory)
    none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(write, state.memory)[1])
    return jax.lax.cond(call.closes.any(), write, lambda memory: (memory, none), state.memory)


def _received(weight: jax.Array, call: Call) -> jax.Array:
    """f32[B, S]: attention that each column received from the real tokens of a call."""
    mine = jnp.arange(weight.shape[2])[None] < call.length[:, None]
    return jnp.where(mine[:, None, :, None], weight, 0).sum((1, 2))


def _step(params, state: CachedState, x: jax.Array, *, call: Call, cfg: CachedConfig, b: Backbone, side: dict, blocks: bool):
    """Tokens of one segment: (branch, state, statistics). blocks: the memory receives whole blocks only, now and before."""
    y, weight, inputs = _attend(params, state, x, call, cfg, b, side, blocks)
    usage = None
    if _wants_usage(cfg):
        usage = _received(weight, call) + (0 if call.whole else state.usage)
    seen = None if usage is None else _tokens_only(usage, inputs if not call.whole else x, cfg, b)
    own = x if call.whole else inputs
    memory, stats = _write(params, state, own, call.slot + call.length, seen, call, cfg, b, blocks)
    after = state._replace(memory=memory, inputs=inputs)
    return y, after if usage is None or call.whole else after._replace(usage=usage.astype(state.usage.dtype)), stats


def _tokens_only(usage: jax.Array, inputs: jax.Array, cfg: CachedConfig, b: Backbone) -> jax.Array:
    """Usage of [cache ; what the memory keeps of the segment]."""
    cache = usage.shape[1] - inputs.shape[1]
    kept, _ = _kept(usage[:, cache:, None], jnp.zeros(usage.shape[:1], jnp.int32), cfg, b)
    return jnp.concatenate([usage[:, :cache], kept[..., 0]], axis=1)


def run(params, state: CachedState, x: jax.Array, cfg: CachedConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, statistics of the memory, side)."""
    # Segments that close by count have one length always; then so do the pieces that a memory gets.
    blocks = call.whole and call.closes is None and b.segment % options(cfg.memory, b).unit == 0

    def step(state, x, call):
        return recompute(partial(_step, call=call, cfg=cfg, b=b, blocks=blocks))(params, state, x, side=side)

    y, state, stats = borders.walk(step, state, x, call, b, state_specs(cfg, b, x.shape[0]))
    return y, state, stats, side
