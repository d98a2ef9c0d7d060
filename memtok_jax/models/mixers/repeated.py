"""Neighbouring layers that come several times in a row, inside a longer pattern: one scan, so the program holds them once.

A pattern says what is repeated through the whole model. Where a model has other layers at its ends or in its middle, the runs
between them are layers of this kind (Hymba, arXiv 2411.13676, section 2.3: global layers first, in the middle and last).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers
from memtok_jax.models import block
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import CompoundConfig, LayerConfig, MixerConfig
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import over_layers


@dataclass(frozen=True)
class RepeatedConfig(CompoundConfig, LayerConfig):
    """layers: what is repeated, as entries of a pattern. times: how often.

    The backward pass keeps what goes from one repeat to the next and computes the rest again. What layers share through `side`
    they share with those behind them in the same repeat.
    """

    layers: tuple[MixerConfig | tuple[MixerConfig, ...], ...] = ()
    times: int = 1

    def __post_init__(self):
        check_numbers("repeated", self, at_least=dict(times=1))
        if not self.layers or any(isinstance(layer, LayerConfig) for layer in self.layers):
            raise UserError(f"repeated.layers is {self.layers!r}; it must hold at least one mixer, and no {LayerConfig.__name__}")

    def check_after(self, before: tuple[MixerConfig, ...]) -> None:
        """Every part behind those of the same repeat."""
        for place, mixer in enumerate(self.parts):
            mixer.check_after(self.parts[:place])

    def reach(self, b: Backbone) -> int:
        """The sum over all layers."""
        return self.times * sum(mixer.reach(b) for mixer in self.parts)

    @property
    def parts(self) -> tuple[MixerConfig, ...]:
        """The branches of the layers of one repeat."""
        return tuple(mixer for layer in self.layers for mixer in block.branches(layer))

    @property
    def depth(self) -> int:
        """All layers of all repeats."""
        return len(self.layers) * self.times

    @property
    def recomputes(self) -> bool:
        """Each repeat."""
        return True


def specs(cfg: RepeatedConfig, b: Backbone) -> tuple:
    """One tree for each layer of a repeat, leaves [times, ...]."""
    return tuple(P.stack(block.specs(layer, b), cfg.times) for layer in cfg.layers)


def state_specs(cfg: RepeatedConfig, b: Backbone, batch: int) -> tuple:
    """The same for the carry."""
    return tuple(P.stack(block.state_specs(layer, b, batch), cfg.times) for layer in cfg.layers)


def _scan(body, x: jax.Array, trees: tuple, cfg: RepeatedConfig, side: dict):
    """Scan `body(x, tree, layer, side) -> (x, out, side)` over the repeats: (x, one stacked out for each layer)."""

    def repeat(x, trees):
        outs, own = [], side
        for tree, layer in zip(trees, cfg.layers, strict=True):
            x, out, own = body(x, tree, layer, own)
            outs.append(out)
        return x, tuple(outs)

    return jax.lax.scan(jax.checkpoint(repeat, prevent_cse=False), x, trees)


def begin(params, x_MD: jax.Array, cfg: RepeatedConfig, b: Backbone, batch: int, side: dict):
    """The prefix through all layers: (x, the carry before the first token, side)."""
    body = lambda x, tree, layer, own: block.begin(tree, x, layer, b, batch, own)
    x_MD, state = _scan(body, x_MD, params, cfg, side)
    return x_MD, state, side


def run(params, state: tuple, x: jax.Array, cfg: RepeatedConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] through all layers: (x, state, statistics "number of the layer.mixer.name" -> f32[], side)."""

    def body(x, tree, layer, own):
        x, after, stats, own = block.run(*tree, x, layer, b, call, own)
        return x, (after, stats), own

    x, outs = _scan(body, x, tuple(zip(params, state, strict=True)), cfg, side)
    stats = {f"{n}.{key}": over_layers(key, value) for n, (_, found) in enumerate(outs) for key, value in found.items()}
    return x, tuple(after for after, _ in outs), stats, side
