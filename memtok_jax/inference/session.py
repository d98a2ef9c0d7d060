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

from memtok_jax import checks
from memtok_jax.compiler import options
from memtok_jax.config import UserError
from memtok_jax.inference import host
from memtok_jax.inference.blocks import blocks_for, cut_blocks
from memtok_jax.inference.filters import DTYPES, Sampling
from memtok_jax.inference.stream import (
    Stream,
    append,
    decode,
    feed,
    fork,
    gather,
    insert,
    restart,
    row_keys,
    score,
    set_active,
    start,
    stream_specs,
)
from memtok_jax.models.protocol import Model
from memtok_jax.params import Tree, abstract


@dataclass(frozen=True, eq=False)
class Session:
    """The programs for one model and batch size. It holds no stream and no parameters.

    Every method that takes a stream and returns one **donates** it, except `take` and `gather`: the old one is dead
    afterwards (`fork` it first if it is still needed). Nothing compiles after `open_session`.

    Host values of any integer type are accepted. Everything given on the host is checked and raises UserError: tokens outside the
    vocabulary, other dtypes, shapes, lengths, slots, masks, options. Of arrays on the device only shape and dtype are
    checked: an id outside the vocabulary is clamped or wraps there. A call without tokens returns the stream as it was.

    model: the model. batch: B. feed_blocks, append_blocks, score_blocks: block lengths, ascending. k: tokens per `decode`.
    params_shapes: shapes and dtypes of the parameters that it was opened with. programs: compiled functions by name.
    """

    model: Model
    batch: int
    feed_blocks: tuple[int, ...]
    append_blocks: tuple[int, ...]
    score_blocks: tuple[int, ...]
    k: int
    params_shapes: Tree
    programs: Mapping[Any, Any]

    @property
    def vocabulary(self) -> int:
        """V of the model."""
        return self.model.vocabulary

    def feed(self, params: Tree, stream: Stream, ids_BT: Any, length: Any = None) -> Stream:
        """Consume any number of host tokens in blocks of `feed_blocks`, without their logits.

        ids_BT: int[B, T], real tokens first. length: int[B], all T if left out. Returns the stream.
        """
        ids_BT, length = host.block(np.asarray(ids_BT), length, self.vocabulary, self.batch)
        for ids, real in cut_blocks(ids_BT, length, self.feed_blocks):
            stream = self._run(("feed", ids.shape[1]), params, stream, ids, real)
        return stream

    def score(self, params: Tree, stream: Stream, ids_BT: Any, next_BT: Any, length: Any = None) -> Stream:
        """`feed` in blocks of `score_blocks` that adds to `stream.read` how well each token was predicted.

        next_BT: int[B, T], the token after each one of ids_BT. Returns the stream.
        """
        ids_BT, length = host.block(np.asarray(ids_BT), length, self.vocabulary, self.batch)
        next_BT, _ = host.block(np.asarray(next_BT), length, self.vocabulary, self.batch)
        if next_BT.shape != ids_BT.shape:
            raise UserError(f"next tokens of shape {next_BT.shape} must be one for each of the tokens, {ids_BT.shape}")
        if not self.score_blocks:
            raise UserError("the session was opened without score_blocks; give `open_session` some to score tokens")
        both = zip(cut_blocks(ids_BT, length, self.score_blocks), cut_blocks(next_BT, length, self.score_blocks), strict=True)
        for (ids, real), (after, _) in both:
            stream = self._run(("score", ids.shape[1]), params, stream, ids, after, real)
        return stream

    def append(self, params: Tree, stream: Stream, ids_BT: Any, length: Any = None) -> tuple[jax.Array, Stream]:
        """Consume one block and see its logits.

        ids_BT: int[B, T] with T one of `append_blocks`, or no tokens at all; real tokens first. length: int[B], all T if left out.
        Returns (logits f32[B, T, V], stream).
        """
        ids_BT, length = host.block(ids_BT, length, self.vocabulary, self.batch)
        tokens = ids_BT.shape[1]
        if tokens == 0:
            return jnp.zeros((self.batch, 0, self.vocabulary)), stream
        if tokens not in self.append_blocks:
            raise UserError(f"a block of {tokens} tokens is not one of the session's {self.append_blocks}; "
                            "`feed` takes any number of tokens")
        return self._run(("append", tokens), params, stream, ids_BT, length)

    def step(self, params: Tree, stream: Stream, ids_B: Any) -> tuple[jax.Array, Stream]:
        """Consume one token of each row, int[B]. Returns (logits f32[B, V], stream)."""
        return self._run("step", params, stream, host.one_each(ids_B, self.batch, self.vocabulary))

    def decode(self, params: Tree, stream: Stream, last_B: Any, options: Any,
               most: Any = None) -> tuple[jax.Array, jax.Array, Stream]:
        """Sample up to `k` tokens for each row. last_B: int[B]. options: `Sampling`, or a temperature, float or float[B].

        most: int[B], tokens that each row says at most; all k if left out.
        Returns (ids i32[B, k], last_B, stream), see the function `decode`. Feed last_B back: ids has NO_TOKEN where a row stopped.
        """
        last_B = host.one_each(last_B, self.batch, self.vocabulary)
        most = host.lengths(most, self.batch, self.k)
        return self._run("decode", params, stream, last_B, host.sampling(options, self.batch), most)

    def restart(self, params: Tree, stream: Stream, rows: Any, key: jax.Array) -> Stream:
        """Start the chosen rows (bool[B]) anew. key: one typed PRNG key, from which row b draws its own."""
        return self._run("restart", params, stream, host.mask(rows, self.batch), key)

    def insert(self, stream: Stream, slot: int, row: Stream) -> Stream:
        """Put a stream of one row into a slot. Only `stream` is donated. Raises UserError for a row of another model."""
        checks.check_state(row, stream_specs(self.model, 1), "row")
        return self._run("insert", None, stream, host.slots(slot, self.batch, ()), row)

    def take(self, stream: Stream, slot: int) -> Stream:
        """One slot as a stream of one row."""
        return self._run("take", None, stream, host.slots(slot, self.batch, ())[None])

    def gather(self, stream: Stream, rows: Any) -> Stream:
        """The rows rearranged: row b of the result is row rows[b]. rows: int[B], repeats allowed."""
        return self._run("gather", None, stream, host.slots(rows, self.batch, (self.batch,)))

    def set_active(self, stream: Stream, rows: Any, active: bool) -> Stream:
        """Let the rows (bool[B]) take part again, or leave them out."""
        return self._run("set_active", None, stream, host.mask(rows, self.batch), host.flag("active", active))

    def _run(self, name: Any, params: Tree | None, stream: Stream, *args: Any) -> Any:
        """Call a program. What it refuses by shape or dtype is told in one line, UserError."""
        program, given = self.programs[name], (stream, *args) if params is None else (params, stream, *args)
        try:
            return program(*given)
        except TypeError:
            if params is not None:
                _check_shapes("params", params, self.params_shapes)
            checks.check_state(stream, stream_specs(self.model, self.batch), "stream")
            raise


