"""Products of two matrices whose derivatives are products of the same three kinds, so that each kind can be computed well.

    nn(a, b)   a b        derivatives   nt(g, b), tn(a, g)
    nt(a, b)   a b^T                    nn(g, b), tn(g, a)
    tn(a, b)   a^T b                    nt(b, g), nn(a, g)

XLA's CPU backend takes three to four times as long for a b^T as for a b where a has few rows (docs/log.md, 2026-11-30), and the
backward pass of a chunk of a memory is made of such products. There `nt` transposes what is smaller: b, or a and the result. The
compiler would turn that into a b^T again, so barriers hide the transpositions. On other devices, and for many rows, all three are
one product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

FEW = 128  # rows up to which a b^T is slow on a CPU


def _plain(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.result_type(a, b))


def _whole(a: jax.Array, b: jax.Array) -> jax.Array:
    return _plain(a, jnp.swapaxes(b, -1, -2))


def _turned(a: jax.Array) -> jax.Array:
    """[..., M, N] -> [..., N, M] as an array of its own."""
    return jax.lax.optimization_barrier(jnp.swapaxes(a, -1, -2))


def _by_copies(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b^T as a product without transpositions."""
    if b.size <= a.size + a.shape[-2] * b.size // b.shape[-1]:
        return _plain(a, _turned(b))
    return _turned(_plain(b, _turned(a)))


@jax.custom_vjp
def nn(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[..., M, K] b[..., K, N] -> [..., M, N]; both of one dtype and with the same leading axes."""
    return _plain(a, b)


@jax.custom_vjp
def nt(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[..., M, K] b[..., N, K]^T -> [..., M, N]."""
    if a.shape[-2] > FEW:
        return _whole(a, b)
    return jax.lax.platform_dependent(a, b, cpu=_by_copies, default=_whole)


@jax.custom_vjp
def tn(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[..., K, M]^T b[..., K, N] -> [..., M, N]."""
    return _plain(jnp.swapaxes(a, -1, -2), b)


nn.defvjp(lambda a, b: (nn(a, b), (a, b)), lambda kept, g: (nt(g, kept[1]), tn(kept[0], g)))
nt.defvjp(lambda a, b: (nt(a, b), (a, b)), lambda kept, g: (nn(g, kept[1]), tn(g, kept[0])))
tn.defvjp(lambda a, b: (tn(a, b), (a, b)), lambda kept, g: (nt(kept[1], g), nn(kept[0], g)))
