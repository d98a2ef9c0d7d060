"""Independent streams of tokens side by side in one batch, in constant memory: pure functions, usable under any `jax.jit`.

`model` is always a `models.protocol.Model` that maps ids i32[B, T] to logits f32[B, T, V]. A `Stream` is its carry together with
what sampling needs. How a stream is cut into calls has no mathematical meaning: the same tokens give the same carry up to rounding.

A row that is not active is left alone by `append`, `feed` and `decode`: its carry does not change by a bit.
Token ids are not checked here, because their values are known on the device only: an id above the vocabulary is clamped to the
last word, and a negative id counts from the end. `session.py` checks what comes from the host, and compiles these functions ahead
of time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.checks import check_ids
from memtok_jax.inference.filters import Sampling, final_logits, of_temperature
from memtok_jax.models.protocol import Model
from memtok_jax.numerics import target_nats
from memtok_jax.params import StateSpec, Tree, at_border, map_rows, reset, size_bytes, zero_state

NO_TOKEN = -1  # what `decode` emits for a row that has stopped


class Score(NamedTuple):
    """How well tokens were predicted: a sum of -log softmax(logits)[token], without any sampling option.

    The sum is kept in two parts, so that it loses no digits over millions of tokens.
    """

    nats: jax.Array         # f32[B]      the sum, rounded
    rest: jax.Array         # f32[B]      what rounding has taken from it
    tokens: jax.Array       # i32[B]      tokens in it


class Stream(NamedTuple):
    """B independent streams. Every leaf has one batch axis (`stream_specs` says where)."""

    state: Tree             # the model's carry
    t: jax.Array            # i32[B]      tokens consumed
    key: jax.Array          # u32[B, n]   data of each row's own PRNG key; never advanced, but folded with t
    active: jax.Array       # bool[B]     False: stopped, or an empty slot
    seen: jax.Array         # i32[B, V]   t after the last time that each id was consumed; 0: never
    read: Score             # of tokens that `score` was given
    said: Score             # of tokens that `decode` has sampled


def stream_specs(model: Model, batch: int) -> Stream:
    """Shapes, axes and dtypes of a stream of `batch` rows, as a `Stream` of `StateSpec`; nothing is allocated."""
    key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    number, count = (StateSpec((batch,), ("batch",), dtype) for dtype in (jnp.float32, jnp.int32))
    return Stream(state=model.state_specs(batch),
                  t=count,
                  key=StateSpec((batch, *key_data.shape), ("batch",) + (None,) * key_data.ndim, key_data.dtype),
                  active=StateSpec((batch,), ("batch",), jnp.bool_),
                  seen=StateSpec((batch, model.vocabulary), ("batch", "vocab"), jnp.int32),
                  read=Score(number, number, count), said=Score(number, number, count))


def stream_bytes(model: Model, batch: int) -> int:
    """Bytes of a stream of `batch` rows, however many tokens it will consume."""
    return size_bytes(stream_specs(model, batch))


def row_keys(key: jax.Array, batch: int) -> jax.Array:
    """One typed PRNG key per row, key[B]. Row b's key depends on `key` and b only, not on the batch size."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))


def start(model: Model, params: Tree, keys: jax.Array) -> Stream:
    """Streams before their first token, all active. keys: typed PRNG keys key[B], one for each row."""
    batch = keys.shape[0]
    empty = zero_state(stream_specs(model, batch)._replace(state=()))
    return empty._replace(state=model.init_state(params, batch), key=jax.random.key_data(keys), active=jnp.ones(batch, bool))


def append(model: Model, params: Tree, stream: Stream, ids_BT: jax.Array, length: jax.Array) -> tuple[jax.Array, Stream]:
    """Consume a block of tokens.

    ids_BT: i32[B, T]; ids outside the vocabulary are clamped or wrap, see above. length: i32[B], how many of the T are real in
    each row (0 leaves the row alone).
    Returns (logits f32[B, T, V], stream). Logits at padding and in inactive rows have no meaning.
    """
    (logits_BTV, state), length = _consume(model, params, stream, ids_BT, length, lambda found: found)
    return logits_BTV, _after(stream, state, ids_BT, length)


