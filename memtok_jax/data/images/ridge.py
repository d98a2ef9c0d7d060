"""Image baselines that need no training: chance, the most frequent class, ridge regression on pixels."""

from __future__ import annotations

import numpy as np

from memtok_jax.data import images
from memtok_jax.data.images.config import ImagesConfig

MOST_SIDE = 32             # larger images are averaged down to at most this many rows and columns
MOST_PRODUCTS = 1e11       # images times squared number of features: takes seconds on one core
BLOCK = 4096               # images at a time


def image_baselines(cfg: ImagesConfig) -> dict[str, float]:
    """Name of the baseline -> accuracy on the held-out images."""
    pixels, labels = images.arrays(cfg, "held out", images.held_out_count(cfg))
    classes = len(images.classes(cfg))
    test = shrunk(pixels)
    count = int(max(MOST_PRODUCTS / test.shape[1] ** 2, classes))
    train_pixels, train_labels = images.arrays(cfg, "train", count)
    predicted = ridge(shrunk(train_pixels), train_labels, test, classes)
    return {"chance": 1 / classes, "majority": float(np.bincount(labels).max() / len(labels)),
            f"ridge on pixels ({len(train_labels):,} images)": float((predicted == labels).mean())}


def shrunk(pixels: np.ndarray) -> np.ndarray:
    """uint8[N, rows, columns, C] -> float32[N, F] in 0 .. 1, each side averaged over blocks until it has at most MOST_SIDE."""
    n, rows, columns, channels = pixels.shape
    down, across = -(-rows // MOST_SIDE), -(-columns // MOST_SIDE)
    whole = pixels[:, :rows // down * down, :columns // across * across]
    blocks = whole.reshape(n, rows // down, down, columns // across, across, channels)
    return (blocks.mean((2, 4), dtype=np.float32) / np.float32(255)).reshape(n, -1)


def ridge(train_NF: np.ndarray, labels_N: np.ndarray, test_NF: np.ndarray, classes: int, strength: float = 1.0) -> np.ndarray:
    """Labels int[N] predicted by least squares on targets of +1 (own class) and -1, with a constant and L2 penalty `strength`."""
    features = train_NF.shape[1] + 1
    gram, right = np.zeros((features, features)), np.zeros((features, classes))
    for begin in range(0, len(train_NF), BLOCK):
        x = _with_one(train_NF[begin:begin + BLOCK])
        gram += x.T @ x
        right += x.T @ (2.0 * (labels_N[begin:begin + BLOCK, None] == np.arange(classes)[None]) - 1).astype(np.float32)
    weights = np.linalg.solve(gram + strength * np.eye(features), right)
    return (_with_one(test_NF) @ weights).argmax(1)


def _with_one(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
