"""From tokens to keys, values, queries and gates (Titans, sections 3.1 and 4.4).

    k, v, q = SiLU(conv(x W)), with k and q normalised to length 1 in each head        (equations 11, 15)
    theta = step_max sigmoid(.), eta = sigmoid(.), alpha = sigmoid(.)                    one scalar per token and head

With `gates="per_layer"` each dense layer of the memory network has its own three (Titans, NeurIPS 2025 version, appendix B.3).
With `forget_by="channel"` alpha is a vector over the input channels of each dense layer (same version, section 2.1). Two thin
matrices make its logits from the token, as in gated linear attention (arXiv 2312.06635).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.memory.neural import networks
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.numerics import lift, matmul, wide
from memtok_jax.params import ParamSpec, fan_in, normal, take_rows

Gate = jax.Array | dict[str, jax.Array]

L2_EPS = 1e-6
LOG_ZERO = -1e4  # exp of it is 0, and differences of its sums stay finite


class Gates(NamedTuple):
    """Step size and the logarithms of momentum and of what forgetting leaves.

    Each is f32[B, T, H], or dense layer -> f32[B, T, H] where layers have gates of their own. log_keep is dense layer ->
    f32[B, T, H, d_in] where channels have.
    """

    step: Gate
    log_momentum: Gate
    log_keep: Gate


def _conv_init(key, shape, dtype):
    """The identity (last tap one) plus a little noise."""
    return jnp.zeros(shape, dtype).at[-1].set(1) + 0.02 * jax.random.normal(key, shape, dtype)


def _forget_bias(cfg: NeuralMemoryConfig) -> jax.Array:
    """Initial bias [H] of forgetting, log-spaced over the heads; one head takes the middle."""
    first, last = (math.log(p) for p in cfg.forget_range)
    logs = jnp.linspace(first, last, cfg.heads) if cfg.heads > 1 else jnp.full((1,), (first + last) / 2)
    return logs - jnp.log1p(-jnp.exp(logs))


def _gate_bias(cfg: NeuralMemoryConfig):
    """Initial biases of step, momentum and forgetting [H, 3]. Layers with gates of their own start alike: [H, layers, 3].

    Forgetting by channel has its own parameters; two gates are then left.
    """

    def init(key, shape, dtype):
        same = [jnp.full((cfg.heads,), b) for b in (cfg.step_bias, cfg.momentum_bias)]
        bias = jnp.stack([*same, _forget_bias(cfg)][:shape[-1]], axis=1).astype(dtype)
        return bias if len(shape) == 2 else jnp.broadcast_to(bias[:, None], shape)

    return init


def specs(cfg: NeuralMemoryConfig) -> dict[str, ParamSpec]:
    """Projections [D, H, K], convolutions [width, H, K] and gates [D, H, 3], or [D, H, layers, 3].

    Forgetting by channel has its own: dense layer -> `down` [D, rank], `up` [rank, H, d_in], `bias` [H, d_in]; two gates are left.

    Heads have an axis of their own, so that a sharded head axis stays sharded in the product.
    """
    d, h, k = cfg.width, cfg.heads, cfg.head_dim
    out = {f"w{name}": ParamSpec((d, h, k), ("embed", "heads", None), fan_in(0)) for name in "kvq"}
    if cfg.conv > 1:
        out |= {f"conv_{name}": ParamSpec((cfg.conv, h, k), (None, "heads", None), _conv_init, decayed=False) for name in "kvq"}
    count = 3 if cfg.forget_by == "head" else 2
    gates = (count,) if cfg.gates == "shared" else (len(networks.dense_shapes(cfg)), count)
    whole = (None,) * len(gates)
    return out | {
        "w_gates": ParamSpec((d, h, *gates), ("embed", "heads", *whole), normal(0.02)),
        "b_gates": ParamSpec((h, *gates), ("heads", *whole), _gate_bias(cfg), decayed=False),
        **({"forget": _channel_specs(cfg)} if cfg.forget_by == "channel" else {}),
    }


def _channel_specs(cfg: NeuralMemoryConfig) -> dict[str, dict[str, ParamSpec]]:
    """At the start all channels of a head forget alike, and their logits spread as much as those of the other gates."""
    d, h, r = cfg.width, cfg.heads, cfg.forget_rank
    bias = lambda key, shape, dtype: jnp.broadcast_to(_forget_bias(cfg)[:, None], shape).astype(dtype)
    return {name: {
        "down": ParamSpec((d, r), ("embed", None), fan_in(0)),
        "up": ParamSpec((r, h, d_in), (None, "heads", None), normal(0.02 * math.sqrt(d / r))),
        "bias": ParamSpec((h, d_in), ("heads", None), bias, decayed=False),
    } for name, (d_in, _) in networks.dense_shapes(cfg).items()}


@jax.custom_vjp
def _taps(stream: jax.Array, kernel: jax.Array) -> jax.Array:
    """y_t = sum over i of kernel_i * stream_{t+i}: stream[B, T + width - 1, ...], kernel[width, ...] -> [B, T, ...]."""
    tokens = stream.shape[1] - kernel.shape[0] + 1
    return sum(stream[:, i:i + tokens] * lift(kernel[i], stream).astype(stream.dtype) for i in range(kernel.shape[0]))


def _taps_backward(kept, g):
    """The cotangent is padded once and read in slices. Left to itself, the CPU's compiler pads it for each tap, and computes all
    that leads to it as often. The sum of a tap over rows and tokens is a product with ones, see `numerics.spread`."""
    stream, kernel = kept
    width, size = kernel.shape[0], stream.shape[1]
    padded = jnp.pad(g, ((0, 0), (width - 1, width - 1)) + ((0, 0),) * (g.ndim - 2))
    later = [padded[:, width - 1 - i:width - 1 - i + size] for i in range(width)]  # g_{s-i} beside stream_s
    back = sum(x * lift(tap, x).astype(x.dtype) for x, tap in zip(later, kernel, strict=True))
    rows = [(x * stream).astype(kernel.dtype).reshape(-1, kernel[0].size) for x in later]
    ones = jnp.ones((1, rows[0].shape[0]), kernel.dtype)
    return back, jnp.stack([jnp.matmul(ones, row, precision="highest").reshape(kernel.shape[1:]) for row in rows])


_taps.defvjp(lambda stream, kernel: (_taps(stream, kernel), (stream, kernel)), _taps_backward)


def causal_conv(x: jax.Array, tail: jax.Array, kernel: jax.Array, length_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Depthwise causal convolution that continues a stream.

    x: [B, T, ...]. tail: [B, width-1, ...], the inputs before x. kernel: [width, ...], its last tap is for the current token.
    Returns the outputs and the tail after the first length_B tokens of each row.
    """
    width = kernel.shape[0]
    stream = jnp.concatenate([tail.astype(x.dtype), x], axis=1)
    y = _taps(stream, kernel)
    index = length_B[:, None] + jnp.arange(width - 1)[None]
    return y, take_rows(stream, index).astype(tail.dtype)


