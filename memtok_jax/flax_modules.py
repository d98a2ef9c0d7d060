"""Any memory or model of the package as a Flax module: one adapter for Linen, one for NNX.

Both wrap a `models.protocol.Model`, which is a module of pure functions bound to its config: `bind(cfg)` for a model,
`Model(neural, cfg)` for a memory. They add no mathematics. Their call is

    y, state = module(state, x, length=None)        # Linen: module.apply(variables, state, x, length)
    state = module.initial_state(batch)             # Linen: module.apply(variables, batch, method="initial_state")

The carry goes in and comes out as a plain value and is never kept inside the Flax module: a variable that changes
during the call could not pass through `lax.scan`, `jax.checkpoint` or a donated argument.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from memtok_jax.models.protocol import Model
from memtok_jax.params import is_axes, is_spec, logical_axes

# ------------------------------------------------------------------------------------------------------------- Linen

class LinenModule(nn.Module):
    """The pure functions as a Linen module. Its variables are `{"params": {"pure": <tree of the pure functions>}}`.

    The initial parameters are boxed as `nn.LogicallyPartitioned`, so `nn.get_partition_spec(variables)` gives the
    logical axes. An unboxed tree, such as `Model.init` makes, may stand in the same place.

    model: hands out its trees by calls. A dict in a field would become a FrozenDict, which no longer matches the parameters.
    """

    model: Model

    def setup(self):
        self.pure = self.param("pure", self._boxed_params)

    def _boxed_params(self, key: jax.Array) -> Any:
        def box(names, value):
            return nn.LogicallyPartitioned(value, names)

        return jax.tree.map(box, logical_axes(self.model.specs()), self.model.init(key), is_leaf=is_axes)

    def _params(self) -> Any:
        """The tree that the pure functions take; Linen has replaced its dicts by FrozenDicts."""
        structure = jax.tree.structure(self.model.specs(), is_leaf=is_spec)
        return jax.tree.unflatten(structure, jax.tree.leaves(nn.unbox(self.pure)))

    def __call__(self, state: Any, x: jax.Array, length: jax.Array | None = None) -> tuple[Any, Any]:
        """One segment. state: the carry. x: [B, T, D], or ids [B, T] of a language model. length: i32[B] or None.

        Returns (y, new state), exactly what the pure `apply` returns.
        """
        return self.model.apply(self._params(), state, x, length)

    def initial_state(self, batch: int) -> Any:
        """The carry of `batch` rows before their first token."""
        return self.model.init_state(self._params(), batch)


def as_linen(model: Model, name: str | None = None) -> LinenModule:
    """A Flax Linen module over a model or a memory.

    name: the module's name inside a compact method, as for any Linen module.
    Modules made from equal models are equal and hash equal, so a jitted function that takes one as a static argument
    compiles once.
    """
    return LinenModule(model, name=name)


# --------------------------------------------------------------------------------------------------------------- NNX

class NNXModule(nnx.Module):
    """The pure functions as an NNX module. `module.pure` is their parameter tree with an `nnx.Param` at each leaf.

    The logical axes stand in the Params' metadata: `nnx.get_partition_spec(nnx.state(module))` gives them.
    """

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        self.model = model
        # The names are logical: placing the arrays on a mesh is the caller's business, hence no eager sharding. A plain
        # dict would count as a static attribute, hence nnx.data.
        def param(names, value):
            return nnx.Param(value, out_sharding=names, eager_sharding=False)

        self.pure = nnx.data(jax.tree.map(param, logical_axes(model.specs()), model.init(rngs.params()), is_leaf=is_axes))

    def pure_params(self) -> Any:
        """The parameters as the plain tree that the pure functions take."""
        return jax.tree.map(lambda v: v[...], self.pure, is_leaf=lambda node: isinstance(node, nnx.Variable))

    def __call__(self, state: Any, x: jax.Array, length: jax.Array | None = None) -> tuple[Any, Any]:
        """One segment. state: the carry. x: [B, T, D], or ids [B, T] of a language model. length: i32[B] or None.

        Returns (y, new state), exactly what the pure `apply` returns.
        """
        return self.model.apply(self.pure_params(), state, x, length)

    def initial_state(self, batch: int) -> Any:
        """The carry of `batch` rows before their first token."""
        return self.model.init_state(self.pure_params(), batch)


def as_nnx(model: Model, *, rngs: nnx.Rngs) -> NNXModule:
    """A Flax NNX module over a model or a memory; `rngs.params()` draws the initial parameters."""
    return NNXModule(model, rngs=rngs)
