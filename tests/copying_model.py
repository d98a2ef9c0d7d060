"""A model whose score is known: it expects the token that stood `period` tokens back, and anything before it has read so many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as pr
from memtok_jax.models.call import Call


@dataclass(frozen=True)
class CopyingConfig:
    period: int = 8
    vocabulary: int = 256
    certainty: float = 30.0
    call_tokens: int = 1
    reach: int = 1
    segment: int = 0


class CopyingState(NamedTuple):
    ring: jax.Array   # i32[B, period], token t in place t % period
    count: jax.Array  # i32[B]


def specs(cfg: CopyingConfig):
    return {"certainty": pr.ParamSpec((), (), pr.constant(cfg.certainty))}


def state_specs(cfg: CopyingConfig, batch: int):
    return CopyingState(pr.StateSpec((batch, cfg.period), ("batch", None), jnp.int32),
                        pr.StateSpec((batch,), ("batch",), jnp.int32))


def init_state(params, cfg: CopyingConfig, batch: int):
    return pr.zero_state(state_specs(cfg, batch))


def run(params, state: CopyingState, ids_BT, cfg: CopyingConfig, call: Call):
    length = pr.full_length(ids_BT) if call.length is None else call.length

    def token(state, x):
        id_B, t = x
        here = jnp.arange(cfg.period)[None] == (state.count % cfg.period)[:, None]
        new = CopyingState(jnp.where(here, id_B[:, None], state.ring), state.count + 1)
        state = pr.select_rows(t < length, new, state, state_specs(cfg, len(id_B)))
        expected = jnp.take_along_axis(state.ring, (state.count % cfg.period)[:, None], axis=1)
        sure = (expected == jnp.arange(cfg.vocabulary)[None]) & (state.count >= cfg.period)[:, None]
        return state, params["certainty"] * sure

    state, logits = jax.lax.scan(token, state, (ids_BT.T, jnp.arange(ids_BT.shape[1])))
    return jnp.moveaxis(logits, 0, 1), state, {}
