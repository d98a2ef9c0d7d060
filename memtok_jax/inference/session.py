"""Streaming without a compilation on the way: the functions of `stream.py`, compiled ahead of time by `open_session` for one
batch size and a short list of block lengths.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.compiler import options
from memtok_jax.config import UserError
from memtok_jax.inference.blocks import cut_blocks
from memtok_jax.inference.stream import (
    Model,
    Stream,
    Tree,
    append,
    decode,
    fork,
    gather,
    insert,
    restart,
    row_keys,
    set_active,
    start,
    stream_specs,
)
from memtok_jax.params import abstract

FEED_BLOCKS = (16, 128, 512)  # block lengths to compile unless the caller knows better


@dataclass(frozen=True, eq=False)
class Session:
    """The programs for one model, config and batch size. It holds no stream and no parameters.

    Every method that takes a stream and returns one **donates** it, but for `take` and `gather`: the old one is dead
    afterwards (`fork` it first if it is still needed). Host values of any integer type are accepted; nothing compiles
    after `open_session`. Shapes, lengths and tokens given on the host are checked and raise UserError.
    """

    model: Model
    cfg: Any
    batch: int
    feed_blocks: tuple[int, ...]
    append_blocks: tuple[int, ...]
    k: int
    vocabulary: int
    programs: Mapping[Any, Any]

    def feed(self, params: Tree, stream: Stream, ids_BT: Any, length: Any = None) -> Stream:
        """Consume any number of host tokens in blocks of `feed_blocks`, without their logits.

        ids_BT: int[B, T], real tokens first. length: int[B], all T where left out. Returns the stream.
        """
        ids_BT = self._ids(np.asarray(ids_BT))
        for ids, real in cut_blocks(ids_BT, self._length(ids_BT.shape[1], length), self.feed_blocks):
            stream = self.programs["feed", ids.shape[1]](params, stream, ids, real)
        return stream

    def append(self, params: Tree, stream: Stream, ids_BT: Any, length: Any = None) -> tuple[jax.Array, Stream]:
        """Consume one block and see its logits.

        ids_BT: int[B, T] with T one of `append_blocks`, real tokens first. length: int[B], all T where left out.
        Returns (logits f32[B, T, V], stream).
        """
        ids_BT = self._ids(ids_BT)
        length = self._length(ids_BT.shape[1], length)
        if ids_BT.shape[1] not in self.append_blocks:
            raise UserError(f"a block of {ids_BT.shape[1]} tokens is not one of the session's {self.append_blocks}; "
                             "`feed` takes any number of tokens")
        return self.programs["append", ids_BT.shape[1]](params, stream, ids_BT, length)

    def step(self, params: Tree, stream: Stream, ids_B: Any) -> tuple[jax.Array, Stream]:
        """Consume one token of each row, int[B]. Returns (logits f32[B, V], stream)."""
        ids_B = _host(ids_B, np.int32)
        if ids_B.shape != (self.batch,):
            raise UserError(f"tokens of shape {ids_B.shape} do not fit a step of {self.batch} rows: [{self.batch}]")
        return self.programs["step"](params, stream, ids_B)

    def decode(self, params: Tree, stream: Stream, last_B: Any,
               temperature: Any) -> tuple[jax.Array, jax.Array, Stream]:
        """Sample `k` tokens for each row. last_B: int[B]. temperature: float or float[B].

        Returns (ids i32[B, k], last_B, stream), see the function `decode`.
        """
        temperature = np.broadcast_to(np.asarray(temperature, np.float32), (self.batch,))
        return self.programs["decode"](params, stream, _host(last_B, np.int32), temperature)

    def restart(self, params: Tree, stream: Stream, rows: Any, key: jax.Array) -> Stream:
        """Start the chosen rows (bool[B]) anew. key: one typed PRNG key, from which row b draws its own."""
        return self.programs["restart"](params, stream, np.asarray(rows, bool), key)

    def insert(self, stream: Stream, slot: int, row: Stream) -> Stream:
        """Put a stream of one row into a slot. Only `stream` is donated."""
        return self.programs["insert"](stream, self._slots(slot), row)

    def take(self, stream: Stream, slot: int) -> Stream:
        """One slot as a stream of one row."""
        return self.programs["take"](stream, self._slots(slot)[None])

    def gather(self, stream: Stream, rows: Any) -> Stream:
        """The rows rearranged: row b of the result is row rows[b]. rows: int[B], repeats allowed."""
        return self.programs["gather"](stream, self._slots(rows))

    def set_active(self, stream: Stream, rows: Any, active: bool) -> Stream:
        """Let the rows (bool[B]) take part again, or leave them out."""
        return self.programs["set_active"](stream, np.asarray(rows, bool), np.asarray(active))

    def _slots(self, slots: Any) -> np.ndarray:
        slots = np.asarray(slots, np.int32)
        if slots.min() < 0 or slots.max() >= self.batch:
            raise UserError(f"slot {slots.tolist()} is not one of the {self.batch} slots 0 to {self.batch - 1}")
        return slots

    def _ids(self, ids_BT: Any) -> Any:
        if ids_BT.ndim != 2 or ids_BT.shape[0] != self.batch:
            raise UserError(f"tokens of shape {tuple(ids_BT.shape)} do not fit a session of {self.batch} rows: "
                             f"[{self.batch}, T] is needed")
        if isinstance(ids_BT, jax.Array):   # looking at its values would wait for the device
            return ids_BT
        if ids_BT.size and not 0 <= ids_BT.min() <= ids_BT.max() < self.vocabulary:
            wrong = ids_BT.min() if ids_BT.min() < 0 else ids_BT.max()
            raise UserError(f"token {wrong} is outside the vocabulary 0 to {self.vocabulary - 1}")
        return ids_BT.astype(np.int32)

    def _length(self, tokens: int, length: Any) -> np.ndarray:
        if length is None:
            return np.full(self.batch, tokens, np.int32)
        length = np.asarray(length, np.int32)
        if length.shape != (self.batch,) or length.min() < 0 or length.max() > tokens:
            raise UserError(f"length {length.tolist()} must hold {self.batch} numbers from 0 to {tokens}")
        return length


def _host(x: Any, dtype: Any) -> Any:
    """Device arrays as they are, everything else as a NumPy array of one dtype: a Python int would be a new program."""
    return x if isinstance(x, jax.Array) else np.asarray(x, dtype)


def new_stream(model: Model, params: Tree, cfg: Any, batch: int, key: jax.Array) -> Stream:
    """`start` with the keys of `row_keys`, compiled, each leaf in a buffer of its own.

    A compiled function may hand back an argument's own buffer (a learned prefix, say); a stream is donated later and
    must not take a parameter with it, hence the copy.
    """
    begin = jax.jit(lambda params, key: start(model, params, cfg, row_keys(key, batch)),
                    compiler_options=options(jax.default_backend()))
    return fork(begin(params, key))


def open_session(model: Model, params: Tree, cfg: Any, stream: Stream, *, feed_blocks: Sequence[int] = FEED_BLOCKS,
                 append_blocks: Sequence[int] = (), k: int, stop: Sequence[int] = ()) -> Session:
    """Compile everything that the rows of `stream` will need.

    params, stream: only their shapes, dtypes and shardings are used. feed_blocks: block lengths for `feed`.
    append_blocks: those for `append`. k: tokens per `decode`. stop: tokens that end a row.
    Raises UserError for a block or a k below 1, and where no block is given.
    """
    feed_blocks, append_blocks = tuple(sorted(set(feed_blocks))), tuple(sorted(set(append_blocks)))
    if not feed_blocks or min((*feed_blocks, *append_blocks, k)) < 1:
        raise UserError(f"feed_blocks {feed_blocks} must not be empty, and these, append_blocks {append_blocks} and "
                         f"k={k} must be at least 1")
    params, stream = jax.tree.map(_shape_of, (params, stream))
    batch = stream.t.shape[0]
    token_programs, logits = _token_programs(model, params, cfg, stream, feed_blocks, append_blocks, k, stop)
    programs = token_programs | _row_programs(model, params, cfg, stream)
    return Session(model, cfg, batch, feed_blocks, append_blocks, k, logits.shape[-1], programs)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype, and the sharding where it is a choice somebody made (on one device it is not)."""
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                sharding=sharding if isinstance(sharding, jax.sharding.NamedSharding) else None)


