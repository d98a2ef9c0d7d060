"""The rule as one kernel (Pallas): the fast weights of a memory stay on the chip over all chunks of a call.

One program of the grid is one chunk of one memory of one row, and the chunks of a memory run one after the other. Their weights
and surprise are one block for all chunks, so the chip reads them before the first chunk and writes them behind the last one;
`scan.py` does both in every chunk. The body is `rule.piece`, the function that `scan.py` maps over heads and rows, and the body of
the backward pass is its vector-Jacobian product, so there is no second derivation that could differ.

    forward    chunk n:                       (W, S), inputs of n  ->  reads of n, (W, S) for the next chunk
    backward   chunk n, from last to first:   (W, S) before n, inputs of n, cotangents of the reads and of (W, S) behind n
                                              ->  cotangents of the inputs and of (W, S) before n; sums of those of parameters

The forward pass keeps (W, S) at the start of each chunk for the backward pass, as the chunked view does without groups. A call that
is not made of whole chunks takes the chunked view, whose values are the same.

On a TPU the kernel is compiled (Mosaic), anywhere else it is interpreted, which is slow and meant for tests. The compiler for TPUs
has no error function, so there `activation` must be "gelu_tanh" or "silu". On a mesh each device runs the programs of its own rows
and heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from memtok_jax.memory.neural import scan, stats
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.rule import Carry, Inputs, Surprise, Weights, piece
from memtok_jax.sharding import divided


class Memory(NamedTuple):
    """What stays on the chip over all chunks of one memory."""

    weights: Weights   # deviations from the learned initial weights
    surprise: Weights


def run(start: Weights, slow, carry: Carry, phase_B: jax.Array, length_B: jax.Array, inputs: Inputs, cfg: NeuralMemoryConfig,
        whole: bool = False) -> tuple[jax.Array, Carry, jax.Array, stats.Stats]:
    """The memory over T tokens of each row; arguments and results are those of `scan.run`."""
    if not whole:
        return scan.run(start, slow, carry, phase_B, length_B, inputs, cfg, whole)
    batch, tokens, chunk = inputs.k.shape[0], inputs.k.shape[1], cfg.chunk
    split = lambda x: jnp.moveaxis(x.reshape(batch, tokens // chunk, chunk, *x.shape[2:]), 3, 1)  # [B, H, N, C, ...]
    x = jax.tree.map(split, inputs._replace(real=None))
    memory, y, found = _chunks(cfg, start, slow, Memory(carry.weights, carry.surprise), x)
    y = jnp.moveaxis(y, 1, 3).reshape(inputs.q.shape)
    found = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 2, 0), found)
    real = jnp.ones((tokens // chunk, batch, chunk), bool)
    return y, Carry(memory.weights, *memory), phase_B, stats.of_surprise(found, real, cfg)


def chunk_of_memory(start: Weights, slow, memory: Memory, x: Inputs, cfg: NeuralMemoryConfig) -> tuple[Memory, jax.Array, Surprise]:
    """One chunk, all tokens real: (memory, reads f32[C, K], statistics)."""
    x = x._replace(real=jnp.ones(x.k.shape[0], bool))
    weights, surprise, y, found = piece(start, slow, Carry(memory.weights, *memory), x, cfg)
    return Memory(weights, surprise), y, found


# ------------------------------------------------------------------------------------------------------------ forward, backward

@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunks(cfg: NeuralMemoryConfig, start: Weights, slow, memory: Memory, x: Inputs):
    """All chunks of all memories: start, slow [H, ...], memory [B, H, ...], x [B, H, N, C, ...] -> (memory, reads, statistics)."""
    return _forward(cfg, start, slow, memory, x)[0]


def _forward(cfg: NeuralMemoryConfig, start: Weights, slow, memory: Memory, x: Inputs):
    """The results, and what the backward pass needs."""

    def body(given: dict, left: dict, first: jax.Array) -> dict:
        before = _choose(first, given["memory"], left["memory"])
        after, y, found = chunk_of_memory(given["start"], given["slow"], before, given["x"], cfg)
        return {"memory": after, "before": before, "y": y, "found": found}

    given = {"start": Part(start, "head"), "slow": Part(slow, "head"), "memory": Part(memory, "memory"), "x": Part(x, "chunk")}
    after, y, found = jax.eval_shape(partial(chunk_of_memory, cfg=cfg), *(_one(part) for part in given.values()))
    made = {"memory": Part(after, "memory"), "before": Part(after, "chunk"), "y": Part(y, "chunk"), "found": Part(found, "chunk")}
    out = _call(body, x.k.shape[:3], given, made, backward=False)
    return (out["memory"], out["y"], out["found"]), (start, slow, x, out["before"])


def _backward(cfg: NeuralMemoryConfig, kept, cotangents):
    """Cotangents of start, slow, memory, x."""
    start, slow, x, before = kept
    d_memory, d_y, _ = cotangents  # no gradient flows through statistics

    def body(given: dict, left: dict, first: jax.Array) -> dict:
        d_after = _choose(first, given["d_memory"], left["memory"])
        inputs = [given[name] for name in ("start", "slow", "before", "x")]
        _, back = jax.vjp(lambda *args: chunk_of_memory(*args, cfg)[:2], *inputs)
        d_start, d_slow, d_before, d_x = back((d_after, given["d_y"]))
        add = lambda new, old: jax.tree.map(lambda a, b: a + jnp.where(first, 0, b), new, old)
        return {"memory": d_before, "start": add(d_start, left["start"]), "slow": add(d_slow, left["slow"]), "x": d_x}

    given = {"start": Part(start, "head"), "slow": Part(slow, "head"), "before": Part(before, "chunk"), "x": Part(x, "chunk"),
             "d_memory": Part(d_memory, "memory"), "d_y": Part(d_y, "chunk")}
    made = {"memory": Part(_one(given["d_memory"]), "memory"), "start": Part(_one(given["start"]), "memory"),
            "slow": Part(_one(given["slow"]), "memory"), "x": Part(_one(given["x"]), "chunk")}
    out = _call(body, x.k.shape[:3], given, made, backward=True)
    over_rows = lambda tree: jax.tree.map(lambda leaf: leaf.sum(0), tree)
    return over_rows(out["start"]), over_rows(out["slow"]), out["memory"], out["x"]


_chunks.defvjp(lambda cfg, *args: _forward(cfg, *args), _backward)


def _choose(first: jax.Array, given, left):
    """What the call was given in a memory's first program, then what the program before left."""
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), given, left)


