"""A selective scan as a layer: Mamba or Mamba-2 (arXiv 2312.00752, 2405.21060). With nothing else it makes a language model.

    y = scan(conv(u W_x), gate u W_z) W_o              memory/ssm/

Prefix tokens go through the scan before the first token of a stream, so they set its initial state (Hymba, arXiv 2411.13676,
section 2.3). That state is a function of the parameters only until the first token comes; then tokens decay it and add to it. Its
leaves therefore live as long as the stream. `init_state` makes them, so a row that begins takes value and gradient from the
prefix: in training through `step.begin`, up to the first cut of the gradient, as for every state that a call leaves. A stream
that goes on over an update of the parameters keeps what earlier parameters left, and nothing has to be renewed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.memory.ssm import MODULES, Mamba2Config, MambaConfig
from memtok_jax.models import layers
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig, options
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import wide


@dataclass(frozen=True)
class SsmConfig(MixerConfig):
    """memory: a `MambaConfig` or `Mamba2Config`; its width and dtype are filled in by the model."""

    memory: MambaConfig | Mamba2Config = field(default_factory=MambaConfig)

    def __post_init__(self):
        if type(self.memory) not in MODULES:
            raise UserError(f"ssm.memory is {self.memory!r}; it must be one of {', '.join(kind.__name__ for kind in MODULES)}")

    def check(self, b: Backbone) -> None:
        """Whole heads."""
        options(self.memory, b)

    @property
    def attends(self) -> bool:
        """A scan, not attention."""
        return False

    @property
    def reads_prefix(self) -> bool:
        """The prefix goes through the scan before the first token."""
        return True


def _memory(cfg: SsmConfig, b: Backbone) -> tuple[ModuleType, Any]:
    """The memory's module and its options."""
    return MODULES[type(cfg.memory)], options(cfg.memory, b)


def specs(cfg: SsmConfig, b: Backbone) -> dict:
    """Those of the memory; its projections begin like those of all layers."""
    module, m = _memory(cfg, b)
    out = module.specs(m)
    begin = {"x": layers.weight_init(b), "z": layers.weight_init(b), "o": layers.weight_init(b, b.residual_scale)}
    return {"memory": out | {name: {"w": replace(out[name]["w"], init=init)} for name, init in begin.items()}}


def state_specs(cfg: SsmConfig, b: Backbone, batch: int) -> Any:
    """That of the memory."""
    module, m = _memory(cfg, b)
    return module.state_specs(m, batch)


def begin(params, x_MD: jax.Array, cfg: SsmConfig, b: Backbone, batch: int, side: dict):
    """The prefix through the scan, once for all rows, and the state that it leaves."""
    module, m = _memory(cfg, b)
    if not len(x_MD):
        return x_MD, module.init_state(params["memory"], m, batch), side
    u = enter(params, x_MD, b)[None]
    start = jax.tree.map(lambda leaf: leaf.astype(wide(u)), module.init_state(params["memory"], m, 1))
    y, state = module.apply(params["memory"], start, u, m)
    return y[0], P.map_rows(lambda leaf, axis: jnp.repeat(leaf, batch, axis), module.state_specs(m, 1), state), side


def run(params, state: Any, x: jax.Array, cfg: SsmConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, statistics of the memory, side)."""
    module, m = _memory(cfg, b)
    length = None if call.whole else call.length
    return *module.run(params["memory"], state, enter(params, x, b), m, length, whole=call.whole), side
