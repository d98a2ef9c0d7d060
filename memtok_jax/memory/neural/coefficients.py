"""How much of each token's gradient stands in the weights after each later token.

Both recursions of a chunk are linear (Titans, equations 10 and 13), so the weights after token t are

    S_t = m_t S_0 - sum_{i<=t} n_{t,i} G_i
    W_t = c_t W_init + b_t V_0 + f_t S_0 - sum_{i<=t} g_{t,i} G_i

| symbol | name    | meaning                                                        |
|--------|---------|----------------------------------------------------------------|
| b_t    | keep    | product of 1 - alpha up to t                                   |
| c_t    | initial | 1 (forget to init) or b_t (forget to zero)                     |
| m_t    | past    | product of eta up to t                                         |
| f_t    | pushed  | share of the incoming surprise that has reached the weights    |
| n_ti   | moving  | share of gradient i in the surprise after t                    |
| g_ti   | written | share of gradient i in the weights after t                     |

Everything is computed from sums of logarithms, masked before the exponential: no quotient of products ever appears. Each sum
has terms of one sign. The difference of two cumulative sums would give the same number with fewer digits: if gates are nearly
closed, the cumulative sum is large, and so is its rounding error, while the difference may be small.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 16  # tokens whose sums are formed at once


class Coefficients(NamedTuple):
    """Entry t - 1 of the first axis holds the value after token t, for t = 1 .. C."""

    keep: jax.Array     # f32[C]
    initial: jax.Array  # f32[C]
    past: jax.Array     # f32[C]
    pushed: jax.Array   # f32[C]
    moving: jax.Array   # f32[C, C]
    written: jax.Array  # f32[C, C]


def _sums_inside(x: jax.Array) -> jax.Array:
    """Sums of x over j < k <= i: x[..., C] -> [..., C, C] with entries (i, j), zero unless j < i."""
    n = x.shape[-1]
    later = jnp.where(jnp.tri(n, k=-1, dtype=bool), x[..., :, None], jnp.zeros((), x.dtype))  # entry (k, j): x_k if j < k
    # A cumulative sum along k, written as a product: XLA's CPU backend takes 100 us for cumsum of a few hundred numbers.
    return jnp.matmul(jnp.tri(n, dtype=x.dtype), later, precision="highest")


def sums_between(x: jax.Array) -> jax.Array:
    """Sums of x over j < k <= i for all pairs of places: x[C] -> [C, C] with entries (i, j), valid for j <= i.

    Long chunks are cut into blocks. A sum is then what stands behind j in its block, the blocks between, and what stands in
    the block of i up to i; so the work grows with C^2 instead of C^3.
    """
    c, n = x.shape[0], -(-x.shape[0] // BLOCK)
    if n <= 4:  # up to 64 tokens, cutting costs more than it saves
        return _sums_inside(x)
    x = jnp.pad(x, (0, n * BLOCK - c)).reshape(n, BLOCK)
    inside = _sums_inside(x)                                    # [n, BLOCK, BLOCK]
    up_to, behind = x[:, :1] + inside[:, :, 0], inside[:, -1]   # [n, BLOCK] each
    between = jnp.pad(_sums_inside(up_to[:, -1]), ((1, 0), (0, 0)))[:-1]  # [n, n]: sums of the blocks after J and before I
    across = up_to[:, :, None, None] + between[:, None, :, None] + behind[None, None, :, :]  # (block, i, block, j)
    same = jnp.eye(n, dtype=bool)[:, None, :, None]
    return jnp.where(same, inside[:, :, None, :], across).reshape(n * BLOCK, n * BLOCK)[:c, :c]


def decay(log_x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Products of x: over all tokens up to t, f32[C], and over j < k <= t for j <= t, lower-triangular f32[C, C]."""
    low = jnp.tri(log_x.shape[0], dtype=bool)
    sums = sums_between(log_x)
    return jnp.exp(log_x[0] + sums[:, 0]), jnp.where(low, jnp.exp(jnp.where(low, sums, 0)), 0)


def coefficients(step: jax.Array, log_momentum: jax.Array, log_keep: jax.Array, real: jax.Array,
                 forget_to: str) -> Coefficients:
    """All coefficients of one piece.

    step, log_momentum, log_keep: f32[C], of each token theta, log eta, log(1 - alpha).
    real: bool[C]; padding changes neither weights nor surprise (step 0, decays 1, no push of the surprise into the weights).
    """
    step, log_momentum, log_keep = (jnp.where(real, x, 0) for x in (step, log_momentum, log_keep))
    past, momentum = decay(log_momentum)
    keep, kept = decay(log_keep)
    moving, push = momentum * step[None], jnp.where(real[None], kept, 0)
    initial = jnp.ones_like(keep) if forget_to == "init" else keep
    return Coefficients(keep, initial, past, push @ past, moving, push @ moving)


def before(after: Coefficients) -> Coefficients:
    """The same one token earlier: entry t - 1 holds the value before token t."""
    first = Coefficients(keep=1, initial=1, past=1, pushed=0, moving=0, written=0)
    return jax.tree.map(lambda start, later: jnp.concatenate([jnp.full_like(later[:1], start), later[:-1]]), first, after)
