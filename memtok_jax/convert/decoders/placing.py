"""Where arrays of a folder go, one after the other: whole onto one device, or each device's part of it onto a mesh.

A `Read` makes a part of one of our arrays, given as slices, out of the mapped files: nothing else of the array is copied. A `Place`
calls it for the parts that are needed and puts them where they belong before it returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P

Index = tuple[slice, ...]
Read = Callable[[Index], np.ndarray]
Place = Callable[[tuple, tuple[int, ...], Read], jax.Array]  # (keys in the tree of parameters, shape, read)


ALIGNED = 64  # bytes; a CPU device takes a buffer that begins at a multiple of this itself, without a copy


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array without values in a buffer that a CPU device can take."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNED, np.uint8)
    begin = -raw.ctypes.data % ALIGNED
    return raw[begin:begin + size].view(dtype).reshape(shape)


def single(ours: Callable[[], np.ndarray], dtype: np.dtype) -> Read:
    """Parts of one array. ours: a view of it, made when it is needed."""

    def read(index: Index) -> np.ndarray:
        part = ours()[index]
        out = _empty(part.shape, dtype)
        out[...] = part
        return out

    return read


def stacked(ours: Sequence[Callable[[], np.ndarray]], shape: tuple[int, ...], dtype: np.dtype) -> Read:
    """Parts of the arrays of several layers, stacked along a new first axis. shape: of the stack."""

    def read(index: Index) -> np.ndarray:
        numbers = range(*index[0].indices(shape[0]))
        sizes = [len(range(*one.indices(size))) for one, size in zip(index[1:], shape[1:], strict=True)]
        out = _empty((len(numbers), *sizes), dtype)
        for part, n in zip(out, numbers, strict=True):
            part[...] = ours[n]()[index[1:]]
        return out

    return read


def whole(steps: tuple, shape: tuple[int, ...], read: Read) -> jax.Array:
    """The whole array on the default device."""
    return jax.block_until_ready(jnp.asarray(read((slice(None),) * len(shape))))


def divided(shardings: P.Tree) -> Place:
    """Each device's part of an array on that device, by a tree of shardings. Devices that hold the same part share one reading."""

    def place(steps: tuple, shape: tuple[int, ...], read: Read) -> jax.Array:
        where: Any = shardings
        for step in steps:
            where = where[step]
        owners: dict[tuple, list] = {}
        for device, index in where.addressable_devices_indices_map(shape).items():
            owners.setdefault(tuple(one.indices(size) for one, size in zip(index, shape, strict=True)), []).append(device)
        parts = []
        for bounds, devices in owners.items():
            part = read(tuple(slice(*bound) for bound in bounds))
            parts += [jax.block_until_ready(jax.device_put(part, device)) for device in devices]
        return jax.make_array_from_single_device_arrays(shape, where, parts)

    return place
