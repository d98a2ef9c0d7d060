"""Texts as unit vectors, and exact search among them.

An embedder has a `name` that tells it from all others, `dim`, and `embed(texts) -> f32[n, dim]` of unit vectors (zero for a text
that has nothing to embed). Vectors lie in the database under that name, so several embedders can be used over the same rows; rows
are embedded when a search first needs them. No pretrained embedder is assumed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from memtok_jax.config import UserError
from memtok_jax.virtual_context.store import Store

BATCH = 512   # rows that are embedded at a time


class Embedder(Protocol):
    """See above."""

    name: str
    dim: int

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """f32[n, dim], each of length 1 or 0."""


class HashingEmbedder:
    """Words and groups of characters, hashed with a sign into a fixed number of features (Weinberger et al. 2009, arXiv 0902.2206).

    dim: number of features. letters: characters of a group. The same on every machine and in every process.
    """

    def __init__(self, dim: int = 256, letters: int = 4):
        if dim < 1 or letters < 1:
            raise UserError(f"dim={dim} and letters={letters} of a HashingEmbedder must be at least 1")
        self.dim, self.letters, self.name = dim, letters, f"hashing-{dim}-{letters}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """f32[n, dim]."""
        out = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(out, texts, strict=True):
            for feature in self._features(text.casefold()):
                code = zlib.crc32(feature.encode(errors="replace"))
                row[(code >> 1) % self.dim] += 1.0 if code & 1 else -1.0
        return unit(out)

    def _features(self, text: str) -> list[str]:
        words = "".join(c if c.isalnum() else " " for c in text).split()
        padded = f" {' '.join(words)} " if words else ""
        return words + [padded[i:i + self.letters] for i in range(len(padded) - self.letters + 1)]


def unit(rows: np.ndarray) -> np.ndarray:
    """Each row divided by its length; zero rows stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32)


class VectorIndex:
    """The vectors of one table of one conversation in memory; the array doubles when it is full."""

    def __init__(self, dim: int):
        self.ids, self._vectors, self._n = np.zeros(0, np.int64), np.zeros((0, dim), np.float32), 0

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Rows with larger numbers than those before."""
        n = self._n + len(ids)
        if n > len(self.ids):
            room = max(n, 2 * len(self.ids), 64) - len(self.ids)
            self.ids = np.concatenate([self.ids, np.zeros(room, np.int64)])
            self._vectors = np.concatenate([self._vectors, np.zeros((room, self._vectors.shape[1]), np.float32)])
        self.ids[self._n:n], self._vectors[self._n:n], self._n = ids, vectors, n

    def nearest(self, query: np.ndarray, k: int, bound: int) -> list[int]:
        """Numbers of the k rows up to `bound` with the largest inner product, largest first, equal ones by number."""
        n = int(np.searchsorted(self.ids[:self._n], bound, side="right"))
        scores = self._vectors[:n] @ query
        if n > k:
            lowest = np.partition(scores, n - k)[n - k]
            chosen = np.flatnonzero(scores >= lowest)
        else:
            chosen = np.arange(n)
        order = np.lexsort((self.ids[chosen], -scores[chosen]))[:k]
        return self.ids[chosen[order]].tolist()


class Vectors:
    """The indexes of one conversation, brought up to date before each search."""

    def __init__(self, store: Store, conv: int, embedder: Embedder):
        self._store, self._conv, self.embedder = store, conv, embedder
        self._indexes: dict[str, VectorIndex] = {}
        self._last: dict[str, int] = {}

    def nearest(self, table: str, query: str, k: int, bound: int) -> list[int]:
        """Numbers of the k nearest rows of "messages" or "passages", up to number `bound`."""
        if table not in self._indexes:
            self._load(table)
        self._embed_new(table)
        return self._indexes[table].nearest(self.embedder.embed([query])[0], k, bound)

    def _load(self, table: str) -> None:
        index, last = VectorIndex(self.embedder.dim), 0
        stored = self._store.connection.execute(
            "SELECT row_id, dim, dtype, vec FROM embeddings WHERE kind=? AND embedder_hash=? AND conv=? ORDER BY row_id",
            (table, self.embedder.name, self._conv))
        while rows := stored.fetchmany(BATCH):
            index.add([row[0] for row in rows], np.stack([np.frombuffer(vec, dtype, dim) for _, dim, dtype, vec in rows]))
            last = rows[-1][0]
        self._indexes[table], self._last[table] = index, last

    def _embed_new(self, table: str) -> None:
        only = "AND role IN ('user', 'assistant')" if table == "messages" else ""
        new = f"SELECT id, text FROM {table} WHERE conv=? AND id>? {only} ORDER BY id LIMIT {BATCH}"
        while rows := self._store.connection.execute(new, (self._conv, self._last[table])).fetchall():
            ids, vectors = [row[0] for row in rows], self.embedder.embed([row[1] for row in rows])
            values: list[tuple[Any, ...]] = [
                (table, i, self._conv, self.embedder.name, vectors.shape[1], "<f4", vec.astype("<f4").tobytes())
                for i, vec in zip(ids, vectors, strict=True)]
            with self._store.transaction():
                self._store.connection.executemany("INSERT INTO embeddings(kind, row_id, conv, embedder_hash, dim, dtype, vec) "
                                                   "VALUES(?, ?, ?, ?, ?, ?, ?)", values)
            self._indexes[table].add(ids, vectors)
            self._last[table] = ids[-1]
