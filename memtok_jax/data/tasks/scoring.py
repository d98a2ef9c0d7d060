"""Samples of a task, and their scores as pure functions of predictions and labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IGNORED = -100


class Sample(NamedTuple):
    """A batch of samples.

    ids: int32[B, T]. labels: int32[B, T], the token to predict at each position, IGNORED where nothing is scored.
    """

    ids: np.ndarray
    labels: np.ndarray


def unscored(batch: int, sequence: int) -> np.ndarray:
    """Labels with nothing scored yet: int32[B, T]."""
    return np.full((batch, sequence), IGNORED, np.int32)


def places(sequence: int, where: slice | np.ndarray) -> np.ndarray:
    """bool[T], True at the given positions."""
    out = np.zeros(sequence, bool)
    out[where] = True
    return out


def expected(visible: np.ndarray, guess: float | np.ndarray) -> float:
    """Mean accuracy of a reader who is right where the answer is visible, and with probability `guess` elsewhere."""
    return float(np.mean(np.where(visible, 1.0, guess)))


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


def macro_accuracy(predicted_BT: np.ndarray, labels_BT: np.ndarray) -> float:
    """Mean over classes of the share of a class's labels that are right; a class that is predicted at a scored position and is
    nowhere a label counts as 0.
    """
    scored = labels_BT != IGNORED
    labels, predicted = labels_BT[scored], predicted_BT[scored]
    return float(np.mean([np.mean(predicted[labels == c] == c) if (labels == c).any() else 0.0
                          for c in np.union1d(labels, predicted)]))


def majority(labels_BT: np.ndarray) -> float:
    """Accuracy of always answering the most frequent label of these samples."""
    labels = labels_BT[labels_BT != IGNORED]
    return float(np.bincount(labels).max() / labels.size)


def table_accuracy(train: Sample, test: Sample, order: int) -> float:
    """Accuracy on `test` of a table made of `train`: (position, last `order` inputs) -> most frequent label.

    Wrong where the table has no entry.
    """
    known, labels = _contexts(train, order)
    _, first, counts = np.unique(_joined(known, labels), return_index=True, return_counts=True)
    # Ascending counts: what is set last for a context is its most frequent label.
    first = first[np.argsort(counts, kind="stable")]
    table = dict(zip(known[first].tolist(), labels[first].tolist(), strict=True))
    asked, labels = _contexts(test, order)
    return float(np.mean(np.array([table.get(context, IGNORED) for context in asked.tolist()]) == labels))


def _contexts(sample: Sample, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each scored position: a number uint64[N] for its place and its last inputs, and its label int32[N]."""
    padded = np.pad(sample.ids, [(0, 0), (order - 1, 0)], constant_values=-1)
    b, t = np.nonzero(sample.labels != IGNORED)
    return _joined(t, *(padded[b, t + n] for n in range(order))), sample.labels[b, t]


def _joined(*columns: np.ndarray) -> np.ndarray:
    """One number uint64[N] for each row of the columns; different rows hardly ever have the same."""
    out = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        out = (out + column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out


def _scored(predicted_BT: np.ndarray, labels_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool[B, T]: labelled positions, and those of them that are predicted right."""
    scored = labels_BT != IGNORED
    if not scored.any(1).all():
        raise ValueError("every sample needs at least one labelled position")
    return scored, scored & (predicted_BT == labels_BT)
