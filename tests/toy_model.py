"""The smallest model with the signature of a language model: a decayed sum of embeddings, and a prefix token.

The carry holds both kinds of memory that training must handle: one that is written by tokens (`sum`), and one that is
derived from a parameter (`prefix`) and must follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as pr
from memtok_jax import sharding
from memtok_jax.models.call import Call


@dataclass(frozen=True)
class ToyConfig:
    vocabulary: int = 256
    width: int = 8
    decay: float = 0.9
    call_tokens: int = 1
    reach: int = 4
    segment: int = 0
    auxiliary: float = 0.0


class ToyState(NamedTuple):
    sum: jax.Array        # f32[B, D]
    prefix: jax.Array     # f32[B, D]


def specs(cfg: ToyConfig):
    return {"embed": pr.ParamSpec((cfg.vocabulary, cfg.width), ("vocab", "embed"), pr.normal(0.3)),
            "hidden": pr.ParamSpec((cfg.width, 2 * cfg.width), ("embed", "mlp"), pr.fan_in()),
            "out": pr.ParamSpec((2 * cfg.width, cfg.vocabulary), (None, "vocab"), pr.fan_in()),
            "prefix": pr.ParamSpec((cfg.width,), ("embed",), pr.normal(1.0), decayed=False)}


def state_specs(cfg: ToyConfig, batch: int):
    shape, axes = (batch, cfg.width), ("batch", "embed")
    return ToyState(pr.StateSpec(shape, axes), pr.StateSpec(shape, axes, lives="derived"))


def init_state(params, cfg: ToyConfig, batch: int):
    state = pr.zero_state(state_specs(cfg, batch))
    return state._replace(prefix=jnp.zeros_like(state.prefix) + params["prefix"][None])


def apply(params, state, ids_BT, cfg: ToyConfig, length=None):
    length = pr.full_length(ids_BT) if length is None else length
    x_BTD = sharding.constrain(sharding.look_up(params["embed"], ids_BT), "batch", None, "embed")

    def token(sum_BD, inputs):
        x_BD, t = inputs
        new = jnp.where((t < length)[:, None], cfg.decay * sum_BD + x_BD, sum_BD)
        return new, new

    times = jnp.arange(ids_BT.shape[1])
    last, sums_TBD = jax.lax.scan(token, state.sum, (jnp.moveaxis(x_BTD, 1, 0), times))
    mixed = jnp.moveaxis(sums_TBD, 0, 1) + state.prefix[:, None]
    hidden = jax.nn.silu(mixed @ params["hidden"])
    logits = sharding.constrain(hidden @ params["out"], "batch", None, "vocab")
    return logits.astype(jnp.float32), state._replace(sum=last)


def run(params, state, ids_BT, cfg: ToyConfig, call: Call):
    """Statistics: the size of the sums; its own loss, if it has a weight: the mean square of the sums."""
    logits, after = apply(params, state, ids_BT, cfg, call.length)
    own = {"auxiliary_loss": cfg.auxiliary * jnp.square(after.sum).mean()} if cfg.auxiliary else {}
    return logits, after, {"norm": jnp.linalg.norm(after.sum), **own}


def unstack(params, state, cfg: ToyConfig):
    """There are no layers in a stack."""
    return params, state, cfg


def restack(state, cfg: ToyConfig):
    """As `unstack`."""
    return state
