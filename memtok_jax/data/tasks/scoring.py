"""Samples of a task, and their scores as pure functions of predictions and labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IGNORED = -100


class Sample(NamedTuple):
    """A batch of samples.

    ids: int32[B, T]. labels: int32[B, T], the token to predict at each position, IGNORED where nothing is scored.
    distance: int32[B, T], tokens from the scored position back to its evidence (0 where nothing is scored).
    """

    ids: np.ndarray
    labels: np.ndarray
    distance: np.ndarray


def unscored(batch: int, sequence: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with nothing scored yet, and distances of zero: int32[B, T] each."""
    return np.full((batch, sequence), IGNORED, np.int32), np.zeros((batch, sequence), np.int32)


def accuracy(predicted_BT: np.ndarray, labels_BT: np.ndarray) -> float:
    """Share of labelled positions that are right: the mean within each sample, then over samples.

    Raises ValueError where a sample has no labelled position.
    """
    scored, right = _scored(predicted_BT, labels_BT)
    return float(np.mean(right.sum(1) / scored.sum(1)))


def exact_match(predicted_BT: np.ndarray, labels_BT: np.ndarray) -> float:
    """Share of samples in which every labelled position is right."""
    scored, right = _scored(predicted_BT, labels_BT)
    return float(np.mean((right == scored).all(1)))


def accuracy_by_distance(predicted_BT: np.ndarray, labels_BT: np.ndarray, distance_BT: np.ndarray,
                         edges: tuple[int, ...]) -> list[tuple[int, int, int, float]]:
    """Accuracy by how far back the evidence lies.

    edges: increasing borders; bin i holds distances in [edges[i], edges[i + 1]).
    Returns (first, last + 1, positions, accuracy) for each bin that holds a scored position.
    """
    scored, right = _scored(predicted_BT, labels_BT)
    out = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = scored & (distance_BT >= low) & (distance_BT < high)
        if inside.any():
            out.append((low, high, int(inside.sum()), float(right[inside].mean())))
    return out


def majority(labels_BT: np.ndarray) -> float:
    """Accuracy of always answering the most frequent label of these samples."""
    labels = labels_BT[labels_BT != IGNORED]
    return float(np.bincount(labels).max() / labels.size)


def _scored(predicted_BT: np.ndarray, labels_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool[B, T]: labelled positions, and those of them that are predicted right."""
    scored = labels_BT != IGNORED
    if not scored.any(1).all():
        raise ValueError("every sample needs at least one labelled position")
    return scored, scored & (predicted_BT == labels_BT)
