"""Norms of patch tokens: where the outliers begin, how many there are, and in which cells they are.

Vision Transformers Need Registers (arXiv 2309.16588), section 2.1: an artifact is a patch token whose norm at the output of the
network is an outlier. The paper's cut-off of 150 was chosen by hand for one model; `valley` finds one, or says that there is none,
and the shares above fixed cut-offs are always reported beside it. All norms are those before the final LayerNorm; after it the
norms of all tokens are nearly the same. Kurtosis and the largest value measure outliers as in Quantizable Transformers
(arXiv 2306.12929).

Letters: B images, n patches, (h, w) their grid, D width. Everything here is numpy on the host.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

BINS, SIGMA = 128, 2.0            # histogram of log norms, and its smoothing in bins
DEPTH = 0.5                       # a valley is at most this fraction of the height of the mode behind it
LEAST_SHARE, LEAST_TOKENS = 0.002, 20    # of all norms, above a cut-off
LEAST_RATIO = 1.5                 # a cut-off is at least this many medians
NORMAL_MAD = 1.4826               # standard deviation of a normal distribution over its median absolute deviation


class Cutoff(NamedTuple):
    """Norms above `value` are outliers. Without a second mode `value` is infinite. rule: the rule and its outcome, in words."""

    rule: str
    value: float

    @property
    def found(self) -> bool:
        """Whether there is a second mode."""
        return math.isfinite(self.value)


def valley(norms: np.ndarray) -> Cutoff:
    """The cut-off between the main mode of the norms and a second one above it.

    norms: any shape, positive. The histogram of log norms is smoothed; between its highest bin and each later local maximum
    the lowest bin is a candidate (the middle one of equals). It counts if it is at most half as high as that maximum and at least
    1.5 medians, and if at least 0.2 % of the norms and at least 20 lie above it. Of several, the one with most norms above wins.
    """
    norms = np.maximum(np.asarray(norms, np.float64).ravel(), 1e-12)
    logs = np.log(norms)
    if np.ptp(logs) == 0:
        return Cutoff("valley: no second mode", math.inf)
    counts, edges = np.histogram(logs, BINS)
    smooth = _smoothed(counts)
    least, median = max(LEAST_SHARE * norms.size, LEAST_TOKENS), np.median(norms)
    best, best_above = math.inf, 0
    main = int(smooth.argmax())
    for peak in _maxima_after(smooth, main):
        lowest = main + _middle_of_lowest(smooth[main:peak])
        value = math.exp((edges[lowest] + edges[lowest + 1]) / 2)
        above = int((norms > value).sum())
        if smooth[lowest] <= DEPTH * smooth[peak] and above >= least and value >= LEAST_RATIO * median and above > best_above:
            best, best_above = value, above
    return Cutoff("valley of the log norms" if best_above else "valley: no second mode", best)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    offsets = np.arange(-int(4 * SIGMA), int(4 * SIGMA) + 1)
    kernel = np.exp(-0.5 * np.square(offsets / SIGMA))
    return np.convolve(counts, kernel / kernel.sum(), mode="same")


def _middle_of_lowest(values: np.ndarray) -> int:
    """Index of the lowest value; of equals the middle one, because the first would lie at the foot of the main mode."""
    lowest = np.flatnonzero(values == values.min())
    return int(lowest[len(lowest) // 2])


def _maxima_after(values: np.ndarray, start: int) -> list[int]:
    """Indices above `start` whose value is higher than the one before and not lower than the one after."""
    padded = np.append(values, -np.inf)
    return [i for i in range(start + 1, len(values)) if padded[i] > padded[i - 1] and padded[i] >= padded[i + 1]]


def share_above(norms: np.ndarray, value: float) -> float:
    """Share of the norms above a value."""
    return float((np.asarray(norms) > value).mean())


def fixed_shares(norms: np.ndarray) -> dict[str, float]:
    """Shares of the norms above cut-offs that need no search; 150 is the paper's, for DINOv2 L and g only."""
    median = float(np.median(norms))
    deviation = NORMAL_MAD * float(np.median(np.abs(np.asarray(norms) - median)))
    cutoffs = {"3_medians": 3 * median, "5_medians": 5 * median, "median_plus_6_mad": median + 6 * deviation, "150": 150.0}
    return {name: share_above(norms, value) for name, value in cutoffs.items()}


def max_over_median(norms_Bn: np.ndarray) -> float:
    """The largest norm of an image over its median norm, averaged over images."""
    return float((norms_Bn.max(1) / np.median(norms_Bn, axis=1)).mean())


def kurtosis(x: np.ndarray) -> float:
    """Fourth central moment over the squared variance: 3 for a normal distribution."""
    x = np.asarray(x, np.float64).ravel()
    centred = x - x.mean()
    return float((centred**4).mean() / np.square(np.square(centred).mean()))


def position_map(outlier_Bn: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Share of the images with an outlier at each cell: [h, w]."""
    return np.asarray(outlier_Bn, np.float64).mean(0).reshape(grid)


def neighbour_cosine(patches_BnD: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean cosine similarity of each patch with its neighbours above, below, left and right that exist: [B, n].

    patches: the projection of the pixels before positions are added. Near 1: the patch repeats its neighbours.
    """
    x = np.asarray(patches_BnD, np.float64)
    x = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)).reshape(len(x), *grid, -1)
    sums, counts = np.zeros(x.shape[:-1]), np.zeros(grid)
    down, right = (x[:, 1:] * x[:, :-1]).sum(-1), (x[:, :, 1:] * x[:, :, :-1]).sum(-1)
    for cosine, first, second in ((down, np.s_[:-1], np.s_[1:]), (right, np.s_[:, :-1], np.s_[:, 1:])):
        for cells in (first, second):
            where = cells if isinstance(cells, tuple) else (cells,)
            sums[(slice(None), *where)] += cosine
            counts[where] += 1
    return (sums / np.maximum(counts, 1)[None]).reshape(len(x), -1)
