"""Augmentation of training images, in numpy on the host: pure functions of one image (or two that are mixed) and a generator."""

from __future__ import annotations

import math

import numpy as np

from memtok_jax.data.images.config import AugmentConfig
from memtok_jax.data.images.pictures import GREY, resize

PADDING = 8                        # "padded": an eighth of each side
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)    # "resized": area of the window over the image's, width over height
SOLARISE = 128                     # brighter pixels are inverted
BLUR = (0.1, 2.0)                  # standard deviation in pixels


def augment(pixels: np.ndarray, cfg: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """uint8[rows, columns, C] -> the same shape. All random numbers come from `rng`, in a fixed order."""
    if cfg.crop != "none":
        pixels = {"padded": padded_crop, "resized": resized_crop}[cfg.crop](pixels, rng)
    if cfg.flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if cfg.filters:
        pixels = FILTERS[cfg.filters[rng.integers(len(cfg.filters))]](pixels, rng)
    if cfg.jitter:
        pixels = jitter(pixels, cfg.jitter, rng)
    return np.ascontiguousarray(pixels)


def padded_crop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A window of the same size at a random place of the image with mirrored borders."""
    rows, columns, _ = pixels.shape
    top, left = rows // PADDING, columns // PADDING
    y, x = rng.integers(2 * top + 1), rng.integers(2 * left + 1)
    padded = np.pad(pixels, ((top, top), (left, left), (0, 0)), mode="reflect")
    return padded[y:y + rows, x:x + columns]


def resized_crop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A window of random area, shape and place, scaled to the size of the image."""
    rows, columns, _ = pixels.shape
    area = rows * columns * rng.uniform(*AREA)
    aspect = math.exp(rng.uniform(*np.log(ASPECT)))
    width, height = min(columns, math.sqrt(area * aspect)), min(rows, math.sqrt(area / aspect))
    x, y = rng.uniform(0, columns - width), rng.uniform(0, rows - height)
    return resize(pixels, (rows, columns), (x, y, min(x + width, columns), min(y + height, rows)))


def grey(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey of ITU-R BT.601 in all channels."""
    return pixels if pixels.shape[-1] == 1 else np.repeat(np.rint(pixels @ GREY).astype(np.uint8)[..., None], 3, axis=-1)


def solarise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Invert the pixels that are at least SOLARISE."""
    return np.where(pixels >= SOLARISE, 255 - pixels, pixels)


def blur(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian of random width, over rows and columns, with the image mirrored at its border."""
    sigma = rng.uniform(*BLUR)
    x = pixels.astype(np.float32)
    for axis in (0, 1):
        x = np.moveaxis(np.tensordot(_gaussian(pixels.shape[axis], sigma), x, axes=(1, axis)), 0, axis)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def _gaussian(n: int, sigma: float) -> np.ndarray:
    """Weights of a blur along a side of n pixels: float32[n, n], rows sum to 1; what lies beyond the border is mirrored."""
    reach = math.ceil(3 * sigma)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * np.square(offsets / sigma))
    place = (np.arange(n)[:, None] + offsets[None]) % (2 * n)
    out = np.zeros((n, n), np.float32)
    np.add.at(out, (np.arange(n)[:, None], np.minimum(place, 2 * n - 1 - place)), (kernel / kernel.sum())[None])
    return out


FILTERS = {"grey": grey, "solarise": solarise, "blur": blur}


def jitter(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale brightness, then contrast (about the mean grey), then saturation (about each pixel's grey), by random factors."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    x = pixels.astype(np.float32) * brightness
    weights = GREY if x.shape[-1] == 3 else np.ones(1, np.float32)
    x = contrast * x + (1 - contrast) * (x @ weights).mean()
    x = saturation * x + (1 - saturation) * (x @ weights)[..., None]
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ two images

def mix(one: np.ndarray, other: np.ndarray, cfg: AugmentConfig, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """(uint8[rows, columns, C], share of the first image in it) of two images of one size, by mixup or cutmix."""
    cut = rng.random() < (0.5 if cfg.mixup and cfg.cutmix else float(cfg.cutmix > 0))
    share = rng.beta(*[cfg.cutmix if cut else cfg.mixup] * 2)
    return cutmix(one, other, share, rng) if cut else (mixup(one, other, share), float(share))


def mixup(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """share * one + (1 - share) * other, rounded."""
    return np.rint(share * one.astype(np.float32) + (1 - share) * other.astype(np.float32)).astype(np.uint8)


def cutmix(one: np.ndarray, other: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """The first image with a window of the other pasted in.

    The window has the image's proportions and 1 - share of its area, less if the border cuts it off; its middle may be any pixel.
    Returns the image and the exact share of its pixels that come from the first.
    """
    rows, columns, _ = one.shape
    half = np.array([rows, columns]) * math.sqrt(1 - share) / 2
    middle = rng.integers([rows, columns])
    (y0, x0), (y1, x1) = (np.clip(np.rint(middle + sign * half), 0, [rows, columns]).astype(int) for sign in (-1, 1))
    out = one.copy()
    out[y0:y1, x0:x1] = other[y0:y1, x0:x1]
    return out, 1 - (y1 - y0) * (x1 - x0) / (rows * columns)


def shares(label: int, other: int, share: float, classes: int) -> np.ndarray:
    """Target of a mixed image, f32[classes]: `share` for the label of the first, the rest for the other's; they sum to one."""
    out = np.zeros(classes, np.float32)
    out[label] += share
    out[other] += 1 - share
    return out
