"""Cut sequences into segments of at most T tokens: where the short segment stands, and labels that cross borders.

    left     T, T, ..., rest                     (10 into 4: 4, 4, 2)
    right    rest, T, ..., T                     (10 into 4: 2, 4, 4)
    center   as even as can be, the last smaller (10 into 3 parts: 4, 4, 2; 9 into 4 tokens: 3, 3, 3)

Labels are made on the whole sequence (`next_labels`) and cut like the tokens, so the last token of a segment predicts the first of
the next. Short segments are filled up at their end, with labels that are not scored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from memtok_jax.data.errors import DataError, nearest
from memtok_jax.data.tasks.scoring import IGNORED

ALIGNMENTS = ("left", "right", "center")


class Segments(NamedTuple):
    """N segments of T slots."""

    ids: np.ndarray     # int32[B, N, T], filled up with 0
    labels: np.ndarray  # int32[B, N, T], filled up with IGNORED
    length: np.ndarray  # int32[B, N] real tokens


def sizes(tokens: int, segment: int, align: str) -> tuple[int, ...]:
    """Lengths of the segments of a sequence."""
    if align not in ALIGNMENTS:
        raise DataError(f"align is '{align}', known: {', '.join(ALIGNMENTS)}{nearest(align, ALIGNMENTS)}")
    if tokens < 1 or segment < 1:
        raise DataError(f"{tokens} tokens in segments of {segment}: both must be at least 1")
    parts = -(-tokens // segment)
    if align == "center":
        segment = -(-tokens // parts)
        parts = -(-tokens // segment)
    rest = tokens - segment * (parts - 1)
    whole = (segment,) * (parts - 1)
    return (rest, *whole) if align == "right" else (*whole, rest)


def next_labels(ids_BT: np.ndarray) -> np.ndarray:
    """int32[B, T]: the token after each; the last one is not scored."""
    labels = np.full(ids_BT.shape, IGNORED, np.int32)
    labels[:, :-1] = ids_BT[:, 1:]
    return labels


def split(ids_BT: np.ndarray, labels_BT: np.ndarray, segment: int, align: str) -> Segments:
    """Cut tokens and labels alike."""
    lengths = sizes(ids_BT.shape[1], segment, align)
    shape = (len(ids_BT), len(lengths), segment)
    out = Segments(np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32), np.tile(np.int32(lengths), (len(ids_BT), 1)))
    for n, (end, size) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        out.ids[:, n, :size], out.labels[:, n, :size] = ids_BT[:, end - size:end], labels_BT[:, end - size:end]
    return out
