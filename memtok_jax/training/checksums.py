"""Shape, dtype and checksum of every array of a tree: what a checkpoint says about itself, on any mesh."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from memtok_jax import sharding


def describe(tree: Any) -> dict[str, list]:
    """Path of each array -> [shape, dtype, checksum]: JSON-able, the same on any mesh and in any process."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = [x for _, x in leaves]
    mesh = next((x.sharding.mesh for x in arrays if isinstance(getattr(x, "sharding", None), NamedSharding)), None)
    sums = _checksums(mesh)(arrays)
    return {jax.tree_util.keystr(path): [list(x.shape), str(x.dtype), int(s)]
            for (path, x), s in zip(leaves, jax.device_get(sums), strict=True)}


@functools.cache
def _checksums(mesh: Mesh | None) -> Callable:
    """Jitted: list of arrays -> u32[n]. The result is copied to every device of the mesh, so that every process can read it."""
    return jax.jit(lambda arrays: jnp.stack([array_checksum(x) for x in arrays]),
                   out_shardings=None if mesh is None else sharding.replicated(mesh))


def array_checksum(x: jax.Array) -> jax.Array:
    """u32[]: the sum of the words of x, each times an odd number made from its place, modulo 2^32.

    A single flipped bit always changes it. It is a sum of integers, so it does not depend on how x is divided over devices.
    """
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}").astype(jnp.uint32)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    place = place * jnp.uint32(0x9E3779B1)
    return (words * ((place ^ (place >> 15)) | 1)).sum(dtype=jnp.uint32)


def of_meta(meta: dict[str, Any]) -> int:
    """Checksum of values that JSON can hold."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def first_misfit(written: dict[str, list], tree: Any) -> str:
    """The first array that has another shape than was written, in one line; "" if all fit."""
    wanted = {jax.tree_util.keystr(path): list(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    for path in sorted(written.keys() | wanted.keys()):
        there, here = written[path][0] if path in written else "missing", wanted.get(path, "missing")
        if there != here:
            return f"{path} is {there} there and {here} here"
    return ""
