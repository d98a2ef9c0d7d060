"""Activations in bfloat16: the outputs stay near those in float32, and what sums over a stream is float32 all the same."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import MODELS, in_bfloat16, some_ids
from neural_cases import jit, random_params

from memtok_jax.models.protocol import bind

# The part of the carry that is added to over the stream. Caches and memory tokens are activations: they are stored as such.
SUMS = {"mac": lambda state: (state.layers[0]["mac"].memory, state.layers[0]["mac"].start), "transformer_xl": lambda state: (),
        "rmt": lambda state: (), "armt": lambda state: [layer.memory for layer in state.stack.layers]}


@pytest.mark.parametrize("name", SUMS)
def test_outputs_are_near_and_sums_are_float32(name):
    """Three segments; bfloat16 has eight bits, so that each product is off by up to 1/256."""
    full, half = bind(MODELS[name]), bind(in_bfloat16(MODELS[name]))
    params, ids = random_params(full.specs(), 0, np.float32), some_ids(2, 12)
    run = lambda model: jit(partial(model.apply, whole=True))(params, model.init_state(params, 2), ids)
    (want, _), (got, end) = run(full), run(half)
    assert got.dtype == np.float32
    scale = np.abs(want).max()
    assert 1e-5 * scale < np.abs(got - want).max() < 0.1 * scale
    sums = jax.tree.leaves(SUMS[name](end))
    assert all(leaf.dtype == np.float32 for leaf in sums if leaf.dtype not in (jnp.int32, jnp.bool_))
    others = {leaf.dtype for leaf in jax.tree.leaves(end)} - {leaf.dtype for leaf in sums} - {jnp.dtype(jnp.int32)}
    assert others <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