def _check_shapes(name: str, tree: Tree, wanted: Tree) -> None:
    """Raise UserError unless a tree has the structure, shapes and dtypes that a program was compiled for."""
    leaves, found = jax.tree.flatten(tree)
    paths, structure = jax.tree_util.tree_flatten_with_path(wanted)
    if found != structure:
        raise UserError(f"{name} has other leaves than the {name} that the session was opened with")
    for (path, spec), leaf in zip(paths, leaves, strict=True):
        if (leaf.shape, leaf.dtype) != (spec.shape, spec.dtype):
            raise UserError(f"{name}{jax.tree_util.keystr(path)} is {leaf.dtype}{list(leaf.shape)}; the session was opened with "
                            f"{spec.dtype}{list(spec.shape)}")


def new_stream(model: Model, params: Tree, batch: int, key: jax.Array) -> Stream:
    """`start` with the keys of `row_keys`, compiled, each leaf in a buffer of its own.

    A compiled function may hand back an argument's own buffer (a learned prefix, say); a stream is donated later and
    must not take a parameter with it, hence the copy.
    """
    begin = jax.jit(lambda params, key: start(model, params, row_keys(key, batch)),
                    compiler_options=options(jax.default_backend()))
    return fork(begin(params, key))


def open_session(model: Model, params: Tree, stream: Stream, *, feed_blocks: Sequence[int] | None = None,
                 append_blocks: Sequence[int] = (), score_blocks: Sequence[int] = (), k: int, stop: Sequence[int] = ()) -> Session:
    """Compile everything that the rows of `stream` will need.

    params, stream: only their shapes, dtypes and shardings are used.
    feed_blocks: block lengths for `feed`; `blocks_for` chooses them if left out. A multiple of `model.call_tokens` is faster.
    append_blocks, score_blocks: block lengths for `append` and for `score`. With score_blocks, feed_blocks may be empty.
    k: tokens per `decode`.
    stop: tokens that end a row.

    Raises UserError for blocks below 1, stop tokens outside the vocabulary, no rows, or parameters and a stream of another model.
    """
    feed_blocks = blocks_for(model.call_tokens) if feed_blocks is None else tuple(sorted(set(feed_blocks)))
    append_blocks, score_blocks = (tuple(sorted(set(blocks))) for blocks in (append_blocks, score_blocks))
    batch, blocks = len(stream.t), {"feed": feed_blocks, "append": append_blocks, "score": score_blocks}
    if not (*feed_blocks, *score_blocks) or min((*feed_blocks, *append_blocks, *score_blocks, k)) < 1:
        raise UserError(f"feed_blocks {feed_blocks} must not be empty, and these, append_blocks {append_blocks}, score_blocks "
                        f"{score_blocks} and k={k} must be at least 1")
    if batch < 1:
        raise UserError("a session needs a stream of at least one row")
    stop = np.asarray(host.tokens(list(stop), model.vocabulary))
    checks.check_params(params, model.specs())
    checks.check_state(stream, stream_specs(model, batch), "stream")
    params, stream = jax.tree.map(_shape_of, (params, stream))
    programs = _token_programs(model, params, stream, blocks, k, stop) | _row_programs(model, params, stream)
    return Session(model, batch, feed_blocks, append_blocks, score_blocks, k, params, programs)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype, and the sharding if it is a NamedSharding."""
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                sharding=sharding if isinstance(sharding, jax.sharding.NamedSharding) else None)


def _pin(stream: Stream, like: Stream) -> Stream:
    """Keep a stream's arrays where they were: a compiled program refuses arguments that lie elsewhere."""
    return jax.tree.map(lambda leaf, spec: leaf if spec.sharding is None
                        else jax.lax.with_sharding_constraint(leaf, spec.sharding), stream, like)


