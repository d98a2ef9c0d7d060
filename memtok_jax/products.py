"""Products of two matrices whose derivatives are products of the same three kinds, so that each kind can be computed well.

    nn(a, b)   a b        derivatives   nt(g, b), tn(a, g)
    nt(a, b)   a b^T                    nn(g, b), tn(g, a)
    tn(a, b)   a^T b                    nt(b, g), nn(a, g)

XLA's CPU backend takes three to four times as long for a b^T as for a b where a has few rows (docs/log.md, 2026-11-30), and the
backward pass of a chunk of a memory is made of such products. There `nt` transposes what is smaller: b, or a and the result. The
compiler would turn that into a b^T again, so barriers hide the transpositions. On other devices, and for many rows, all three are
one product.

Each is a primitive of JAX, because it is bilinear: derivatives of any order and in both modes follow from the table, which a
function with a backward pass of its own (`jax.custom_vjp`) does not give under `vmap` in jax 0.10.2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

FEW = 128  # rows up to which a b^T is slow on a CPU


def _plain(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=a.dtype)


def _swap(a: jax.Array) -> jax.Array:
    """[..., M, N] -> [..., N, M]."""
    return jnp.swapaxes(a, -1, -2)


def _turned(a: jax.Array) -> jax.Array:
    """The same as an array of its own."""
    return jax.lax.optimization_barrier(_swap(a))


def _by_copies(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b^T, of few rows as a product without transpositions."""
    if a.shape[-2] > FEW:
        return _plain(a, _swap(b))
    if b.size <= a.size + a.size // a.shape[-1] * b.shape[-2]:
        return _plain(a, _turned(b))
    return _turned(_plain(b, _turned(a)))


def _primitive(name: str, compute: Callable, shape: Callable, on_cpu: Callable | None = None) -> Primitive:
    """compute, on_cpu: what the operation is, (a, b) -> array. shape: of its result, from the shapes of both."""
    one = Primitive(name)
    one.def_impl(lambda a, b: jax.jit(one.bind)(a, b))
    one.def_abstract_eval(lambda a, b: jax.core.ShapedArray(shape(a.shape, b.shape), a.dtype))
    mlir.register_lowering(one, mlir.lower_fun(compute, multiple_results=False))
    if on_cpu:
        mlir.register_lowering(one, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")

    def over_many(operands, axes):
        size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
        ahead = lambda x, axis: jnp.broadcast_to(x[None], (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        return one.bind(*map(ahead, operands, axes)), 0

    batching.primitive_batchers[one] = over_many
    return one


_nn = _primitive("product_nn", _plain, lambda a, b: (*a[:-1], b[-1]))
_nt = _primitive("product_nt", lambda a, b: _plain(a, _swap(b)), lambda a, b: (*a[:-1], b[-2]), _by_copies)
_tn = _primitive("product_tn", lambda a, b: _plain(_swap(a), b), lambda a, b: (*a[:-2], a[-1], b[-1]))


def nn(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[..., M, K] b[..., K, N] -> [..., M, N]; both of one dtype and with the same leading axes."""
    return _nn.bind(a, b)


def nt(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[..., M, K] b[..., N, K]^T -> [..., M, N]."""
    return _nt.bind(a, b)


def tn(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[..., K, M]^T b[..., K, N] -> [..., M, N]."""
    return _tn.bind(a, b)


ad.defbilinear(_nn, lambda g, a, b: nt(g, b), lambda g, a, b: tn(a, g))
ad.defbilinear(_nt, lambda g, a, b: nn(g, b), lambda g, a, b: tn(g, a))
ad.defbilinear(_tn, lambda g, a, b: nt(b, g), lambda g, a, b: nn(a, g))
