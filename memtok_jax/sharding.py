"""Where arrays lie on many devices: one mesh, one table of rules, one function for activations.

Arrays name their dimensions with logical axes ("batch", "heads", ...; see `params.py`). The table says over which
axes of the mesh a logical axis is divided. The mesh has three axes:

    data     copies of the model, each with its own rows of the batch
    fsdp     rows of the batch too, and at rest a slice of every parameter and optimizer state
    tensor   heads, hidden units and vocabulary of one layer

The compiler places the collectives (axes of type Auto). Nothing else in the package names a mesh axis.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = Any
MeshAxes = tuple[str, ...]

MESH_AXES: MeshAxes = ("data", "fsdp", "tensor")

# Logical axis -> axes of the mesh that divide it. An empty tuple: every device holds it whole.
RULES: dict[str, MeshAxes] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "head_dim": (),
    "hidden": (),
    "layers": (),
    "length": (),
    "tokens": (),
}

# An array with rows (an activation or a carry) gives its fsdp axis to the rows, so its width stays whole.
RULES_WITH_BATCH: dict[str, MeshAxes] = {**RULES, "embed": ()}


def mesh_axes_of(names: tuple[str | None, ...]) -> tuple[MeshAxes, ...]:
    """Axes of the mesh for each dimension of an array.

    names: a logical axis, or None (whole), for each dimension.
    Raises ValueError for an unknown logical axis, and where two dimensions would share an axis of the mesh.
    """
    rules = RULES_WITH_BATCH if "batch" in names else RULES
    for name in names:
        if name is not None and name not in rules:
            near = difflib.get_close_matches(name, rules, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown logical axis {name!r}, known are {', '.join(sorted(rules))}{hint}")
    out = tuple(() if name is None else rules[name] for name in names)
    used = [axis for axes in out for axis in axes]
    for axis in MESH_AXES:
        if used.count(axis) > 1:
            raise ValueError(f"axes {names} put two dimensions on mesh axis {axis!r}; one array can use it once")
    return out


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Tell the compiler how an activation is divided.

    names: one logical axis or None for each dimension of x. Without a mesh (`jax.set_mesh`) x comes back untouched;
    mesh axes that are not Auto (all of them inside `jax.shard_map`) are left alone.
    Raises ValueError where the number of names, or the size of a dimension, does not fit.
    """
    if x.ndim != len(names):
        raise ValueError(f"an array of shape {x.shape} has {x.ndim} dimensions, got {len(names)} axis names {names}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    free = {a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    axes = tuple(tuple(a for a in dim if a in free) for dim in mesh_axes_of(names))
    if not any(axes):
        return x
    _check_divides("activation", x.shape, names, axes, dict(mesh.shape))
    return jax.lax.with_sharding_constraint(x, _partition_spec(axes))


def shardings(mesh: Mesh, specs: Tree) -> Tree:
    """Tree of `NamedSharding` for a tree of `ParamSpec` or `StateSpec`.

    Raises ValueError naming the array where two dimensions collide or a size does not divide.
    """

    def one(path, spec) -> NamedSharding:
        name = jax.tree_util.keystr(path)
        try:
            axes = mesh_axes_of(spec.axes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        _check_divides(name, spec.shape, spec.axes, axes, dict(mesh.shape))
        return NamedSharding(mesh, _partition_spec(axes))

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=lambda node: hasattr(node, "axes"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The first dimension is the batch, all others are whole."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def row_groups(mesh: Mesh) -> int:
    """Number of parts into which the rows of a batch are divided."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def make_mesh(data: int, fsdp: int, tensor: int, devices: list | None = None) -> Mesh:
    """The mesh, over `devices` (None: all devices of all processes).

    data, fsdp, tensor: sizes of its axes; data = -1 takes all devices that the other two leave. A smaller mesh than
    there are devices uses the first ones; with several processes it must use all.
    Raises ValueError naming both numbers where the sizes and the devices do not fit.
    """
    devices = jax.devices() if devices is None else devices
    for name, size in (("fsdp", fsdp), ("tensor", tensor)):
        if size < 1:
            raise ValueError(f"mesh axis {name} is {size}; it must be at least 1")
    if data == -1:
        if len(devices) % (fsdp * tensor):
            group = fsdp * tensor
            raise ValueError(f"{len(devices)} devices do not divide into fsdp {fsdp} x tensor {tensor} = {group}")
        data = len(devices) // (fsdp * tensor)
    if data < 1:
        raise ValueError(f"mesh axis data is {data}; it must be at least 1, or -1 for all devices that are left")
    need = data * fsdp * tensor
    if need > len(devices) or (jax.process_count() > 1 and need != len(devices)):
        sizes = f"data {data} x fsdp {fsdp} x tensor {tensor}"
        raise ValueError(f"mesh {sizes} = {need} devices, but there are {len(devices)}")
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh((data, fsdp, tensor), MESH_AXES, axis_types=types, devices=devices[:need])


def _partition_spec(axes: tuple[MeshAxes, ...]) -> PartitionSpec:
    return PartitionSpec(*(dim if dim else None for dim in axes))


def _check_divides(name: str, shape, names, axes: tuple[MeshAxes, ...], sizes: dict[str, int]) -> None:
    # Left to the compiler, an uneven size is silently kept whole or ends in a message that names nothing.
    for size, logical, dim in zip(shape, names, axes, strict=True):
        parts = math.prod(sizes[axis] for axis in dim)
        if size % parts:
            where = " x ".join(f"{axis} {sizes[axis]}" for axis in dim)
            raise ValueError(f"{name}: axis {logical!r} of size {size} does not divide into {parts} (mesh {where})")
