"""Full attention inside the open segment: the plain Transformer that a recurrent memory is put around.

A token sees the tokens of its segment before it, the segment's memory tokens, and the prefix. A segment border forgets all keys and
values. Differs from `window.py` in that the past ends at a border, and from `cached.py` in that nothing crosses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models import attention as A
from memtok_jax.models import borders
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig, need_segment
from memtok_jax.models.positions import Places
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import recompute


@dataclass(frozen=True)
class SegmentConfig(MixerConfig):
    """Attention inside a segment has no options of its own."""

    def check(self, b: Backbone) -> None:
        """Segments are needed."""
        need_segment(self, b)

    @property
    def by_segment(self) -> bool:
        """A border forgets."""
        return True


class SegmentState(NamedTuple):
    """Prefix, keys and values of the open segment."""

    prefix: A.Prefix
    k: jax.Array  # [B, slots, G, K] without positions
    v: jax.Array  # [B, slots, G, V]


def specs(cfg: SegmentConfig, b: Backbone) -> dict:
    """Projections of attention."""
    return A.specs(b)


def state_specs(cfg: SegmentConfig, b: Backbone, batch: int) -> SegmentState:
    """One place for each token of a segment and its memory tokens."""
    return SegmentState(A.prefix_specs(b, batch), *A.key_specs(b, batch, b.slots, "segment"))


def begin(params, x_MD: jax.Array, cfg: SegmentConfig, b: Backbone, batch: int, side: dict):
    """The prefix through this layer, and an empty segment."""
    y, prefix = A.prefix_pass(params, enter(params, x_MD, b), b, side)
    empty = P.zero_state(state_specs(cfg, b, batch))
    return A.output(params, y, b), empty._replace(prefix=A.for_batch(prefix, b, batch)), side


def places(call: Call, tokens: int, slots: int) -> Places:
    """Tokens of the call and slots of the open segment, counted from the first slot."""
    query = call.slot[:, None] + jnp.arange(tokens)[None]
    return Places(query, jnp.broadcast_to(jnp.arange(slots)[None], (query.shape[0], slots)))


def _step(params, state: SegmentState, x: jax.Array, *, call: Call, b: Backbone, side: dict):
    """Tokens of one segment: (branch, state, no statistics)."""
    u = enter(params, x, b)
    k, v = (A.heads(params, u, name, b) for name in "kv")
    if call.whole:
        visible = borders.visible_tokens(call, u.shape[1])[None]
        y, _ = A.at_places(params, u, k, v, visible, b, side, prefix=state.prefix, ahead=call.sees != "past")
        return A.output(params, y, b), state, {}
    state = state._replace(k=borders.store(state.k, k, call), v=borders.store(state.v, v, call))
    y, _ = A.at_places(params, u, state.k, state.v, borders.visible_slots(call, u.shape[1], b.slots), b, side, prefix=state.prefix,
                       places=places(call, u.shape[1], b.slots))
    return A.output(params, y, b), state, {}


def run(params, state: SegmentState, x: jax.Array, cfg: SegmentConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, no statistics, side)."""
    step = lambda state, x, call: recompute(partial(_step, call=call, b=b))(params, state, x, side=side)
    y, state, stats = borders.walk(step, state, x, call, b, state_specs(cfg, b, x.shape[0]), (lambda s: (), lambda s, _: s))
    return y, state, stats, side
