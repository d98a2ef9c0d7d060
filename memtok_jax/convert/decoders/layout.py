"""Arrays of theirs <-> arrays of ours, by slices and transposes alone, so both ways are exact.

Theirs is [out, in] or [out]; ours is [in, ...out] or [...out]. One array of theirs may hold several of ours, cut along `out`:

| cut    | rows of theirs                                                     | used by |
|--------|--------------------------------------------------------------------|---------|
| rows   | one after the other: [q | k | v]                                   | MPT, GPT-2, Phi-3 |
| groups | for each head of keys: its H / G queries, its key, its value, K each | GPT-NeoX (G = H), Falcon |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memtok_jax.convert.decoders.family import Entry

Shape = tuple[int, ...]
CUTS = ("rows", "groups")


def is_matrix(path: str) -> bool:
    """Whether an array of ours is a matrix [in, out]; the others keep the order of their axes."""
    return path.endswith("/w") or path == "words/output"


def _rows(path: str, shape: Shape) -> int:
    """Length of `out`."""
    return int(np.prod(shape[1:] if is_matrix(path) else shape))


def _groups(entry: Entry, shapes: Sequence[Shape]) -> tuple[int, int, int]:
    """(G, H / G, K) of queries, keys and values in one array."""
    (h, k), (g, _) = (shape[1:] if is_matrix(path) else shape for path, shape in zip(entry.ours[:2], shapes[:2], strict=True))
    return g, h // g, k


def theirs_shape(entry: Entry, shapes: Sequence[Shape]) -> Shape:
    """Shape of theirs, for the shapes of ours in one layer."""
    first, rows = entry.ours[0], sum(map(_rows, entry.ours, shapes))
    if not is_matrix(first):
        return (rows,) if len(entry.ours) > 1 or not first.startswith(("words/embedding", "positions")) else shapes[0]
    return (rows, shapes[0][0]) if entry.turned else (shapes[0][0], rows)


def to_ours(theirs: np.ndarray, entry: Entry, shapes: Sequence[Shape]) -> list[np.ndarray]:
    """The arrays of ours in theirs, as views where possible."""
    if len(entry.ours) == 1 and not is_matrix(entry.ours[0]):
        return [theirs.reshape(shapes[0])]
    rows = theirs if entry.turned or theirs.ndim == 1 else theirs.T
    if entry.cut == "groups":
        g, r, k = _groups(entry, shapes)
        apart = rows.reshape(g, r + 2, k, *rows.shape[1:])
        parts = [part.reshape(-1, *rows.shape[1:]) for part in (apart[:, :r], apart[:, r], apart[:, r + 1])]
    else:
        parts = np.split(rows, np.cumsum([_rows(path, shape) for path, shape in zip(entry.ours, shapes, strict=True)])[:-1])
    return [part.T.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def to_theirs(ours: Sequence[np.ndarray], entry: Entry) -> np.ndarray:
    """The array of theirs."""
    shapes = [x.shape for x in ours]
    if len(ours) == 1 and not is_matrix(entry.ours[0]):
        return ours[0].reshape(theirs_shape(entry, shapes))
    flat = [x.reshape(len(x), -1).T if is_matrix(path) else x.reshape(-1) for path, x in zip(entry.ours, ours, strict=True)]
    if entry.cut == "groups":
        g, r, k = _groups(entry, shapes)
        parts = [x.reshape(g, n, k, *x.shape[1:]) for x, n in zip(flat, (r, 1, 1), strict=True)]
        joined = np.concatenate(parts, axis=1)
        rows = joined.reshape(-1, *joined.shape[3:])
    else:
        rows = np.concatenate(flat) if len(flat) > 1 else flat[0]
    return rows if entry.turned or rows.ndim == 1 else rows.T
