"""One description of every array: shapes, axes, initial values and weight decay all follow from it.

A mechanism describes its parameters as a tree of `ParamSpec` (`specs(cfg)`) and its carry as a tree of
`StateSpec` (`state_specs(cfg, batch)`). Nothing else is written by hand: initial values, logical axes,
abstract shapes, the weight-decay mask and the generic `reset` of single rows are computed here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
Axes = tuple[str | None, ...]
LIVES = ("stream", "segment", "derived")
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


@dataclass(frozen=True)
class ParamSpec:
    """One trained array.

    shape: its dimensions. axes: a logical name (or None) for each, see `sharding.py`.
    init: function (key, shape, dtype) -> array. decayed: whether weight decay applies.
    auxiliary: the gradient comes only from an auxiliary loss of a memory, whose scale is not that of the model's loss.
    """

    shape: tuple[int, ...]
    axes: Axes
    init: Initializer
    decayed: bool = True
    dtype: Any = jnp.float32
    auxiliary: bool = False

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} has {len(self.shape)} dimensions, axes {self.axes} name {len(self.axes)}")


@dataclass(frozen=True)
class StateSpec:
    """One array of a carry. Exactly one of its axes is called "batch".

    lives: how long its content lasts. "stream": as long as the stream. "segment": it is cleared to zero at a segment border.
        "derived": it is a function of the parameters alone; `renew` brings it up to date when they have changed.
    phase: whether it counts tokens of a unit that is still open; a call that promises `whole` needs it to be 0.
    """

    shape: tuple[int, ...]
    axes: Axes
    dtype: Any = jnp.float32
    lives: str = "stream"
    phase: bool = False

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} has {len(self.shape)} dimensions, axes {self.axes} name {len(self.axes)}")
        if self.lives not in LIVES:
            raise ValueError(f"lives={self.lives!r} must be one of {', '.join(LIVES)}")
        if self.axes.count("batch") != 1:
            raise ValueError(f"a state has exactly one axis called 'batch', got {self.axes}")


def is_spec(node) -> bool:
    """True for a leaf of a tree of specs."""
    return isinstance(node, (ParamSpec, StateSpec))


def is_axes(node) -> bool:
    """True for a tuple of axis names (a leaf of an axes tree), False for a NamedTuple node."""
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)


def map_specs(function: Callable, specs: Tree) -> Tree:
    """`jax.tree.map` over a tree whose leaves are specs."""
    return jax.tree.map(function, specs, is_leaf=is_spec)


# ---------------------------------------------------------------------------------------------- initializers

def normal(std: float) -> Initializer:
    """Normal distribution with the given standard deviation."""
    return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


def truncated_normal(std: float) -> Initializer:
    """Normal distribution of the given standard deviation, without values beyond two of them."""
    return lambda key, shape, dtype: std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)


def fan_in(axis: int = -2, scale: float = 1.0) -> Initializer:
    """Normal distribution with variance scale^2 / shape[axis]."""
    return lambda key, shape, dtype: scale * jax.random.normal(key, shape, dtype) / jnp.sqrt(jnp.asarray(shape[axis], dtype))


def constant(value: float) -> Initializer:
    """The same number everywhere."""
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


zeros, ones = constant(0.0), constant(1.0)


# ------------------------------------------------------------------------------------------ what follows from specs

def init_params(specs: Tree, key: jax.Array) -> Tree:
    """Draw the initial parameters.

    key: a typed PRNG key. Each array's key is folded with the checksum of its path, so adding a parameter
    leaves the initial values of all others as they were.
    """

    def one(path, spec: ParamSpec):
        name = jax.tree_util.keystr(path)
        return spec.init(jax.random.fold_in(key, zlib.crc32(name.encode())), spec.shape, spec.dtype)

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=is_spec)


def abstract(specs: Tree) -> Tree:
    """Tree of `jax.ShapeDtypeStruct`, for parameters or for states."""
    return map_specs(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), specs)


def logical_axes(specs: Tree) -> Tree:
    """Tree of tuples of axis names, for parameters or for states."""
    return map_specs(lambda s: s.axes, specs)


def decay_mask(specs: Tree) -> Tree:
    """Tree of bools: True where weight decay applies."""
    return map_specs(lambda s: s.decayed, specs)


def stack(specs: Tree, n: int, axis: str = "layers") -> Tree:
    """The same tree n times, stacked along a new leading axis (for `lax.scan` over layers)."""

    def one(spec):
        out = replace(spec, shape=(n, *spec.shape), axes=(axis, *spec.axes))
        if isinstance(spec, StateSpec):
            return out
        return replace(out, init=lambda key, shape, dtype: jax.vmap(
            lambda k: spec.init(k, spec.shape, dtype))(jax.random.split(key, n)))

    return map_specs(one, specs)


def count(specs: Tree) -> int:
    """Number of scalars in the tree."""
    return sum(_size(s.shape) for s in jax.tree.leaves(specs, is_leaf=is_spec))


def size_bytes(specs: Tree) -> int:
    """Bytes that the tree takes in memory, before anything is allocated."""
    return sum(_size(s.shape) * jnp.dtype(s.dtype).itemsize for s in jax.tree.leaves(specs, is_leaf=is_spec))


def first_difference(theirs: Tree, ours: Tree) -> str:
    """What is not alike in the shapes of two trees of parameters, in one line; "" where they are alike."""
    name = lambda path: ".".join(str(getattr(k, "key", k)) for k in path)
    theirs, ours = ({name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(t)} for t in (theirs, ours))
    for path in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(path), ours.get(path)
        if there != here:
            return f"parameter {path} is {there or 'missing'} there and {here or 'missing'} here"
    return ""


def _size(shape: tuple[int, ...]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


# ------------------------------------------------------------------------------------------------------ states

def zero_state(state_specs: Tree) -> Tree:
    """A carry of zeros; every leaf has its own buffer, so that it can be donated."""
    return map_specs(lambda s: jnp.zeros(s.shape, s.dtype), state_specs)


def map_rows(function: Callable, state_specs: Tree, *states: Tree) -> Tree:
    """Apply `function(*leaves, axis)` to each leaf of the states; axis is where that leaf's batch lies."""
    leaves = [jax.tree.leaves(s) for s in states]
    specs, treedef = jax.tree.flatten(state_specs, is_leaf=is_spec)
    return jax.tree.unflatten(treedef, [function(*xs, spec.axes.index("batch")) for spec, *xs in zip(specs, *leaves, strict=True)])


