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

Everything is computed from sums of logarithms, masked before the exponential: no quotient of products ever appears.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Coefficients(NamedTuple):
    """Rows 0..C of every coefficient; row 0 is before the first token, row t after token t."""

    keep: jax.Array     # f32[C+1]
    initial: jax.Array  # f32[C+1]
    past: jax.Array     # f32[C+1]
    pushed: jax.Array   # f32[C+1]
    moving: jax.Array   # f32[C+1, C]
    written: jax.Array  # f32[C+1, C]


def decay(log_x: jax.Array) -> jax.Array:
    """Products of x over i < j <= t for all 0 <= i <= t <= C: f32[C] -> lower-triangular f32[C+1, C+1]."""
    total = jnp.concatenate([jnp.zeros((1,), log_x.dtype), jnp.cumsum(log_x)])
    low = jnp.tri(total.shape[0], dtype=bool)
    return jnp.where(low, jnp.exp(jnp.where(low, total[:, None] - total[None, :], 0)), 0)


def coefficients(step: jax.Array, log_momentum: jax.Array, log_keep: jax.Array, real: jax.Array,
                 forget_to: str) -> Coefficients:
    """All coefficients of one piece.

    step, log_momentum, log_keep: f32[C], of each token theta, log eta, log(1 - alpha). real: bool[C]; a slot that is not
    real leaves weights and surprise as they are (step 0, decays 1, and no push of the surprise into the weights).
    """
    step, log_momentum, log_keep = (jnp.where(real, x, 0) for x in (step, log_momentum, log_keep))
    momentum, keep = decay(log_momentum), decay(log_keep)
    moving = momentum[:, 1:] * step[None]
    push = keep[:, 1:] * real[None]
    past = momentum[:, 0]
    return Coefficients(
        keep=keep[:, 0],
        initial=jnp.ones_like(past) if forget_to == "init" else keep[:, 0],
        past=past,
        pushed=push @ past[1:],
        moving=moving,
        written=push @ moving[1:],
    )
