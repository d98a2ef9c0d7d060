"""Specs describe everything: initial values, axes, decay, stacking, resets of rows, and ragged rows."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import params as P


def small_specs():
    return {"w": P.ParamSpec((4, 6), ("embed", "heads"), P.fan_in(0)),
            "b": P.ParamSpec((6,), ("heads",), P.zeros, decayed=False)}


class Pair(NamedTuple):
    first: object
    second: object


def state_specs(batch: int):
    """Leaves with the batch at different places."""
    second = P.StateSpec((2, batch), ("layers", "batch"), jnp.int32)
    return Pair(P.StateSpec((batch, 3), ("batch", None)), {"x": second})


def test_shapes_and_axes_must_agree():
    with pytest.raises(ValueError, match="2 dimensions, axes"):
        P.ParamSpec((4, 6), ("embed",), P.zeros)
    with pytest.raises(ValueError, match="exactly one axis called 'batch'"):
        P.StateSpec((4,), (None,))


def test_initial_values_follow_the_path():
    """A further parameter changes no other; equal keys give equal values; the scale is that of the initializer."""
    specs = small_specs()
    one = P.init_params(specs, jax.random.key(0))
    more = P.init_params({"a": P.ParamSpec((9,), (None,), P.normal(1.0)), **specs}, jax.random.key(0))
    np.testing.assert_array_equal(one["w"], more["w"])
    assert np.any(one["w"] != P.init_params(specs, jax.random.key(1))["w"])
    big = P.init_params({"w": P.ParamSpec((400, 300), (None, None), P.fan_in(0, 2.0))}, jax.random.key(0))["w"]
    np.testing.assert_allclose(np.std(big), 2 / 20, rtol=0.02)
    assert not np.any(one["b"])


def test_derived_trees():
    specs = small_specs()
    assert P.logical_axes(specs) == {"w": ("embed", "heads"), "b": ("heads",)}
    assert P.decay_mask(specs) == {"w": True, "b": False}
    assert P.abstract(specs)["w"] == jax.ShapeDtypeStruct((4, 6), jnp.float32)
    assert P.count(specs) == 30 and P.size_bytes(specs) == 120
    assert P.size_bytes(state_specs(5)) == 4 * (15 + 10)
    assert P.is_axes(("batch", None)) and not P.is_axes(Pair("batch", None))


def test_stack_draws_each_copy_anew():
    stacked = P.stack(small_specs(), 3)
    assert stacked["w"].shape == (3, 4, 6) and stacked["w"].axes == ("layers", "embed", "heads")
    w = P.init_params(stacked, jax.random.key(0))["w"]
    assert np.any(w[0] != w[1]) and np.any(w[1] != w[2])
    np.testing.assert_allclose(np.std(w), 0.5, rtol=0.3)  # fan-in of one copy, not of the stack
    assert P.stack(state_specs(2), 3).second["x"].axes == ("layers", "layers", "batch")


def test_reset_and_selection_of_rows():
    """Wherever a leaf has its batch axis; the other rows come back bit for bit."""
    specs = state_specs(4)
    state = jax.tree.map(lambda s: jnp.arange(s.size, dtype=s.dtype).reshape(s.shape) + 1, P.zero_state(specs))
    initial = jax.tree.map(lambda s: s - 100, state)
    after = P.reset(state, jnp.array([False, True, False, True]), initial, specs)
    np.testing.assert_array_equal(after.first[jnp.array([0, 2])], state.first[jnp.array([0, 2])])
    np.testing.assert_array_equal(after.first[1], initial.first[1])
    np.testing.assert_array_equal(after.second["x"][:, 3], initial.second["x"][:, 3])
    np.testing.assert_array_equal(after.second["x"][:, 2], state.second["x"][:, 2])


def test_zero_state_has_a_buffer_for_each_leaf():
    """Donated leaves must not share memory."""
    leaves = jax.tree.leaves(P.zero_state(Pair(*(P.StateSpec((3,), ("batch",)),) * 2)))
    assert leaves[0].unsafe_buffer_pointer() != leaves[1].unsafe_buffer_pointer()


def test_compact_moves_real_tokens_to_the_front_and_back():
    valid = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 9)) < 0.6)
    x = jnp.arange(45.0).reshape(5, 9)
    order, back, length = P.compact(valid)
    front = P.take_rows(x, order)
    for row in range(5):
        np.testing.assert_array_equal(front[row, :int(length[row])], np.asarray(x)[row][np.asarray(valid)[row]])
    np.testing.assert_array_equal(P.take_rows(front, back), x)


def test_masked_runs_on_the_real_tokens_only():
    """A running sum, with padding anywhere: padding is neither read nor written, and its outputs are zero."""
    def apply(params, state, x, cfg, length):
        real = jnp.arange(x.shape[1])[None] < length[:, None]
        total = state[:, None] + jnp.cumsum(jnp.where(real, x, 0), axis=1)
        return total, total[:, -1]

    valid = jnp.array([[False, True, True], [True, False, True]])
    y, end = P.masked(apply)((), jnp.zeros(2), jnp.array([[9.0, 1, 2], [3, 9, 4]]), valid, None)
    np.testing.assert_array_equal(y, [[0, 1, 3], [3, 0, 7]])
    np.testing.assert_array_equal(end, [3, 7])
