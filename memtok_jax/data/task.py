"""Generated tasks as a source of data: fresh samples in each batch, held-out samples that no training batch has."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data import tasks
from memtok_jax.data.errors import DataError
from memtok_jax.data.iterators import NumpyIterator, open_iterator
from memtok_jax.data.streams import Batch, identity, rows_of
from memtok_jax.data.tasks.scoring import IGNORED, majority
from memtok_jax.data.tasks.seeds import HELD_OUT as HELD_OUT
from memtok_jax.data.tasks.seeds import SPLITS, STEPS

SUITE, UNIT = "task", "tokens"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class TaskConfig:
    """A generator and the cut of its samples.

    task: settings of the generator, such as `CopyConfig(length=8)`; the file that defines them is the generator.
    sequence: T, tokens of a sample.
    lengths: each training batch has one of these lengths, drawn at random; (): always `sequence`. One program is compiled for each
        of them. Held-out samples have `sequence` tokens.
    seed: of the training samples; the held-out samples do not depend on it.
    eval_samples: number of held-out samples.
    eval_split: "test", or "valid" for choices such as a learning rate; their samples have seeds of their own.
    train_samples: training takes its samples from a fixed set of this many, each once in an epoch; 0: fresh ones for ever.
    """

    task: Any = field(metadata={"named": lambda old, name: tasks.settings_named(name)})
    sequence: int = 64
    lengths: tuple[int, ...] = ()
    seed: int = 0
    eval_samples: int = 256
    eval_split: str = "test"
    train_samples: int = 0

    def __post_init__(self):
        check_numbers("data", self, at_least=dict(sequence=1, lengths=1, seed=0, eval_samples=1, train_samples=0))
        choose("data.eval_split", self.eval_split, SPLITS)
        if self.train_samples and self.lengths:
            raise DataError(f"data.train_samples is {self.train_samples}: fixed samples have one length; set data.lengths=()")
        if self.lengths and max(self.lengths) > self.sequence:
            raise DataError(f"data.lengths {self.lengths} must lie between 1 and data.sequence {self.sequence}")

    @property
    def source(self) -> str:
        """Name of the task, as in --data=task:copy."""
        return f"task:{module_of(self).__name__.rpartition('.')[2]}"


def module_of(cfg: TaskConfig) -> ModuleType:
    """The generator."""
    return sys.modules[type(cfg.task).__module__]


def named(old: Any, name: str) -> TaskConfig:
    """The config of another task, with the defaults of its generator."""
    if name not in tasks.names() and os.path.exists(name):
        raise DataError(f"{name} is a file or folder, and this config trains on a task; for a text give --data=text:{name}")
    task = tasks.settings_named(name)
    return replace(old, task=task) if isinstance(old, TaskConfig) else TaskConfig(task, old.sequence, seed=old.seed)


def open_train(cfg: TaskConfig, batch: int, process_index: int, process_count: int) -> NumpyIterator:
    """Endless training batches; see `data.open_train`."""
    rows = rows_of(process_index, process_count, batch)
    for tokens in (cfg.sequence, *cfg.lengths):
        module_of(cfg).check(cfg.task, tokens)
    settings = (cfg.source, cfg.task, batch, cfg.sequence, *cfg.lengths, cfg.seed)
    if cfg.train_samples:
        return open_iterator(FixedBatches(cfg, batch, rows), identity((), *settings, cfg.train_samples))
    return open_iterator(TaskBatches(cfg, batch, rows), identity((), *settings))


def open_eval(cfg: TaskConfig, batch: int, process_index: int, process_count: int) -> Sequence[Batch]:
    """Held-out samples; see `data.open_eval`."""
    rows = rows_of(process_index, process_count, batch)
    module_of(cfg).check(cfg.task, cfg.sequence)
    return TaskEvalBatches(cfg, batch, rows)


def input_shape(cfg: TaskConfig) -> tuple[tuple[int, ...], type]:
    """One row: int32[T]."""
    return (cfg.sequence,), np.int32


def targets(cfg: TaskConfig) -> str:
    """Tokens, most of them not scored."""
    return "tokens"


def vocabulary(cfg: TaskConfig) -> int:
    """Number of tokens."""
    return module_of(cfg).vocabulary(cfg.task)


def answers(cfg: TaskConfig) -> np.ndarray:
    """bool[T]: inputs that are answers; a model that writes by itself reads its own there."""
    return module_of(cfg).answers(cfg.task, cfg.sequence)


def answer_right(cfg: TaskConfig) -> Callable | None:
    """Of a task whose answer is a part of what it predicts: (predicted [B, T], labels [B, T]) -> bool[B]; else None."""
    return getattr(module_of(cfg), "answer_right", None)


def baselines(cfg: TaskConfig, reach: int, segment: int) -> dict[str, float]:
    """Accuracies without a trained model.

    chance and others that the task names; "majority": always the most frequent held-out answer; "own_segment": the best reader of
    the tokens since the last border, if there are borders; "no_memory": the best reader of the last `reach` tokens, of the own
    segment alone if `reach` is no longer than that.
    """
    task, found = module_of(cfg), dict(module_of(cfg).chance(cfg.task, cfg.sequence))
    if hasattr(task, "reader"):
        found |= {name: task.reader(cfg.task, cfg.sequence, first) for name, first in sights(cfg.sequence, reach, segment).items()}
    (held_out,) = open_eval(cfg, cfg.eval_samples, 0, 1)
    return found | {"majority": majority(held_out["targets"])}


def sights(sequence: int, reach: int, segment: int) -> dict[str, np.ndarray]:
    """First position int[T] that each one sees without a memory: "no_memory", and "own_segment" if there are borders."""
    t = np.arange(sequence)
    border = t // segment * segment if segment else np.zeros_like(t)
    nearest = np.maximum(t - reach + 1, border if reach <= segment else 0)
    return {"no_memory": nearest} | ({"own_segment": border} if segment else {})


def decode(cfg: TaskConfig, ids: Any) -> str:
    """Names of the tokens; see `data.decode`."""
    symbols, words = module_of(cfg).symbols(cfg.task), []
    for i in map(int, ids):
        if i < 0:
            break
        words.append(symbols[i] if i < len(symbols) else UNKNOWN)
    return " ".join(words)


def describe(cfg: TaskConfig) -> str:
    """One line: the task and its settings."""
    train = f"{cfg.train_samples:,} samples" if cfg.train_samples else "fresh samples"
    return f"{cfg.source}: {cfg.task}, {cfg.sequence} tokens, {train} for training, {cfg.eval_samples} held-out samples"


# ------------------------------------------------------------------------------------------------------------- batches

class TaskBatches:
    """Training batches of a task without an end; `start` is always True."""

    def __init__(self, cfg: TaskConfig, batch: int, rows: range):
        self._cfg, self._batch, self._rows = cfg, batch, slice(rows.start, rows.stop)

    def __getitem__(self, step: int) -> Batch:
        cfg, seed = self._cfg, training_seed(self._cfg, step)
        ids, labels = module_of(cfg).sample(cfg.task, _length(cfg, seed), self._batch, seed)
        ids, labels = ids[self._rows], labels[self._rows]
        return {"inputs": ids, "targets": labels, "start": np.ones(len(ids), bool)}


def training_seed(cfg: TaskConfig, step: int) -> int:
    """Seed of a training batch: below HELD_OUT, and another one for every seed of the config and every step."""
    return cfg.seed * STEPS + step


class FixedBatches:
    """Training batches from `cfg.train_samples` samples that stay the same; every epoch takes each once, in an order of its own."""

    def __init__(self, cfg: TaskConfig, batch: int, rows: range):
        self._cfg, self._batch, self._rows = cfg, batch, np.arange(rows.start, rows.stop)
        self._drawn: dict[int, tuple[np.ndarray, ...]] = {}

    def __getitem__(self, step: int) -> Batch:
        places = step * self._batch + self._rows
        ids, labels = (np.stack(parts) for parts in zip(*map(self._sample, places), strict=True))
        return {"inputs": ids, "targets": labels, "start": np.ones(len(ids), bool)}

    def _sample(self, place: int) -> tuple[np.ndarray, ...]:
        """The sample at a place of the endless sequence of epochs."""
        cfg = self._cfg
        epoch, place = divmod(int(place), cfg.train_samples)
        number = int(_order(cfg.train_samples, cfg.seed, epoch)[place])
        if number not in self._drawn:
            self._drawn[number] = tuple(a[0] for a in module_of(cfg).sample(cfg.task, cfg.sequence, 1, cfg.seed * STEPS + number))
        return self._drawn[number]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _length(cfg: TaskConfig, seed: int) -> int:
    """Length of the batch with this seed, the same in every process."""
    lengths = cfg.lengths or (cfg.sequence,)
    return lengths[np.random.default_rng((seed, len(lengths))).integers(len(lengths))]


class TaskEvalBatches(Sequence):
    """Held-out samples: `cfg.eval_samples` of them, each once, the last batch filled up with rows of length 0.

    `document` is the number of the sample.
    """

    def __init__(self, cfg: TaskConfig, batch: int, rows: range):
        self._cfg, self._batch, self._rows = cfg, batch, np.arange(rows.start, rows.stop)

    def __len__(self) -> int:
        return -(-self._cfg.eval_samples // self._batch)

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        numbers = step * self._batch + self._rows
        real = numbers < self._cfg.eval_samples
        ids, labels = (np.stack(parts) for parts in zip(*map(self._sample, numbers), strict=True))
        ids[~real], labels[~real] = 0, IGNORED
        return {"inputs": ids, "targets": labels, "start": real, "length": (real * ids.shape[1]).astype(np.int32),
                "document": np.where(real, numbers, -1).astype(np.int32)}

    def _sample(self, number: int) -> tuple[np.ndarray, ...]:
        """Held-out sample `number`: the same for every batch size."""
        cfg = self._cfg
        return tuple(a[0] for a in module_of(cfg).sample(cfg.task, cfg.sequence, 1, SPLITS[cfg.eval_split] + int(number)))
