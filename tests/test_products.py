"""The three products equal one product, in values and in derivatives of any order, and by copies as well as whole."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import products

PLAIN = {"nn": "mk,kn->mn", "nt": "mk,nk->mn", "tn": "km,kn->mn"}
KINDS = tuple(PLAIN)


def operands(kind: str, m: int, k: int, n: int) -> tuple[jax.Array, jax.Array]:
    rng, size = np.random.default_rng(m + k + n), dict(m=m, k=k, n=n)
    left, right = PLAIN[kind].split("->")[0].split(",")
    return tuple(jnp.asarray(rng.standard_normal([size[axis] for axis in axes])) for axes in (left, right))


def views(f, a, b):
    """Value, gradient, and the gradient of a function of the gradient, as an inner loop has it."""
    loss = lambda a, b: jnp.sin(f(a, b)).sum()
    inner = lambda a, b: sum(jnp.cos(g).sum() for g in jax.grad(loss, argnums=(0, 1))(a, b))
    return [f(a, b), jax.grad(loss, argnums=(0, 1))(a, b), jax.grad(inner, argnums=(0, 1))(a, b)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(3, 5, 4), (4, 2, 9), (products.FEW + 1, 3, 2)])
def test_each_equals_a_product(kind, sizes):
    with jax.enable_x64(True):
        a, b = operands(kind, *sizes)
        ours, plain = (jax.jit(partial(views, f))(a, b) for f in (getattr(products, kind), partial(jnp.einsum, PLAIN[kind])))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11), ours, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_so_does_each_of_many(kind):
    """Over heads and rows, of which one operand may have none."""
    with jax.enable_x64(True):
        a, b = operands(kind, 3, 5, 4)
        rows = jnp.stack([a, 2 * a, a - 1])
        of = lambda f: jax.vmap(lambda a, b: views(f, a, b), in_axes=(0, None))(rows, b)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11), of(getattr(products, kind)),
                     of(partial(jnp.einsum, PLAIN[kind])))


def test_few_rows_are_multiplied_without_a_transposed_operand():
    """What makes it fast: in the backward pass of a few rows the compiler is left no product that contracts the last axis of b."""
    a, b = operands("nn", 16, 8, 12)
    backward = jax.jit(jax.grad(lambda a, b: jnp.square(products.nn(a, b)).sum(), argnums=0))
    transposed = lambda f: "rhs_contracting_dims={1}" in f.lower(a, b).compile().as_text()
    assert not transposed(backward)
    assert transposed(jax.jit(jax.grad(lambda a, b: jnp.square(a @ b).sum(), argnums=0)))