def feed(model: Model, params: Tree, stream: Stream, ids_BT: jax.Array, length: jax.Array) -> Stream:
    """`append` for the stream alone: the logits are not computed."""
    state, length = _consume(model, params, stream, ids_BT, length, lambda found: found[1])
    return _after(stream, state, ids_BT, length)


def score(model: Model, params: Tree, stream: Stream, ids_BT: jax.Array, next_BT: jax.Array, length: jax.Array) -> Stream:
    """`feed` that also adds to `stream.read` how well each token was predicted; the logits do not leave the block.

    next_BT: i32[B, T], the token after each one of ids_BT.
    """
    (nats_BT, state), length = _consume(model, params, stream, ids_BT, length,
                                        lambda found: (target_nats(found[0], next_BT)[0].astype(jnp.float32), found[1]))
    nats = jnp.where(jnp.arange(ids_BT.shape[1])[None] < length[:, None], nats_BT, 0.0).sum(1)
    return _after(stream, state, ids_BT, length)._replace(read=_add(stream.read, nats, length))


def _add(score: Score, nats: jax.Array, tokens: jax.Array) -> Score:
    """The score with more tokens in it; what the sum rounds off is the new rest, and added next time."""
    more = nats + score.rest
    total = score.nats + more
    large, small = jnp.maximum(score.nats, more), jnp.minimum(score.nats, more)
    return Score(total, (large - total) + small, score.tokens + tokens)


def _after(stream: Stream, state: Tree, ids_BT: jax.Array, length: jax.Array) -> Stream:
    """The stream with the carry after the first `length` tokens of each row."""
    place = jnp.arange(1, ids_BT.shape[1] + 1)[None]
    now = jnp.where(place <= length[:, None], stream.t[:, None] + place, 0)
    seen = stream.seen.at[jnp.arange(len(length))[:, None], ids_BT].max(now, mode="drop")
    return stream._replace(state=state, t=stream.t + length, seen=seen)


def _consume(model: Model, params: Tree, stream: Stream, ids_BT: jax.Array, length: jax.Array,
             keep: Callable[[tuple[jax.Array, Tree]], Any]) -> tuple[Any, jax.Array]:
    """What `keep` takes of (logits, carry) after a block, and the length i32[B] of what each active row consumed.

    A block of whole segments and chunks takes the model's faster path if every row is full and stands at a border.
    """
    check_ids(ids_BT)
    tokens, length = ids_BT.shape[1], jnp.clip(jnp.where(stream.active, length, 0), 0, ids_BT.shape[1])

    def any_length() -> Any:
        return keep(model.apply(params, stream.state, ids_BT, length))

    def whole() -> Any:
        return keep(model.apply(params, stream.state, ids_BT, whole=True))

    if 0 in ids_BT.shape or not has_whole_path(model, tokens):
        return any_length(), length
    promised = (length == tokens).all() & at_border(stream.state, model.state_specs(len(length))).all()
    return jax.lax.cond(promised, whole, any_length), length


def has_whole_path(model: Model, tokens: int) -> bool:
    """Whether a block of this many tokens may be whole segments and chunks of the model."""
    return tokens > 1 and tokens % model.call_tokens == 0


def sample(logits_BV: jax.Array, stream: Stream, options: Sampling | jax.Array) -> jax.Array:
    """One token i32[B] for each row, drawn as `options` say (arrays, see `filters.py`), or at a temperature f32[B] alone.

    The random bits come from the row's key and its token count alone, so what a stream says does not depend on its slot, on its
    neighbours or on how many tokens are decoded per call.
    """
    options = options if isinstance(options, Sampling) else of_temperature(options)
    keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(stream.key), stream.t)
    logits_BV = final_logits(logits_BV, stream.seen, stream.t, options)
    drawn = jax.vmap(jax.random.categorical)(keys, logits_BV)
    return jnp.where(options.temperature > 0, drawn, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)


