"""Coefficients of forgetting by channel: a decay for each input channel (row of W) of a dense layer.

Titans (NeurIPS 2025 version, section 2.1 and appendix F) has alpha_t in [0, 1]^d_in, so W_t = diag(1 - alpha_t) W_{t-1} + S_t. Of
the coefficients of `coefficients.py`, those made of 1 - alpha get an axis k of channels; momentum and step size have none:

    S_t = m_t S_0 - sum_{i<=t} n_{t,i} G_i
    W_t = c_{t,k} W_init + b_{t,k} V_0 + f_{t,k} S_0 - sum_{i<=t} g_{t,i,k} G_i        for row k of every matrix

b, f and g follow one recurrence over tokens, x_t = (1 - alpha_t) x_{t-1} + what enters, element by element. It is run as it stands,
over BLOCK tokens at most: C x C x d_in numbers and as many operations, no quotient, and no sum of logarithms that could lose
digits. The same is done with blocks of tokens by gated linear attention (arXiv 2312.06635).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax.memory.neural.coefficients import Coefficients, decay

BLOCK = 16  # the most tokens whose coefficients are formed at once


def coefficients(step: jax.Array, log_momentum: jax.Array, log_keep: jax.Array, real: jax.Array, forget_to: str) -> Coefficients:
    """All coefficients of C tokens, C at most BLOCK: keep, initial, pushed f32[C, d], written f32[C, C, d]; the others as by head.

    step, log_momentum: f32[C], of each token theta and log eta. log_keep: f32[C, d], log(1 - alpha) of each channel. real: bool[C].
    """
    past, moving = _momentum(step, log_momentum, real)
    enters = jnp.where(_column(real), jnp.concatenate([jnp.zeros_like(past)[:, None], past[:, None], moving], axis=1), 0)
    kept = jnp.exp(jnp.where(_column(real), log_keep, 0))
    first = jax.lax.broadcasted_iota(jnp.int32, (enters.shape[1], kept.shape[1]), 0) == 0
    values = [jnp.where(first, jnp.ones((), kept.dtype), 0)]
    for t in range(kept.shape[0]):
        values.append(kept[t][None] * values[-1] + enters[t][:, None])
    found = jnp.stack(values[1:])
    keep, pushed, written = found[:, 0], found[:, 1], found[:, 2:]
    return Coefficients(keep, jnp.ones_like(keep) if forget_to == "init" else keep, past, pushed, moving, written)


def _column(real: jax.Array) -> jax.Array:
    """bool[C] as bool[C, 1], by way of numbers: the compiler of TPU kernels turns no row of truth values into a column."""
    return real.astype(jnp.float32)[:, None] > 0


def _momentum(step: jax.Array, log_momentum: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """m_t f32[C] and n_{t,i} f32[C, C]; padding has the step 0 and keeps all momentum."""
    past, momentum = decay(jnp.where(real, log_momentum, 0))
    return past, momentum * jnp.where(real, step, 0)[None]


def scores(written: jax.Array, h: jax.Array, written_h: jax.Array) -> jax.Array:
    """sum_k g_{t,i,k} h_{t,k} H_{i,k}, what query t takes of token i: written [C, C, d], h and written_h [C, d] -> [C, C]."""
    return jnp.matmul(written * written_h[None], h[..., None])[..., 0]


def shares_at_end(step: jax.Array, log_momentum: jax.Array, log_keep: jax.Array, real: jax.Array) -> jax.Array:
    """g_{C,i,k}, the last row of `written`, for any number of tokens: f32[C, d]. Arguments as those of `coefficients`."""
    _, moving = _momentum(step, log_momentum, real)
    later = jnp.triu(jnp.ones_like(moving), 1) @ jnp.where(_column(real), log_keep, 0)
    return moving.T @ jnp.where(_column(real), jnp.exp(later), 0)
