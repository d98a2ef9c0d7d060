"""Any memory or model of the package as a Flax module: one adapter for Linen, one for NNX.

Both wrap a module with the four functions of `docs/architecture.md` and add no mathematics. Their call is

    y, state = module(state, x, length=None)        # Linen: module.apply(variables, state, x, length)
    state = module.initial_state(batch)             # Linen: module.apply(variables, batch, method="initial_state")

The carry goes in and comes out as a plain value and is never kept inside the Flax module: a variable that changes
during the call could not pass through `lax.scan`, `jax.checkpoint` or a donated argument.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from memtok_jax.params import init_params, is_axes, logical_axes


@dataclass(frozen=True)
class Bound:
    """A module of pure functions together with its config.

    Hashable and equal by content. Linen turns dicts in its fields into FrozenDicts, which no longer match the
    tree of the parameters; a `Bound` hands out the trees by calls instead of holding them.

    functions: a Python module (or any hashable object) with `specs`, `init_state` and `apply`. cfg: its frozen config.
    """

    functions: Hashable
    cfg: Hashable

    def axes(self) -> Any:
        """Tree of tuples of logical axis names, one tuple for each parameter."""
        return logical_axes(self.functions.specs(self.cfg))

    def init(self, key: jax.Array) -> Any:
        """Initial parameters drawn with a typed PRNG key."""
        return init_params(self.functions.specs(self.cfg), key)

    def init_state(self, params: Any, batch: int) -> Any:
        """The carry of `batch` rows before their first token."""
        return self.functions.init_state(params, self.cfg, batch)

    def apply(self, params: Any, state: Any, x: jax.Array, length: jax.Array | None) -> tuple[Any, Any]:
        """One segment: (y, new state)."""
        return self.functions.apply(params, state, x, self.cfg, length)


# ------------------------------------------------------------------------------------------------------------- Linen

class LinenModule(nn.Module):
    """The pure functions as a Linen module. Its variables are `{"params": {"pure": <tree of the pure functions>}}`.

    The initial parameters are boxed as `nn.LogicallyPartitioned`, so `nn.get_partition_spec(variables)` gives the
    logical axes. An unboxed tree, such as `init_params` makes, may stand in the same place.
    """

    bound: Bound

    def setup(self):
        self.pure = self.param("pure", self._boxed_params)

    def _boxed_params(self, key: jax.Array) -> Any:
        def box(names, value):
            return nn.LogicallyPartitioned(value, names)

        return jax.tree.map(box, self.bound.axes(), self.bound.init(key), is_leaf=is_axes)

    def __call__(self, state: Any, x: jax.Array, length: jax.Array | None = None) -> tuple[Any, Any]:
        """One segment. state: the carry. x: [B, T, D], or ids [B, T] of a language model. length: i32[B] or None.

        Returns (y, new state), exactly what the pure `apply` returns.
        """
        return self.bound.apply(nn.unbox(self.pure), state, x, length)

    def initial_state(self, batch: int) -> Any:
        """The carry of `batch` rows before their first token."""
        return self.bound.init_state(nn.unbox(self.pure), batch)


def as_linen(functions: Any, cfg: Hashable, name: str | None = None) -> LinenModule:
    """A Flax Linen module over `functions.specs / init_state / apply`.

    name: the module's name inside a compact method, as for any Linen module.
    Modules made from the same functions and an equal config are equal and hash equal, so a jitted function that takes
    one as a static argument compiles once.
    """
    return LinenModule(Bound(functions, cfg), name=name)


# --------------------------------------------------------------------------------------------------------------- NNX

class NNXModule(nnx.Module):
    """The pure functions as an NNX module. `module.pure` is their parameter tree with an `nnx.Param` at each leaf.

    The logical axes stand in the Params' metadata: `nnx.get_partition_spec(nnx.state(module))` gives them.
    """

    def __init__(self, bound: Bound, *, rngs: nnx.Rngs):
        self.bound = bound
        # The names are logical: placing the arrays on a mesh is the caller's business, hence no eager sharding. A plain
        # dict would count as a static attribute, hence nnx.data.
        def param(names, value):
            return nnx.Param(value, out_sharding=names, eager_sharding=False)

        self.pure = nnx.data(jax.tree.map(param, bound.axes(), bound.init(rngs.params()), is_leaf=is_axes))

    def pure_params(self) -> Any:
        """The parameters as the plain tree that the pure functions take."""
        return jax.tree.map(lambda v: v[...], self.pure, is_leaf=lambda node: isinstance(node, nnx.Variable))

    def __call__(self, state: Any, x: jax.Array, length: jax.Array | None = None) -> tuple[Any, Any]:
        """One segment. state: the carry. x: [B, T, D], or ids [B, T] of a language model. length: i32[B] or None.

        Returns (y, new state), exactly what the pure `apply` returns.
        """
        return self.bound.apply(self.pure_params(), state, x, length)

    def initial_state(self, batch: int) -> Any:
        """The carry of `batch` rows before their first token."""
        return self.bound.init_state(self.pure_params(), batch)


def as_nnx(functions: Any, cfg: Hashable, *, rngs: nnx.Rngs) -> NNXModule:
    """A Flax NNX module over `functions.specs / init_state / apply`; `rngs.params()` draws the initial parameters."""
    return NNXModule(Bound(functions, cfg), rngs=rngs)
