"""ARMT: its memory stores, corrects and finds; the model equals its equations written as loops."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_recurrent as reference
from neural_cases import assert_close, assert_equal, jit, random_params
from test_recurrent import check_gradient

from memtok_jax import params as P
from memtok_jax.memory import armt as memory
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.models import associative, decoder, masks, segments
from memtok_jax.models.associative import AssociativeConfig

V, T, M, D = 16, 4, 2, 8


def model(**options) -> AssociativeConfig:
    base = dict(vocabulary=V, width=D, layers=2, head_dim=4, hidden=12, segment=T, tokens=M, key_dim=3)
    return AssociativeConfig(**(base | options))


def setup(cfg, batch: int, dtype=np.float32):
    params = random_params(associative.specs(cfg), 0, dtype)
    return params, associative.init_state(params, cfg, batch)


def some_ids(batch: int, length: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(V, size=(batch, length)), jnp.int32)


apply = jit(associative.apply, static_argnums=3)


def call(params, state, ids, cfg, length=None):
    """`apply` with a length always given, so that one compilation serves."""
    length = np.full(ids.shape[0], ids.shape[1]) if length is None else length
    return apply(params, state, ids, cfg, jnp.asarray(length, jnp.int32))


# ------------------------------------------------------------------------------------------------------------ the memory

def identity(cfg: ArmtConfig):
    """Keys are the first coordinates, values the whole vector, and every write counts in full."""
    eye = jnp.eye(cfg.width)
    return {"w_query": eye[:, :cfg.key_dim], "w_key": eye[:, :cfg.key_dim], "w_values": eye,
            "w_beta": jnp.zeros((cfg.width, 1)), "b_beta": jnp.full((1,), 50.0)}


def fresh(params, cfg, batch=1):
    return memory.init_state(params, cfg, batch)


EVERY = jnp.ones(1, bool)


def test_dpfp_is_its_loop():
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    expected = np.stack([reference.dpfp(row, 3) for row in x])
    assert_close(memory.dpfp(jnp.asarray(x), 3), jnp.asarray(expected, jnp.float32), 1e-6)
    assert expected.shape == (3, 30)


def test_a_stored_value_is_found_and_a_new_one_replaces_it():
    """v (k k) / (k k + eps) after one write; the new value after a second with the same key, and z hardly grows."""
    cfg = ArmtConfig(width=6, key_dim=4, nu=2)
    params, rng = identity(cfg), np.random.default_rng(1)
    key = rng.standard_normal(4)
    first, second = (jnp.asarray(np.concatenate([key, rng.standard_normal(2)])[None, None], jnp.float32) for _ in range(2))
    phi = memory.features(first, params["w_query"], cfg)
    size = float(jnp.square(phi).sum())
    one = memory.write(params, fresh(params, cfg), first, cfg, EVERY)
    found, _ = memory.find(one, phi, cfg)
    np.testing.assert_allclose(found, first * size / (size + cfg.eps), rtol=1e-5)
    two = memory.write(params, one, second, cfg, EVERY)
    np.testing.assert_allclose(memory.find(two, phi, cfg)[0], second, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(two.normaliser, one.normaliser, rtol=1e-5)
    plain = memory.write(params, one, second, replace(cfg, correction=False), EVERY)
    np.testing.assert_allclose(plain.normaliser, 2 * one.normaliser, rtol=1e-6)


def test_the_first_write_is_told_by_data():
    """gamma = 1 exactly, also for a tiny key, where z = 0 alone would give nearly nothing; and nothing is read before it."""
    cfg = ArmtConfig(width=6, key_dim=4)
    params = identity(cfg)
    m = jnp.full((1, 1, 6), 0.02)
    state = memory.write(params, fresh(params, cfg), m, cfg, EVERY)
    k = memory.features(m, params["w_key"], cfg)[:, 0]
    assert float(jnp.square(k).sum()) < 0.2 * cfg.eps
    assert_equal(state.normaliser, k)
    assert_equal(memory.read(params, fresh(params, cfg), m, cfg), m)
    pretended = fresh(params, cfg)._replace(started=EVERY)
    assert np.abs(memory.write(params, pretended, m, cfg, EVERY).normaliser).max() < 0.2 * np.abs(k).max()


def test_gamma_is_bounded_and_has_no_gradient():
    cfg = ArmtConfig(width=D, key_dim=3)
    params = random_params(memory.specs(cfg), 0, np.float32)
    rng = np.random.default_rng(2)
    m = [jnp.asarray(rng.standard_normal((2, M, D)), jnp.float32) for _ in range(3)]
    rows = jnp.ones(2, bool)
    state = memory.write(params, fresh(params, cfg, 2), m[0], cfg, rows)

    def gamma(weight, m):
        k = memory.features(m, weight, cfg)
        return memory.growth(state, k, memory.find(state, k, cfg)[1], cfg)

    values = gamma(params["w_key"], m[1])
    assert (values >= 0).all() and (values <= 1).all() and np.ptp(values) > 0
    assert not np.any(jax.grad(lambda w: gamma(w, m[1]).sum())(params["w_key"]))
    # With gamma constant, z is linear in the keys: the gradient of z is gamma times that of the keys.
    of_z = jax.grad(lambda w: memory.write(params | {"w_key": w}, state, m[1], cfg, rows).normaliser.sum())(params["w_key"])
    of_k = jax.grad(lambda w: (values * memory.features(m[1], w, cfg)).sum())(params["w_key"])
    assert_close(of_z, of_k, 1e-5)


def test_a_dead_key_is_harmless():
    """phi = 0: reads and writes stay finite, and so do their gradients."""
    cfg = ArmtConfig(width=D, key_dim=3)
    params = random_params(memory.specs(cfg), 0, np.float32)
    zero = jnp.zeros((1, M, D))

    def total(params, m):
        state = memory.write(params, fresh(params, cfg), m, cfg, EVERY)
        state = memory.write(params, state, m, cfg, EVERY)
        return memory.read(params, state, m, cfg).sum() + sum(x.sum() for x in state[:2])

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(params, zero)))


def test_from_the_start_only_values_have_a_gradient():
    """With W_V = 0 nothing is found, whatever the keys and queries; W_V itself learns, so the memory comes alive."""
    cfg = ArmtConfig(width=D, key_dim=3)
    params = P.init_params(memory.specs(cfg), jax.random.key(0))
    m, x = jnp.asarray(np.random.default_rng(4).standard_normal((2, 1, M, D)), jnp.float32)

    def total(params):
        return jnp.sin(memory.read(params, memory.write(params, fresh(params, cfg), m, cfg, EVERY), x, cfg)).sum()

    size = {name: np.abs(g).max() for name, g in jax.grad(total)(params).items()}
    assert size.pop("w_values") > 1e-3 and not any(size.values())


def test_rows_of_a_write_are_interchangeable():
    """All of them see the old A and z."""
    cfg = ArmtConfig(width=D, key_dim=3)
    params = random_params(memory.specs(cfg), 0, np.float32)
    m = jnp.asarray(np.random.default_rng(3).standard_normal((1, 3, D)), jnp.float32)
    state = memory.write(params, fresh(params, cfg), m, cfg, EVERY)
    assert_close(memory.write(params, state, m[:, ::-1], cfg, EVERY), memory.write(params, state, m, cfg, EVERY), 2e-6)


# -------------------------------------------------------------------------------------------------------------- the model

LENGTHS = ((4, 2, 0, 3), (0, 4, 4, 1))


@pytest.mark.parametrize("correction", [True, False])
def test_equals_the_loops(correction):
    """Logits, A and z of every layer over four segments, short and empty ones among them; gradients by differences.

    Differences feel gamma, which is constant for the gradient: they are compared where gamma is one (no correction).
    """
    with jax.enable_x64(True):
        cfg = model(ends="call", correction=correction)
        params, state = setup(cfg, 2, np.float64)
        ids = np.random.default_rng(1).integers(V, size=(2, 4, T)).astype(np.int32)
        r = np.random.default_rng(2).standard_normal((*ids.shape, V))
        lengths = np.array(LENGTHS)
        real = np.arange(T)[None, None] < lengths[..., None]

        def ours(params):
            def one(state, x):
                logits, state = associative.apply(params, state, x[0], cfg, x[1])
                return state, logits

            xs = (jnp.moveaxis(jnp.asarray(ids), 1, 0), jnp.asarray(lengths.T, jnp.int32))
            state, logits = jax.lax.scan(one, associative.init_state(params, cfg, 2), xs)
            logits = jnp.where(real[..., None], jnp.moveaxis(logits, 0, 1), 0.0)
            return (logits * r).sum(), (logits, state.layers)

        gradient, (logits, layers) = jit(jax.grad(ours, has_aux=True))(params)
        plain = jax.tree.map(np.asarray, params)

        def loops(params, b):
            memories = {name.replace("w_query", "q").replace("w_key", "k").replace("w_values", "v"): w
                        for name, w in params["associative"].items() if not name.endswith("beta")}
            memories["beta"] = {"w": params["associative"]["w_beta"][..., 0], "b": params["associative"]["b_beta"][..., 0]}
            parts = [ids[b, n, :size] for n, size in enumerate(LENGTHS[b])]
            return reference.associative(params | {"associative": memories}, parts, cfg.nu, segments.scale(cfg), correction)

        for b in range(2):
            got, A, z = loops(plain, b)
            for n, y in zip([n for n, size in enumerate(LENGTHS[b]) if size], got, strict=True):
                np.testing.assert_allclose(logits[b, n, :len(y)], y, rtol=0, atol=1e-10)
            np.testing.assert_allclose(layers.matrix[:, b], A, rtol=0, atol=1e-10)
            np.testing.assert_allclose(layers.normaliser[:, b], z, rtol=0, atol=1e-10)
        if not correction:
            def total(params):
                sums = 0.0
                for b in range(2):
                    full = [n for n, size in enumerate(LENGTHS[b]) if size]
                    sums += sum((y * r[b, n, :len(y)]).sum() for n, y in zip(full, loops(params, b)[0], strict=True))
                return sums

            check_gradient(gradient, plain, total)


def test_as_initialised_the_backbone_is_alone():
    """Memories as they are drawn: every segment as the bare decoder sees it, memory rows or not. Only W_V is zero."""
    cfg = replace(model(), aligned=True)
    params, state = setup(cfg, 2)
    params["associative"] = P.init_params(associative.specs(cfg), jax.random.key(0))["associative"]
    assert {name for name, w in params["associative"].items() if not np.any(w)} == {"w_values", "b_beta"}
    ids = some_ids(2, 2 * T)
    first, state = call(params, state, ids[:, :T], cfg)
    second, _ = call(params, state, ids[:, T:], cfg)
    length, zero = jnp.full((2,), T, jnp.int32), jnp.zeros((2,), jnp.int32)
    view = decoder.View(masks.visible("causal", 0, T, 0, length, zero, 0), *masks.positions(0, T, 0, length, zero, 0))

    def bare(params, ids):
        x = decoder.embed(params, ids, cfg.decoder)
        h, _ = decoder.run(params, x, segments.no_past(cfg.decoder, 2), view, cfg.decoder)
        return decoder.output(params, h, cfg.decoder)

    run = jit(bare)
    assert_close(first, run(params["decoder"], ids[:, :T]), 1e-6)
    assert_close(second, run(params["decoder"], ids[:, T:]), 1e-6)


def test_state_is_float32_under_bfloat16_and_segments_reach_each_other():
    """A and z keep their dtype; the second segment's logits depend on the first through them alone."""
    cfg = model(dtype="bfloat16")
    shapes = jax.eval_shape(lambda p: associative.init_state(p, cfg, 2), jax.eval_shape(lambda: setup(cfg, 2)[0]))
    params = P.abstract(associative.specs(cfg))
    _, later = jax.eval_shape(lambda p, s, ids: associative.apply(p, s, ids, cfg), params, shapes, some_ids(2, T + 1))
    for state in (shapes, later):
        assert state.layers.matrix.dtype == state.layers.normaliser.dtype == np.float32
    assert later.open.past.k.dtype == jnp.bfloat16
    cfg = replace(model(), aligned=True)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 2 * T)
    _, one = call(params, state, ids[:, :T], cfg)
    _, other = call(params, state, (ids[:, :T] + 1) % V, cfg)
    second, third = (call(params, s, ids[:, T:], cfg)[0] for s in (one, other))
    assert np.abs(second - third).max() > 1e-4


