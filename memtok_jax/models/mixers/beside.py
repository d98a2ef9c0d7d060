"""Memories beside attention that change nothing at first: how a trained model is given a memory.

    y = attention(x) + sum over memories n of g_n * memory_n(x)          g_n [D] starts at 0

All read the same normed input. At g = 0 the layer computes exactly what it did without memories, whatever they hold, and the first
gradient is that of g; from the second update on the memories learn too. With the memory's output projection at zero as well
nothing would ever move. A product with a gate, as in MAG (equation 28 of Titans), has no initial value at which it changes nothing.

A memory that diverges would make 0 times infinity, which is no number: its output is cut to +-10,000.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import SeveralConfig
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import spread, wide

LARGEST = 1e4


@dataclass(frozen=True)
class BesideConfig(SeveralConfig):
    """mixers: configs of attention and of the memories beside it."""

    def __post_init__(self):
        if len(self.mixers) < 2:
            raise UserError("beside.mixers needs two mixers: attention, and a memory beside it")

    def reach(self, b: Backbone) -> int:
        """The farthest."""
        return max(mixer.reach(b) for mixer in self.mixers)


def specs(cfg: BesideConfig, b: Backbone) -> dict:
    """Those of each mixer by its number, and a gate [D] for each but the first."""
    gate = P.ParamSpec((b.width,), (None,), P.zeros, decayed=False)
    return {str(n): mixer.module.specs(mixer, b) for n, mixer in enumerate(cfg.mixers)} | {
        f"gate_{n}": gate for n in range(1, len(cfg.mixers))}


def state_specs(cfg: BesideConfig, b: Backbone, batch: int) -> tuple:
    """That of each mixer."""
    return tuple(mixer.module.state_specs(mixer, b, batch) for mixer in cfg.mixers)


def _own(params, n: int) -> dict:
    """Parameters of mixer n, with the norm of all."""
    return params[str(n)] | ({"norm": params["norm"]} if "norm" in params else {})


def _sum(params, parts: list[jax.Array]) -> jax.Array:
    """The first part, and the others through their gates."""
    y = parts[0]
    for n, part in enumerate(parts[1:], 1):
        part = jnp.clip(part, -LARGEST, LARGEST).astype(wide(part))  # gates are float32
        y = y + (spread(params[f"gate_{n}"].astype(part.dtype), part) * part).astype(y.dtype)
    return y


def begin(params, x_MD: jax.Array, cfg: BesideConfig, b: Backbone, batch: int, side: dict):
    """The prefix through all mixers."""
    parts, states = [], []
    for n, mixer in enumerate(cfg.mixers):
        part, state, side = mixer.module.begin(_own(params, n), x_MD, mixer, b, batch, side)
        parts.append(part)
        states.append(state)
    return _sum(params, parts), tuple(states), side


def run(params, state: tuple, x: jax.Array, cfg: BesideConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, statistics by mixer and the size of the gates, side)."""
    parts, after, stats = [], [], {}
    for n, mixer in enumerate(cfg.mixers):
        part, one, found, side = mixer.module.run(_own(params, n), state[n], x, mixer, b, call, side)
        parts.append(part)
        after.append(one)
        stats |= {f"{n}_{mixer.name}.{name}": value for name, value in found.items()}
        if n:
            stats[f"gate_{n}"] = jnp.abs(params[f"gate_{n}"]).mean().astype(jnp.float32)
    return _sum(params, parts), tuple(after), stats, side
