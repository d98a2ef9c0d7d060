"""What a run reads: one frozen dataclass for text and for generated tasks."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from memtok_jax.data.errors import DataError, nearest
from memtok_jax.data.tasks.associative import AssociativeConfig
from memtok_jax.data.tasks.copy import CopyConfig
from memtok_jax.data.tasks.equations import EquationsConfig
from memtok_jax.data.tasks.mqar import MqarConfig
from memtok_jax.data.tasks.passkey import PasskeyConfig
from memtok_jax.data.tasks.recall import RecallConfig
from memtok_jax.data.tasks.retrieval import RetrievalConfig
from memtok_jax.data.tasks.reverse import ReverseConfig

TASK, TFDS = "task:", "tfds:"


@dataclass(frozen=True)
class DataConfig:
    """Source and cut of the training and evaluation data.

    source: "stdlib", "gutenberg_books", "wikitext2", "tinyshakespeare", "tfds:NAME", "task:NAME", or the path of a
        text file (plain or .gz) or of a folder of text files.
    sequence: T, tokens per row of a batch.
    lengths: a task's batch has one of these lengths, drawn for each batch anew (() = always `sequence`); one program is compiled
        for each of them. Held-out samples have `sequence` tokens.
    seed: order of the training data; the held-out data does not depend on it.
    contiguous: True, row b of a batch continues row b of the batch before, through the whole epoch; False, rows stand at
        random places and jump. Tasks draw independent samples in either case.
    visit: batches that a row stays at a random place before it jumps and its carry is reset (with contiguous False).
    data_dir: folder of the local data sets ("" = environment variable MEMTOK_DATA_DIR, read when data is opened).
    cache_dir: where the prepared stdlib data set is kept ("" = $XDG_CACHE_HOME/memtok_jax or ~/.cache/memtok_jax).
    held_out: fraction of the text kept for evaluation where the source has no split of its own.
    max_bytes: at most so many bytes of training text are used (0 = all).
    eval_split: which held-out split is scored ("valid" everywhere; "test" or others where the source has them).
    eval_bytes: at most so many held-out bytes are scored (0 = all).
    eval_samples: number of held-out samples of a task.
    recall, passkey, mqar, copy, reverse, retrieval, equations, associative: settings of the generators; the one that
        `source` names is used.
    """

    source: str = "stdlib"
    sequence: int = 512
    lengths: tuple[int, ...] = ()
    seed: int = 0
    contiguous: bool = True
    visit: int = 1
    data_dir: str = ""
    cache_dir: str = ""
    held_out: float = 0.05
    max_bytes: int = 0
    eval_split: str = "valid"
    eval_bytes: int = 262_144
    eval_samples: int = 256
    recall: RecallConfig = RecallConfig()
    passkey: PasskeyConfig = PasskeyConfig()
    mqar: MqarConfig = MqarConfig()
    copy: CopyConfig = CopyConfig()
    reverse: ReverseConfig = ReverseConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    equations: EquationsConfig = EquationsConfig()
    associative: AssociativeConfig = AssociativeConfig()

    def __post_init__(self):
        if not self.source:
            raise DataError("data source is empty; name a data set, a path, tfds:NAME or task:NAME")
        for name, least in (("sequence", 1), ("visit", 1), ("seed", 0), ("max_bytes", 0), ("eval_bytes", 0), ("eval_samples", 1)):
            if getattr(self, name) < least:
                raise DataError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise DataError(f"seed must be below 2^63, got {self.seed}")
        if not 0 < self.held_out < 1:
            raise DataError(f"held_out is a fraction between 0 and 1, got {self.held_out}")
        if self.lengths and not 0 < min(self.lengths) <= max(self.lengths) <= self.sequence:
            raise DataError(f"lengths {self.lengths} must lie between 1 and sequence {self.sequence}")
        if self.lengths and not is_task(self):
            raise DataError(f"lengths {self.lengths} can vary for a task only, not for {self.source}")
        if is_task(self):
            task_module(self)


def task_names() -> tuple[str, ...]:
    """Names of the generators: the files of the folder `tasks` that hold one."""
    package = importlib.import_module("memtok_jax.data.tasks")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "scoring"))


def is_task(cfg) -> bool:
    """True where the source is a generator of samples, False where it is text or images."""
    return isinstance(cfg, DataConfig) and cfg.source.startswith(TASK)


def task_module(cfg: DataConfig) -> ModuleType:
    """The generator that the source names. Raises DataError for an unknown name."""
    name = cfg.source.removeprefix(TASK)
    if name not in task_names():
        raise DataError(f"unknown task '{name}', known: {', '.join(task_names())}{nearest(name, task_names())}")
    return importlib.import_module(f"memtok_jax.data.tasks.{name}")


def task_config(cfg: DataConfig):
    """The settings of the generator that the source names."""
    return getattr(cfg, cfg.source.removeprefix(TASK))
