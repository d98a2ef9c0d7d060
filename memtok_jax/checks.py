"""Checks of what a caller hands to a memory or a model.

They look at shapes, dtypes and tree structures only, never at values. They therefore run while a function is traced and cost
nothing in compiled code. Each failure is a UserError that names the argument, what it must be and what it is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from memtok_jax.config import UserError
from memtok_jax.params import Tree, is_spec, zero_padding


def _describe(shape: tuple[int, ...], dtype: Any) -> str:
    return f"{jnp.dtype(dtype).name}[{', '.join(map(str, shape))}]"


def _shown(x: Any) -> str:
    """Dtype and shape of an array, or the type of anything else."""
    return _describe(x.shape, x.dtype) if _is_array(x) else type(x).__name__


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _is_float(x: Any) -> bool:
    return _is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)


def _refuse(name: str, rule: str, x: Any) -> None:
    raise UserError(f"{name} must be {rule}, got {_shown(x)}")


# -------------------------------------------------------------------------------------------------------------- tokens

def check_width(width: int) -> None:
    """Raise UserError if a config still has width 0, which only a model fills in."""
    if width < 1:
        raise UserError(f"width={width}: set the width of the tokens; only inside a model may it be left out")


def check_tokens(x: jax.Array, width: int, name: str = "x") -> None:
    """Raise UserError unless x is a floating array [B, T, width]. name: of the argument, for the message."""
    if not (_is_float(x) and len(x.shape) == 3 and x.shape[2] == width):
        _refuse(name, f"a floating array [batch, tokens, {width}]", x)


def check_ids(ids: jax.Array, name: str = "ids") -> None:
    """Raise UserError unless ids is an integer array [B, T]."""
    if not (_is_array(ids) and len(ids.shape) == 2 and jnp.issubdtype(ids.dtype, jnp.integer)):
        _refuse(name, "an integer array [batch, tokens]", ids)


def check_flags(flags: jax.Array, batch: int, name: str) -> None:
    """Raise UserError unless flags is a boolean array [batch]."""
    if not (_is_array(flags) and flags.shape == (batch,) and flags.dtype == jnp.bool_):
        _refuse(name, f"a boolean array [{batch}], one flag for each row of the batch", flags)


def check_length(length: jax.Array | None, x: jax.Array) -> jax.Array:
    """The number of real tokens of each row of x[B, T, ...], i32[B], clipped to 0 .. T. None means that all T are real.

    Raises UserError unless `length` is None or an integer array [B]; a mask of real tokens is refused too.
    """
    batch, tokens = x.shape[:2]
    if length is None:
        return jnp.full((batch,), tokens, jnp.int32)
    if not (_is_array(length) and length.shape == (batch,) and jnp.issubdtype(length.dtype, jnp.integer)):
        hint = "; for a mask use params.masked" if _is_array(length) and length.dtype == jnp.bool_ else ""
        raise UserError(f"length must be an integer array [{batch}], the real tokens of each row, got {_shown(length)}{hint}")
    return jnp.clip(length, 0, tokens).astype(jnp.int32)


def check_whole(x: jax.Array, unit: int, length: jax.Array | None) -> None:
    """Raise UserError if a call of x[B, T, ...] cannot be whole: T is no multiple of the unit, or a length was given."""
    if length is not None:
        raise UserError("whole=True promises rows without padding, but a length was given: leave out one of them")
    if x.shape[1] % unit:
        raise UserError(f"whole=True needs a multiple of {unit} tokens, got {x.shape[1]}")


def checked(x: jax.Array, length: jax.Array | None, width: int, unit: int = 1, whole: bool = False) -> tuple[jax.Array, jax.Array]:
    """The tokens of one call after all checks above: (x[B, T, width] with zeros in the place of padding, length i32[B]).

    length: as the caller gave it, maybe None. unit: a whole call has a multiple of this many tokens.
    """
    check_tokens(x, width)
    if whole:
        check_whole(x, unit, length)
    if length is None:
        return x, check_length(None, x)
    length = check_length(length, x)
    return zero_padding(x, length), length


# --------------------------------------------------------------------------------------------------------------- trees

def _check_tree(name: str, tree: Tree, specs: Tree, fits) -> None:
    """Compare a tree with its specs, leaf by leaf. fits: (leaf's dtype, spec's dtype) -> bool."""
    wanted, structure = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    leaves, found = jax.tree.flatten(tree)
    if found != structure:
        raise UserError(f"{name} must have the leaves {_names(wanted)}, got {_names(jax.tree_util.tree_leaves_with_path(tree))}")
    for (path, spec), leaf in zip(wanted, leaves, strict=True):
        if not (_is_array(leaf) and leaf.shape == spec.shape and fits(leaf.dtype, spec.dtype)):
            _refuse(name + jax.tree_util.keystr(path), _describe(spec.shape, spec.dtype), leaf)


def _names(leaves: list) -> str:
    """Paths of the first leaves of a tree."""
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]
    return (", ".join(paths[:12]) or "(none)") + (", ..." if len(paths) > 12 else "")


def batch_of(state: Tree) -> int:
    """B of a carry, read off its first leaf; 0 if that is no array with axes."""
    leaf = next(iter(jax.tree.leaves(state)), None)
    return leaf.shape[0] if _is_array(leaf) and leaf.shape else 0


def check_state(state: Tree, specs: Tree, name: str = "state") -> None:
    """Raise UserError unless a carry has the structure, shapes and dtypes of its tree of StateSpec.

    float64 may stand in the place of any other floating dtype. What shapes do not show stays unseen: a carry that was left in
    the middle of a unit (a chunk, a segment) by a config with another unit.
    """
    _check_tree(name, state, specs, lambda found, wanted: found == wanted or (
        found == jnp.float64 and jnp.issubdtype(wanted, jnp.floating)))


def check_params(params: Tree, specs: Tree, name: str = "params") -> None:
    """Raise UserError unless parameters have the structure and shapes of their tree of ParamSpec and are floating arrays."""
    _check_tree(name, params, specs, lambda found, wanted: jnp.issubdtype(found, jnp.floating))
