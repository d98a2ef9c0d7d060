"""The convolution of features, whose backward pass is written out, equals its definition in values and derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax.memory.neural.features import causal_conv


def by_definition(x, tail, kernel):
    """y_t = sum over i of kernel_i * (what came width - 1 - i tokens earlier)."""
    stream = jnp.concatenate([tail, x], axis=1)
    return jnp.stack([sum(kernel[i][None] * stream[:, t + i] for i in range(len(kernel))) for t in range(x.shape[1])], axis=1)


@pytest.mark.parametrize("features", [(3,), (2, 3)])
@pytest.mark.parametrize("width, tokens", [(1, 4), (4, 1), (4, 2), (3, 7)])
def test_values_gradients_and_gradients_of_these(features, width, tokens):
    with jax.enable_x64(True):
        rng = np.random.default_rng(width + tokens)
        x, tail, kernel, weight = (jnp.asarray(rng.standard_normal((*lead, *features)))
                                   for lead in ((2, tokens), (2, width - 1), (width,), (2, tokens)))

        def views(conv):
            loss = lambda *args: (jnp.sin(conv(*args)) * weight).sum()
            inner = lambda *args: sum(jnp.cos(g).sum() for g in jax.grad(loss, argnums=(0, 1, 2))(*args))
            return [conv(x, tail, kernel), *(jax.grad(f, argnums=(0, 1, 2))(x, tail, kernel) for f in (loss, inner))]

        ours = views(lambda *args: causal_conv(*args, jnp.full(2, tokens))[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), ours, views(by_definition))
