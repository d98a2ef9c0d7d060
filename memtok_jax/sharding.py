"""How arrays are divided over devices: one mesh, one table of rules, one function for activations.

Arrays name their dimensions with logical axes ("batch", "heads", ...; see `params.py`). The table says over which
axes of the mesh a logical axis is divided. The mesh has three axes:

    data     copies of the model, each with its own rows of the batch
    fsdp     rows of the batch too, and at rest a slice of every parameter and optimizer state
    tensor   heads, hidden units and vocabulary of one layer

The compiler places the collectives (axes of type Auto). Nothing else in the package names a mesh axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from memtok_jax.config import UserError, nearest

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
    Raises ValueError for an unknown logical axis, and if two dimensions would share an axis of the mesh.
    """
    rules = RULES_WITH_BATCH if "batch" in names else RULES
    for name in names:
        if name is not None and name not in rules:
            raise ValueError(f"unknown logical axis {name!r}, known are {', '.join(sorted(rules))}{nearest(name, rules)}")
    out = tuple(() if name is None else rules[name] for name in names)
    used = [axis for axes in out for axis in axes]
    for axis in MESH_AXES:
        if used.count(axis) > 1:
            raise ValueError(f"axes {names} put two dimensions on mesh axis {axis!r}; one array can use it once")
    return out


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Tell the compiler how an activation is divided.

    names: one logical axis or None for each dimension of x. Without a mesh (`jax.set_mesh`) x comes back as it is. Mesh axes that
    are not Auto, which inside `jax.shard_map` is all of them, are not used.
    Raises ValueError if the number of names does not fit, UserError if the size of a dimension does not divide.
    """
    if x.ndim != len(names):
        raise ValueError(f"an array of shape {x.shape} has {x.ndim} dimensions, got {len(names)} axis names {names}")
    free = free_axes()
    if not free:
        return x
    axes = tuple(tuple(a for a in dim if a in free) for dim in mesh_axes_of(names))
    if not any(axes):
        return x
    _check_divides("activation", x.shape, names, axes, dict(jax.sharding.get_abstract_mesh().shape))
    return jax.lax.with_sharding_constraint(x, _partition_spec(axes))


def constrain_tree(tree: Tree, specs: Tree) -> Tree:
    """`constrain` for every array of a tree, by the axes of its `ParamSpec` or `StateSpec`."""
    leaves, treedef = jax.tree.flatten(tree)
    axes = [spec.axes for spec in jax.tree.leaves(specs, is_leaf=_is_spec)]
    return jax.tree.unflatten(treedef, [constrain(x, *names) for x, names in zip(leaves, axes, strict=True)])


def shardings(mesh: Mesh, specs: Tree) -> Tree:
    """Tree of `NamedSharding` for a tree of `ParamSpec` or `StateSpec`.

    Raises ValueError naming the array if two dimensions collide, UserError if a size does not divide.
    """

    def one(path, spec) -> NamedSharding:
        name = jax.tree_util.keystr(path)
        try:
            axes = mesh_axes_of(spec.axes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        _check_divides(name, spec.shape, spec.axes, axes, dict(mesh.shape))
        return NamedSharding(mesh, _partition_spec(axes))

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=_is_spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The first dimension is the batch, all others are whole."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def row_groups(mesh: Mesh) -> int:
    """Number of parts into which the rows of a batch are divided."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def free_axes() -> MeshAxes:
    """Axes of the mesh in force that the compiler divides by itself; empty without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto)


def everywhere(x: jax.Array) -> jax.Array:
    """Ask the compiler for a copy of x on every device, so that every process can read it."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if free_axes() else x


