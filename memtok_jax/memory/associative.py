"""Associative memory: a matrix that memory rows write pairs into and every row reads, corrected by the delta rule.

Associative Recurrent Memory Transformer (ARMT), arXiv 2407.04841, section 3, equations 3 to 8.

| symbol             | name here              | equation |
|--------------------|------------------------|----------|
| phi                | `dpfp`                 | 3        |
| W_Q, W_K, W_V      | `w_query`, `w_key`, `w_values` | 3, 4 |
| beta = sigma(.)    | `w_beta`, `b_beta`     | 4        |
| A, z               | `matrix`, `normaliser` | 5, 6     |
| v-bar              | what the key finds     | 7        |
| gamma              | `growth`               | 8        |

    read:   x <- x + phi(W_Q x)' A / (z . phi(W_Q x) + eps)                         not before the first write
    write:  k = phi(W_K m), v = W_V m, d = z . k + eps, v-bar = k' A / d            the first time v-bar = 0, gamma = 1
            gamma = clip(1 - d / (|k|^2 + eps), 0, 1), without gradient
            A <- A + sum beta k (v - v-bar)',   z <- z + sum gamma k

All rows of one write see the same old A and z. `started` says which rows have written, as data: with gamma taken from z = 0 the
first write would come out wrong by eps / |k|^2, and that is not small where phi is. The sibling `recurrent.py` carries the rows
themselves and is read as input; here a layer of its own reads, and old pairs stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.numerics import matmul, spread, wide


class AssociativeState(NamedTuple):
    """The carry; float32 whatever the compute dtype: sums over many segments, and gamma is a difference of nearly equal numbers."""

    matrix: jax.Array      # f32[B, F, D]  A
    normaliser: jax.Array  # f32[B, F]     z
    started: jax.Array     # bool[B]       something has been written


@dataclass(frozen=True)
class AssociativeMemoryConfig:
    """width: D. key_dim: length of the keys before phi. nu: neighbours that phi multiplies, so F = 2 nu key_dim.

    correction: False always takes gamma = 1 (the paper's ablation). eps: in every denominator. dtype: of matrix operands.
    """

    width: int
    key_dim: int = 64
    nu: int = 3
    correction: bool = True
    eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        if self.key_dim < 1 or self.nu < 1:
            raise ValueError(f"key_dim={self.key_dim} and nu={self.nu} must be at least 1")
        if self.nu >= 2 * self.key_dim:
            raise ValueError(f"nu={self.nu} must be below 2 key_dim={2 * self.key_dim}: phi would multiply parts by themselves")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be above 0: phi may be zero")

    @property
    def features(self) -> int:
        """F."""
        return 2 * self.nu * self.key_dim


def specs(cfg: AssociativeMemoryConfig) -> dict[str, P.ParamSpec]:
    """Projections. `w_values` begins at zero: a pretrained backbone is left as it was."""
    d, k = cfg.width, cfg.key_dim
    return {
        "w_query": P.ParamSpec((d, k), ("embed", None), P.fan_in(0)),
        "w_key": P.ParamSpec((d, k), ("embed", None), P.fan_in(0)),
        "w_values": P.ParamSpec((d, d), ("embed", None), P.zeros),
        "w_beta": P.ParamSpec((d, 1), ("embed", None), P.fan_in(0)),
        "b_beta": P.ParamSpec((1,), (None,), P.zeros, decayed=False),
    }


def state_specs(cfg: AssociativeMemoryConfig, batch: int) -> AssociativeState:
    """A, z and the flag of each row."""
    return AssociativeState(P.StateSpec((batch, cfg.features, cfg.width), ("batch", None, "embed")),
                            P.StateSpec((batch, cfg.features), ("batch", None)),
                            P.StateSpec((batch,), ("batch",), jnp.bool_))


def init_state(params, cfg: AssociativeMemoryConfig, batch: int) -> AssociativeState:
    """Empty; float64 where the parameters are."""
    state = P.zero_state(state_specs(cfg, batch))
    dtype = wide(params["w_key"])
    return state._replace(matrix=state.matrix.astype(dtype), normaliser=state.normaliser.astype(dtype))


def dpfp(x: jax.Array, nu: int) -> jax.Array:
    """Deterministic parameter-free projection: x[..., d] -> [..., 2 nu d], u = [relu(x), relu(-x)], u times u rolled by 1 .. nu."""
    u = jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)
    return jnp.concatenate([u * jnp.roll(u, j, axis=-1) for j in range(1, nu + 1)], axis=-1)


def features(x: jax.Array, weight: jax.Array, cfg: AssociativeMemoryConfig) -> jax.Array:
    """phi(W x): [B, T, F] in float32."""
    return dpfp(matmul(x, weight, cfg.dtype), cfg.nu)


def find(state: AssociativeState, phi: jax.Array, cfg: AssociativeMemoryConfig) -> tuple[jax.Array, jax.Array]:
    """What features phi[B, T, F] find: (phi' A / d [B, T, D], d = z . phi + eps [B, T, 1])."""
    d = jnp.einsum("btf,bf->bt", phi, state.normaliser)[..., None] + cfg.eps
    return jnp.einsum("btf,bfd->btd", phi, state.matrix) / d, d


def read(params, state: AssociativeState, x: jax.Array, cfg: AssociativeMemoryConfig) -> jax.Array:
    """x[B, T, D] with what it finds added; rows that have written nothing come back as they are."""
    found, _ = find(state, features(x, params["w_query"], cfg), cfg)
    return jnp.where(state.started[:, None, None], (x + found).astype(x.dtype), x)


def growth(state: AssociativeState, k: jax.Array, d: jax.Array, cfg: AssociativeMemoryConfig) -> jax.Array:
    """gamma [B, M, 1]: the part of a key that the normaliser does not hold yet; no gradient flows through it."""
    new = jnp.clip(1 - d / (jnp.square(k).sum(-1, keepdims=True) + cfg.eps), 0, 1)
    known = state.started[:, None, None] & cfg.correction
    return jax.lax.stop_gradient(jnp.where(known, new, 1.0))


def write(params, state: AssociativeState, m: jax.Array, cfg: AssociativeMemoryConfig, rows: jax.Array) -> AssociativeState:
    """Store the memory rows m[B, M, D]. rows: bool[B]; the others keep their memory."""
    k, v = features(m, params["w_key"], cfg), matmul(m, params["w_values"], cfg.dtype)
    beta = jax.nn.sigmoid(matmul(m, params["w_beta"], cfg.dtype) + spread(params["b_beta"], m))
    found, d = find(state, k, cfg)
    error = v - jnp.where(state.started[:, None, None], found, 0.0)
    matrix = state.matrix + jnp.einsum("bmf,bmd->bfd", beta * k, error)
    normaliser = state.normaliser + (growth(state, k, d, cfg) * k).sum(1)
    return AssociativeState(jnp.where(rows[:, None, None], matrix, state.matrix),
                            jnp.where(rows[:, None], normaliser, state.normaliser), state.started | rows)


def apply(params, state: AssociativeState, x: jax.Array, cfg: AssociativeMemoryConfig, length=None):
    """Every token a segment of its own: it reads, then what it has become is written. x[B, T, D] -> (y[B, T, D], state)."""
    length = P.full_length(x) if length is None else length

    def token(state, inputs):
        x_BD, t = inputs
        y = read(params, state, x_BD[:, None], cfg)
        return write(params, state, y, cfg, t < length), y[:, 0]

    state, y = jax.lax.scan(token, state, (jnp.moveaxis(x, 1, 0), jnp.arange(x.shape[1])))
    return jnp.moveaxis(y, 0, 1), state