def test_token_by_token_and_extension_equal_the_segments():
    """Streaming of two segments equals training; then the last one goes on without a write."""
    cfg = model(positions=3 * T)
    params, start = setup(cfg, 2)
    ids = some_ids(2, 2 * T)
    expected, state = [], start
    for n in range(2):
        y, state = call(params, state, ids[:, n * T:(n + 1) * T], replace(cfg, aligned=True))
        expected.append(y)
    rolled, outs = start, []
    for t in range(2 * T):
        y, rolled = call(params, rolled, ids[:, t:t + 1], cfg)
        outs.append(y)
    assert_close(jnp.concatenate(outs, 1), jnp.concatenate(expected, 1), 2e-5)
    assert_close(rolled.layers, state.layers, 2e-5)
    _, opened = call(params, start, ids[:, :1], cfg)
    opened, longer = associative.extend(opened, cfg, T)
    y, _ = call(params, opened, ids[:, 1:], longer)
    whole, _ = call(params, start, ids, replace(cfg, segment=2 * T, ends="call"))
    assert_close(y, whole[:, 1:], 2e-5)


def test_a_layer_can_be_mapped_over_layers_side_by_side():
    """vmap of `layer` over stacked arrays = one after the other: what a wavefront needs."""
    cfg = model()
    params, state = setup(cfg, 2)
    x = jnp.asarray(np.random.default_rng(6).standard_normal((2, 2, T + M, D)), jnp.float32)
    length, zero = jnp.full((2,), T, jnp.int32), jnp.zeros((2,), jnp.int32)
    view = decoder.View(masks.visible("causal", 0, T, M, length, zero, 0), *masks.positions(0, T, M, length, zero, 0))
    past, closes = segments.no_past(cfg.decoder, 2), jnp.ones(2, bool)
    trees = {"block": params["decoder"]["layers"], "memory": params["associative"]}
    one = lambda p, s, x, past: associative.layer(p, s, x, past, view, closes, cfg)
    side = jit(jax.vmap(one))(trees, state.layers, x, past)
    for l in range(2):
        at = lambda tree, l=l: jax.tree.map(lambda leaf: leaf[l], tree)
        assert_close(at(side), jit(one)(at(trees), at(state.layers), x[l], at(past)), 1e-5)


@pytest.mark.parametrize("options, message", [
    (dict(key_dim=0), "key_dim is 0; it must be at least 1"),
    (dict(key_dim=1), "nu=3 must be below 2 key_dim=2"),
    (dict(ends="cal"), "did you mean 'call'"),
    (dict(positions=5), "positions=5 is less than the 6 rows"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)
