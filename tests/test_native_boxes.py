"""LOST on images of their own shape: scaled, padded, boxed, against the same steps by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import params as P
from memtok_jax.analysis import discovery, native, subject
from memtok_jax.data.images.pictures import Picture, Pictures
from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig

CFG = VitConfig(width=32, layers=1, heads=2, hidden=32, patch=4, grid=(4, 4), registers=2, layerscale=1.0, std=0.3)
MODEL = subject.Model(P.init_params(vit.specs(CFG), jax.random.key(0)), CFG, None, (0.5,) * 3, (0.25,) * 3, "small")


def picture(rows: int, columns: int, seed: int = 0) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3)).astype(np.uint8)
    return Picture(pixels, 0, np.array([[1, 2, columns - 1, rows]], np.float32))


def test_padding_is_at_the_right_and_the_bottom():
    image = np.ones((9, 12, 3), np.float32)
    padded = native.padded(image, 4)
    assert padded.shape == (12, 12, 3) and padded[:9].min() == 1 and not padded[9:].any()
    assert native.padded(image, 3) is not image and native.padded(image, 3).shape == image.shape


def test_scaling_keeps_the_shape_and_the_boxes_inside():
    one = native.scaled(picture(60, 30), 20, 3)
    assert one.pixels.shape == (20, 10, 3)
    pytest.importorskip("PIL")
    np.testing.assert_allclose(one.boxes, [[1 / 3, 2 / 3, 29 / 3, 20]], rtol=1e-5)
    same = native.scaled(picture(9, 14), 20, 3)
    np.testing.assert_array_equal(same.pixels, picture(9, 14).pixels)       # smaller images stay as they are


def test_boxes_are_those_of_each_image_alone():
    """Three images of two shapes: two grids; each box is that of `discovery.lost` on the keys of the padded image, clipped."""
    pictures = [picture(9, 14, 0), picture(12, 8, 1), picture(10, 15, 2)]
    found = native.boxes(MODEL, Pictures(3, ("a",), lambda n: pictures[n], "here"), 100)
    assert found["native_grids"] == 2
    for one, box in zip(pictures, found["native_boxes"], strict=True):
        rows, columns = one.pixels.shape[:2]
        image = (one.pixels.astype(np.float32) / 255 - 0.5) / 0.25
        image = np.pad(image, ((0, -rows % 4), (0, -columns % 4), (0, 0)))
        out = vit.features(MODEL.params, jnp.asarray(image)[None], CFG, capture=("qkv",))
        keys = out.captured["k"][0, 0, 3:].reshape(-1, 32)
        expected = np.asarray(discovery.lost(keys, out.grid).box) * 4
        np.testing.assert_array_equal(box, np.minimum(expected, [columns, rows] * 2))
        assert box[2] <= columns and box[3] <= rows
    assert found["corloc_native"] == discovery.corloc(np.array(found["native_boxes"]), [one.boxes for one in pictures])
    unknown = Pictures(1, ("a",), lambda n: pictures[0]._replace(boxes=np.zeros((0, 4))), "here")
    assert "corloc_native" not in native.boxes(MODEL, unknown, 100)
