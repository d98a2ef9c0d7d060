"""Classes of DNA without a trained model: the most frequent one, and ridge regression on counts of k-mers in closed form.

Features: counts of all words of k bases (those with another base are left out), if all sequences have one length also which base
stands at each place, and a constant. Targets are 1 for the class and -1 for the others, w = (F'F + lambda I)^-1 F'Y. k, places and
lambda are chosen by the validation sequences, by Matthews correlation.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

from memtok_jax.data.dna import OTHER, DnaConfig, Part, parts

FEATURES, STRENGTHS, ROWS = ((4, False), (4, True), (5, True)), (10.0, 100.0, 1000.0), 4096


def matthews(said: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation of predicted and true classes, for any number of them; 0 if either is constant."""
    classes = np.union1d(said, labels)
    p, t = (np.array([(x == c).sum() for c in classes], float) for x in (said, labels))
    n, right = len(labels), float((said == labels).sum())
    under = (n * n - (p * p).sum()) * (n * n - (t * t).sum())
    return float((right * n - (p * t).sum()) / under ** 0.5) if under > 0 else 0.0


def scores(cfg: DnaConfig) -> dict[str, tuple[float, float]]:
    """(accuracy, Matthews correlation) of "majority" and "ridge" on the held-out split."""
    return _scores(cfg)


@functools.lru_cache(maxsize=4)
def _scores(cfg: DnaConfig) -> dict[str, tuple[float, float]]:
    found, classes = parts(cfg)
    train, scored = found["train"], found[cfg.eval_split]
    frequent = np.bincount(train.labels).argmax()
    best, said = max((fitted(train, found["valid"], scored, k, places, len(classes)) for k, places in candidates(found)),
                     key=lambda one: one[0])
    return {"majority": (float((scored.labels == frequent).mean()), 0.0),
            "ridge": (float((said == scored.labels).mean()), matthews(said, scored.labels))}


def candidates(found: dict[str, Part]) -> tuple[tuple[int, bool], ...]:
    """(k, with places) that suit the lengths of the sequences."""
    one_length = len({len(b) for part in found.values() for b in part.bases}) == 1
    return FEATURES if one_length else ((4, False), (5, False))


def fitted(train: Part, valid: Part, scored: Part, k: int, places: bool, classes: int) -> tuple[float, np.ndarray]:
    """(best validation correlation over the strengths, predicted classes of the scored sequences with it)."""
    squares = products = 0.0
    for begin in range(0, len(train.labels), ROWS):
        f = features(train.bases[begin:begin + ROWS], k, places)
        y = 2.0 * (train.labels[begin:begin + ROWS, None] == np.arange(classes)) - 1
        squares, products = squares + (f.T @ f).astype(float), products + f.T @ y
    known, asked = features(valid.bases, k, places), features(scored.bases, k, places)
    found = []
    for strength, in itertools.product(STRENGTHS):
        w = np.linalg.solve(squares + strength * np.eye(len(squares)), products)
        found.append((matthews((known @ w).argmax(1), valid.labels), (asked @ w).argmax(1)))
    return max(found, key=lambda one: one[0])


def features(bases: tuple[np.ndarray, ...], k: int, places: bool) -> np.ndarray:
    """float32[N, 4^k (+ 4 * length) + 1]."""
    out = np.zeros((len(bases), 4 ** k), np.float32)
    for row, one in zip(out, bases, strict=True):
        words = np.lib.stride_tricks.sliding_window_view(one, k) if len(one) >= k else np.zeros((0, k), np.uint8)
        words = words[(words < OTHER).all(1)].astype(np.int64)
        row += np.bincount(words @ (4 ** np.arange(k)[::-1]), minlength=4 ** k)
    one_hot = [(np.stack(bases)[..., None] == np.arange(4)).reshape(len(bases), -1).astype(np.float32)] if places else []
    return np.concatenate([out, *one_hot, np.ones((len(bases), 1), np.float32)], axis=1)