def decode(model: Model, params: Tree, stream: Stream, last_B: jax.Array, k: int, options: Sampling | jax.Array,
           stop: jax.Array, most: jax.Array | None = None) -> tuple[jax.Array, jax.Array, Stream]:
    """Sample up to k tokens of each row in one call, and add to `stream.said` how likely they were.

    last_B: i32[B], each row's newest token, which its carry has not consumed yet; the token of an inactive row is not read.
    options: as in `sample`. stop: i32[S], tokens after which a row becomes inactive; S may be 0. The stop token is emitted, and not
    consumed. most: i32[B], tokens that each row says in this call, all k if left out; a row that has said them waits, active.
    Returns (ids i32[B, k] with NO_TOKEN after a row's end, the new last_B, stream). Feed last_B back, not ids: it has no NO_TOKEN.
    """
    apart, params, state = model.unstack(params, stream.state)   # once per call, so decode steps do not slice the layer stack

    def step(carry, left):
        stream, last = carry
        goes = stream.active if most is None else stream.active & (left < most)
        length = goes.astype(jnp.int32)
        logits, state = apart.apply(params, stream.state, last[:, None], length)
        stream = _after(stream, state, last[:, None], length)
        token = jnp.where(goes, sample(logits[:, 0], stream, options), last)
        nats = target_nats(logits[:, 0], token)[0].astype(jnp.float32)
        stopped = goes & jnp.any(token[:, None] == stop[None, :], axis=1)
        stream = stream._replace(said=_add(stream.said, jnp.where(goes, nats, 0.0), length), active=stream.active & ~stopped)
        return (stream, token), jnp.where(goes, token, NO_TOKEN)

    (stream, last_B), ids_kB = jax.lax.scan(step, (stream._replace(state=state), last_B), jnp.arange(k))
    return ids_kB.T, last_B, stream._replace(state=model.restack(stream.state))


def restart(model: Model, params: Tree, stream: Stream, rows: jax.Array, keys: jax.Array) -> Stream:
    """Start some rows anew (from the carry that `init_state` makes, not from zeros) and make them active.

    rows: bool[B]. keys: typed PRNG keys key[B]; those of the chosen rows are used. Other rows come back bit for bit.
    """
    return reset(stream, rows, start(model, params, keys), stream_specs(model, rows.shape[0]))


def insert(model: Model, stream: Stream, slot: jax.Array, row: Stream) -> Stream:
    """Put a stream of one row (from `gather`, or restored from a file) into a slot. slot: i32[], from 0 to B-1."""
    put = functools.partial(_put_row, slot)
    return map_rows(put, stream_specs(model, stream.t.shape[0]), stream, row)


def _put_row(slot: jax.Array, whole: jax.Array, row: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, row, slot, axis)


def gather(model: Model, stream: Stream, rows: jax.Array) -> Stream:
    """The streams at the indices rows i32[N], which may repeat and come in any order, as a new stream of N rows."""
    specs = stream_specs(model, stream.t.shape[0])
    return map_rows(lambda whole, axis: jnp.take(whole, rows, axis=axis, mode="clip"), specs, stream)


def set_active(stream: Stream, rows: jax.Array, active: jax.Array) -> Stream:
    """Let the rows (bool[B]) take part again (active, bool[], True), or leave them out."""
    return stream._replace(active=jnp.where(rows, active, stream.active))


def fork(stream: Stream) -> Stream:
    """A copy in buffers of its own, for branching: the calls of a session end the life of the stream they are given."""
    return jax.tree.map(jnp.copy, stream)


def is_finite(stream: Stream) -> jax.Array:
    """bool[]: whether every number of the carry is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(stream.state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))