# ------------------------------------------------------------------------------------------------------------------- the call

LEADING = {"head": ("heads",), "memory": ("batch", "heads"), "chunk": ("batch", "heads", None)}
GRID = ("batch", "heads", None)  # None: chunks


class Part(NamedTuple):
    """A tree of arrays, and which programs of the grid share a block of it: those of a head, of a memory, or none ("chunk")."""

    tree: Any
    shared: str


class Leaf(NamedTuple):
    """One array of a part. shape: of what one program sees."""

    shape: tuple[int, ...]
    dtype: Any
    shared: str

    @property
    def axes(self) -> tuple[str | None, ...]:
        """Logical axes in front of that."""
        return LEADING[self.shared]

    @property
    def block(self) -> tuple[int, ...]:
        """The shape with two axes or more, which arrays on the chip have."""
        return (1,) * (2 - len(self.shape)) + self.shape

    def whole(self, grid: tuple[int, int, int], shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the array whose programs see `shape`."""
        return tuple(grid[GRID.index(axis)] for axis in self.axes) + shape

    def spec(self, chunks: int, backward: bool) -> pl.BlockSpec:
        """Where a program finds its block."""
        rest = (0,) * len(self.block)

        def place(row, head, n):
            at = row, head, chunks - 1 - n if backward else n
            return (*(at[GRID.index(axis)] for axis in self.axes), *rest)

        return pl.BlockSpec((None,) * len(self.axes) + self.block, place)


def _one(part: Part):
    """Shapes of what one program sees of a part whose arrays have all leading axes."""
    axes = len(LEADING[part.shared])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype), part.tree)


def _leaves(parts: dict[str, Part]) -> list[Leaf]:
    """Leaves of trees of shapes, in the order of `jax.tree`."""
    return [Leaf(leaf.shape, leaf.dtype, part.shared) for _, part in sorted(parts.items()) for leaf in jax.tree.leaves(part.tree)]


def _call(body, grid: tuple[int, int, int], given: dict[str, Part], made: dict[str, Part], backward: bool) -> dict:
    """`body(given, left, first)` for every chunk of every memory, in order or backward: its results as trees of whole arrays.

    grid: rows, heads, chunks. made: trees of the shapes that the body returns. left: what the body returned for the chunk before,
    where all chunks of a memory share the block.
    """
    arrays, into_tree = jax.tree.flatten({name: part.tree for name, part in given.items()})
    into = _leaves({name: Part(_one(part), part.shared) for name, part in given.items()})
    out, out_tree = _leaves(made), jax.tree.structure({name: part.tree for name, part in made.items()})

    def program(*refs):
        values = [ref[...].reshape(leaf.shape) for ref, leaf in zip(refs, into, strict=False)]
        results = refs[len(into):]
        left = [ref[...].reshape(leaf.shape) if leaf.shared == "memory" else None for ref, leaf in zip(results, out, strict=True)]
        found = body(jax.tree.unflatten(into_tree, values), jax.tree.unflatten(out_tree, left), pl.program_id(2) == 0)
        for ref, value in zip(results, jax.tree.leaves(found), strict=True):
            ref[...] = value.reshape(ref.shape)

    def call(interpret: bool, *arrays):
        own = next(array.shape[:3] for array, leaf in zip(arrays, into, strict=True) if leaf.shared == "chunk")  # of this device
        return pl.pallas_call(
            program, grid=own, interpret=interpret, in_specs=[leaf.spec(own[2], backward) for leaf in into],
            out_specs=[leaf.spec(own[2], backward) for leaf in out],
            out_shape=[jax.ShapeDtypeStruct(leaf.whole(own, leaf.block), leaf.dtype) for leaf in out])(*arrays)

    anywhere = lambda *arrays: list(jax.lax.platform_dependent(*arrays, tpu=partial(call, False), default=partial(call, True)))
    arrays = [array.reshape(leaf.whole(grid, leaf.block)) for array, leaf in zip(arrays, into, strict=True)]
    found = divided(anywhere, [leaf.axes for leaf in into], [leaf.axes for leaf in out])(*arrays)
    found = [array.reshape(leaf.whole(grid, leaf.shape)) for array, leaf in zip(found, out, strict=True)]
    return jax.tree.unflatten(out_tree, found)
