"""Labelled pictures by number, and functions that bring them to one size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from memtok_jax.data.errors import DataError

GREY = np.array([0.299, 0.587, 0.114], np.float32)    # of red, green, blue (ITU-R BT.601)
NO_BOXES = np.zeros((0, 4), np.float32)


class Picture(NamedTuple):
    """One image. boxes: x_min, y_min, x_max, y_max of its objects in pixels; K = 0 if they are not known."""

    pixels: np.ndarray    # uint8[rows, columns, C]
    label: int
    boxes: np.ndarray     # float32[K, 4]


@dataclass(frozen=True)
class Pictures:
    """One split of a data set.

    count: number of pictures. classes: names of the labels. read: number -> Picture, the same one each time. origin: where the
    pictures are, for the log. note: what the user should know about them, for the log; empty if there is nothing.
    """

    count: int
    classes: tuple[str, ...]
    read: Callable[[int], Picture]
    origin: str
    note: str = ""


def pillow(what: str):
    """The module PIL.Image. what: what needs it. Raises DataError naming that if pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{what} needs the package pillow ({error})") from error
    return Image


def to_bytes(pixels: np.ndarray, name) -> np.ndarray:
    """uint8 of the same shape: bool becomes 0 and 255, unsigned 16 bits are divided by 257 and rounded, uint8 stays.

    name: of the image, for the message. Raises DataError for other dtypes, because nothing tells which numbers are black and white.
    """
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DataError(f"{name} has {pixels.dtype} pixels, and nothing tells which numbers are black and white; store it with 8 "
                        "or 16 bits")
    return pixels


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8[rows, columns, channels]: grey is repeated, colours are weighted to grey. Raises DataError for other channels."""
    have = pixels.shape[-1]
    if have == channels:
        return pixels
    if (have, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=-1)
    if (have, channels) == (3, 1):
        return np.rint(pixels @ GREY).astype(np.uint8)[..., None]
    raise DataError(f"an image has {have} channels; 1 (grey) or 3 (red, green, blue) can be used")


def resize(pixels: np.ndarray, size: tuple[int, int], window: tuple[float, float, float, float]) -> np.ndarray:
    """A window of uint8[rows, columns, C] scaled to `size`, bicubic. window: x_min, y_min, x_max, y_max, may be between pixels."""
    image = pillow("scaling an image")
    window = np.clip(window, 0, [pixels.shape[1], pixels.shape[0]] * 2)    # rounding may have moved it slightly outside
    source = image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    out = np.asarray(source.resize(size[::-1], image.Resampling.BICUBIC, box=tuple(window)))
    return out.reshape(*size, pixels.shape[-1])


def fit(picture: Picture, size: tuple[int, int], channels: int) -> Picture:
    """The picture scaled until it covers `size` (rows, columns), cut around its middle, with `channels` channels; boxes follow."""
    pixels = with_channels(picture.pixels, channels)
    rows, columns = pixels.shape[:2]
    if (rows, columns) == tuple(size):
        return picture._replace(pixels=pixels)
    scale = max(size[0] / rows, size[1] / columns)
    height, width = size[0] / scale, size[1] / scale
    x, y = (columns - width) / 2, (rows - height) / 2
    boxes = (picture.boxes - np.array([x, y, x, y], np.float32)) * np.float32(scale)
    boxes = np.clip(boxes, 0, np.array([size[1], size[0], size[1], size[0]], np.float32))
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    return Picture(resize(pixels, size, (x, y, x + width, y + height)), picture.label, boxes)