def _pin(stream: Stream, like: Stream) -> Stream:
    """Keep a stream's arrays where they were: a compiled program refuses arguments that lie elsewhere."""
    return jax.tree.map(lambda leaf, spec: leaf if spec.sharding is None
                        else jax.lax.with_sharding_constraint(leaf, spec.sharding), stream, like)


def _token_programs(model, params, cfg, stream, feed_blocks, append_blocks, k,
                    stop) -> tuple[dict, jax.ShapeDtypeStruct]:
    """The programs that consume tokens, by name (and block length), and the shape of a step's logits."""

    def append_(params, stream, ids_BT, length):
        logits, new = append(model, params, stream, ids_BT, cfg, length)
        return logits, _pin(new, stream_shapes)

    def feed(params, stream, ids_BT, length):
        return append_(params, stream, ids_BT, length)[1]   # the unused logits are not computed

    def step(params, stream, ids_B):
        logits, stream = append_(params, stream, ids_B[:, None], jnp.ones_like(ids_B))
        return logits[:, 0], stream

    def decode_(params, stream, last_B, temperature):
        ids, last_B, new = decode(model, params, stream, last_B, cfg, k, temperature, jnp.asarray(stop, jnp.int32))
        return ids, last_B, _pin(new, stream_shapes)

    stream_shapes, batch = stream, stream.t.shape[0]
    rows = jax.ShapeDtypeStruct((batch,), jnp.int32)
    temperature = jax.ShapeDtypeStruct((batch,), jnp.float32)
    compiled = {"step": _compile(step, params, stream, rows),
                "decode": _compile(decode_, params, stream, rows, temperature)}
    for name, function, blocks in (("feed", feed, feed_blocks), ("append", append_, append_blocks)):
        for n in blocks:
            ids = jax.ShapeDtypeStruct((batch, n), jnp.int32)
            compiled[name, n] = _compile(function, params, stream, ids, rows)
    return compiled, jax.eval_shape(step, params, stream, rows)[0]


