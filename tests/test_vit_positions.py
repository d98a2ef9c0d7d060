"""Resizing a table of positions: properties of the matrices in every convention, and the rotation of patches."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax.models.vision import positions, rope
from memtok_jax.models.vision.config import CHOICES

MODES = CHOICES["interpolation"]
SIZES = [(4, 1), (4, 2), (4, 3), (4, 7), (16, 5), (16, 37), (37, 16)]


def table(rows: int, columns: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((rows, columns, 3)), jnp.float32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{s[0]}-{s[1]}")
def test_rows_sum_to_one(sizes, mode):
    """So a constant table stays constant."""
    np.testing.assert_allclose(positions.resize_matrix(*sizes, mode).sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_own_grid_is_untouched(mode):
    """Also in the mode whose matrix of equal sizes is not the identity; and equal numbers of patches are not equal grids."""
    own = table(4, 4)
    assert positions.resize(own, (4, 4), mode) is own
    same_count = positions.resize(own, (2, 8), mode)
    assert same_count.shape == (2, 8, 3) and np.abs(np.asarray(same_count).reshape(4, 4, 3) - own).max() > 0.1
    identity = np.abs(positions.resize_matrix(4, 4, mode) - np.eye(4)).max() < 1e-12
    assert identity == (mode != "offset_noaa")


@pytest.mark.parametrize("mode", MODES)
def test_transposition_commutes(mode):
    own = table(5, 3)
    turned = positions.resize(own.swapaxes(0, 1), (2, 9), mode).swapaxes(0, 1)
    np.testing.assert_allclose(positions.resize(own, (9, 2), mode), turned, atol=1e-6)


def test_a_ramp_stays_a_ramp_inside_with_one_half_only():
    """Keys' kernel reproduces straight lines at a = -1/2 and at no other a: the two kernels are told apart."""
    centres = (np.arange(16) + 0.5) / 2 - 0.5
    inside = slice(4, 12)
    for mode, straight in (("size_aa", True), ("size_noaa", False)):
        found = positions.resize_matrix(8, 16, mode) @ np.arange(8.0)
        assert (np.abs(found - centres)[inside].max() < 1e-12) == straight, mode


def test_kernel_interpolates():
    """1 at 0, 0 at the other whole numbers, and continuous where the pieces meet."""
    for a in (-0.5, -0.75):
        np.testing.assert_allclose(positions.cubic(np.array([0, 1, -1, 2, -2, 3.0]), a), [1, 0, 0, 0, 0, 0], atol=1e-15)
        for border in (1.0, 2.0):
            left, right = positions.cubic(np.array([border - 1e-9, border + 1e-9]), a)
            assert abs(left - right) < 1e-7


def direct(source: int, target: int, mode: str) -> np.ndarray:
    """The same weights from their definition, position by position over a line that goes on beyond the borders."""
    out = np.zeros((target, source))
    for i in range(target):
        scale = source / (target + 0.1) if mode == "offset_noaa" else source / target
        at = (i + 0.5) * scale - 0.5
        wide = max(scale, 1.0) if mode == "size_aa" else 1.0
        for j in range(-3 * source, 4 * source):
            weight = float(positions.cubic(np.float64((j - at) / wide), -0.5 if mode == "size_aa" else -0.75))
            if mode != "size_aa":
                out[i, np.clip(j, 0, source - 1)] += weight
            elif 0 <= j < source:
                out[i, j] += weight
    return out / out.sum(1, keepdims=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", SIZES[:5], ids=lambda s: f"{s[0]}-{s[1]}")
def test_matrix_equals_its_definition(sizes, mode):
    np.testing.assert_allclose(positions.resize_matrix(*sizes, mode), direct(*sizes, mode), atol=1e-12)


# --------------------------------------------------------------------------------------------------------- rotation

def test_rotation_leaves_the_prefix_and_keeps_norms():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2 + 6 + 1, 2, 8)), jnp.float32)
    turned = rope.rotate(x, rope.rotation((2, 3), 2, 1, 8, 100.0))
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    np.testing.assert_array_equal(turned[:, -1:], x[:, -1:])
    assert np.abs(np.asarray(turned - x))[:, 2:-1].max() > 0.5
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


def test_scores_depend_on_differences_of_coordinates():
    """<R(a) q, R(b) k> = <R(a + d) q, R(b + d) k>: shifting both patches by one cell changes nothing."""
    rng = np.random.default_rng(1)
    q, k = (np.tile(rng.standard_normal(8), (1, 20, 1, 1)) for _ in range(2))
    by = rope.rotation((4, 5), 0, 0, 8, 100.0)
    turn = lambda x: np.asarray(rope.rotate(jnp.asarray(x, jnp.float32), by))[0, :, 0].reshape(4, 5, 8)
    a, b = turn(q), turn(k)
    np.testing.assert_allclose((a[0, 1] * b[2, 3]).sum(), (a[1, 2] * b[3, 4]).sum(), atol=2e-5)
    assert abs((a[0, 1] * b[2, 3]).sum() - (a[0, 1] * b[3, 2]).sum()) > 0.1


def test_angles_of_a_small_grid_by_hand():
    """One row of two patches, K = 4, base 100: one frequency 2 pi; rows at 0, columns at -1/2 and 1/2."""
    expected = np.pi * np.array([[0, -1, 0, -1], [0, 1, 0, 1]])
    np.testing.assert_allclose(rope.angles((1, 2), 4, 100.0), expected, atol=1e-12)
    np.testing.assert_allclose(rope.angles((1, 2), 8, 100.0)[1], np.pi * np.array([0, 0, 1, 0.1] * 2), atol=1e-12)
