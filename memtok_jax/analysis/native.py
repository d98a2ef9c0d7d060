"""LOST on images at their own size and shape, as its authors evaluate it: nothing is cut off, and zeros complete the last patches.

An image whose longer side is above a limit is scaled down to it. Each size of grid is compiled once, when its first image comes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.analysis import discovery
from memtok_jax.analysis.subject import Model, normalised
from memtok_jax.data.images.pictures import Picture, Pictures, resize, with_channels
from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.edits import Edits
from memtok_jax.models.vision.output import split


@partial(jax.jit, static_argnames=("cfg", "features"))
def find(params, image: jax.Array, cfg: VitConfig, edits: Edits, features: str, bias: float) -> discovery.Found:
    """The object of one normalised image f32[rows, columns, C] of whole patches. features, bias: as in `collect.collect`."""
    out = vit.features(params, image[None], cfg, capture=("qkv",), edits=edits)
    last = split(out.captured[features][-1], out.counts)["patches"][0].astype(jnp.float32)
    return discovery.lost(last.reshape(len(last), -1), out.grid, bias)


def scaled(picture: Picture, longest: int, channels: int) -> Picture:
    """The whole picture, its longer side at most `longest` pixels; boxes follow."""
    pixels = with_channels(picture.pixels, channels)
    rows, columns = pixels.shape[:2]
    factor = min(1.0, longest / max(rows, columns))
    size = max(round(rows * factor), 1), max(round(columns * factor), 1)
    if size == (rows, columns):
        return picture._replace(pixels=pixels)
    factors = np.array([size[1] / columns, size[0] / rows] * 2, np.float32)
    return picture._replace(pixels=resize(pixels, size, (0, 0, columns, rows)), boxes=picture.boxes * factors)


def padded(image: np.ndarray, patch: int) -> np.ndarray:
    """f32[rows, columns, C] with zeros at the right and at the bottom up to whole patches."""
    return np.pad(image, [(0, -n % patch) for n in image.shape[:2]] + [(0, 0)])


def boxes(model: Model, pictures: Pictures, longest: int, edits: Edits = (), features: str = "k",
          bias: float = 0.0) -> dict[str, Any]:
    """LOST's box of each picture in pixels of the scaled picture, the number of grids, and CorLoc if true boxes exist.

    longest: limit of the longer side in pixels. edits, features, bias: as in `collect.collect`.
    """
    found, truth, grids = [], [], set()
    for n in range(pictures.count):
        picture = scaled(pictures.read(n), longest, model.cfg.channels)
        image = padded(normalised(model, picture.pixels), model.cfg.patch)
        box = find(model.params, jnp.asarray(image), model.cfg, edits, features, bias).box
        found.append(discovery.pixel_box(np.asarray(box), model.cfg.patch, picture.pixels.shape[:2]))
        truth.append(picture.boxes)
        grids.add(image.shape)
    out = {"native_boxes": np.stack(found).tolist(), "native_grids": len(grids)}
    return out | ({"corloc_native": discovery.corloc(np.stack(found), truth)} if any(map(len, truth)) else {})
