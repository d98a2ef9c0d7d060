"""Mixers in one residual branch, each on the output of the one before: Titans MAL read literally (equations 29 to 31)."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from memtok_jax.config import UserError
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import SeveralConfig
from memtok_jax.models.style import Backbone


@dataclass(frozen=True)
class InTurnConfig(SeveralConfig):
    """mixers: configs of the mixers, in order."""

    def __post_init__(self):
        if not self.mixers:
            raise UserError("in_turn.mixers is empty; name at least one mixer")

    def reach(self, b: Backbone) -> int:
        """All together."""
        return sum(mixer.reach(b) for mixer in self.mixers)


def specs(cfg: InTurnConfig, b: Backbone) -> dict:
    """Those of each mixer, by its number."""
    return {str(n): mixer.module.specs(mixer, b) for n, mixer in enumerate(cfg.mixers)}


def state_specs(cfg: InTurnConfig, b: Backbone, batch: int) -> tuple:
    """That of each mixer."""
    return tuple(mixer.module.state_specs(mixer, b, batch) for mixer in cfg.mixers)


def _own(params, n: int) -> dict:
    """Parameters of mixer n; the branch's norm belongs to the first."""
    return params[str(n)] | ({"norm": params["norm"]} if n == 0 and "norm" in params else {})


def begin(params, x_MD: jax.Array, cfg: InTurnConfig, b: Backbone, batch: int, side: dict):
    """The prefix through all mixers."""
    states = []
    for n, mixer in enumerate(cfg.mixers):
        x_MD, state, side = mixer.module.begin(_own(params, n), x_MD, mixer, b, batch, side)
        states.append(state)
    return x_MD, tuple(states), side


def run(params, state: tuple, x: jax.Array, cfg: InTurnConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, statistics by mixer, side)."""
    after, stats = [], {}
    for n, mixer in enumerate(cfg.mixers):
        x, one, found, side = mixer.module.run(_own(params, n), state[n], x, mixer, b, call, side)
        after.append(one)
        stats |= {f"{n}_{mixer.name}.{name}": value for name, value in found.items()}
    return x, tuple(after), stats, side
