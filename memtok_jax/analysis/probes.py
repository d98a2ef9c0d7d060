"""What one token knows: probes with a closed form, so that the same features always give the same number.

Vision Transformers Need Registers (arXiv 2309.16588), sections 2.2 and 3: local probes ask a patch token for its position and its
pixels, the global probe asks a single token of an image for the class. Outliers do badly at the local probes and well at the
global one.

Features are standardised. The strength of the ridge is the one that does best on images set aside for this choice, which are
neither fitted nor scored. Regression (pixels) is ridge regression. Classification (position, class) is a linear discriminant with a
ridge on the covariance that the classes share: least squares on one-hot targets would never predict some classes if there are more
classes than features (64 positions in 24 dimensions). Features: [N, D], N samples of one token each; the caller chooses the tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

STRENGTHS = tuple(10.0**e for e in range(-4, 4))   # of the ridge, in units of the standardised features' variance


class Parts(NamedTuple):
    """Samples to fit on, to choose the ridge on, and to score: each bool[N]."""

    fit: np.ndarray
    choose: np.ndarray
    score: np.ndarray


class Linear(NamedTuple):
    """x -> ((x - mean) / std) @ weights + offset."""

    mean: np.ndarray      # [D]
    std: np.ndarray       # [D]
    weights: np.ndarray   # [D, C]
    offset: np.ndarray    # [C]
    strength: float       # of the ridge that was chosen

    def __call__(self, features_ND: np.ndarray) -> np.ndarray:
        """Scores or values [N, C]."""
        return (np.asarray(features_ND, np.float64) - self.mean) / self.std @ self.weights + self.offset


def parts_of(images: np.ndarray) -> Parts:
    """Three fifths to fit, one to choose, one to score. images: int[N], number of the image that a sample belongs to."""
    fifth = np.asarray(images) % 5
    return Parts(fifth < 3, fifth == 3, fifth == 4)


def _standard(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    std = features.std(0)
    # A constant feature carries nothing and has deviation zero; it is divided by 1.
    return features.mean(0), np.where(std > 1e-9 * max(std.max(), 1e-300), std, 1.0)


def regress(features_ND: np.ndarray, targets_NC: np.ndarray, parts: Parts) -> Linear:
    """Ridge regression to targets [N, C], with the strength that has the smallest squared error on the samples to choose."""
    features, targets = np.asarray(features_ND, np.float64), np.asarray(targets_NC, np.float64)
    mean, std = _standard(features[parts.fit])
    x, y = (features[parts.fit] - mean) / std, targets[parts.fit]
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    offset, right = y.mean(0), vectors.T @ (x.T @ (y - y.mean(0)) / len(x))

    def model(strength: float) -> Linear:
        return Linear(mean, std, vectors @ (right / (np.maximum(values, 0) + strength)[:, None]), offset, strength)

    def error(one: Linear) -> float:
        return float(np.square(one(features[parts.choose]) - targets[parts.choose]).mean())

    return min(map(model, STRENGTHS), key=error)


def discriminate(features_ND: np.ndarray, labels_N: np.ndarray, classes: int, parts: Parts) -> Linear:
    """Linear discriminant: scores [N, classes] whose argmax is the class, with the strength most accurate on the samples to choose.

    A class without samples to fit is never predicted.
    """
    features, labels = np.asarray(features_ND, np.float64), np.asarray(labels_N)
    mean, std = _standard(features[parts.fit])
    x, own = (features[parts.fit] - mean) / std, labels[parts.fit]
    counts = np.bincount(own, minlength=classes)
    centres = np.zeros((classes, x.shape[1]))
    np.add.at(centres, own, x)
    centres /= np.maximum(counts, 1)[:, None]
    values, vectors = np.linalg.eigh((x - centres[own]).T @ (x - centres[own]) / len(x))
    rotated = centres @ vectors
    prior = np.where(counts > 0, np.log(np.maximum(counts, 1) / len(x)), -np.inf)

    def model(strength: float) -> Linear:
        pulled = rotated / (np.maximum(values, 0) + strength)[None]
        return Linear(mean, std, vectors @ pulled.T, prior - 0.5 * (pulled * rotated).sum(1), strength)

    def errors(one: Linear) -> float:
        return float((one(features[parts.choose]).argmax(1) != labels[parts.choose]).mean())

    return min(map(model, STRENGTHS), key=errors)


# ------------------------------------------------------------------------------------------------------- the three probes

class Position(NamedTuple):
    """What a probe for the position says of every sample."""

    right: np.ndarray      # bool[N]
    distance: np.ndarray   # f64[N], between the predicted cell and the true one, in patches


def position(features_ND: np.ndarray, cells_N: np.ndarray, grid: tuple[int, int], parts: Parts) -> Position:
    """Predict the cell of the grid of each token. cells: int[N], row-major index of the true one."""
    predicted = discriminate(features_ND, cells_N, grid[0] * grid[1], parts)(features_ND).argmax(1)
    there, here = (np.stack(np.divmod(cells, grid[1])) for cells in (predicted, np.asarray(cells_N)))
    return Position(predicted == cells_N, np.sqrt(np.square(there - here).sum(0)))


def pixels(features_ND: np.ndarray, pixels_NC: np.ndarray, parts: Parts) -> np.ndarray:
    """L2 distance between a patch's pixels and their prediction from its token, for every sample: f64[N]."""
    return np.linalg.norm(regress(features_ND, pixels_NC, parts)(features_ND) - pixels_NC, axis=1)


def image_class(features_BD: np.ndarray, labels_B: np.ndarray, classes: int) -> float:
    """Accuracy of the class from one token per image, on the images to score."""
    parts = parts_of(np.arange(len(labels_B)))
    predicted = discriminate(features_BD, labels_B, classes, parts)(features_BD[parts.score]).argmax(1)
    return float((predicted == labels_B[parts.score]).mean())


def one_of(tokens_BnD: np.ndarray, among_Bn: np.ndarray, fallback_B: np.ndarray, seed: int) -> np.ndarray:
    """One random token of each image among those marked, or token `fallback` if none is marked: [B, D]."""
    draws = np.random.default_rng(seed).random(among_Bn.shape)
    chosen = np.where(among_Bn.any(1), np.where(among_Bn, draws, -1.0).argmax(1), fallback_B)
    return tokens_BnD[np.arange(len(tokens_BnD)), chosen]
