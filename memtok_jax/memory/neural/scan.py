"""The rule over a call of T tokens: `lax.scan` over pieces, `vmap` over batch and heads inside.

A piece is a run of tokens inside one chunk. The backward pass stores the carry at the borders of groups of chunks and
recomputes the rest, so for long calls its memory grows with the square root of their length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.compiler import platform
from memtok_jax.memory import pieces as cutting
from memtok_jax.memory.neural import stats
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.rule import Carry, Inputs, Weights, piece
from memtok_jax.sharding import constrain, free_axes

NEAR = 2 ** 17  # bytes of the first weights of rows that go side by side on a CPU; a backward pass needs eight times that
FEW = 64  # up to this many carries, storing is cheaper than recomputing


class Learned(NamedTuple):
    """Parameters of the memories. rows: 0 where each row has a copy of its own [B, H, ...], None where rows share them [H, ...]."""

    start: Weights   # initial fast weights
    slow: Weights
    rows: int | None


def _for_rows(start: Weights, slow: Weights, batch: int) -> Learned:
    """Copies for the rows where the compiler divides these over devices.

    The gradient of what rows share is a sum over devices, and would be taken anew at every chunk; that of copies is one sum at the
    end.
    """
    if not free_axes():
        return Learned(start, slow, None)
    copies = lambda w: constrain(jnp.broadcast_to(w[None], (batch, *w.shape)), "batch", "heads", *[None] * (w.ndim - 1))
    return Learned(jax.tree.map(copies, start), jax.tree.map(copies, slow), 0)


def _all_heads(learned: Learned, cfg: NeuralMemoryConfig):
    """`piece` over batch and heads: carry [B, H, ...], inputs [B, H, C, ...], real [B, C]."""
    per_head = Inputs(k=0, v=0, q=0, step=0, log_momentum=0, log_keep=0, real=None)
    heads = jax.vmap(partial(piece, cfg=cfg), in_axes=(0, 0, 0, per_head))
    return partial(jax.vmap(heads, in_axes=(learned.rows, learned.rows, 0, 0)), learned.start, learned.slow)


def _body(learned: Learned, cfg: NeuralMemoryConfig):
    """Scan body: one piece of each memory, which may end inside a chunk."""

    def body(carry: Carry, xs: tuple[Inputs, jax.Array]):
        x, closes = xs
        weights, surprise, y, found = _all_heads(learned, cfg)(carry, x)
        anchor = jax.tree.map(lambda old, new: jnp.where(_per_row(closes, new), new, old), carry.anchor, weights)
        return Carry(anchor, weights, surprise), (y, found)

    return body


def _whole_body(learned: Learned, cfg: NeuralMemoryConfig):
    """Scan body: one whole chunk of each memory. Here the anchor is the weights, so one copy of them is carried and stored."""

    def body(carry: tuple[Weights, Weights], xs: tuple[Inputs, jax.Array]):
        weights, surprise = carry
        *carry, y, found = _all_heads(learned, cfg)(Carry(weights, weights, surprise), xs[0])
        return tuple(carry), (y, found)

    return body


def _per_row(flags: jax.Array, like: jax.Array) -> jax.Array:
    """flags[B] as [B, 1, ...], with as many axes as `like`."""
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))


def group_size(chunks: int, wanted: int) -> int:
    """Chunks between two stored carries: the divisor of `chunks` that is nearest to `wanted`.

    wanted: 0 takes 1 for up to FEW chunks (a second recomputation costs more than that memory), else about sqrt(chunks).
    """
    target = wanted or (1 if chunks <= FEW else math.isqrt(chunks))
    return min((d for d in range(1, chunks + 1) if chunks % d == 0), key=lambda d: abs(d - target))


def _scan_recomputed(body, carry, xs, group: int):
    """`lax.scan` that stores carries only at group borders and recomputes the rest in the backward pass; -1 stores all."""
    if group < 0:
        return jax.lax.scan(body, carry, xs)
    body = jax.checkpoint(body, prevent_cse=False)
    chunks = jax.tree.leaves(xs)[0].shape[0]
    if group in (1, chunks):  # one level of recomputation is enough
        return jax.lax.scan(body, carry, xs)
    grouped = jax.tree.map(lambda x: x.reshape(chunks // group, group, *x.shape[1:]), xs)
    carry, ys = jax.lax.scan(jax.checkpoint(lambda c, x: jax.lax.scan(body, c, x), prevent_cse=False), carry, grouped)
    return carry, jax.tree.map(lambda y: y.reshape(chunks, *y.shape[2:]), ys)


def _rows_at_once(start: Weights, batch: int, pieces: int) -> int:
    """Rows of a call that go through their pieces side by side.

    A core of a CPU keeps the weights of some rows near itself from piece to piece; of more rows it would read and write them anew
    in every operation. Elsewhere, and where the compiler divides the rows over devices, all rows go side by side.
    """
    if platform() != "cpu" or free_axes() or pieces < 2 or not batch:
        return batch
    fitting = max(NEAR // sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(start)), 1)
    return max(rows for rows in range(1, batch + 1) if batch % rows == 0 and rows <= fitting)


def _by_rows(scan, carry, xs, rows: int):
    """`scan(carry, xs) -> (carry, ys)` for so many rows after the other. carry: leaves [B, ...]; xs, ys: leaves [N, B, ...]."""
    batch = jax.tree.leaves(carry)[0].shape[0]
    if rows == batch:
        return scan(carry, xs)
    cut = lambda x, axis: x.reshape(*x.shape[:axis], batch // rows, rows, *x.shape[axis + 1:])
    ahead = jax.tree.map(lambda x: jnp.moveaxis(cut(x, 1), 1, 0), xs)
    carry, ys = jax.lax.map(lambda group: scan(*group), (jax.tree.map(lambda x: cut(x, 0), carry), ahead))
    carry = jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), carry)
    return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1).reshape(y.shape[1], batch, *y.shape[3:]), ys)


def _per_head(x: jax.Array) -> jax.Array:
    """[N, B, C, H, ...] -> [N, B, H, C, ...]."""
    return jnp.moveaxis(x, 3, 2)


class Grid(NamedTuple):
    """T tokens of each row, cut into N pieces of at most C tokens."""

    split: Callable[[jax.Array], jax.Array]  # [B, T, ...] -> [N, B, C, ...]
    join: Callable[[jax.Array], jax.Array]   # [N, B, C, ...] -> [B, T, ...]
    real: jax.Array                          # bool[N, B, C]
    closes: jax.Array                        # bool[N, B]  the piece ends at a border of a chunk
    phase: jax.Array                         # i32[B]      tokens in the open chunk after the call


def _whole_grid(phase_B: jax.Array, tokens: int, chunk: int) -> Grid:
    """Every piece is a whole chunk."""
    n, batch = tokens // chunk, phase_B.shape[0]
    return Grid(split=lambda x: jnp.moveaxis(x.reshape(batch, n, chunk, *x.shape[2:]), 1, 0),
                join=lambda y: jnp.moveaxis(y, 0, 1).reshape(batch, tokens, *y.shape[3:]),
                real=jnp.ones((n, batch, chunk), bool), closes=jnp.ones((n, batch), bool), phase=phase_B)


def _open_grid(phase_B: jax.Array, length_B: jax.Array, tokens: int, chunk: int) -> Grid:
    """Pieces end at the borders of chunks, wherever a row stands in its own chunk."""
    cut = cutting.cut(phase_B, length_B, tokens, chunk)
    real = jnp.arange(cut.index.shape[-1])[None, None] < cut.length[:, :, None]
    return Grid(partial(cutting.split, pieces=cut), partial(cutting.join, pieces=cut), real, cut.closes, cut.phase)


def run(start: Weights, slow, carry: Carry, phase_B: jax.Array, length_B: jax.Array, inputs: Inputs,
        cfg: NeuralMemoryConfig, whole: bool = False) -> tuple[jax.Array, Carry, jax.Array, stats.Stats]:
    """The memory over T tokens of each row.

    start, slow: leaves [H, ...]. carry: leaves [B, H, ...]. phase_B, length_B: i32[B].
    inputs: k, v, q [B, T, H, K]; step, log_momentum, log_keep [B, T, H] or dicts of these; `real` is computed here.
    whole: each row starts at a chunk border and has T real tokens, a multiple of the chunk; the caller has checked it.
    Returns reads [B, T, H, K], the carry, the phase, and the statistics of the writes.
    """
    tokens = inputs.k.shape[1]
    grid = _whole_grid(phase_B, tokens, cfg.chunk) if whole else _open_grid(phase_B, length_B, tokens, cfg.chunk)
    xs = jax.tree.map(lambda x: _per_head(grid.split(x)), inputs._replace(real=None))._replace(real=grid.real)
    group = group_size(grid.closes.shape[0], cfg.remat_group) if cfg.remat_group >= 0 else -1
    rows, learned = _rows_at_once(start, *grid.closes.shape[::-1]), _for_rows(start, slow, inputs.k.shape[0])
    if whole:
        scan = partial(_scan_recomputed, _whole_body(learned, cfg), group=group)
        (weights, surprise), (y, found) = _by_rows(scan, (carry.weights, carry.surprise), (xs, grid.closes), rows)
        carry = Carry(weights, weights, surprise)
    else:
        scan = partial(_scan_recomputed, _body(learned, cfg), group=group)
        carry, (y, found) = _by_rows(scan, carry, (xs, grid.closes), rows)
    return grid.join(jnp.moveaxis(y, 2, 3)), carry, grid.phase, stats.of_surprise(found, grid.real, cfg)
