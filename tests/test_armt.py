"""ARMT: its memory stores, corrects and finds; the model equals its equations written as loops."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_rmt as reference
from neural_cases import assert_close, assert_equal, jit, random_params
from rmt_cases import LENGTHS, D, M, T, V, associative, call, scan_segments, setup, some_ids, some_segments, whole
from test_rmt import check_gradient

from memtok_jax import params as P
from memtok_jax.memory import armt as memory
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.models import rmt
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers import armt as layers
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.protocol import bind


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

def matrices(state) -> memory.ArmtState:
    """The memories of all layers."""
    return state.stack.layers[0].memory


@pytest.mark.parametrize("correction", [True, False])
def test_equals_the_loops(correction):
    """Logits, A and z of every layer over four segments, short and empty ones among them; gradients by differences.

    Differences feel gamma, which is constant for the gradient: they are compared where gamma is one (no correction).
    """
    with jax.enable_x64(True):
        cfg = associative(correction)
        params, _ = setup(cfg, 2, np.float64)
        ids, r, _, lengths, _ = some_segments()

        def ours(params):
            logits, state = scan_segments(params, cfg, ids, lengths)
            return (logits * r).sum(), (logits, matrices(state))

        run = ours if correction else jax.grad(ours, has_aux=True)
        gradient, (logits, found) = jit(run)(params)
        plain = jax.tree.map(np.asarray, params)

        def loops(params, b):
            parts = [ids[b, n, :size] for n, size in enumerate(LENGTHS[b])]
            return reference.associative(params, parts, 3, cfg.model.embedding_scale, correction)

        for b in range(2):
            got, A, z = loops(plain, b)
            for n, y in zip([n for n, size in enumerate(LENGTHS[b]) if size], got, strict=True):
                np.testing.assert_allclose(logits[b, n, :len(y)], y, rtol=0, atol=1e-10)
            np.testing.assert_allclose(found.matrix[:, b], A, rtol=0, atol=1e-10)
            np.testing.assert_allclose(found.normaliser[:, b], z, rtol=0, atol=1e-10)
        if not correction:
            def total(params):
                sums = 0.0
                for b in range(2):
                    full = [n for n, size in enumerate(LENGTHS[b]) if size]
                    sums += sum((y * r[b, n, :len(y)]).sum() for n, y in zip(full, loops(params, b)[0], strict=True))
                return sums

            check_gradient(gradient, plain, total)


def test_as_initialised_the_backbone_is_alone():
    """Memories as they are drawn: every segment as the bare decoder sees it, memory tokens or not. Only W_V is zero."""
    cfg = associative()
    params, state = setup(cfg, 2)
    (layer,) = params["model"]["layers"]
    layer = layer | {"memory": P.init_params(rmt.specs(cfg), jax.random.key(0))["model"]["layers"][0]["memory"]}
    params["model"] = params["model"] | {"layers": (layer,)}
    assert {name for name, w in layer["memory"].items() if not np.any(w)} == {"w_values", "b_beta"}
    ids = some_ids(2, 2 * T)
    y, _ = whole(params, state, ids, cfg)
    bare = bind(replace(cfg.model, pattern=(SegmentConfig(),), positions=cfg.stack.b.slots))
    inside = params["model"] | {"layers": ({name: w for name, w in layer.items() if name != "memory"},)}
    expected, _ = jit(bare.apply)(inside, bare.init_state(inside, 2), ids)
    assert_close(y, expected, 1e-6)


def test_state_is_float32_under_bfloat16_and_segments_reach_each_other():
    """A and z keep their dtype; the second segment's logits depend on the first through them alone."""
    cfg = associative(dtype="bfloat16")
    params = P.abstract(rmt.specs(cfg))
    shapes = jax.eval_shape(lambda p: rmt.init_state(p, cfg, 2), params)
    later = jax.eval_shape(lambda p, s, ids: rmt.run(p, s, ids, cfg)[1], params, shapes, some_ids(2, T + 1))
    for state in (shapes, later):
        assert matrices(state).matrix.dtype == matrices(state).normaliser.dtype == np.float32
    assert later.stack.layers[0].layer["segment"].k.dtype == jnp.bfloat16
    cfg = associative()
    params, state = setup(cfg, 2)
    ids = some_ids(2, 2 * T)
    _, one = whole(params, state, ids[:, :T], cfg)
    _, other = whole(params, state, (ids[:, :T] + 1) % V, cfg)
    second, third = (whole(params, s, ids[:, T:], cfg)[0] for s in (one, other))
    assert np.abs(second - third).max() > 1e-4
    assert_equal(one.memory, other.memory)


def test_memory_is_written_where_the_segment_ends():
    """A row in the middle of a segment keeps A and z, bit for bit; the row beside it, whose segment ends, does not."""
    cfg = associative()
    params, state = setup(cfg, 2)
    _, state = call(params, state, some_ids(2, T), cfg)
    _, after = call(params, state, some_ids(2, T, 1), cfg, np.array([T - 1, T]))
    kept, written = (jax.tree.map(lambda leaf, b=b: leaf[:, b], matrices(after)) for b in range(2))
    assert_equal(kept, jax.tree.map(lambda leaf: leaf[:, 0], matrices(state)))
    assert np.abs(written.matrix - matrices(state).matrix[:, 1]).max() > 1e-3


def test_a_layer_can_be_mapped_over_layers_side_by_side():
    """vmap of a layer over stacked arrays = one after the other: what a wavefront needs."""
    cfg = associative()
    params, state = setup(cfg, 2)
    b, (mixer,) = cfg.stack.b, cfg.model.pattern
    x = jnp.asarray(np.random.default_rng(6).standard_normal((2, 2, T + M, D)), jnp.float32)
    segment = Call(length=jnp.full((2,), T + M), closes=jnp.ones(2, bool), slot=jnp.zeros(2, jnp.int32), whole=True, tail=M)
    one = lambda p, s, x: layers.run(p, s, x, mixer, b, segment, {})[:2]
    (trees,), (carries,) = params["model"]["layers"], state.stack.layers
    side = jit(jax.vmap(one))(trees, carries, x)
    for l in range(2):
        at = lambda tree, l=l: jax.tree.map(lambda leaf: leaf[l], tree)
        assert_close(at(side), jit(one)(at(trees), at(carries), x[l]), 1e-5)


@pytest.mark.parametrize("options, message", [
    (dict(key_dim=0), "key_dim is 0; it must be at least 1"),
    (dict(key_dim=1), "nu=3 must be below 2 key_dim=2"),
    (dict(positions=5), "positions=5 is less than the 6 places"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(ValueError, match=message):
        associative(**options)


def test_a_matrix_needs_memory_tokens_behind_a_segment():
    pattern = (ArmtLayerConfig(ArmtConfig(D, 3)),)
    inside = LanguageModelConfig(width=D, head_dim=4, layers=2, segment=T, pattern=pattern)
    for options in (dict(tokens=0, form="suffix"), dict(tokens=2, form="prefix")):
        with pytest.raises(ValueError, match="armt layers are written by memory tokens"):
            rmt.RmtConfig(inside, **options)
