"""Mixers: how a layer uses attention and memory. One file a use; a mixer owns its options.

The module that defines a config has, for that config `cfg` and the model's `Backbone` `b`,

    specs(cfg, b)                                       tree of ParamSpec
    state_specs(cfg, b, batch)                          tree of StateSpec
    begin(params, x_MD, cfg, b, batch, side)            (y_MD, the carry before the first token, side): the prefix tokens go through
    run(params, state, x, cfg, b, call, side)           (y [B, T, D], state, stats, side)

x is the input of the layer; a mixer norms it itself (`layers.enter`) and returns the residual branch. `side` is a dict that goes
from layer to layer within one repeat of the pattern: it holds what layers share.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from memtok_jax.config import UserError
from memtok_jax.models.style import Backbone


@dataclass(frozen=True)
class MixerConfig:
    """What a config of a mixer answers beside its fields."""

    @property
    def module(self) -> ModuleType:
        """The module with the functions of this mixer."""
        return sys.modules[type(self).__module__]

    @property
    def name(self) -> str:
        """The mixer's short name, that of its file."""
        return type(self).__module__.rpartition(".")[2]

    def check(self, b: Backbone) -> None:
        """Raise UserError where the options do not suit the backbone."""

    def check_after(self, before: tuple[MixerConfig, ...]) -> None:
        """Raise UserError where the mixer needs another one before it. before: mixers of the same repeat of the pattern."""

    def unit(self, b: Backbone) -> int:
        """A whole call is a multiple of this many tokens."""
        return 1

    def reach(self, b: Backbone) -> int:
        """How many tokens before itself a token sees in this layer without the memory, beyond its segment."""
        return 0

    @property
    def depth(self) -> int:
        """How many layers it is in a pattern."""
        return 1

    @property
    def recomputes(self) -> bool:
        """Whether it takes care itself of what the backward pass computes again, so that the stack's remat leaves it alone."""
        return False

    @property
    def attends(self) -> bool:
        """Whether there is attention in it."""
        return True

    @property
    def reads_prefix(self) -> bool:
        """Whether it reads the prefix."""
        return self.attends

    @property
    def needs_memory_tokens(self) -> bool:
        """Whether it must stand inside memory tokens (`models/rmt.py`), which then check the pattern."""
        return False

    @property
    def by_segment(self) -> bool:
        """Whether something happens at segment borders."""
        return False


@dataclass(frozen=True)
class CompoundConfig(MixerConfig, ABC):
    """A mixer or a layer that is made of mixers, its `parts`."""

    @property
    @abstractmethod
    def parts(self) -> tuple[MixerConfig, ...]:
        """The mixers inside, in order."""

    def check(self, b: Backbone) -> None:
        """Those of all parts."""
        for mixer in self.parts:
            mixer.check(b)

    def unit(self, b: Backbone) -> int:
        """The largest; mixers whose units do not divide one another are refused by the model."""
        return max(mixer.unit(b) for mixer in self.parts)

    @property
    def attends(self) -> bool:
        """Whether one of them attends."""
        return any(mixer.attends for mixer in self.parts)

    @property
    def reads_prefix(self) -> bool:
        """Whether one of them reads the prefix."""
        return any(mixer.reads_prefix for mixer in self.parts)

    @property
    def needs_memory_tokens(self) -> bool:
        """Whether one of them needs them."""
        return any(mixer.needs_memory_tokens for mixer in self.parts)

    @property
    def by_segment(self) -> bool:
        """Whether something happens at a border in one of them."""
        return any(mixer.by_segment for mixer in self.parts)


@dataclass(frozen=True)
class SeveralConfig(CompoundConfig):
    """A mixer made of others. mixers: their configs, in order."""

    mixers: tuple[MixerConfig, ...] = ()

    @property
    def parts(self) -> tuple[MixerConfig, ...]:
        """The mixers."""
        return self.mixers


@dataclass(frozen=True)
class LayerConfig(MixerConfig):
    """A mixer that is a layer by itself: `begin` and `run` take and return the residual stream, as those of `block.py` do."""


def need_segment(cfg: Any, b: Backbone) -> None:
    """Raise UserError where the model has no segments."""
    if b.segment < 1:
        raise UserError(f"{cfg.name} layers need segments; set model.segment to the tokens of one")


def check_width(memory: Any, b: Backbone) -> None:
    """Raise UserError where the heads of a neural memory do not fill the model's width."""
    if b.width % memory.head_dim:
        raise UserError(f"width={b.width} is not a multiple of memory.head_dim={memory.head_dim}")


def options(memory: Any, b: Backbone) -> Any:
    """A memory's config with the width and dtype of the model."""
    return replace(memory, width=b.width, dtype=b.dtype)
