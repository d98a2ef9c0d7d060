"""Which rows of a segment see which: read block R, tokens X, write block W.

Rows are queries, columns are keys. `cache` are tokens of earlier segments; `past` are earlier tokens of the same segment that an
earlier call has seen.

    form "paper"   cache  past  R     X       W       form "causal": the same rows and columns, lower triangular from R on
          R        flag    0    1     0       0       form "prefix": [R X], lower triangular
          X         1      1    1   j <= i    0       form "encoder": [R X], everything
          W        flag    1    1     1       1       flag: `read_mem_from_cache` of the released code

In every form but "encoder" X never sees W and R never sees X: logits do not depend on the write block, and the write block can
be computed when the segment is full (arXiv 2207.06881, figure 2; "causal" is what a decoder with its ordinary mask does).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

FORMS = ("causal", "paper", "encoder", "prefix")


def segment_mask(form: str, memory: int, tokens: int, tail: int) -> np.ndarray:
    """bool[E, E] of one whole segment: M = `memory` rows in front, T = `tokens`, and `tail` rows of the write block."""
    size = memory + tokens + tail
    if form == "encoder":
        return np.ones((size, size), bool)
    mask = np.tri(size, dtype=bool)
    if form == "paper":
        mask[:memory, :memory] = True
        mask[memory + tokens:] = True
    return mask


def visible(form: str, memory: int, tokens: int, tail: int, length_B: jax.Array, past_B: jax.Array, slots: int) -> jax.Array:
    """bool[B, E, S+E]: the mask with padding and the tokens of earlier calls.

    length_B: i32[B], real tokens; padded columns are hidden from every row. past_B: i32[B], how many of the `slots` = S
    columns in front hold earlier tokens of the segment.
    """
    rows = length_B.shape[0]
    mask = segment_mask(form, memory, tokens, tail)
    whole = lambda n: jnp.ones((rows, n), bool)
    real = jnp.concatenate([whole(memory), jnp.arange(tokens)[None] < length_B[:, None], whole(tail)], axis=1)
    here = jnp.asarray(mask)[None] & real[:, None, :]
    reads_past = (np.arange(len(mask)) >= memory)[None, :, None]
    before = jnp.asarray(reads_past) & (jnp.arange(slots)[None] < past_B[:, None])[:, None]
    return jnp.concatenate([before, here], axis=2)


def visible_cache(real_BC: jax.Array, memory: int, tokens: int, tail: int, by_memory: bool) -> jax.Array:
    """bool[B, E, C]: the columns of the cache, of which real_BC hold something. by_memory: R and W see them too, not X alone."""
    row = np.arange(memory + tokens + tail)
    sees = (row >= memory) & (row < memory + tokens) | by_memory
    return real_BC[:, None] & jnp.asarray(sees)[None, :, None]


def positions(memory: int, tokens: int, tail: int, length_B: jax.Array, past_B: jax.Array, slots: int):
    """(i32[B, E] of the queries, i32[B, S+E] of the keys), counted from the first row of the read block.

    The write block follows the last real token, not the last slot: a short segment is numbered as if it were unpadded.
    """
    rows, begin = past_B.shape[0], (memory + past_B)[:, None]
    # A padded token has no position; it gets that of the last real one (or the first), so that no table is overrun.
    own = begin + jnp.clip(jnp.arange(tokens)[None], 0, jnp.maximum(length_B[:, None] - 1, 0))
    front = jnp.broadcast_to(jnp.arange(memory)[None], (rows, memory))
    query = jnp.concatenate([front, own, jnp.arange(tail)[None] + begin + length_B[:, None]], axis=1)
    past = jnp.broadcast_to(memory + jnp.arange(slots)[None], (rows, slots))
    return query, jnp.concatenate([past, query], axis=1)
