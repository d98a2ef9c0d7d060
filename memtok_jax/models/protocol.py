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

A model whose input are tokens has `vocabulary` too. Fields that an evaluation may change say so in their metadata,
`field(metadata={"evaluation": True})`.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax

from memtok_jax import params as P
from memtok_jax.models.call import Call


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
        """One call: (y, carry, stats). x: ids i32[B, T], or what else the model takes."""
        cfg = self.functions.for_training(self.cfg, x.shape[1]) if call.whole else self.cfg
        return self.functions.run(params, state, x, cfg, call.length)

    def apply(self, params: P.Tree, state: P.Tree, x: jax.Array, length: jax.Array | None = None,
              whole: bool = False) -> tuple[Any, P.Tree]:
        """One call without statistics: (y, carry). length: i32[B], real tokens of each row; None, all. whole: see `Call`."""
        return self.run(params, state, x, Call(length=length, whole=whole))[:2]

    @property
    def vocabulary(self) -> int:
        """V: outputs of a token."""
        return self.cfg.vocabulary

    @property
    def call_tokens(self) -> int:
        """A training call is a multiple of this many tokens."""
        return 1

    @property
    def reach(self) -> int:
        """Tokens that a token can see without the memory, itself included."""
        return self.cfg.window

    @property
    def segment(self) -> int:
        """Tokens between two borders of the model, 0 where it has none."""
        return self.cfg.segment


def functions_of(cfg: Any) -> ModuleType:
    """The module of a model's config: the one that defines it, or beside it the one named like it."""
    kind = type(cfg)
    module = importlib.import_module(kind.__module__)
    if hasattr(module, "apply"):
        return module
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Config")).lower()
    return importlib.import_module(f"{kind.__module__.rpartition('.')[0]}.{name}")


def bind(cfg: Any) -> Model:
    """The model of a config."""
    return Model(functions_of(cfg), cfg)
