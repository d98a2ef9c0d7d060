"""Shortcuts of `numerics` change speed and memory, never values: spread weights, products of many axes, recomputation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import numerics as N


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


@pytest.mark.parametrize("like, weight", [((3, 5, 4), (4,)), ((2, 3, 2, 4), (2, 4)), ((4,), (4,)), ((1, 1, 4), (4,))])
def test_a_spread_weight_is_a_broadcast_one(like, weight):
    """In values, gradient, gradient of the gradient, and in forward mode."""
    with jax.enable_x64(True):
        x, w = draw(*like), draw(*weight)
        by_product = lambda w: jnp.sin(x * N.spread(w, x)).sum()
        by_broadcast = lambda w: jnp.sin(x * N.lift(w, x)).sum()
        for of in (lambda f: f, jax.grad, lambda f: jax.grad(lambda w: jnp.square(jax.grad(f)(w)).sum()), jax.jacfwd):
            np.testing.assert_allclose(of(by_product)(w), of(by_broadcast)(w), rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_spread_weight_is_a_product():
    """What makes it fast: the sum over rows is no reduction but a product."""
    x, g, w = jnp.ones((3, 5, 4)), jnp.ones((3, 5, 4)), jnp.ones(4)
    operations = lambda repeat: {eqn.primitive.name for eqn in jax.make_jaxpr(lambda g: jax.vjp(lambda w: repeat(w, x), w)[1](g))(
        g).jaxpr.eqns}
    assert "reduce_sum" in operations(lambda w, x: jnp.broadcast_to(N.lift(w, x), x.shape))
    assert "dot_general" in operations(N.spread) and "reduce_sum" not in operations(N.spread)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
def test_products_of_many_axes(lead):
    """Flattened or not, a product and both its gradients are the same."""
    with jax.enable_x64(True):
        a, b = draw(*lead, 4), draw(4, 5)
        ours = jax.value_and_grad(lambda a, b: jnp.sin(N.matmul(a, b, "float32")).sum(), argnums=(0, 1))(a, b)
        plain = jax.value_and_grad(lambda a, b: jnp.sin(jnp.einsum("...i,ij->...j", a, b)).sum(), argnums=(0, 1))(a, b)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12), ours, plain)
        assert N.matmul(a, b, "float32").shape == (*lead, 5)


@pytest.mark.parametrize("remat, products", [("pointwise", 1), ("block", 0)])
def test_recomputation_keeps_what_it_says(remat, products):
    """Beside its arguments, "pointwise" keeps the product, "block" nothing; without either the tanh is kept as well."""
    x, w = draw(3, 4), draw(4, 5)
    f = lambda x, w: jnp.sin(jnp.tanh(x @ w)).sum()
    kept = lambda f: sum(leaf.shape == (3, 5) for leaf in jax.tree.leaves(jax.vjp(f, x, w)[1]))
    assert kept(N.recompute(f, remat)) == products < kept(f)
    gradient = lambda f: jax.grad(f, argnums=(0, 1))(x, w)
    jax.tree.map(np.testing.assert_array_equal, gradient(N.recompute(f, remat)), gradient(f))
