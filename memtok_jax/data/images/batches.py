"""Batches of images as pure index arithmetic: batch number -> arrays. Each image is a sequence of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memtok_jax.data.images.augment import augment, mix, shares
from memtok_jax.data.images.config import ImagesConfig
from memtok_jax.data.images.pictures import Picture, Pictures, fit
from memtok_jax.data.streams import Batch
from memtok_jax.data.tasks.scoring import IGNORED


class TrainImages:
    """Endless training batches: every image once in each epoch, each epoch in a new order.

    Augmentation depends on (seed, step, row) alone. An image is mixed with that of the row beside it: rows 2k and 2k + 1 are
    partners. `start` is never True, because the carry of an image classifier, its random keys, must not begin again.
    """

    def __init__(self, cfg: ImagesConfig, pictures: Pictures, batch: int, rows: range):
        self._cfg, self._pictures, self._batch, self._rows = cfg, pictures, batch, rows
        self._cached: tuple[int, np.ndarray] | None = None
        self.count = pictures.count

    def __getitem__(self, step: int) -> Batch:
        mixes = self._cfg.augment.mixes
        wanted = {*self._rows, *(map(self._partner, self._rows) if mixes else ())}    # a partner may belong to another process
        found = {row: self._one(step, row) for row in sorted(wanted)}
        seen = [self._mixed(step, row, found) if mixes else (found[row].pixels, found[row].label) for row in self._rows]
        targets = np.array([[target] for _, target in seen], np.float32 if mixes else np.int32)
        return {"inputs": np.stack([pixels for pixels, _ in seen])[:, None], "targets": targets, "start": np.zeros(len(seen), bool)}

    def _one(self, step: int, row: int) -> Picture:
        """The augmented image of a row."""
        found = fit(self._pictures.read(self._number(step * self._batch + row)), self._cfg.size, self._cfg.channels)
        rng = np.random.default_rng((self._cfg.seed, 1, step, row))
        return found._replace(pixels=augment(found.pixels, self._cfg.augment, rng))

    def _partner(self, row: int) -> int:
        """The row beside a row; the last row of an odd batch is its own partner."""
        return min(row ^ 1, self._batch - 1)

    def _mixed(self, step: int, row: int, found: dict[int, Picture]) -> tuple[np.ndarray, np.ndarray]:
        """The image of a row with that of its partner, and the shares of their classes."""
        one, other = found[row], found[self._partner(row)]
        pixels, share = mix(one.pixels, other.pixels, self._cfg.augment, np.random.default_rng((self._cfg.seed, 2, step, row)))
        return pixels, shares(one.label, other.label, share, len(self._pictures.classes))

    def _number(self, place: int) -> int:
        """Number of the image at a place in the endless sequence of epochs."""
        epoch, inner = divmod(place, self._pictures.count)
        if self._cached is None or self._cached[0] != epoch:
            order = np.random.default_rng((self._cfg.seed, 0, epoch)).permutation(self._pictures.count)
            self._cached = (epoch, order)
        return int(self._cached[1][inner])


def scored(cfg: ImagesConfig, pictures: Pictures) -> int:
    """How many images of a held-out split are scored."""
    return min(cfg.eval_samples or pictures.count, pictures.count)


class EvalImages(Sequence):
    """Held-out batches: every image exactly once, without augmentation; the last batch is filled up with rows of length 0.

    A batch has the keys of an evaluation batch of text; `document` is the number of the image, -1 in rows of length 0.
    """

    def __init__(self, cfg: ImagesConfig, pictures: Pictures, batch: int, rows: range):
        self._cfg, self._pictures, self._batch, self._rows = cfg, pictures, batch, np.arange(rows.start, rows.stop)
        self._count = scored(cfg, pictures)

    def __len__(self) -> int:
        return -(-self._count // self._batch)

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        numbers = step * self._batch + self._rows
        real = numbers < self._count
        found = [self._one(int(n)) if ok else None for n, ok in zip(numbers, real, strict=True)]
        blank = np.zeros(self._cfg.shape, np.uint8)
        return {"inputs": np.stack([blank if one is None else one.pixels for one in found])[:, None],
                "targets": np.array([[IGNORED if one is None else one.label] for one in found], np.int32),
                "start": real, "length": real.astype(np.int32), "document": np.where(real, numbers, -1).astype(np.int32)}

    def _one(self, number: int) -> Picture:
        return fit(self._pictures.read(number), self._cfg.size, self._cfg.channels)
