"""Selective scan with one decay for a head of channels, by products of matrices: Mamba-2 (Dao and Gu, arXiv 2405.21060).

    x_t, B_t, C_t = silu(conv([x, B, C])_t + b_conv)              one depthwise, causal convolution over all three
    dt_t  = softplus(dt_t + b_dt),  a_t = exp(-dt_t exp(A_log))   one number each for a head
    h_t   = a_t h_{t-1} + (dt_t x_t) B_t',   y_t = h_t C_t + D_skip x_t
    o_t   = RMSNorm_groups(y_t silu(z_t))                         over the E / G channels of each group

In a block of tokens (the paper's chunk), with M_ij the product of a over j < k <= i,

    y_i = sum_{j<=i} (C_i . B_j) M_ij dt_j x_j + M_i h_0 C_i,     h_Q = M_Q h_0 + sum_j M_Qj dt_j x_j B_j'

| symbol | name here | where in the paper |
|---|---|---|
| z, x, B, C, dt | projections `z` [D, E] and `x` [D, E + 2 G N + H] of the tokens | figure 6 |
| A = -exp(A_log) | `log_rate` [H] | section 5.1, scalar times identity |
| D          | `skip` [H] | |
| h          | `Mamba2State.h` [B, H, P, N] | equation 1 |
| L, M_ij    | `between` of `_block` | equation 4 |

Letters: E = H P inner channels in H heads of P; G groups of heads that share B and C; N numbers of state for each channel. The
products M come from sums of logarithms, each with terms of one sign (`memory/neural/coefficients.py` says why). All of it is
float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.memory.neural.coefficients import decay
from memtok_jax.memory.ssm import recurrence as R
from memtok_jax.numerics import DTYPES, dense, rms_norm, spread, wide

einsum = partial(jnp.einsum, precision="highest")


@dataclass(frozen=True)
class Mamba2Config:
    """Options of the scan.

    width: D, features of a token; 0 inside a model, which fills it in.
    inner: E, channels with a state; 0 takes 2 D.
    head_dim: P, channels of a head.
    groups: G, groups of heads; the heads of a group share B and C.
    state: N, numbers of state for each channel.
    conv: tokens that the convolution sees, the current one included.
    eps: of the norm before the output projection.
    block: tokens that are computed at once, and again in the backward pass; it changes speed and storage only.
    dtype: of the operands of the projections, "float32" or "bfloat16".
    """

    width: int = 0
    inner: int = 0
    head_dim: int = 64
    groups: int = 1
    state: int = 128
    conv: int = 4
    eps: float = 1e-5
    block: int = 64
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers("memory", self, above=dict(eps=0),
                      at_least=dict(width=0, inner=0, head_dim=1, groups=1, state=1, conv=1, block=1))
        choose("memory.dtype", self.dtype, DTYPES)
        if self.channels % self.head_dim or self.heads % self.groups:
            raise UserError(f"memory: {self.channels} inner channels are not whole heads of head_dim={self.head_dim} in "
                            f"groups={self.groups} of equal size")

    @property
    def channels(self) -> int:
        """E."""
        return self.inner or 2 * self.width

    @property
    def heads(self) -> int:
        """H."""
        return self.channels // self.head_dim

    @property
    def convolved(self) -> int:
        """Features that the convolution sees: x, B and C."""
        return self.channels + 2 * self.groups * self.state

    @property
    def stream(self) -> int:
        """Features that `scan_branch` takes of each token: x, B, C and a step for each head."""
        return self.convolved + self.heads

    @property
    def unit(self) -> int:
        """A whole call may have any number of tokens."""
        return 1


class Mamba2State(NamedTuple):
    """Carry of B streams."""

    h: jax.Array     # f32[B, H, P, N]
    conv: jax.Array  # f32[B, conv-1, E + 2 G N]  the last inputs of the convolution


def branch_specs(cfg: Mamba2Config) -> dict:
    """Parameters of `scan_branch`."""
    vector = lambda init: P.ParamSpec((cfg.heads,), ("heads",), init, decayed=False)
    return {"conv": R.conv_specs(cfg.conv, cfg.convolved, None), "step_bias": vector(R.step_bias),
            "log_rate": vector(R.log_counting(0)), "skip": vector(P.ones)}


def specs(cfg: Mamba2Config) -> dict:
    """Parameters: those of the branch, the projections `x` [D, E + 2 G N + H], `z` [D, E], `o` [E, D] and the norm before `o`."""
    checks.check_width(cfg.width)
    project = lambda shape, axes: {"w": P.ParamSpec(shape, axes, P.fan_in(0))}
    d, e = cfg.width, cfg.channels
    return {"x": project((d, cfg.stream), ("embed", None)), "z": project((d, e), ("embed", "heads")),
            "o": project((e, d), ("heads", "embed")), "branch": branch_specs(cfg),
            "norm": P.ParamSpec((e,), ("heads",), P.ones, decayed=False)}


def state_specs(cfg: Mamba2Config, batch: int) -> Mamba2State:
    """Shapes and axes of the carry."""
    return Mamba2State(P.StateSpec((batch, cfg.heads, cfg.head_dim, cfg.state), ("batch", "heads", None, None)),
                       P.StateSpec((batch, cfg.conv - 1, cfg.convolved), ("batch", None, None)))


def init_state(params, cfg: Mamba2Config, batch: int) -> Mamba2State:
    """The carry of streams before their first token."""
    return P.zero_state(state_specs(cfg, batch))


def _block(h: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
    """Q tokens: (h [B, G, R, P, N] after them, y [Q, B, G, R, P]), R heads in a group."""
    log_decay, added, write, read = xs  # [Q, B, G, R], [Q, B, G, R, P], [Q, B, G, N] twice
    over = jax.vmap(jax.vmap(jax.vmap(decay)))
    upto, between = over(jnp.moveaxis(log_decay, 0, -1))  # [B, G, R, Q], [B, G, R, Q, Q]
    scores = einsum("ibgn,jbgn->bgij", read, write)
    y = einsum("bgrij,jbgrp->ibgrp", scores[:, :, None] * between, added)
    y = y + einsum("ibgn,bgrpn->ibgrp", read, h) * jnp.moveaxis(upto, -1, 0)[..., None]
    left = added * jnp.moveaxis(between[..., -1, :], -1, 0)[..., None]
    return upto[..., -1, None, None] * h + einsum("jbgrp,jbgn->bgrpn", left, write), y


def _scan(h: jax.Array, step: jax.Array, rate: jax.Array, x: jax.Array, write: jax.Array, read: jax.Array, cfg: Mamba2Config):
    """(y [B, T, H, P], h): step [B, T, H], rate [H], x [B, T, H, P], write and read [B, T, G, N], h [B, H, P, N]."""
    grouped = lambda v, axis: v.reshape(*v.shape[:axis], cfg.groups, cfg.heads // cfg.groups, *v.shape[axis + 1:])
    xs = (grouped(-step * spread(rate, step), 2), grouped(step[..., None] * x, 2), write, read)
    y, after = R.in_blocks(_block, grouped(h, 1), xs, cfg.block)
    return y.reshape(x.shape), after.reshape(h.shape)


def scan_branch(params, state: Mamba2State, x: jax.Array, z: jax.Array, cfg: Mamba2Config, length: jax.Array | None = None):
    """The scan without projections and norm, for a layer that has others: (y [B, T, E], state, statistics).

    x: [B, T, E + 2 G N + H], the inner stream: x, B, C and the step of each head. z: [B, T, E], the gate before its silu.
    length: i32[B], real tokens; None: all.
    """
    x, length = checks.checked(x, length, cfg.stream)
    z = P.zero_padding(z, length)
    c, conv = R.convolve(params["conv"], x[..., :cfg.convolved], state.conv, length)
    inner, write, read = jnp.split(c, (cfg.channels, cfg.channels + cfg.groups * cfg.state), axis=-1)
    split = lambda v, n: v.reshape(*v.shape[:2], n, v.shape[2] // n)
    raw = x[..., cfg.convolved:].astype(c.dtype)
    step = P.zero_padding(jax.nn.softplus(raw + spread(params["step_bias"], raw)), length)
    inner = split(inner, cfg.heads)
    y, h = _scan(state.h.astype(c.dtype), step, jnp.exp(params["log_rate"].astype(c.dtype)), inner, split(write, cfg.groups),
                 split(read, cfg.groups), cfg)
    y = (y + spread(params["skip"], step)[..., None] * inner).reshape(z.shape) * jax.nn.silu(z.astype(wide(z)))
    return y.astype(x.dtype), Mamba2State(h.astype(state.h.dtype), conv), R.statistics(step, h, length)


def run(params, state: Mamba2State, x: jax.Array, cfg: Mamba2Config, length=None, *, whole: bool = False):
    """`apply` with statistics: (y, state, {"step": mean step, "state_rms": of h afterwards})."""
    x, _ = checks.checked(x, length, cfg.width, cfg.unit, whole)
    checks.check_params(params, specs(cfg))
    checks.check_state(state, state_specs(cfg, x.shape[0]))
    inner, z = dense(x, params["x"], cfg.dtype), dense(x, params["z"], cfg.dtype)
    y, state, found = scan_branch(params["branch"], state, inner, z, cfg, length)
    parts = y.reshape(*y.shape[:2], cfg.groups, cfg.channels // cfg.groups)
    y = rms_norm(parts, params["norm"].reshape(parts.shape[2:]), cfg.eps).reshape(y.shape)
    return dense(y, params["o"], cfg.dtype), state, found


def apply(params, state: Mamba2State, x: jax.Array, cfg: Mamba2Config, length=None, *, whole: bool = False):
    """x[B, T, D] -> (y [B, T, D], state). length: i32[B], real tokens of each row; None: all T. `whole` changes nothing.

    Raises UserError if x, params or state do not suit the config.
    """
    return run(params, state, x, cfg, length, whole=whole)[:2]
