"""LOST against planted objects and against a literal loop; components; CorLoc."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax.analysis import discovery


def flood(mask: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """The 4-connected component of a cell, by walking from cell to cell."""
    out, waiting = np.zeros_like(mask), [start]
    while waiting:
        y, x = waiting.pop()
        if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not out[y, x]:
            out[y, x] = True
            waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return out


def box_of(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else [0, 0, 0, 0]


def literal_lost(features, grid, bias, k):
    """LOST as its paper writes it, in loops: (box, seed, object, valid)."""
    gram = features @ features.T + bias
    n = len(features)
    degree = [sum(gram[i, j] > 0 for j in range(n) if j != i) for i in range(n)]
    order = sorted(range(n), key=lambda i: (degree[i], i))
    seed = order[0]
    similar = [q for q in order[:k] if gram[seed, q] > 0]
    mask = np.array([sum((gram[q, j] for q in similar), 0.0) > 0 for j in range(n)]).reshape(grid)
    start = divmod(seed, grid[1])
    inside = flood(mask, start) if mask[start] else np.zeros(grid, bool)
    return box_of(inside), seed, inside, bool(mask[start])


def planted(grid, box, rng, width=8):
    """Features: the object's patches share u, the others v, with u . v < 0."""
    u = rng.standard_normal(width)
    v = -0.4 * u + 0.1 * rng.standard_normal(width)
    features = np.tile(v, (*grid, 1))
    x0, y0, x1, y1 = box
    features[y0:y1, x0:x1] = u
    return features.reshape(-1, width).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_planted_object_is_boxed_wherever_it_is(k):
    grid, rng = (6, 8), np.random.default_rng(0)
    boxes = [(x, y, x + 3, y + 2) for x in range(6) for y in range(5)]
    features = jnp.stack([planted(grid, box, rng) for box in boxes])
    found = jax.vmap(lambda f: discovery.lost(f, grid, k=k))(features)
    assert found.valid.all()
    np.testing.assert_array_equal(found.box, boxes)
    for scale in (1e-3, 40.0):
        scaled = jax.vmap(lambda f: discovery.lost(f, grid, k=k))(scale * features)
        np.testing.assert_array_equal(scaled.box, boxes)


def test_of_two_objects_the_seeds_is_boxed():
    grid, rng = (6, 8), np.random.default_rng(1)
    features = planted(grid, (5, 3, 8, 6), rng).reshape(*grid, -1)
    features[0:2, 0:2] = features[4, 6]
    found = discovery.lost(jnp.asarray(features.reshape(48, -1)), grid)
    np.testing.assert_array_equal(found.box, [0, 0, 2, 2])
    assert found.seed == 0, "of equal degrees the lowest index"


@pytest.mark.parametrize("bias", [0.0, -3.0, 2.0])
@pytest.mark.parametrize("k", [5, 100])
def test_jitted_equals_the_literal_loops(bias, k):
    rng, grid = np.random.default_rng(2), (7, 9)
    features = rng.standard_normal((6, 63, 16)).astype(np.float32)
    features[3:] += 3 * rng.standard_normal((3, 1, 16))            # half of the cases with more in common
    found = jax.vmap(lambda f: discovery.lost(f, grid, bias, k))(jnp.asarray(features))
    for i in range(6):
        box, seed, inside, valid = literal_lost(features[i].astype(np.float64), grid, bias, k)
        assert (int(found.seed[i]), bool(found.valid[i])) == (seed, valid)
        np.testing.assert_array_equal(found.object[i], inside)
        np.testing.assert_array_equal(found.box[i], box)


def test_a_seed_outside_the_mask_is_marked():
    """A bias so low that no patch is like any other, not even like itself."""
    found = discovery.lost(jnp.ones((12, 2)), (3, 4), bias=-100.0)
    assert not found.valid and not found.object.any()
    np.testing.assert_array_equal(found.box, [0, 0, 0, 0])


def test_components_of_snakes_and_noise():
    snake = np.zeros((7, 7), bool)
    snake[::2] = True
    snake[1, 6] = snake[3, 0] = snake[5, 6] = True
    masks = [snake, np.zeros((3, 4), bool), np.ones((4, 3), bool), *(np.random.default_rng(0).random((4, 9, 9)) < 0.55)]
    for mask in masks:
        labels = np.asarray(discovery.components(jnp.asarray(mask)))
        assert (labels[~mask] == mask.size).all()
        for y, x in zip(*np.nonzero(mask), strict=True):
            inside = flood(mask, (y, x))
            np.testing.assert_array_equal(labels == labels[y, x], inside)
            assert labels[y, x] == np.flatnonzero(inside)[0]


def test_attention_object_keeps_the_top_share_and_its_largest_part():
    attention = np.zeros((4, 5))
    attention[0, 0] = 0.3                       # the highest single value stands alone
    attention[2:4, 2:4] = 0.1
    attention[1, 1] = 0.29                      # the share of 0.95 reaches all of these
    found = discovery.attention_object(jnp.asarray(attention.ravel()), (4, 5), 0.95)
    np.testing.assert_array_equal(found.box, [2, 2, 4, 4])
    only_top = discovery.attention_object(jnp.asarray(attention.ravel()), (4, 5), 0.2)
    np.testing.assert_array_equal(only_top.box, [0, 0, 1, 1])


def test_boxes_end_with_the_image():
    """An image of 50 x 61 pixels is padded to 4 x 5 patches of 14; its box is not."""
    np.testing.assert_array_equal(discovery.pixel_box(np.array([3, 2, 5, 4]), 14, (50, 61)), [42, 28, 61, 50])
    np.testing.assert_array_equal(discovery.pixel_box(np.array([[0, 0, 1, 1]]), 14, (50, 61)), [[0, 0, 14, 14]])


def test_overlap_and_corloc_by_hand():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 5]])
    np.testing.assert_allclose(discovery.overlap([0, 0, 10, 10], boxes), [1, 50 / 150, 0, 0.5])
    truth = [boxes[1:], boxes[:0], boxes[2:3]]
    guessed = np.array([[0, 0, 10, 10], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert discovery.corloc(guessed, truth) == 0.5, "one hit (exactly one half), one miss, one image without boxes left out"
    assert np.isnan(discovery.corloc(guessed[:1], [boxes[:0]]))
    assert discovery.overlap([0, 0, 0, 0], np.array([[0, 0, 0, 0]])) == 0
