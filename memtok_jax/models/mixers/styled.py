"""A layer in another style than the model's: the layers of one decoder may differ in their positions (Gemma 3: another rotary base
where attention is local; SmolLM3: every fourth layer has none)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax

from memtok_jax.config import UserError
from memtok_jax.models import block
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import CompoundConfig, LayerConfig, MixerConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TITANS, Backbone, Style


@dataclass(frozen=True)
class StyledConfig(CompoundConfig, LayerConfig):
    """layer: the config of the layer inside, or a tuple of one config a branch. style: its style."""

    layer: MixerConfig | tuple[MixerConfig, ...] = WindowConfig()
    style: Style = TITANS

    def check(self, b: Backbone) -> None:
        """The layer inside, and positions that a layer can choose."""
        if "table" in (self.style.positions, b.style.positions) and self.style.positions != b.style.positions:
            raise UserError("styled.style.positions and model.style.positions must both be 'table' or neither: its rows are added "
                            "before the first layer")
        self.style.check_heads(b.heads, b.head_dim)
        super().check(_inside(self, b))

    def reach(self, b: Backbone) -> int:
        """That of the layer inside."""
        return sum(mixer.reach(b) for mixer in self.parts)

    @property
    def parts(self) -> tuple[MixerConfig, ...]:
        """The branches of the layer inside."""
        return block.branches(self.layer)


def _inside(cfg: StyledConfig, b: Backbone) -> Backbone:
    return replace(b, style=cfg.style)


def specs(cfg: StyledConfig, b: Backbone) -> dict:
    """Those of the layer inside."""
    return block.specs(cfg.layer, _inside(cfg, b))


def state_specs(cfg: StyledConfig, b: Backbone, batch: int) -> dict:
    """That of the layer inside."""
    return block.state_specs(cfg.layer, _inside(cfg, b), batch)


def begin(params, x_MD: jax.Array, cfg: StyledConfig, b: Backbone, batch: int, side: dict):
    """The prefix through the layer inside."""
    return block.begin(params, x_MD, cfg.layer, _inside(cfg, b), batch, side)


def run(params, state: dict, x: jax.Array, cfg: StyledConfig, b: Backbone, call: Call, side: dict):
    """The layer inside: (x[B, T, D], state, statistics, side)."""
    return block.run(params, state, x, cfg.layer, _inside(cfg, b), call, side)