def look_up(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """table[ids], f[B, T, D]: every device looks its own rows up in a whole copy of the table.

    Left to itself, the compiler cannot divide an index into a divided table reliably: that of jax 0.10.2 aborts on meshes that use
    all three axes.
    """
    free = free_axes()
    if not free:
        return table_VD[ids_BT]
    own_rows = PartitionSpec(tuple(axis for axis in RULES["batch"] if axis in free))
    local = jax.shard_map(lambda table, ids: table[ids], in_specs=(PartitionSpec(), own_rows), out_specs=own_rows,
                          axis_names=set(free), check_vma=False)
    return local(table_VD, ids_BT)


def divided(function: Callable, in_axes: list[tuple[str | None, ...]], out_axes: list[tuple[str | None, ...]]) -> Callable:
    """`function`, computed by each device on its own part of the arrays: for what the compiler cannot divide, such as a kernel.

    function: (*arrays) -> list of arrays. in_axes, out_axes: logical axes of the first dimensions of each array; the rest is whole.
    """
    free = free_axes()
    if not free:
        return function
    spec = lambda names: _partition_spec(tuple(tuple(a for a in dim if a in free) for dim in mesh_axes_of(names)))
    return jax.shard_map(function, in_specs=tuple(map(spec, in_axes)), out_specs=list(map(spec, out_axes)), axis_names=set(free),
                         check_vma=False)


def place_rows(mesh: Mesh, x: np.ndarray) -> jax.Array:
    """A host array [B, ...] with all rows of the batch, the same on every process, divided over the devices."""
    return jax.make_array_from_callback(x.shape, rows(mesh), lambda index: x[index])


def place_own_rows(mesh: Mesh, x: np.ndarray) -> jax.Array:
    """A host array with the rows that this process reads (`process_rows`), joined with those of the others."""
    return jax.make_array_from_process_local_data(rows(mesh), x)


def process_rows(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads part `index` of `count` equal parts of the rows of each batch.

    Processes that hold the same rows (a tensor axis that spans processes) have the same index.
    """
    groups = row_groups(mesh)
    places = rows(mesh).devices_indices_map((groups,))
    process = jax.process_index()
    mine = {where[0].indices(groups)[0] for device, where in places.items() if device.process_index == process}
    if groups % len(mine) or min(mine) % len(mine) or max(mine) - min(mine) + 1 != len(mine):
        raise UserError(f"process {process} holds row groups {sorted(mine)} of {groups}; they must be one "
                         "aligned block: give the data and fsdp axes sizes that divide among the processes")
    return min(mine) // len(mine), groups // len(mine)


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """Sizes of the mesh axes over so many devices; data = -1 takes all that the other two leave.

    Raises UserError naming both numbers if they do not fit. A mesh may be smaller than there are devices.
    """
    for name, size in (("fsdp", fsdp), ("tensor", tensor)):
        if size < 1:
            raise UserError(f"mesh axis {name} is {size}; it must be at least 1")
    if data == -1:
        group = fsdp * tensor
        if devices % group:
            raise UserError(f"{devices} devices do not divide into fsdp {fsdp} x tensor {tensor} = {group}")
        data = devices // group
    if data < 1:
        raise UserError(f"mesh axis data is {data}; it must be at least 1, or -1 for all devices that are left")
    need = data * fsdp * tensor
    if need > devices:
        sizes = f"data {data} x fsdp {fsdp} x tensor {tensor}"
        raise UserError(f"mesh {sizes} = {need} devices, but there are {devices}")
    return data, fsdp, tensor


def data_axis(devices: int, fsdp: int, tensor: int, rows: tuple[int, ...]) -> int:
    """The largest data axis over at most so many devices, beside fsdp and tensor, that divides each of these numbers of rows.

    1 if there is none.
    """
    most = devices // (fsdp * tensor)
    return max((n for n in range(1, most + 1) if all(count % (n * fsdp) == 0 for count in rows)), default=1)


def make_mesh(data: int, fsdp: int, tensor: int, devices: list | None = None) -> Mesh:
    """The mesh, over `devices` (None: all devices of all processes), sized as in `mesh_sizes`.

    A mesh smaller than there are devices uses the first ones; with several processes it must use all.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(data, fsdp, tensor, len(devices))
    need = math.prod(sizes)
    if jax.process_count() > 1 and need != len(devices):
        raise UserError(f"a mesh of {need} devices leaves some of the {len(devices)} devices of "
                         f"{jax.process_count()} processes out; use all")
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices[:need])


def _is_spec(node) -> bool:
    return hasattr(node, "axes")


def _partition_spec(axes: tuple[MeshAxes, ...]) -> PartitionSpec:
    return PartitionSpec(*(dim if dim else None for dim in axes))


def _check_divides(name: str, shape, names, axes: tuple[MeshAxes, ...], sizes: dict[str, int]) -> None:
    # Left to the compiler, an uneven size is silently kept whole or ends in a message that names nothing.
    for size, logical, dim in zip(shape, names, axes, strict=True):
        parts = math.prod(sizes[axis] for axis in dim)
        if size % parts:
            where = " x ".join(f"{axis} {sizes[axis]}" for axis in dim)
            raise UserError(f"{name}: axis {logical!r} of size {size} does not divide into {parts} (mesh {where})")
