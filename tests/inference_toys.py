"""The smallest modules that have the package's signature, for tests of what is generic over it.

`ema`: a memory. `language_model`: a model, two layers of it between an embedding and a head. Both carry a partly filled unit
of `unit` tokens, so that a stream can be cut inside of one, and their carry's batch axis is not the leading one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.params import ParamSpec, StateSpec, constant, fan_in, full_length, normal, stack, zero_state


@dataclass(frozen=True)
class EmaConfig:
    width: int = 4
    unit: int = 3


class EmaState(NamedTuple):
    memory: jax.Array   # f32[B, D]  mean over finished units, with exponential decay
    unit: jax.Array     # f32[B, D]  sum over the unfinished unit
    fill: jax.Array     # i32[B]     tokens in the unfinished unit


def ema_specs(cfg):
    return {"mix": ParamSpec((cfg.width, cfg.width), ("embed", "mlp"), fan_in()),
            "decay": ParamSpec((cfg.width,), ("embed",), constant(0.5), decayed=False),
            "start": ParamSpec((cfg.width,), ("embed",), normal(1.0))}


def ema_state_specs(cfg, batch):
    rows = StateSpec((batch, cfg.width), ("batch", "embed"))
    return EmaState(rows, rows, StateSpec((batch,), ("batch",), jnp.int32, phase=True))


def ema_init_state(params, cfg, batch):
    zero = zero_state(ema_state_specs(cfg, batch))
    return zero._replace(memory=jnp.tile(params["start"][None], (batch, 1)))


def ema_apply(params, state, x, cfg, length=None):
    length = full_length(x) if length is None else length

    def token(state, inputs):
        x_BD, position = inputs
        unit, fill = state.unit + x_BD, state.fill + 1
        full = (fill == cfg.unit)[:, None]
        decay = params["decay"][None]
        memory = jnp.where(full, decay * state.memory + (1 - decay) * unit, state.memory)
        new = EmaState(memory, jnp.where(full, 0, unit), jnp.where(full[:, 0], 0, fill))
        y_BD = jnp.tanh((state.memory + unit) @ params["mix"]) + x_BD
        real = position < length

        def keep(a, b):
            return jnp.where(real.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

        return jax.tree.map(keep, new, state), y_BD

    state, y_TBD = jax.lax.scan(token, state, (x.swapaxes(0, 1), jnp.arange(x.shape[1])))
    return y_TBD.swapaxes(0, 1), state


def ema_run(params, state, x, cfg, length=None, *, whole=False):
    return *ema_apply(params, state, x, cfg, length), {}


class Functions:
    """Functions as attributes; hashable, as a Python module is."""

    def __init__(self, **functions):
        vars(self).update(functions)


@dataclass(frozen=True)
class LanguageModelConfig:
    width: int = 4
    unit: int = 3
    vocabulary: int = 11

    @property
    def layer(self):
        return EmaConfig(self.width, self.unit)

    @property
    def call_tokens(self):
        return self.unit


def lm_specs(cfg):
    return {"embed": ParamSpec((cfg.vocabulary, cfg.width), ("vocab", "embed"), normal(1.0)),
            "layers": (stack(ema_specs(cfg.layer), 2),),   # a tuple, as the layers of a pattern
            "head": ParamSpec((cfg.width, cfg.vocabulary), ("embed", "vocab"), normal(2.0))}


def lm_state_specs(cfg, batch):
    return {"layers": stack(ema_state_specs(cfg.layer, batch), 2)}


def lm_init_state(params, cfg, batch):
    return {"layers": jax.vmap(lambda p: ema_init_state(p, cfg.layer, batch))(params["layers"][0])}


def lm_run(params, state, ids_BT, cfg, call):
    def layer(x, inputs):
        p, s = inputs
        return ema_apply(p, s, x, cfg.layer, call.length)

    x, layers = jax.lax.scan(layer, params["embed"][ids_BT], (params["layers"][0], state["layers"]))
    return x @ params["head"], {"layers": layers}, {}


def lm_unstack(params, state, cfg):
    return params, state, cfg


def lm_restack(state, cfg):
    return state


ema = Functions(specs=ema_specs, state_specs=ema_state_specs, init_state=ema_init_state, run=ema_run)
language_model = Functions(specs=lm_specs, state_specs=lm_state_specs, init_state=lm_init_state, run=lm_run, unstack=lm_unstack,
                           restack=lm_restack)
