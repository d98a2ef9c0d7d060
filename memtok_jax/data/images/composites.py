"""Generated images: one or more objects with a texture on a smooth background, their class and boxes. Nothing is downloaded.

The background is a few random colours blended over the image, so most patches repeat what their neighbours show: the
redundancy that lets a network use a patch for something else (Vision Transformers Need Registers, arXiv 2309.16588, section 2.1).
The class is an outline and a texture; colours, place, size and direction are random. Every image is a pure function of
its number.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from memtok_jax.data.images.config import CompositesConfig
from memtok_jax.data.images.pictures import Picture, with_channels

OUTLINES = ("disc", "square", "triangle", "cross", "ring")
TEXTURES = ("stripes", "checks")
KNOTS = 3            # colours along each side of a background
PERIOD = 0.9         # of a texture, in radii of the object
LEAST_RADIUS = 2.0   # pixels: the thinnest outline still covers some


def class_names(cfg: CompositesConfig) -> tuple[str, ...]:
    """Names of the labels, in order."""
    return tuple(f"{outline} with {texture}" for texture in TEXTURES for outline in OUTLINES)[:cfg.classes]


def picture(cfg: CompositesConfig, size: tuple[int, int], channels: int, number: int) -> Picture:
    """Image `number`, for any number from 0 on; the same on every machine."""
    rng = np.random.default_rng(number)
    label = int(rng.integers(cfg.classes))
    canvas = background(rng, size)
    boxes = [_paint(canvas, rng, cfg, label) for _ in range(int(rng.integers(1, cfg.objects + 1)))]
    canvas += cfg.noise * rng.standard_normal(canvas.shape, np.float32)
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Picture(with_channels(pixels, channels), label, np.array(boxes, np.float32))


def background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Random colours at a few knots, blended smoothly: float32[rows, columns, 3], 0 .. 255."""
    down, across = (_blend(n) for n in size)
    colours = rng.uniform(20, 235, (KNOTS, KNOTS, 3)).astype(np.float32)
    return across @ (down @ colours.reshape(KNOTS, -1)).reshape(size[0], KNOTS, 3)


@lru_cache
def _blend(pixels: int) -> np.ndarray:
    """Weights of the knots for each pixel of a side, by a cosine: float32[pixels, KNOTS]."""
    place = np.linspace(0, KNOTS - 1, pixels)
    distance = np.abs(place[:, None] - np.arange(KNOTS)[None])
    return np.where(distance < 1, 0.5 + 0.5 * np.cos(np.pi * distance), 0).astype(np.float32)


def _paint(canvas: np.ndarray, rng: np.random.Generator, cfg: CompositesConfig, label: int) -> list[float]:
    """Draw one object into the canvas; returns its box."""
    rows, columns = canvas.shape[:2]
    radius = max(rng.uniform(cfg.smallest, cfg.largest) * min(rows, columns) / 2, LEAST_RADIUS)
    y, x = rng.uniform(radius, rows - radius), rng.uniform(radius, columns - radius)
    angle, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    u, v = _frame(rows, columns, y, x, radius, angle)
    inside = outline(OUTLINES[label % len(OUTLINES)], u, v)
    light, dark = rng.uniform(150, 255, 3), rng.uniform(0, 105, 3)
    bright = texture(TEXTURES[label // len(OUTLINES)], u, v, phase)
    canvas[inside] = np.where(bright[inside][:, None], light, dark)
    ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]


def _frame(rows: int, columns: int, y: float, x: float, radius: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of every pixel's middle in the object's own frame, where it fills the unit disc."""
    dy = (np.arange(rows)[:, None] + 0.5 - y) / radius
    dx = (np.arange(columns)[None] + 0.5 - x) / radius
    return np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx


def outline(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points belong to the object: bool, shaped like u + v. The middle belongs to it, except for the ring."""
    far = u * u + v * v
    side = np.maximum(np.abs(u), np.abs(v))
    thin = np.minimum(np.abs(u), np.abs(v))
    return {"disc": lambda: far < 1, "square": lambda: side < 0.75, "cross": lambda: (side < 0.95) & (thin < 0.3),
            "ring": lambda: (far < 1) & (far > 0.3),
            "triangle": lambda: (v > -0.5) & (v < 1 - np.sqrt(3) * np.abs(u))}[name]()


def texture(name: str, u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Which points are bright: bool, shaped like u + v for "checks", like u for "stripes"."""
    first, second = (np.sin(2 * np.pi * c / PERIOD + phase) > 0 for c in (u, v))
    return {"stripes": lambda: first, "checks": lambda: first ^ second}[name]()
