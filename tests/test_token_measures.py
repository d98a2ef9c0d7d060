"""Norms and attention of tokens, on planted cases whose answer is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax.analysis import attention, norms
from memtok_jax.models.vision.output import Counts
from memtok_jax.numerics import layer_norm

COUNTS = Counts(cls=1, registers=4, patches=9, added=0)


def mixture(rng, size, share, main, spread, second):
    """Log-normal norms around `main`, a share of them around `second`."""
    values = main * np.exp(spread * rng.standard_normal(size))
    count = round(share * size)
    values[:count] = second * np.exp(0.1 * rng.standard_normal(count))
    return values, count / size


# ------------------------------------------------------------------------------------------------------------- cut-off

@pytest.mark.parametrize("main, spread, second", [(45, 0.25, 450), (14, 0.15, 100), (50, 0.1, 260), (10, 0.03, 60)],
                         ids=["DINOv2-g-like", "DINOv2-L-like", "CLIP-like", "nothing-between"])
@pytest.mark.parametrize("size", [1024, 20_000])
def test_cutoff_lies_in_the_gap_and_counts_the_outliers(main, spread, second, size):
    for seed in range(5):
        values, share = mixture(np.random.default_rng(seed), size, 0.02, main, spread, second)
        found = norms.valley(values)
        assert found.found and main * 1.5 < found.value < second, found
        assert abs(norms.share_above(values, found.value) - share) <= 0.001


@pytest.mark.parametrize("draw", [
    lambda r, n: 50 + r.standard_normal(n), lambda r, n: np.exp(0.35 * r.standard_normal(n)),
    lambda r, n: np.exp(0.6 * r.standard_normal(n)), lambda r, n: np.abs(r.standard_t(3, n)),
], ids=["normal", "log-normal .35", "log-normal .6", "Student 3"])
def test_one_hump_has_no_cutoff(draw):
    for seed in range(20):
        for size in (1024, 8192):
            found = norms.valley(draw(np.random.default_rng(seed), size))
            assert not found.found and found.rule == "valley: no second mode", (seed, size, found)


def test_equal_norms_have_no_cutoff():
    assert not norms.valley(np.full(500, 3.0)).found


def test_fewer_than_twenty_tokens_are_no_mode():
    values, _ = mixture(np.random.default_rng(0), 2000, 0.005, 45, 0.2, 450)      # ten of them
    assert not norms.valley(values).found
    assert norms.fixed_shares(values)["5_medians"] == 0.005, "the fixed ratios still show them"


def test_fixed_shares_of_known_numbers():
    values = np.concatenate([np.full(50, 9.0), np.full(46, 11.0), [31.0, 31.0, 51.0, 160.0]])     # median 10, MAD 1
    assert norms.fixed_shares(values) == {"3_medians": 0.04, "5_medians": 0.02, "median_plus_6_mad": 0.04, "150": 0.01}


def test_max_over_median_is_by_image():
    values = np.array([[1.0, 2.0, 8.0], [5.0, 5.0, 5.0]])
    assert norms.max_over_median(values) == (4.0 + 1.0) / 2


def test_kurtosis_of_known_distributions():
    rng = np.random.default_rng(0)
    assert abs(norms.kurtosis(rng.standard_normal(100_000)) - 3) < 0.05
    assert norms.kurtosis(np.array([-1.0, 1.0] * 50)) == pytest.approx(1.0)
    assert norms.kurtosis(np.array([0.0] * 99 + [1.0])) == pytest.approx((0.99 * 0.01**4 + 0.01 * 0.99**4) / (0.0099**2))


def test_outliers_show_before_the_final_norm_only():
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((40, 64, 32))
    tokens[:, 7] *= 20
    before = np.linalg.norm(tokens, axis=-1)
    after = np.linalg.norm(np.asarray(layer_norm(jnp.asarray(tokens, jnp.float32))), axis=-1)
    cutoff = norms.valley(before)
    assert norms.share_above(before, cutoff.value) == 1 / 64 and not norms.valley(after).found
    shown = norms.position_map(before > cutoff.value, (8, 8))
    np.testing.assert_array_equal(shown, np.eye(64)[7].reshape(8, 8))


def test_neighbour_cosine_averages_the_neighbours_that_exist():
    x = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [1, 0], [0, 1]], float)[None]     # a grid of 2 x 3
    half = np.sqrt(0.5)
    expected = [(0 + 1) / 2, (0 + half + 0) / 3, (half + half) / 2, (1 + 1) / 2, (1 + 0 + 0) / 3, (half + 0) / 2]
    np.testing.assert_allclose(norms.neighbour_cosine(x, (2, 3))[0], expected, atol=1e-12)


def test_flat_images_repeat_themselves():
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.standard_normal((2, 1, 8)), 12, axis=1) * rng.uniform(1, 5, (2, 12, 1))
    np.testing.assert_allclose(norms.neighbour_cosine(flat, (3, 4)), 1.0)


# ----------------------------------------------------------------------------------------------------------- attention

T = sum(COUNTS)


def test_uniform_attention_has_no_sink():
    A = jnp.full((2, 3, T, T), 1 / T)
    np.testing.assert_allclose(attention.mass(A, COUNTS).sum(-1), attention.uniform_share(COUNTS), rtol=1e-6)
    np.testing.assert_allclose(attention.mass(A, COUNTS), 1 / T, rtol=1e-6)
    rates = attention.sink_rates(attention.largest_patch_share(A, COUNTS), T)
    assert rates["sink_rate_0.3"] == rates["sink_rate_10_over_T"] == 0
    assert rates["most_attended_over_uniform"] == pytest.approx(1.0)


def test_attention_to_one_patch_is_a_sink_wherever_it_is():
    for patch in (0, 8):
        A = jnp.zeros((2, 3, T, T)).at[..., 5 + patch].set(1.0)
        rates = attention.sink_rates(attention.largest_patch_share(A, COUNTS), T)
        assert rates == {"sink_rate_0.3": 1.0, "sink_rate_10_over_T": 1.0, "most_attended_over_uniform": T}
        assert attention.mass(A, COUNTS).sum() == 0


def test_a_register_is_not_a_patch():
    """All attention on register 2: all mass there, and no patch is a sink."""
    A = jnp.zeros((2, 3, T, T)).at[..., 1 + 2].set(1.0)
    np.testing.assert_array_equal(attention.mass(A, COUNTS), np.tile([0.0, 0, 1, 0], (2, 1)))
    assert attention.sink_rates(attention.largest_patch_share(A, COUNTS), T)["sink_rate_0.3"] == 0


def test_mass_by_the_tokens_that_ask():
    A = jax.random.dirichlet(jax.random.key(0), jnp.ones(T), (2, 3, T))
    rows = {"all": slice(None), "cls": slice(0, 1), "patches": slice(5, 14)}
    for name, where in rows.items():
        expected = np.asarray(A)[:, :, where, 1:5].mean((1, 2))
        np.testing.assert_allclose(attention.mass(A, COUNTS, queries=name), expected, rtol=1e-5)
    np.testing.assert_allclose(attention.received(A, COUNTS).sum(-1), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="queries='added': the model has no such tokens, only all, cls, registers, patches"):
        attention.received(A, COUNTS, "added")
