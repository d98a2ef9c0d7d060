"""Probes on features whose content is known."""

from __future__ import annotations

import numpy as np
import pytest

from memtok_jax.analysis import probes

GRID = (4, 6)
CELLS = GRID[0] * GRID[1]


def tokens_of(images: int):
    """(image number, cell) of every patch token of so many images."""
    return np.repeat(np.arange(images), CELLS), np.tile(np.arange(CELLS), images)


def test_parts_divide_images_not_tokens():
    images, _ = tokens_of(10)
    parts = probes.parts_of(images)
    assert (np.stack(parts).sum(0) == 1).all()
    for part in parts:
        assert not set(images[part]) & set(images[~part])


def test_position_from_one_hot_features_is_exact():
    images, cells = tokens_of(10)
    found = probes.position(np.eye(CELLS)[cells], cells, GRID, probes.parts_of(images))
    assert found.right.all() and found.distance.max() == 0


def test_position_from_two_coordinates_is_exact():
    """24 classes in 2 dimensions: least squares on one-hot targets could only ever name those at the border."""
    images, cells = tokens_of(20)
    noise = 0.01 * np.random.default_rng(0).standard_normal((len(cells), 2))
    found = probes.position(np.stack(np.divmod(cells, GRID[1]), 1) + noise, cells, GRID, probes.parts_of(images))
    assert found.right.mean() == 1.0


def test_position_from_noise_is_chance():
    images, cells = tokens_of(200)
    parts = probes.parts_of(images)
    found = probes.position(np.random.default_rng(0).standard_normal((len(cells), 8)), cells, GRID, parts)
    n = parts.score.sum()
    error = np.sqrt((1 / CELLS) * (1 - 1 / CELLS) / n)
    assert abs(found.right[parts.score].mean() - 1 / CELLS) < 3 * error
    # Two independent cells of 4 x 6 lie so far apart on average; predictions from noise need not be uniform.
    assert 1.5 < found.distance[parts.score].mean() < 3.5


def test_distance_is_in_patches():
    """A feature that names the column alone: the row is guessed, the column never wrong."""
    images, cells = tokens_of(10)
    rows, columns = np.divmod(cells, GRID[1])
    found = probes.position(np.eye(GRID[1])[columns], cells, GRID, probes.parts_of(images))
    guessed = rows[found.distance.argmin()]
    np.testing.assert_array_equal(found.distance, np.abs(rows - guessed))


def test_pixels_through_a_linear_map_come_back():
    rng = np.random.default_rng(0)
    images, _ = tokens_of(20)
    content = rng.standard_normal((len(images), 5))
    features, shown = content @ rng.standard_normal((5, 7)) + 3, content @ rng.standard_normal((5, 12)) - 1
    assert probes.pixels(features, shown, probes.parts_of(images)).max() < 1e-2
    blind = probes.pixels(rng.standard_normal((len(images), 7)), shown, probes.parts_of(images))
    np.testing.assert_allclose(np.square(blind).mean(), np.square(shown - shown.mean(0)).sum(1).mean(), rtol=0.1)


def test_ridge_is_that_of_the_normal_equations():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 4)) * [1, 2, 3, 4] + 5, rng.standard_normal((100, 2))
    parts = probes.parts_of(np.arange(100))
    model = probes.regress(x, y, parts)
    assert model.strength in probes.STRENGTHS
    fit = (x[parts.fit] - x[parts.fit].mean(0)) / x[parts.fit].std(0)
    centred = y[parts.fit] - y[parts.fit].mean(0)
    expected = np.linalg.solve(fit.T @ fit + parts.fit.sum() * model.strength * np.eye(4), fit.T @ centred)
    np.testing.assert_allclose(model.weights, expected, rtol=1e-9)


def test_a_constant_feature_changes_nothing():
    images, cells = tokens_of(10)
    x = np.eye(CELLS)[cells]
    padded = np.concatenate([x, np.full((len(x), 1), 7.0)], 1)
    a, b = (probes.discriminate(f, cells, CELLS, probes.parts_of(images))(f) for f in (x, padded))
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("separation, least, most", [(8.0, 1.0, 1.0), (0.0, 0.0, 0.45)])
def test_class_from_one_token(separation, least, most):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    tokens = rng.standard_normal((500, 6, 3)) + separation * rng.standard_normal((4, 1, 3))[labels]
    one = probes.one_of(tokens, np.ones((500, 6), bool), np.zeros(500, int), seed=0)
    assert least <= probes.image_class(one, labels, 4) <= most


def test_one_token_is_drawn_among_those_marked():
    tokens = np.arange(12.0).reshape(2, 6, 1)
    marked = np.zeros((2, 6), bool)
    marked[0, [2, 5]] = True
    drawn = np.stack([probes.one_of(tokens, marked, np.array([0, 4]), seed) for seed in range(20)])[..., 0]
    assert set(drawn[:, 0]) == {2.0, 5.0} and set(drawn[:, 1]) == {6 + 4.0}, "none is marked: the fallback"
    np.testing.assert_array_equal(drawn[3], probes.one_of(tokens, marked, np.array([0, 4]), 3)[:, 0])
