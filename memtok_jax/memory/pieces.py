"""Cut a block of tokens at the borders of a unit (a chunk, a segment), whatever the block's length and phase.

A mechanism with a unit of U tokens must give the same result for every cut of a stream into calls. So a call splits its T
tokens into pieces that never cross a border: the first piece ends at the first border, the others are whole units, the last
may stop short. Rows of a batch may stand at different places of their units and have different lengths. The cut is therefore
an index computed from data; shapes depend on T and U alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.params import take_rows


class Pieces(NamedTuple):
    """N pieces of W = min(T, U) slots for a block of T tokens."""

    index: jax.Array   # i32[N, B, W]  token that stands in each slot (clipped to the block)
    length: jax.Array  # i32[N, B]     real tokens of the piece: slots 0 .. length-1
    closes: jax.Array  # bool[N, B]    the piece ends exactly at a border of the unit
    place: jax.Array   # i32[B, T]     slot, counted through all pieces, of each token
    phase: jax.Array   # i32[B]        tokens in the open unit after the block, 0 .. U-1


def count(tokens: int, unit: int) -> int:
    """The most pieces that a block of `tokens` tokens needs; one token, or none, needs one."""
    return 1 + max(0, -(-(tokens - 1) // unit))


def cut(phase_B: jax.Array, length_B: jax.Array, tokens: int, unit: int) -> Pieces:
    """Where each token goes.

    phase_B: i32[B], tokens already in the open unit. length_B: i32[B], real tokens of each row (a prefix).
    """
    n, slots = count(tokens, unit), min(tokens, unit)
    number = jnp.arange(n)[:, None]
    first_border = (unit - phase_B)[None]
    start = jnp.where(number == 0, 0, first_border + (number - 1) * unit)
    length = jnp.clip(jnp.minimum(first_border + number * unit, length_B[None]) - start, 0, slots)
    index = start[:, :, None] + jnp.arange(slots)[None, None]
    token = jnp.arange(tokens)[None]
    piece = (phase_B[:, None] + token) // unit
    slot = token - jnp.where(piece == 0, 0, first_border.T + (piece - 1) * unit)
    end = phase_B + length_B
    return Pieces(
        index=jnp.clip(index, 0, tokens - 1).astype(jnp.int32),
        length=length.astype(jnp.int32),
        closes=end[None] >= (number + 1) * unit,
        place=(piece * slots + slot).astype(jnp.int32),
        phase=(end % unit).astype(jnp.int32),
    )


def split(x: jax.Array, pieces: Pieces) -> jax.Array:
    """x[B, T, ...] -> [N, B, W, ...]."""
    n, b, w = pieces.index.shape
    flat = take_rows(x, jnp.moveaxis(pieces.index, 0, 1).reshape(b, n * w))
    return jnp.moveaxis(flat.reshape(b, n, w, *x.shape[2:]), 1, 0)


def join(y: jax.Array, pieces: Pieces) -> jax.Array:
    """y[N, B, W, ...] -> [B, T, ...], the inverse of `split` on real tokens."""
    n, b, w = pieces.index.shape
    return take_rows(jnp.moveaxis(y, 0, 1).reshape(b, n * w, *y.shape[3:]), pieces.place)