def unit(y: jax.Array) -> jax.Array:
    """y[..., K] with length 1."""
    return y * jax.lax.rsqrt(jnp.square(y).sum(-1, keepdims=True) + L2_EPS)


def project(params, name: str, x: jax.Array, tail: jax.Array, length_B: jax.Array, cfg: NeuralMemoryConfig):
    """One of k, v, q: x[B, T, D] -> ([B, T, H, K] float32, tail). tail: [B, conv-1, H, K]."""
    d, h, k = params[f"w{name}"].shape
    y = matmul(x, params[f"w{name}"].reshape(d, h * k), cfg.dtype).reshape(*x.shape[:2], h, k)
    if cfg.conv > 1:
        y, tail = causal_conv(y, tail, params[f"conv_{name}"], length_B)
    if cfg.feature_activation:
        y = jax.nn.silu(y)
    if cfg.feature_norm and name != "v":
        y = unit(y)
    return y, tail


def gates(params, x: jax.Array, cfg: NeuralMemoryConfig) -> Gates:
    """Gates of every token, in float32 whatever the compute dtype: x[B, T, D] -> leaves [B, T, H], or [B, T, H, d_in]."""
    d, *gates = params["w_gates"].shape
    x = x.astype(wide(x))
    logits = (x @ params["w_gates"].reshape(d, -1)).reshape(*x.shape[:2], *gates) + params["b_gates"][None, None]
    step, momentum, *forget = (logits[..., i] for i in range(gates[-1]))
    off = jnp.zeros_like(step)
    return Gates(
        step=_by_layer(cfg.largest_step * jax.nn.sigmoid(step), cfg),
        log_momentum=_by_layer(jax.nn.log_sigmoid(momentum) if cfg.momentum else off + LOG_ZERO, cfg),
        log_keep=_by_layer(jax.nn.log_sigmoid(-forget[0]) if cfg.forget else off, cfg) if forget else _by_channel(params, x),
    )


def _by_channel(params, x: jax.Array) -> dict[str, jax.Array]:
    """log(1 - alpha) of every channel: x[B, T, D] -> dense layer -> [B, T, H, d_in]."""

    def one(layer):
        rank, *channels = layer["up"].shape
        logits = (x @ layer["down"]) @ layer["up"].reshape(rank, -1)
        return jax.nn.log_sigmoid(-(logits.reshape(*x.shape[:2], *channels) + layer["bias"][None, None]))

    return {name: one(layer) for name, layer in params["forget"].items()}


def _by_layer(gate: jax.Array, cfg: NeuralMemoryConfig) -> Gate:
    """[B, T, H] as it is, or [B, T, H, layers] as dense layer -> [B, T, H]."""
    return gate if cfg.gates == "shared" else {name: gate[..., i] for i, name in enumerate(networks.dense_shapes(cfg))}


def gate_of(gate: Gate, gate_set: str) -> jax.Array:
    """The gate of one set (see `networks.gate_sets`)."""
    return gate[gate_set] if isinstance(gate, dict) else gate