def select_rows(rows: jax.Array, on_true: Tree, on_false: Tree, state_specs: Tree) -> Tree:
    """For each batch row one of two carries. rows: bool[B]; True takes the row of `on_true`."""

    def one(a, b, axis):
        shape = [1] * a.ndim
        shape[axis] = rows.shape[0]
        return jnp.where(rows.reshape(shape), a, b)

    return map_rows(one, state_specs, on_true, on_false)


def reset(state: Tree, rows: jax.Array, initial: Tree, state_specs: Tree) -> Tree:
    """The carry in which some batch rows start a new stream.

    rows: bool[B], True for a row that starts. initial: the carry that `init_state` made; it need not be zero, because it may
    hold prefix tokens. The other rows keep every bit.
    """
    return select_rows(rows, initial, state, state_specs)


def _map_lives(function: Callable, state_specs: Tree, *states: Tree) -> Tree:
    """Apply `function(spec, *leaves)` to each leaf of the states."""
    specs, treedef = jax.tree.flatten(state_specs, is_leaf=is_spec)
    leaves = [jax.tree.leaves(s) for s in states]
    return jax.tree.unflatten(treedef, [function(spec, *xs) for spec, *xs in zip(specs, *leaves, strict=True)])


def renew(state: Tree, initial: Tree, state_specs: Tree) -> Tree:
    """The carry with its derived leaves taken from `initial`, which `init_state` made of the parameters at hand.

    A carry that outlives a change of the parameters needs this; it is also how derived leaves get their gradient.
    """
    return _map_lives(lambda spec, old, new: new if spec.lives == "derived" else old, state_specs, state, initial)


