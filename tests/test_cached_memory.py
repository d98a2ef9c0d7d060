"""The caches as memories: what they hold after any stream is what lists of rows would hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_equal, jit, random_params

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.memory import compressive, xl
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.xl import XlConfig

D = 3


def numbered(first: int, count: int):
    """Rows of one stream, x[1, T, D], each of them D times its number (from 1)."""
    return jnp.broadcast_to(jnp.arange(first + 1, first + count + 1, dtype=jnp.float32)[None, :, None], (1, count, D))


def shown(module, state, cfg, **options) -> list[float]:
    """The real rows that a read gives, oldest first, one number each."""
    rows, real = module.read({}, state, cfg, **options)
    assert np.all(np.diff(np.asarray(real[0]).astype(int)) >= 0), "real rows stand together at the end"
    return np.asarray(rows[0, :, 0])[np.asarray(real[0])].tolist()


def written(module, cfg, lengths, params=None):
    """The state after calls of these lengths, and the number of rows written."""
    state, first = module.init_state({}, cfg, 1), 0
    for n in lengths:
        state = module.write(params or {}, state, numbered(first, n), cfg)
        first += n
    return state, first


@pytest.mark.parametrize("lengths", [(3,), (5,), (2, 2, 2), (1, 9), (8, 1), (4, 0, 4)], ids=str)
def test_the_cache_holds_the_last_rows(lengths):
    cfg = XlConfig(5, D)
    state, n = written(xl, cfg, lengths)
    assert shown(xl, state, cfg) == list(range(max(n - 5, 0) + 1, n + 1))


@pytest.mark.parametrize("length, compressed, rate, tokens", [(4, 4, 2, 4), (6, 2, 2, 4), (6, 5, 3, 3), (0, 3, 2, 4), (4, 3, 4, 8)])
@pytest.mark.parametrize("whole", [True, False])
def test_compressed_rows_are_means_of_the_stream(length, compressed, rate, tokens, whole):
    """T = n_m, T < n_m < 2T and others, while the memory fills and after: the c-means of what left, oldest first."""
    cfg = CompressiveConfig(length, compressed, rate, "mean", "none", width=D)
    state, kept, slots, first = compressive.init_state({}, cfg, 1), [], [], 0
    for _ in range(9):
        state = compressive.write({}, state, numbered(first, tokens), cfg, whole=whole)
        kept, first = kept + list(range(first + 1, first + tokens + 1)), first + tokens
        while len(kept) - length >= rate:
            slots, kept = slots + [float(np.mean(kept[:rate]))], kept[rate:]
        slots = slots[-compressed:]
        assert shown(compressive, state, cfg, whole=whole) == slots + kept
        assert len(slots) <= compressed and len(kept) <= length


def test_rows_wait_for_their_block():
    """One token at a time: at most a block less one waits, and after whole blocks nothing does."""
    cfg = CompressiveConfig(2, 3, 2, "mean", "none", width=D)
    state = compressive.init_state({}, cfg, 1)
    seen = []
    for t in range(7):
        state = compressive.write({}, state, numbered(t, 1), cfg)
        seen.append(shown(compressive, state, cfg))
    assert seen == [[1], [1, 2], [1, 2, 3], [1.5, 3, 4], [1.5, 3, 4, 5], [1.5, 3.5, 5, 6], [1.5, 3.5, 5, 6, 7]]


def test_identity_at_rate_one_is_a_longer_cache():
    cfg, longer = CompressiveConfig(3, 3, 1, "mean", "none", width=D), XlConfig(6, D)
    for lengths in ((2,), (3, 3), (5, 5), (3, 3, 3, 3)):
        assert shown(compressive, written(compressive, cfg, lengths)[0], cfg) == shown(xl, written(xl, longer, lengths)[0], longer)


def test_max_takes_the_largest_of_each_feature():
    cfg = CompressiveConfig(0, 2, 2, "max", "none", width=2)
    x = jnp.array([[[1.0, -5.0], [-2.0, 4.0], [0.0, 1.0], [3.0, -1.0]]])
    state = compressive.write({}, compressive.init_state({}, cfg, 1), x, cfg)
    np.testing.assert_array_equal(state.compressed.vectors[0], [[1, 4], [3, 1]])


def test_most_used_keeps_the_rows_that_were_looked_at():
    """Two of each block of four, in the order of time; of equal ones the oldest."""
    cfg = CompressiveConfig(0, 4, 2, "most_used", "none", block=4, width=D)
    state, x = compressive.init_state({}, cfg, 1), numbered(0, 8)
    empty = jnp.full(compressive.read({}, state, cfg)[1].shape, 9.0)
    usage = jnp.concatenate([empty, jnp.array([[0.1, 0.4, 0.0, 0.2, 0.3, 0.3, 0.3, 0.1]])], axis=1)
    state, _ = compressive.update({}, state, x, cfg, P.full_length(x), usage)
    assert shown(compressive, state, cfg) == [2, 4, 5, 6]


@pytest.mark.parametrize("compression, objective", [("conv", "autoencoding"), ("dilated", "none"), ("most_used", "none"),
                                                    ("max", "none")])
def test_any_cut_of_a_stream_gives_the_same_slots(compression, objective):
    """Learnt and chosen slots do not depend on the calls either."""
    cfg = CompressiveConfig(4, 4, 2, compression, objective, block=4, width=D)
    params = random_params(compressive.specs(cfg), 0, np.float32)
    whole, cut = (written(compressive, cfg, lengths, params)[0] for lengths in ((18,), (1, 3, 7, 2, 5)))
    assert_equal(cut.recent, whole.recent)
    assert_equal(cut.compressed.count, whole.compressed.count)
    np.testing.assert_allclose(cut.compressed.vectors, whole.compressed.vectors, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- the losses

def losses_of(cfg, calls=3):
    """Auxiliary loss of each call of four tokens, with attention that sums all real rows."""
    attend = lambda x, rows, real: jnp.where(real[..., None], rows, 0).sum(1, keepdims=True) * jnp.ones_like(x)
    params, state, out = random_params(compressive.specs(cfg), 0, np.float32), compressive.init_state({}, cfg, 1), []
    for n in range(calls):
        x = jnp.sin(numbered(4 * n, 4) * jnp.arange(1.0, D + 1)[None, None])
        state, seen = compressive.update(params, state, x, cfg, jnp.array([4]), None, attend)
        out.append(float(seen["auxiliary_loss"]))
    return out


def test_the_loss_is_zero_until_something_leaves():
    losses = losses_of(CompressiveConfig(4, 4, 2, "mean", width=D))
    assert losses[0] == 0 and losses[1] > 1e-3 and losses[2] > 1e-3
    losses = losses_of(CompressiveConfig(4, 4, 2, "conv", "autoencoding", width=D))
    assert losses[0] == 0 and losses[1] > 1e-3


def test_nothing_is_lost_at_rate_one():
    assert losses_of(CompressiveConfig(4, 4, 1, "mean", width=D)) == [0, 0, 0]


def test_auto_encoding_compares_with_what_left():
    """Equal to the squared difference, written out."""
    cfg = CompressiveConfig(0, 2, 2, "conv", "autoencoding", width=D)
    params = random_params(compressive.specs(cfg), 1, np.float32)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, D)), jnp.float32)
    _, seen = compressive.update(params, compressive.init_state({}, cfg, 1), x, cfg, jnp.array([2]))
    slot = x[0, :2].reshape(-1) @ params["kernel"] + params["bias"]
    decoded = (slot @ params["decoder"]["kernel"] + params["decoder"]["bias"]).reshape(2, D)
    np.testing.assert_allclose(seen["auxiliary_loss"], np.square(decoded - x[0, :2]).mean(), rtol=1e-5)


def test_gradients_stop_where_the_paper_stops_them():
    """Nothing flows into what is remembered; into the compression only under "bptt"."""
    x = numbered(0, 8)

    def reached(cfg):
        params = random_params(compressive.specs(cfg), 0, np.float32)

        def total(params, x):
            state = compressive.write(params, compressive.init_state({}, cfg, 1), x, cfg)
            return sum(jnp.square(rows).sum() for rows in (state.recent.vectors, state.compressed.vectors))

        of_params, of_x = jit(jax.grad(total, argnums=(0, 1)))(params, x)
        assert not np.any(of_x)
        return all(np.any(g) for g in jax.tree.leaves(of_params))

    assert not reached(CompressiveConfig(2, 3, 2, "conv", "attention", width=D))
    assert reached(CompressiveConfig(2, 3, 2, "conv", "bptt", width=D))
    assert not np.any(jax.grad(lambda x: xl.write({}, xl.init_state({}, XlConfig(4, D), 1), x, XlConfig(4, D)).vectors.sum())(x))


@pytest.mark.parametrize("options, message", [
    (dict(length=5), "memory.length=5 is not a multiple of the 2 vectors"),
    (dict(block=3), "memory.block=3 is not a multiple of memory.rate=2"),
    (dict(rate=0), "memory.rate is 0; it must be at least 1"),
    (dict(compression="average"), "memory.compression is 'average'; it must be one of mean"),
    (dict(compression="most_use"), "did you mean 'most_used'"),
    (dict(length=2.5), "memory.length is 2.5; it must be a whole number"),
    (dict(objective="atention"), "did you mean 'attention'"),
    (dict(length=-2), "memory.length is -2"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(UserError, match=message):
        CompressiveConfig(**(dict(length=4, compressed=4, rate=2) | options))


def test_a_whole_call_that_does_not_fit_names_both_numbers():
    cfg = CompressiveConfig(4, 4, 4, "mean", width=D)
    with pytest.raises(UserError, match="multiple of 4 tokens, got 6"):
        compressive.write({}, compressive.init_state({}, cfg, 1), numbered(0, 6), cfg, whole=True)
    with pytest.raises(ValueError, match="memory.length is -1"):
        XlConfig(-1)
