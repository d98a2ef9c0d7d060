"""What training, evaluation, inference and conversion may ask of a model, in one place.

A model is one value: the functions of a module of `memtok_jax/models`, bound to a config that the module defines. It is made
once, by `bind`, and handed to whoever needs it. Such a module has four functions,

    specs(cfg)                              tree of ParamSpec
    state_specs(cfg, batch)                 tree of StateSpec
    init_state(params, cfg, batch)          the carry before the first token
    run(params, state, x, cfg, call)        (y, carry, stats: name -> f32[])

and its config states three facts,

    call_tokens   a training call is a multiple of this many tokens
    reach         tokens that a token can see without the memory, itself included
    segment       tokens between two borders of the model, 0 where it has none

A model whose input are tokens has `vocabulary` too, and for decoding `unstack(params, state, cfg)` and `restack(state, cfg)`.
Fields that an evaluation may change say so in their metadata, `field(metadata={"evaluation": True})`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import jax

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.models.call import Call

FUNCTIONS = ("specs", "state_specs", "init_state", "run")
FACTS = ("call_tokens", "reach", "segment")


@dataclass(frozen=True)
class AroundConfig:
    """The config of a model around another one, whose config is its field `model`: what it answers as that one does."""

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.model.vocabulary

    @property
    def segment(self) -> int:
        """Tokens of a segment; 0 without segments."""
        return self.model.segment

    @property
    def call_tokens(self) -> int:
        """A training call is a multiple of this many tokens."""
        return self.model.call_tokens

    @property
    def reach(self) -> int:
        """Tokens that a token can see without the memory."""
        return self.model.reach


@dataclass(frozen=True)
class Model:
    """Pure functions bound to their config; hashable, and equal by content.

    functions: the module. cfg: its frozen config.
    """

    functions: ModuleType
    cfg: Any

    def specs(self) -> P.Tree:
        """Tree of ParamSpec."""
        return self.functions.specs(self.cfg)

    def state_specs(self, batch: int) -> P.Tree:
        """Tree of StateSpec of `batch` streams."""
        return self.functions.state_specs(self.cfg, batch)

    def init(self, key: jax.Array) -> P.Tree:
        """Initial parameters, drawn with a typed PRNG key."""
        return P.init_params(self.specs(), key)

    def init_state(self, params: P.Tree, batch: int) -> P.Tree:
        """The carry of `batch` streams before their first token."""
        return self.functions.init_state(params, self.cfg, batch)

    def run(self, params: P.Tree, state: P.Tree, x: jax.Array, call: Call = Call()) -> tuple[Any, P.Tree, dict]:  # noqa: B008
        """One call: (y, carry, stats). x: ids i32[B, T], or what else the model takes.

        Raises UserError if parameters, carry or length do not fit the config and the batch, by shape or dtype.
        """
        checks.check_params(params, self.specs())
        checks.check_state(state, self.state_specs(len(x)))
        if call.length is not None:
            call = replace(call, length=checks.check_length(call.length, x))
        return self.functions.run(params, state, x, self.cfg, call)

    def apply(self, params: P.Tree, state: P.Tree, x: jax.Array, length: jax.Array | None = None,
              whole: bool = False) -> tuple[Any, P.Tree]:
        """One call without statistics: (y, carry). length: i32[B], real tokens of each row; None, all. whole: see `Call`."""
        return self.run(params, state, x, Call(length=length, whole=whole))[:2]

    def renew(self, state: P.Tree, initial: P.Tree) -> P.Tree:
        """The carry with its derived leaves taken from `initial`, which `init_state` made of the parameters at hand."""
        return P.renew(state, initial, self.state_specs(1))

    def unstack(self, params: P.Tree, state: P.Tree) -> tuple[Model, P.Tree, P.Tree]:
        """The same model with arrays of its own for each layer, for a loop over tokens: (model, params, carry).

        A model around another one may give that one, with parameters that compute the same.
        """
        params, state, cfg = self.functions.unstack(params, state, self.cfg)
        return replace(self, cfg=cfg) if type(cfg) is type(self.cfg) else bind(cfg), params, state

    def restack(self, state: P.Tree) -> P.Tree:
        """This model's carry out of that of the model which `unstack` made."""
        return self.functions.restack(state, self.cfg)

    @property
    def vocabulary(self) -> int:
        """V: outputs of a token."""
        return self.cfg.vocabulary

    @property
    def call_tokens(self) -> int:
        """A training call is a multiple of this many tokens."""
        return self.cfg.call_tokens

    @property
    def reach(self) -> int:
        """Tokens that a token can see without the memory, itself included."""
        return self.cfg.reach

    @property
    def segment(self) -> int:
        """Tokens between two borders of the model, 0 where it has none."""
        return self.cfg.segment


@dataclass(frozen=True)
class Memory(Model):
    """A module of `memtok_jax/memory` bound to its config: the same methods, for tokens x[B, T, D]."""

    def run(self, params: P.Tree, state: P.Tree, x: jax.Array, call: Call = Call()) -> tuple[Any, P.Tree, dict]:  # noqa: B008
        """One call: (y, carry, stats)."""
        return self.functions.run(params, state, x, self.cfg, call.length, whole=call.whole)


def bind(cfg: Any) -> Model:
    """The model of a config: the module that defines it, checked to have every part.

    Raises UserError naming what is missing.
    """
    module = sys.modules[type(cfg).__module__]
    missing = [name for name in FUNCTIONS if not hasattr(module, name)] + [name for name in FACTS if not hasattr(cfg, name)]
    if missing:
        raise UserError(f"{type(cfg).__name__} is no config of a model: {module.__name__} lacks {', '.join(missing)}")
    return Model(module, cfg)
