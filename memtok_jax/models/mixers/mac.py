"""Memory as a context (Titans MAC, equations 21 to 25).

    h = rms_head(f_{segment start}(q(u))) W_H                                   (21)  read before attention
    y = attention from u to [p, h, u], inside the segment                        (22) (23)
    memory <- y                                                                  (24)
    o = (rms(y) * sigmoid(rms(f_{after token}(q(y))))) W_O                        (25)

Two places where the equations, read loosely, would leak the future: h_j is a function of token j, so query i sees h_j only for
j <= i; and the read of (25) uses the weights as of its own token, not those at the end of the segment. Differs from MAG in that
attention never leaves the segment: everything older comes through h.

The memory is asked twice, with u and with y, through the same projection; each stream has its own convolution tail.

With `retrieved` = N_l > 0, (21) asks N_l learned questions instead of one for each token (N_l in section 4.1). The answers depend
on earlier segments alone, so all tokens may see them: they stand beside the prefix, without positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.memory import neural
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.memory.neural.features import unit
from memtok_jax.models import attention as A
from memtok_jax.models import borders, layers
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig, check_width, need_segment, options
from memtok_jax.models.mixers.lmm import initial_reads, normed_reads, run_memory
from memtok_jax.models.mixers.mag import COMBINE, check_heads, combine, combine_specs
from memtok_jax.models.mixers.segment import places
from memtok_jax.models.positions import Places
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import dense, rms_norm


@dataclass(frozen=True)
class MacConfig(MixerConfig):
    """Segment attention whose context is what the memory says.

    retrieved: N_l, vectors that learned questions retrieve; 0, the default, retrieves one for each token.
    combine: "gate" (Titans, equation 25) or "sum".
    memory: of the neural memory; its width and dtype are filled in by the model.
    """

    retrieved: int = 0
    combine: str = "gate"
    memory: NeuralMemoryConfig = field(default_factory=NeuralMemoryConfig)

    def __post_init__(self):
        check_numbers("mac", self, at_least=dict(retrieved=0))
        choose("mac.combine", self.combine, COMBINE)

    def check(self, b: Backbone) -> None:
        """Segments of whole chunks, or chunks of whole segments."""
        need_segment(self, b)
        check_width(self.memory, b)
        check_heads(self, b)
        if b.segment % self.memory.chunk and self.memory.chunk % b.segment:
            raise UserError(f"segment={b.segment} and memory.chunk={self.memory.chunk}: one must divide the other")

    def unit(self, b: Backbone) -> int:
        """A segment of whole chunks."""
        return max(b.segment, self.memory.chunk)

    @property
    def by_segment(self) -> bool:
        """The memory is read at the weights of the last border."""
        return True


class SegmentKeys(NamedTuple):
    """Keys and values of the open segment, for retrieved vectors and for tokens, without positions: [B, slots, G, K] or
    [B, slots, G, V]. Learned questions leave the first two empty."""

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


def _own_slice(kv_heads: int) -> P.Initializer:
    """Key head g, and every query head that reads it, starts with features g K to (g+1) K as they are, and a little noise."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        width, heads, head_dim = shape
        eye = jnp.eye(width, kv_heads * head_dim, dtype=dtype).reshape(width, kv_heads, head_dim)
        return jnp.repeat(eye, heads // kv_heads, axis=1) + 0.02 * jax.random.normal(key, shape, dtype)

    return init


def specs(cfg: MacConfig, b: Backbone) -> dict:
    """Attention, memory, the projection of retrieved vectors into attention, and the two norms of the gate."""
    m, attention = options(cfg.memory, b), A.specs(b)
    # Queries and keys that start alike make a token attend to itself first. The memory is written with what attention
    # returns (24); started at random, that is a blur of the whole segment, and recall is learnt several times slower.
    for name in "qk":
        attention[name] = attention[name] | {"w": replace(attention[name]["w"], init=_own_slice(b.kv_heads))}
    shape = (cfg.retrieved, m.heads, m.head_dim)
    questions = {"questions": P.ParamSpec(shape, (None, "heads", None), P.normal(1.0), decayed=False)}
    return {
        **attention, **combine_specs(b), "memory": neural.specs(m), **(questions if cfg.retrieved else {}),
        "norm_retrieved": P.ParamSpec((m.heads, m.head_dim), ("heads", None), P.ones, decayed=False),
        "h": layers.dense_specs(b, (b.width, b.width), ("heads", "embed"), False),
        "norm_written": P.ParamSpec((b.width,), (None,), P.ones, decayed=False),
    }


def state_specs(cfg: MacConfig, b: Backbone, batch: int) -> MacState:
    """The memory, a second set of weights (`start`), and one segment of keys and values."""
    m = options(cfg.memory, b)
    memory = neural.state_specs(m, batch)
    retrieved = 0 if cfg.retrieved else b.slots
    conv = P.StateSpec((batch, m.conv - 1, m.heads, m.head_dim), ("batch", None, "heads", None))
    keys = SegmentKeys(*(spec for slots in (retrieved, b.slots) for spec in A.key_specs(b, batch, slots, "segment")))
    return MacState(A.prefix_specs(b, batch), memory, dict(memory.weights), conv, keys)


def begin(params, x_MD: jax.Array, cfg: MacConfig, b: Backbone, batch: int, side: dict):
    """The prefix attends to itself and reads the initial weights; an empty segment before an untouched memory."""
    m = options(cfg.memory, b)
    y, prefix = A.prefix_pass(params, enter(params, x_MD, b), b, side)
    r = initial_reads(params["memory"], rms_norm(y, params["norm_written"]), m)
    empty = P.zero_state(state_specs(cfg, b, batch))
    return combine(params, y, r, cfg.combine, b), empty._replace(prefix=A.for_batch(prefix, b, batch)), side


def retrieve(params, start: dict, q: jax.Array, memory: NeuralMemoryConfig, b: Backbone) -> jax.Array:
    """Equation 21 for queries [B, T, H, K] at the segment-start weights: h [B, T, D]."""
    reads = neural.reads_at(params["memory"], start, q, memory)
    return dense(normed_reads(reads.reshape(*q.shape[:2], b.width), params["norm_retrieved"]), params["h"], b.dtype)


def _keys(params, x: jax.Array, b: Backbone) -> tuple[jax.Array, jax.Array]:
    return A.heads(params, x, "k", b), A.heads(params, x, "v", b)


def _by_token(params, state: MacState, u: jax.Array, length: jax.Array, memory: NeuralMemoryConfig, b: Backbone):
    """One retrieved vector for each token: (keys, values, the prefix as it is, conv)."""
    q, conv = neural.query(params["memory"], u, state.conv, memory, length)
    h = retrieve(params, state.start, q, memory, b).astype(u.dtype)
    return *_keys(params, h, b), state.prefix, conv


def _by_question(params, state: MacState, u: jax.Array, memory: NeuralMemoryConfig, b: Backbone):
    """One for each learned question: (no keys, no values, the prefix with the answers behind it, conv)."""
    q = unit(params["questions"]) if memory.feature_norm else params["questions"]
    q = jnp.broadcast_to(q[None], (u.shape[0], *q.shape))
    answers = _keys(params, retrieve(params, state.start, q, memory, b).astype(u.dtype), b)
    front = A.Prefix(*(jnp.concatenate([p.astype(u.dtype), a], axis=1) for p, a in zip(state.prefix, answers, strict=True)))
    none = (x[:, :0] for x in answers)
    return *none, front, state.conv


def _attend(params, state: MacState, u: jax.Array, call: Call, cfg: MacConfig, b: Backbone, side: dict):
    """Equations 21 to 23 for tokens of one segment: (y [B, T, D], conv, keys)."""
    memory, tokens = options(cfg.memory, b), u.shape[1]
    ask = _by_question(params, state, u, memory, b) if cfg.retrieved else _by_token(params, state, u, call.length, memory, b)
    *retrieved, front, conv = ask
    new = SegmentKeys(*retrieved, *_keys(params, u, b))
    if call.whole:  # a whole segment: nothing older to join
        keys, now = state.keys, new
        visible, where = borders.visible_tokens(call, tokens)[None], Places(*(jnp.arange(tokens)[None],) * 2)
    else:
        keep = lambda old, x: borders.store(old, x, call) if x.shape[1] else old
        keys = now = SegmentKeys(*map(keep, state.keys, new))
        visible, where = borders.visible_slots(call, tokens, b.slots), places(call, tokens, b.slots)
    pairs = (now.retrieved_k, now.token_k), (now.retrieved_v, now.token_v)
    k, v = (jnp.concatenate(pair, axis=1).astype(u.dtype) for pair in pairs)
    twice = lambda x, axis: x if cfg.retrieved else jnp.concatenate([x, x], axis=axis)
    y, _ = A.at_places(params, u, k, v, twice(visible, -1), b, side, prefix=front,
                       places=Places(where.query, twice(where.key, -1)))
    return y, conv, keys


def _step(params, state: MacState, u: jax.Array, call: Call, *, cfg: MacConfig, b: Backbone, side: dict):
    """Tokens of one segment, normed: (branch, state, statistics of the memory)."""
    memory = options(cfg.memory, b)
    y, conv, keys = _attend(params, state, u, call, cfg, b, side)
    written = rms_norm(y, params["norm_written"])
    r, after, stats = run_memory(params["memory"], state.memory, written, memory, call)
    closes = lambda x: call.closes.reshape(call.closes.shape + (1,) * (x.ndim - 1))
    start = jax.tree.map(lambda old, new: jnp.where(closes(new), new, old), state.start, after.weights)
    return combine(params, y, r, cfg.combine, b), state._replace(memory=after, start=start, conv=conv, keys=keys), stats


def _pack(state: MacState):
    """What a whole segment of whole chunks changes: the weights are anchor and segment start at once, so one copy is carried."""
    return state.memory.weights, state.memory.surprise, state.memory.conv, state.conv


def _unpack(state: MacState, carry) -> MacState:
    weights, surprise, memory_conv, conv = carry
    memory = state.memory._replace(anchor=weights, weights=weights, surprise=surprise, conv=memory_conv)
    return state._replace(memory=memory, start=weights, conv=conv)


def run(params, state: MacState, x: jax.Array, cfg: MacConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, statistics of the memory, side)."""
    whole_chunks = call.closes is None and call.whole and b.segment % cfg.memory.chunk == 0
    stored = replace(cfg, memory=replace(cfg.memory, remat_group=-1)) if whole_chunks else cfg  # the walk recomputes segments
    step = lambda state, u, call: _step(params, state, u, call, cfg=stored, b=b, side=side)
    lean = ((_pack, _unpack),) if whole_chunks else ()
    y, state, stats = borders.walk(step, state, enter(params, x, b), call, b, state_specs(cfg, b, x.shape[0]), *lean)
    return y, state, stats, side