def _token_programs(model: Model, params: Tree, stream: Stream, blocks: dict[str, tuple[int, ...]], k: int,
                    stop: np.ndarray) -> dict:
    """The programs that consume tokens, by name (and block length). blocks: block lengths of each."""

    def append_(params, stream, ids_BT, length):
        logits, new = append(model, params, stream, ids_BT, length)
        return logits, _pin(new, shapes)

    def feed_(params, stream, ids_BT, length):
        return _pin(feed(model, params, stream, ids_BT, length), shapes)

    def score_(params, stream, ids_BT, next_BT, length):
        return _pin(score(model, params, stream, ids_BT, next_BT, length), shapes)

    def step(params, stream, ids_B):
        logits, stream = append_(params, stream, ids_B[:, None], jnp.ones_like(ids_B))
        return logits[:, 0], stream

    def decode_(params, stream, last_B, options, most):
        ids, last_B, new = decode(model, params, stream, last_B, k, options, jnp.asarray(stop), most)
        return ids, last_B, _pin(new, shapes)

    shapes, batch = stream, len(stream.t)
    rows = jax.ShapeDtypeStruct((batch,), jnp.int32)
    options = Sampling(*(jax.ShapeDtypeStruct((batch,), dtype) for dtype in DTYPES))
    compiled = {"step": _compile(step, params, stream, rows), "decode": _compile(decode_, params, stream, rows, options, rows)}
    for name, function in (("feed", feed_), ("append", append_), ("score", score_)):
        for n in blocks[name]:
            ids = jax.ShapeDtypeStruct((batch, n), jnp.int32)
            compiled[name, n] = _compile(function, params, stream, *(ids,) * (1 + (name == "score")), rows)
    return compiled


def _compile(function, params, stream, *args):
    """Compile a function of (params, stream, ...) that donates the stream."""
    wanted = options(jax.default_backend())
    return jax.jit(function, donate_argnums=1, compiler_options=wanted).lower(params, stream, *args).compile()


def _row_programs(model: Model, params: Tree, stream: Stream) -> dict:
    """The programs that move whole rows."""
    batch = len(stream.t)
    shapes = abstract(stream_specs(model, 1))
    rows = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    slots, slot, one = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch,), (), (1,)))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def restart_(params, old, rows, key):
        return _pin(restart(model, params, old, rows, row_keys(key, batch)), stream)

    def insert_(old, slot, row):
        return _pin(insert(model, old, slot, row), stream)

    def gather_(old, slots):
        return _pin(gather(model, old, slots), stream)

    def take(old, slot):
        return gather(model, old, slot)

    def set_active_(old, rows, active):
        return _pin(set_active(old, rows, active), stream)

    donating = functools.partial(jax.jit, donate_argnums=0)
    return {"restart": _compile(restart_, params, stream, rows, key),
            "insert": donating(insert_).lower(stream, slot, shapes).compile(),
            "take": jax.jit(take).lower(stream, one).compile(),
            "gather": jax.jit(gather_).lower(stream, slots).compile(),
            "set_active": donating(set_active_).lower(stream, rows, jax.ShapeDtypeStruct((), jnp.bool_)).compile()}
