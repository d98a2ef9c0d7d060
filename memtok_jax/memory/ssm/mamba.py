"""Selective scan with a state for each channel: Mamba (Gu and Dao, arXiv 2312.00752, section 3).

    c_t   = silu(conv(x)_t + b_conv)                              depthwise, causal
    r, B_t, C_t = c_t W_x                                         with `norms`, each normed (Jamba, arXiv 2403.19887; Hymba)
    dt_t  = softplus(r W_dt + b_dt)                               the step of each channel
    h_t   = exp(-dt_t exp(A_log)) h_{t-1} + (dt_t c_t) B_t
    y_t   = (C_t h_t + D_skip c_t) silu(z_t)

| symbol | name here | where in the paper |
|---|---|---|
| x, z       | two projections of the tokens u, `x` and `z` | figure 3 |
| W_x        | `selection` [E, R + 2N] | algorithm 2, s_B, s_C, s_Delta |
| dt, W_dt, b_dt | step, `step` | algorithm 2, Delta |
| A = -exp(A_log) | `log_rate` [N, E] | equation 4, by zero-order hold |
| B          | write [B, T, N], discretised by Euler: dt B | equation 4 |
| C          | read [B, T, N] | equation 2a |
| D          | `skip` [E] | figure 3 |
| h          | `MambaState.h` [B, N, E] | equation 2a |

Letters: E inner channels, N numbers of state for each of them, R inner width of the step's projection. Channels stand last in h,
so that sums over the state run over rows. Step, exponentials and scan are float32 whatever the compute dtype: a decay near 1 has
no place in bfloat16. It differs from `mamba2.py`, where a head of channels shares one decay, which turns the scan into products
of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.config import check_numbers, choose
from memtok_jax.memory.ssm import recurrence as R
from memtok_jax.numerics import DTYPES, dense, lift, matmul, rms_norm, spread, wide


@dataclass(frozen=True)
class MambaConfig:
    """Options of the scan.

    width: D, features of a token; 0 inside a model, which fills it in.
    inner: E, channels with a state; 0 takes 2 D.
    state: N, numbers of state for each channel.
    conv: tokens that the convolution sees, the current one included.
    rank: R, inner width of the projection of the step; 0 takes D / 16, rounded up.
    norms: step, write and read are normed before use.
    block: tokens whose states are computed at once, and again in the backward pass; it changes speed and storage only.
    dtype: of the operands of matrix products, "float32" or "bfloat16".
    """

    width: int = 0
    inner: int = 0
    state: int = 16
    conv: int = 4
    rank: int = 0
    norms: bool = False
    block: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers("memory", self, at_least=dict(width=0, inner=0, state=1, conv=1, rank=0, block=1))
        choose("memory.dtype", self.dtype, DTYPES)

    @property
    def channels(self) -> int:
        """E."""
        return self.inner or 2 * self.width

    @property
    def stream(self) -> int:
        """Features that `scan_branch` takes of each token."""
        return self.channels

    @property
    def step_rank(self) -> int:
        """R."""
        return self.rank or -(-self.width // 16)

    @property
    def unit(self) -> int:
        """A whole call may have any number of tokens."""
        return 1


class MambaState(NamedTuple):
    """Carry of B streams."""

    h: jax.Array     # f32[B, N, E]
    conv: jax.Array  # f32[B, conv-1, E]  the last inputs of the convolution


def branch_specs(cfg: MambaConfig) -> dict:
    """Parameters of `scan_branch`."""
    e, n, r = cfg.channels, cfg.state, cfg.step_rank
    vector = lambda size, axis, init: P.ParamSpec((size,), (axis,), init, decayed=False)
    norms = {"step": r, "write": n, "read": n} if cfg.norms else {}
    return {
        "conv": R.conv_specs(cfg.conv, e, "mlp"),
        "selection": P.ParamSpec((e, r + 2 * n), ("mlp", None), P.fan_in(0)),
        "step": {"w": P.ParamSpec((r, e), (None, "mlp"), R.uniform(r ** -0.5)), "b": vector(e, "mlp", R.step_bias)},
        "log_rate": P.ParamSpec((n, e), (None, "mlp"), R.log_counting(0), decayed=False),
        "skip": vector(e, "mlp", P.ones),
        "norms": {name: vector(size, None, P.ones) for name, size in norms.items()},
    }


def specs(cfg: MambaConfig) -> dict:
    """Parameters: those of the branch, and the projections `x`, `z` [D, E] and `o` [E, D]."""
    checks.check_width(cfg.width)
    project = lambda shape, axes: {"w": P.ParamSpec(shape, axes, P.fan_in(0))}
    d, e = cfg.width, cfg.channels
    return {"x": project((d, e), ("embed", "mlp")), "z": project((d, e), ("embed", "mlp")),
            "o": project((e, d), ("mlp", "embed")), "branch": branch_specs(cfg)}


def state_specs(cfg: MambaConfig, batch: int) -> MambaState:
    """Shapes and axes of the carry; each channel takes 4 (N + conv - 1) bytes."""
    e = cfg.channels
    return MambaState(P.StateSpec((batch, cfg.state, e), ("batch", None, "mlp")),
                      P.StateSpec((batch, cfg.conv - 1, e), ("batch", None, "mlp")))


def init_state(params, cfg: MambaConfig, batch: int) -> MambaState:
    """The carry of streams before their first token."""
    return P.zero_state(state_specs(cfg, batch))


def selection(params, c: jax.Array, cfg: MambaConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(step [B, T, E], write [B, T, N], read [B, T, N]) of convolved tokens c[B, T, E], in float32."""
    n, r = cfg.state, cfg.step_rank
    parts = dict(zip(("step", "write", "read"), jnp.split(matmul(c, params["selection"], cfg.dtype), (r, r + n), axis=-1),
                     strict=True))
    if cfg.norms:
        parts = {name: rms_norm(x, params["norms"][name]) for name, x in parts.items()}
    return jax.nn.softplus(dense(parts["step"], params["step"], "float32")), parts["write"], parts["read"]


