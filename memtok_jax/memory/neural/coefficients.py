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

Everything is computed from sums of logarithms, masked before the exponential: no quotient of products ever appears. A sum over
j < k <= i is the difference of two cumulative sums. Rounded as usual, it would lose digits if gates are nearly closed: then the
cumulative sums are large while the difference may be small. So each logarithm is split in two: a multiple of a power of two, whose
sums and differences are exact, and a rest so small that its rounding does not matter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Coefficients(NamedTuple):
    """Entry t - 1 of the first axis holds the value after token t, for t = 1 .. C."""

    keep: jax.Array     # f32[C]
    initial: jax.Array  # f32[C]
    past: jax.Array     # f32[C]
    pushed: jax.Array   # f32[C]
    moving: jax.Array   # f32[C, C]
    written: jax.Array  # f32[C, C]


def cumulative(log_x: jax.Array) -> jax.Array:
    """Sums of log_x[C] up to each token, in two parts [C, 2]. Differences of the first part are exact; the second is small.

    A logarithm below `least` counts as `least`, whose exponential is zero too.
    """
    limits, tokens = np.finfo(log_x.dtype), log_x.shape[0]
    least = math.log(limits.smallest_subnormal) - 1
    unit = 2.0 ** (math.ceil(math.log2(-least * tokens)) - limits.nmant)  # the largest sum has nmant binary digits
    log_x = jnp.maximum(log_x, least)
    coarse = jax.lax.stop_gradient(jnp.round(log_x / unit) * unit)
    # A cumulative sum as a product: XLA's CPU backend takes 100 us for cumsum of a few hundred numbers.
    return jnp.matmul(jnp.tri(tokens, dtype=log_x.dtype), jnp.stack([coarse, log_x - coarse], axis=-1), precision="highest")


def decay(log_x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Products of x: over all tokens up to t, f32[C], and over j < k <= t for j <= t, lower-triangular f32[C, C]."""
    low, up_to = jnp.tri(log_x.shape[0], dtype=bool), cumulative(log_x)
    sums = (up_to[:, None] - up_to[None]).sum(-1)
    return jnp.exp(up_to.sum(-1)), jnp.where(low, jnp.exp(jnp.where(low, sums, 0)), 0)


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
    return Coefficients(keep, initial, past, (push @ past[:, None])[:, 0], moving, push @ moving)


def before(after: Coefficients) -> Coefficients:
    """The same one token earlier: entry t - 1 holds the value before token t."""
    first = Coefficients(keep=1, initial=1, past=1, pushed=0, moving=0, written=0)
    return jax.tree.map(lambda start, later: jnp.concatenate([jnp.full_like(later[:1], start), later[:-1]]), first, after)