def clear_segment(state: Tree, closes: jax.Array, state_specs: Tree) -> Tree:
    """The carry behind a segment border: leaves that live for a segment are zero. closes: bool[B], rows whose segment ended."""

    def one(spec, leaf):
        if spec.lives != "segment":
            return leaf
        shape = [1] * leaf.ndim
        shape[spec.axes.index("batch")] = closes.shape[0]
        return jnp.where(closes.reshape(shape), jnp.zeros((), leaf.dtype), leaf)

    return _map_lives(one, state_specs, state)


def at_border(state: Tree, state_specs: Tree) -> jax.Array:
    """bool[B]: which streams stand at a border of every unit, so that a call may promise `whole`."""
    phases = []
    _map_lives(lambda spec, leaf: phases.append(jnp.moveaxis(leaf, spec.axes.index("batch"), 0)) if spec.phase else None,
               state_specs, state)
    rows = [(p.reshape(p.shape[0], -1) == 0).all(1) for p in phases]
    batch = state_specs_batch(state_specs)
    return jnp.stack(rows).all(0) if rows else jnp.ones((batch,), bool)


def state_specs_batch(state_specs: Tree) -> int:
    """B of a tree of StateSpec with at least one leaf."""
    spec = jax.tree.leaves(state_specs, is_leaf=is_spec)[0]
    return spec.shape[spec.axes.index("batch")]


# ------------------------------------------------------------------------------------------------- ragged rows

def full_length(x: jax.Array) -> jax.Array:
    """i32[B] that says every one of the T tokens of x[B, T, ...] is real."""
    return jnp.full((x.shape[0],), x.shape[1], jnp.int32)


def real_tokens(x: jax.Array, length_B: jax.Array) -> jax.Array:
    """bool[B, T]: which tokens of x[B, T, ...] are real, those before length_B."""
    return jnp.arange(x.shape[1])[None] < length_B[:, None]


def zero_padding(x: jax.Array, length_B: jax.Array) -> jax.Array:
    """x[B, T, ...] with zeros in the place of padding.

    Padding may hold NaN or infinity. It is selected away before any product, because 0 times NaN is NaN in values and gradients.
    """
    real = real_tokens(x, length_B)
    return jnp.where(real.reshape(real.shape + (1,) * (x.ndim - 2)), x, jnp.zeros((), x.dtype))


def compact(valid_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Indices that move the real tokens of each row to its front, and back.

    Returns order i32[B, T] (take_along_axis puts real tokens first, in order), back i32[B, T] (its inverse),
    and length i32[B].
    """
    order = jnp.argsort(~valid_BT, axis=1, stable=True)
    return order, jnp.argsort(order, axis=1, stable=True), valid_BT.sum(1).astype(jnp.int32)


def take_rows(x: jax.Array, index_BT: jax.Array) -> jax.Array:
    """x[b, index[b, t], ...] for every b and t."""
    return jnp.take_along_axis(x, index_BT.reshape(index_BT.shape + (1,) * (x.ndim - 2)), axis=1)


def masked(apply: Callable) -> Callable:
    """Let an `apply(params, state, x, cfg, length)` take any mask of real tokens.

    Returns `(params, state, x, valid_BT, cfg) -> (y, state)`. Padding may stand left, right or in between. It is neither read
    nor written, and y is zero there.
    """

    def apply_masked(params, state, x, valid_BT, cfg):
        order, back, length = compact(valid_BT)
        y, state = apply(params, state, take_rows(x, order), cfg, length)
        y = take_rows(y, back)
        return jnp.where(valid_BT.reshape(valid_BT.shape + (1,) * (y.ndim - 2)), y, 0), state

    return apply_masked
