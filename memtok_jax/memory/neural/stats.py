"""Statistics of a call of the neural memory: name -> f32[].

Means are taken over real tokens only; padding and empty pieces do not count. So a call reports the same numbers with
`whole` and without. No gradient flows through a statistic.

| name           | meaning                                                                             |
|----------------|-------------------------------------------------------------------------------------|
| step_size      | mean step size theta, before the clip                                               |
| momentum       | mean eta                                                                            |
| forget         | mean alpha                                                                          |
| step_size_w0 ... | one of these three for one dense layer, if layers have gates of their own; above is then their mean |
| inner_loss     | mean inner loss (f(k) - v)^2 at the weights of the chunk's start                    |
| gradient_norm  | mean norm of a token's gradient                                                     |
| clip_rate      | share of tokens whose gradient is longer than the clip                              |
| stability      | mean over pieces that hold a token: sum of step times curvature, see `rule.Surprise` |
| stability_max  | the largest of them                                                                  |
| weight_change  | root mean square norm, over memories, of the weights' deviation from their start    |
| surprise_norm  | the same of the surprise                                                            |
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.rule import Carry, Inputs, Surprise

Stats = dict[str, jax.Array]
AFTERWARDS = ("weight_change", "surprise_norm")  # of the carry that a call leaves, not of its tokens


def masked_mean(x: jax.Array, real: jax.Array) -> jax.Array:
    """Mean of the entries of x for which `real` is true, 0 if there are none. real: has the shape of x."""
    x, real = jax.lax.stop_gradient(x), jnp.broadcast_to(real, x.shape)
    return jnp.where(real, x, 0).sum() / jnp.maximum(real.sum(), 1).astype(x.dtype)


def of_gates(inputs: Inputs, real_BT: jax.Array) -> Stats:
    """Statistics of the gates. inputs: leaves [B, T, H, ...]."""
    mean = lambda x: masked_mean(x, real_BT.reshape(real_BT.shape + (1,) * (x.ndim - 2)))
    gates = {"step_size": (inputs.step, lambda x: x), "momentum": (inputs.log_momentum, jnp.exp),
             "forget": (inputs.log_keep, lambda x: -jnp.expm1(x))}
    out: Stats = {}
    for name, (gate, value) in gates.items():
        means = jax.tree.map(lambda x, value=value: mean(value(x)), gate)
        if isinstance(means, dict):
            out |= {f"{name}_{layer}": found for layer, found in means.items()}
            means = sum(means.values()) / len(means)
        out[name] = means
    return out


def of_surprise(surprise: Surprise, real_NBC: jax.Array, cfg: NeuralMemoryConfig) -> Stats:
    """Statistics of the writes. surprise: loss and gradient [N, B, H, C], stability [N, B, H]."""
    token, piece = real_NBC[:, :, None], real_NBC.any(-1)[:, :, None]
    clipped = surprise.gradient > cfg.clip if cfg.clip else jnp.zeros_like(surprise.gradient)
    stability = jax.lax.stop_gradient(surprise.stability)
    return {
        "inner_loss": masked_mean(surprise.loss, token),
        "gradient_norm": masked_mean(surprise.gradient, token),
        "clip_rate": masked_mean(clipped.astype(surprise.gradient.dtype), token),
        "stability": masked_mean(stability, piece),
        "stability_max": jnp.where(piece, stability, 0).max(initial=0),
    }


def of_carry(carry: Carry) -> Stats:
    """Statistics of the carry that a call leaves, leaves [B, H, ...]."""

    def norm(tree):
        leaves = [jax.lax.stop_gradient(w) for w in jax.tree.leaves(tree)]
        memories = max(leaves[0].shape[0] * leaves[0].shape[1], 1)
        return jnp.sqrt(sum(jnp.square(w).sum() for w in leaves) / memories)

    return {"weight_change": norm(carry.weights), "surprise_norm": norm(carry.surprise)}


def merge(stats: Stats, tokens_N: jax.Array) -> Stats:
    """The statistics of N calls in a row as those of one call.

    stats: name -> f32[N]. tokens_N: real tokens of each call, the weights of the means. Maxima stay maxima; what describes the
    carry is that of the last call. A mean over pieces becomes a mean weighted by tokens.
    """
    weights = tokens_N / jnp.maximum(tokens_N.sum(), 1)

    def over_calls(name: str, value_N: jax.Array) -> jax.Array:
        if name in AFTERWARDS:
            return value_N[-1]
        return value_N.max(initial=0) if name.endswith("_max") else (value_N * weights.astype(value_N.dtype)).sum()

    return {name: over_calls(name, value) for name, value in stats.items()}
