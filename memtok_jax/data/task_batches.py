"""Batches of generated samples: batch number -> arrays, fresh samples in each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memtok_jax.data.config import DataConfig, task_config, task_module
from memtok_jax.data.streams import Batch
from memtok_jax.data.tasks.scoring import IGNORED

# Sample seeds: training uses seed * 2^63 + step, which lies below 2^126; held-out samples lie above and are the same
# whatever the training seed.
STEPS, HELD_OUT = 2**63, 2**126


class TaskBatches:
    """Training batches of a task without an end; `start` is always True."""

    def __init__(self, cfg: DataConfig, batch: int, rows: range):
        self._cfg, self._batch, self._rows = cfg, batch, slice(rows.start, rows.stop)

    def __getitem__(self, step: int) -> Batch:
        cfg = self._cfg
        seed = cfg.seed * STEPS + step
        ids, labels, _ = task_module(cfg).sample(task_config(cfg), _length(cfg, seed), self._batch, seed)
        ids, labels = ids[self._rows], labels[self._rows]
        return {"inputs": ids, "targets": labels, "start": np.ones(len(ids), bool)}


def _length(cfg: DataConfig, seed: int) -> int:
    """Length of the batch with this seed, the same in every process."""
    lengths = cfg.lengths or (cfg.sequence,)
    return lengths[np.random.default_rng((seed, len(lengths))).integers(len(lengths))]


class TaskEvalBatches(Sequence):
    """Held-out samples: `cfg.eval_samples` of them, each once, the last batch filled up with rows of length 0.

    A batch holds what evaluation batches of text hold (`document` is the number of the sample) and `distance`
    int32[B, T], how many tokens back the evidence of a scored position lies.
    """

    def __init__(self, cfg: DataConfig, batch: int, rows: range):
        self._cfg, self._batch, self._rows = cfg, batch, np.arange(rows.start, rows.stop)

    def __len__(self) -> int:
        return -(-self._cfg.eval_samples // self._batch)

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        numbers = step * self._batch + self._rows
        real = numbers < self._cfg.eval_samples
        ids, labels, distance = (np.stack(parts) for parts in zip(*map(self._one, numbers), strict=True))
        ids[~real], labels[~real], distance[~real] = 0, IGNORED, 0
        return {"inputs": ids, "targets": labels, "start": real, "length": (real * ids.shape[1]).astype(np.int32),
                "document": np.where(real, numbers, -1).astype(np.int32), "distance": distance}

    def _one(self, number: int) -> tuple[np.ndarray, ...]:
        """Sample `number` of the held-out set: the same for every batch size."""
        cfg = self._cfg
        return tuple(a[0] for a in task_module(cfg).sample(task_config(cfg), cfg.sequence, 1, HELD_OUT + int(number)))
