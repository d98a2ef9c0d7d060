"""The autoencoder: what it decodes comes from one vector, and the contract of a model that cannot be cut."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import MODELS, WINDOW, model, some_ids
from neural_cases import jit

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.models.autoencoder import AutoencoderConfig
from memtok_jax.models.protocol import bind

MODEL = bind(AutoencoderConfig(model(WINDOW, segment=0)))


def test_all_that_is_decoded_passes_through_the_last_token():
    """A padded row decodes as the short row does, whatever the padding; every parameter is taught."""
    params, ids, length = MODEL.init(jax.random.key(0)), some_ids(2, 8), jnp.array([8, 5])

    def sums(params, ids):
        y = MODEL.apply(params, MODEL.init_state(params, 2), ids, length)[0]
        return jnp.square(y).sum(), y

    run = jit(jax.value_and_grad(sums, has_aux=True))
    (_, y), gradient = run(params, ids)
    assert y.shape == (2, 8, MODEL.vocabulary) and y.dtype == jnp.float32
    (_, other), _ = run(params, ids.at[1, 5:].set(3))
    np.testing.assert_array_equal(y[1], other[1])
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradient) if g.size and not jnp.any(g != 0)]
    assert not dead, dead


def test_it_states_what_every_model_states():
    params = P.abstract(MODEL.specs())
    state = jax.eval_shape(lambda p: MODEL.init_state(p, 3), params)
    y, after = jax.eval_shape(MODEL.apply, params, state, jax.ShapeDtypeStruct((3, 8), jnp.int32))
    signature = lambda tree: jax.tree.map(lambda s: (s.shape, s.dtype), tree)   # noqa: E731
    assert y.shape == (3, 8, 16) and signature(after) == signature(state)
    assert (MODEL.vocabulary, MODEL.reach, MODEL.segment) == (16, 1, 0) and MODEL.call_tokens == 1
    with pytest.raises(UserError, match="style.positions='table'"):
        AutoencoderConfig(MODELS["segment"])