def _compile(function, params, stream, *args):
    """Compile a function of (params, stream, ...) that donates the stream."""
    wanted = options(jax.default_backend())
    return jax.jit(function, donate_argnums=1, compiler_options=wanted).lower(params, stream, *args).compile()


def _row_programs(model, params, cfg, stream) -> dict:
    """The programs that move whole rows."""
    batch = stream.t.shape[0]
    shapes = abstract(stream_specs(model, cfg, 1))
    rows = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    slots, slot, one = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch,), (), (1,)))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def restart_(params, old, rows, key):
        return _pin(restart(model, params, old, rows, row_keys(key, batch), cfg), stream)

    def insert_(old, slot, row):
        return _pin(insert(model, old, slot, row, cfg), stream)

    def gather_(old, slots):
        return gather(model, old, slots, cfg)

    def set_active_(old, rows, active):
        return _pin(set_active(old, rows, active), stream)

    donating = functools.partial(jax.jit, donate_argnums=0)
    return {"restart": _compile(restart_, params, stream, rows, key),
            "insert": donating(insert_).lower(stream, slot, shapes).compile(),
            "take": jax.jit(gather_).lower(stream, one).compile(),
            "gather": jax.jit(lambda old, slots: _pin(gather_(old, slots), stream)).lower(stream, slots).compile(),
            "set_active": donating(set_active_).lower(stream, rows, jax.ShapeDtypeStruct((), jnp.bool_)).compile()}
