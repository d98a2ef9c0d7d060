"""Associative memory: a matrix into which memory tokens write pairs and from which every token reads; the delta rule corrects it.

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

All tokens of one write see the same old A and z. The first write is a special case, and `started` says as data which streams
have had it: at z = 0 the formula of gamma is off by eps / (|k|^2 + eps), which matters because features phi can be tiny.
The sibling `rmt.py` carries the memory tokens themselves, which are read as input. Here each layer reads for itself, and old
pairs stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.numerics import DTYPES, matmul, spread, wide


class ArmtState(NamedTuple):
    """The carry.

    It is float32 whatever the compute dtype, because it sums over many segments and gamma is a difference of nearly equal
    numbers.
    """

    matrix: jax.Array      # f32[B, F, D]  A
    normaliser: jax.Array  # f32[B, F]     z
    started: jax.Array     # bool[B]       something has been written


@dataclass(frozen=True)
class ArmtConfig:
    """Options of the associative memory.

    width: D, features of a token; 0 inside a model, which fills it in.
    key_dim: length of the keys before phi.
    nu: neighbours that phi multiplies, so F = 2 nu key_dim.
    correction: False always takes gamma = 1 (the paper's ablation).
    eps: in every denominator.
    dtype: of the operands of matrix products.
    """

    width: int = 0
    key_dim: int = 64
    nu: int = 3
    correction: bool = True
    eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers("", self, at_least={"width": 0, "key_dim": 1, "nu": 1}, above={"eps": 0})
        choose("dtype", self.dtype, DTYPES)
        if self.nu >= 2 * self.key_dim:
            raise UserError(f"nu={self.nu} must be below 2 key_dim={2 * self.key_dim}: phi would multiply parts by themselves")

    @property
    def features(self) -> int:
        """F."""
        return 2 * self.nu * self.key_dim


def specs(cfg: ArmtConfig) -> dict[str, P.ParamSpec]:
    """Projections. `w_values` begins at zero, so that a pretrained backbone computes what it did before."""
    checks.check_width(cfg.width)
    d, k = cfg.width, cfg.key_dim
    return {
        "w_query": P.ParamSpec((d, k), ("embed", None), P.fan_in(0)),
        "w_key": P.ParamSpec((d, k), ("embed", None), P.fan_in(0)),
        "w_values": P.ParamSpec((d, d), ("embed", None), P.zeros),
        "w_beta": P.ParamSpec((d, 1), ("embed", None), P.fan_in(0)),
        "b_beta": P.ParamSpec((1,), (None,), P.zeros, decayed=False),
    }


def state_specs(cfg: ArmtConfig, batch: int) -> ArmtState:
    """A, z and the flag of each stream."""
    checks.check_width(cfg.width)
    return ArmtState(P.StateSpec((batch, cfg.features, cfg.width), ("batch", None, "embed")),
                            P.StateSpec((batch, cfg.features), ("batch", None)),
                            P.StateSpec((batch,), ("batch",), jnp.bool_))


def init_state(params, cfg: ArmtConfig, batch: int) -> ArmtState:
    """An empty memory; float64 if the parameters are."""
    checks.check_params(params, specs(cfg))
    state = P.zero_state(state_specs(cfg, batch))
    dtype = wide(params["w_key"])
    return state._replace(matrix=state.matrix.astype(dtype), normaliser=state.normaliser.astype(dtype))


def dpfp(x: jax.Array, nu: int) -> jax.Array:
    """Deterministic parameter-free projection: x[..., d] -> [..., 2 nu d], u = [relu(x), relu(-x)], u times u rolled by 1 .. nu."""
    u = jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)
    return jnp.concatenate([u * jnp.roll(u, j, axis=-1) for j in range(1, nu + 1)], axis=-1)


def features(x: jax.Array, weight: jax.Array, cfg: ArmtConfig) -> jax.Array:
    """phi(W x): [B, T, F] in float32."""
    return dpfp(matmul(x, weight, cfg.dtype), cfg.nu)


def find(state: ArmtState, phi: jax.Array, cfg: ArmtConfig) -> tuple[jax.Array, jax.Array]:
    """What features phi[B, T, F] find: (phi' A / d [B, T, D], d = z . phi + eps [B, T, 1])."""
    d = jnp.einsum("btf,bf->bt", phi, state.normaliser)[..., None] + cfg.eps
    return jnp.einsum("btf,bfd->btd", phi, state.matrix) / d, d


def read(params, state: ArmtState, x: jax.Array, cfg: ArmtConfig) -> jax.Array:
    """x[B, T, D] with what it finds added; streams that have written nothing get x back unchanged."""
    checks.check_tokens(x, cfg.width)
    _check(params, state, cfg, x.shape[0])
    found, _ = find(state, features(x, params["w_query"], cfg), cfg)
    return jnp.where(state.started[:, None, None], (x.astype(found.dtype) + found).astype(x.dtype), x)


def growth(state: ArmtState, k: jax.Array, d: jax.Array, cfg: ArmtConfig) -> jax.Array:
    """gamma [B, M, 1]: the part of a key that the normaliser does not hold yet; no gradient flows through it."""
    new = jnp.clip(1 - d / (jnp.square(k).sum(-1, keepdims=True) + cfg.eps), 0, 1)
    known = state.started[:, None, None] & cfg.correction
    return jax.lax.stop_gradient(jnp.where(known, new, 1.0))


def write(params, state: ArmtState, m: jax.Array, cfg: ArmtConfig, closes: jax.Array) -> ArmtState:
    """Store the memory tokens m[B, M, D]. closes: bool[B], the segment ends; otherwise the stream keeps its memory."""
    checks.check_tokens(m, cfg.width, "m")
    checks.check_flags(closes, m.shape[0], "closes")
    _check(params, state, cfg, m.shape[0])
    m = jnp.where(closes[:, None, None], m, jnp.zeros((), m.dtype))  # what is not stored may hold NaN
    k, v = features(m, params["w_key"], cfg), matmul(m, params["w_values"], cfg.dtype)
    logits = matmul(m, params["w_beta"], cfg.dtype)
    beta = jax.nn.sigmoid(logits + spread(params["b_beta"], logits))
    found, d = find(state, k, cfg)
    error = v - jnp.where(state.started[:, None, None], found, 0.0)
    matrix = state.matrix + jnp.einsum("bmf,bmd->bfd", beta * k, error)
    normaliser = state.normaliser + (growth(state, k, d, cfg) * k).sum(1)
    return ArmtState(jnp.where(closes[:, None, None], matrix, state.matrix),
                     jnp.where(closes[:, None], normaliser, state.normaliser), state.started | closes)


def _check(params, state: ArmtState, cfg: ArmtConfig, batch: int) -> None:
    checks.check_params(params, specs(cfg))
    checks.check_state(state, state_specs(cfg, batch))


def run(params, state: ArmtState, x: jax.Array, cfg: ArmtConfig, length=None, *, whole: bool = False):
    """`apply` with statistics, of which there are none: (y, state, {})."""
    x, length = checks.checked(x, length, cfg.width, whole=whole)

    def token(state, inputs):
        x_BD, t = inputs
        y = read(params, state, x_BD[:, None], cfg)
        return write(params, state, y, cfg, t < length), y[:, 0]

    state, y = jax.lax.scan(token, state, (jnp.moveaxis(x, 1, 0), jnp.arange(x.shape[1])))
    return jnp.moveaxis(y, 0, 1), state, {}


def apply(params, state: ArmtState, x: jax.Array, cfg: ArmtConfig, length=None, *, whole: bool = False):
    """Each token is a segment: it reads, and the result is written. x[B, T, D] -> (y[B, T, D], state)."""
    return run(params, state, x, cfg, length, whole=whole)[:2]