def _block(h: jax.Array, xs: tuple, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Q tokens: (h after them, y [Q, B, E]). rate: exp(A_log) [N, E]."""
    step, c, write, read = xs
    decay = jnp.exp(-step[:, :, None] * lift(rate, h[None]))
    states = R.linear_recurrence(decay, (step * c)[:, :, None] * write[..., None], h)
    return states[-1], jnp.einsum("qbne,qbn->qbe", states, read, precision="highest")


def scan_branch(params, state: MambaState, x: jax.Array, z: jax.Array, cfg: MambaConfig, length: jax.Array | None = None):
    """The scan without its projections, for a layer that has others: (y [B, T, E], state, statistics).

    x: [B, T, E], the inner stream. z: [B, T, E], the gate before its silu. length: i32[B], real tokens; None: all.
    """
    x, length = checks.checked(x, length, cfg.channels)
    z = P.zero_padding(z, length)
    c, conv = R.convolve(params["conv"], x, state.conv, length)
    step, write, read = selection(params, c, cfg)
    step = P.zero_padding(step, length)  # such a token decays nothing and adds nothing
    rate = jnp.exp(params["log_rate"].astype(c.dtype))
    y, h = R.in_blocks(partial(_block, rate=rate), state.h.astype(c.dtype), (step, c, write, read), cfg.block)
    y = (y + spread(params["skip"], c) * c) * jax.nn.silu(z.astype(wide(z)))
    return y.astype(x.dtype), MambaState(h.astype(state.h.dtype), conv), R.statistics(step, h, length)


def run(params, state: MambaState, x: jax.Array, cfg: MambaConfig, length=None, *, whole: bool = False):
    """`apply` with statistics: (y, state, {"step": mean step, "state_rms": of h afterwards})."""
    x, _ = checks.checked(x, length, cfg.width, cfg.unit, whole)
    checks.check_params(params, specs(cfg))
    checks.check_state(state, state_specs(cfg, x.shape[0]))
    inner, z = dense(x, params["x"], cfg.dtype), dense(x, params["z"], cfg.dtype)
    y, state, found = scan_branch(params["branch"], state, inner, z, cfg, length)
    return dense(y, params["o"], cfg.dtype), state, found


def apply(params, state: MambaState, x: jax.Array, cfg: MambaConfig, length=None, *, whole: bool = False):
    """x[B, T, D] -> (y [B, T, D], state). length: i32[B], real tokens of each row; None: all T. `whole` changes nothing.

    Raises UserError if x, params or state do not suit the config.
    """
    return run(params, state, x, cfg, length, whole=whole)[:2]
