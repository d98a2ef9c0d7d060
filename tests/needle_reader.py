"""A scripted model whose carry holds the last value that a needle gave: it is always right, and only through its carry."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.data.tasks.needles import ASK, END, IS, NEEDLE
from memtok_jax.models.call import Call

SIZE = 20


@dataclass(frozen=True)
class ReaderConfig:
    """reach: what it claims to see."""

    vocabulary: int = END + 1
    call_tokens: int = 1
    reach: int = 4
    segment: int = 0


def specs(cfg):
    return {}


def state_specs(cfg, batch):
    """kind: 0 text, 1 in a needle, 2 in a question. at: symbols of the value so far, -1 before IS."""
    number = P.StateSpec((batch,), ("batch",), jnp.int32)
    return {"value": P.StateSpec((batch, SIZE), ("batch", None), jnp.int32), "kind": number, "at": number}


def init_state(params, cfg, batch):
    return P.zero_state(state_specs(cfg, batch))


def run(params, state, ids, cfg, call: Call = Call()):  # noqa: B008
    def step(s, x):
        token, real = x
        kind = jnp.where(token == NEEDLE, 1, jnp.where(token == ASK, 2, s["kind"]))
        begins = (token == IS) & (kind > 0)
        inside = (s["at"] >= 0) & (kind > 0) & ~begins
        slot = jnp.arange(SIZE)[None] == s["at"][:, None]
        value = jnp.where(slot & (inside & (kind == 1))[:, None], token[:, None], s["value"])
        at = jnp.where(begins, 0, jnp.where(inside, s["at"] + 1, -1))
        said = jnp.take_along_axis(value, jnp.maximum(at, 0)[:, None], 1)[:, 0]
        kind = jnp.where(inside & (token == END), 0, kind)
        after = {"value": value, "kind": kind, "at": jnp.where(kind > 0, at, -1)}
        return P.select_rows(real, after, s, state_specs(cfg, len(real))), said

    real = P.full_length(ids) if call.length is None else call.length
    state, said = jax.lax.scan(step, state, (ids.T, jnp.arange(ids.shape[1])[:, None] < real[None]))
    return jax.nn.one_hot(said.T, cfg.vocabulary), state, {}
