"""Labelled DNA sequences as a source of data: one token a base, the class at the last token.

    PAD ... PAD  bases  ASK        the class, a token from 0 on, is predicted at ASK

A data set is a folder. It holds tables {train,dev,test}.csv with the columns sequence and label (GUE of DNABERT-2, arXiv
2306.15006), or for each split a folder of classes, each a folder of text files of one sequence or a FASTA file (GenomicBenchmarks).
All may be .gz. Without a part "dev" (or "valid") each tenth training sequence is for validation. Files are taken as they are: some
published sets hold sequences twice, and a few test sequences are in the training part too.

Tokens: A C G T, then N for any other base, PAD, ASK.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data import files
from memtok_jax.data.errors import DataError
from memtok_jax.data.iterators import NumpyIterator, open_iterator
from memtok_jax.data.streams import Batch, identity, rows_of
from memtok_jax.data.tasks.scoring import IGNORED

SUITE, UNIT = "dna", "tokens"
BASES = "ACGT"
OTHER, PAD, ASK = 4, 5, 6
COMPLEMENT = np.array([3, 2, 1, 0, OTHER], np.uint8)
NAMES = {"train": ("train",), "valid": ("dev", "valid"), "test": ("test",)}
VALID = 10     # each tenth training sequence is for validation where there is no part for it


@dataclass(frozen=True)
class DnaConfig:
    """A data set and its rows.

    source: folder of the data set, or its name below the folder of local data sets, such as "dna_gue/prom/prom_core_tata".
    sequence: T; the longest sequence and ASK must fit.
    seed: order of the training sequences.
    reverse: half of the training rows are the other strand, read from its front. Not for promoters, whose strand matters.
    data_dir: folder of the local data sets. "": environment variable MEMTOK_DATA_DIR.
    eval_split: "valid" or "test".
    """

    source: str = "dna_gue/prom/prom_core_tata"
    sequence: int = 72
    seed: int = 0
    reverse: bool = False
    data_dir: str = ""
    eval_split: str = "valid"

    def __post_init__(self):
        check_numbers("data", self, at_least=dict(sequence=2, seed=0))
        choose("data.eval_split", self.eval_split, ("valid", "test"))

    @property
    def lengths(self) -> tuple[int, ...]:
        """All rows have `sequence` tokens."""
        return ()


class Part(NamedTuple):
    """bases: uint8[n] for each sequence. labels: int32[N]."""

    bases: tuple[np.ndarray, ...]
    labels: np.ndarray


def named(old: Any, name: str) -> DnaConfig:
    """The config of another data set."""
    return replace(old, source=name) if isinstance(old, DnaConfig) else DnaConfig(source=name, sequence=old.sequence, seed=old.seed)


def encode(text: str) -> np.ndarray:
    """uint8[n]: bases of a sequence in upper or lower case."""
    table = np.full(256, OTHER, np.uint8)
    for n, base in enumerate(BASES):
        table[ord(base)] = table[ord(base.lower())] = n
    return table[np.frombuffer(text.strip().encode(), np.uint8)]


def parts(cfg: DnaConfig) -> tuple[dict[str, Part], tuple[str, ...]]:
    """(part by split, names of the classes). Raises DataError for a folder without a data set, or rows that are too long."""
    folder = Path(cfg.source).expanduser()
    folder = folder if folder.is_dir() else files.real_folder(cfg.source, cfg.data_dir)
    found, classes = _load(str(folder))
    longest = max(len(one) for part in found.values() for one in part.bases)
    if longest >= cfg.sequence:
        raise DataError(f"{cfg.source} has sequences of up to {longest} bases; data.sequence is {cfg.sequence} and must be "
                        f"{longest + 1} or more")
    return found, classes


@functools.lru_cache(maxsize=2)
def _load(folder: str) -> tuple[dict[str, Part], tuple[str, ...]]:
    read = {split: _read(Path(folder), names) for split, names in NAMES.items()}
    if not read["train"] or not read["test"]:
        raise DataError(f"{folder} holds no DNA data set: it needs train.csv and test.csv with the columns sequence and label, "
                        "or folders train and test with a folder or FASTA file for each class")
    if not read["valid"]:
        read["valid"] = read["train"][VALID - 1::VALID]
        read["train"] = [one for n, one in enumerate(read["train"]) if n % VALID != VALID - 1]
    classes = tuple(sorted({label for part in read.values() for _, label in part}))
    number = {label: n for n, label in enumerate(classes)}
    made = {split: Part(tuple(encode(text) for text, _ in part), np.array([number[label] for _, label in part], np.int32))
            for split, part in read.items()}
    return made, classes


def _read(folder: Path, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(sequence, label) of a split; nothing if it is not there."""
    for name in names:
        for ending in (".csv", ".csv.gz"):
            if (folder / (name + ending)).is_file():
                return _table(folder / (name + ending))
        if (folder / name).is_dir():
            return [(text, label.name.partition(".")[0]) for label in sorted((folder / name).iterdir()) for text in _class(label)]
    return []


def _table(path: Path) -> list[tuple[str, str]]:
    lines = files.read_file(path, path.name).data.tobytes().decode().split()
    head = lines[0].split(",")
    if "sequence" not in head or "label" not in head:
        raise DataError(f"{path} begins with {lines[0][:40]!r}; it must name the columns sequence and label")
    at = head.index("sequence"), head.index("label")
    rows = [line.split(",") for line in lines[1:]]
    if any(len(row) != len(head) for row in rows):
        raise DataError(f"{path} has lines with another number of columns than its first one")
    return [(row[at[0]], row[at[1]]) for row in rows]


def _class(path: Path) -> list[str]:
    """Sequences of one class: a folder of files, or a FASTA file."""
    if path.is_dir():
        return [text for one in sorted(path.iterdir()) for text in _class(one)]
    records = files.read_file(path, path.name).data.tobytes().decode().split(">")
    if len(records) == 1:
        return ["".join(records[0].split())] if records[0].strip() else []
    return ["".join(record.split("\n")[1:]).replace("\r", "") for record in records[1:]]


# ------------------------------------------------------------------------------------------------------------- batches

def rows(part: Part, numbers: np.ndarray, tokens: int) -> Batch:
    """Inputs, targets and starts of these sequences."""
    ids, labels = np.full((len(numbers), tokens), PAD, np.int32), np.full((len(numbers), tokens), IGNORED, np.int32)
    for row, n in zip(ids, numbers, strict=True):
        row[tokens - 1 - len(part.bases[n]):-1] = part.bases[n]
    ids[:, -1], labels[:, -1] = ASK, part.labels[numbers]
    return {"inputs": ids, "targets": labels, "start": np.ones(len(ids), bool)}


def other_strand(ids: np.ndarray) -> np.ndarray:
    """int32[T]: a row with the complement of its bases, read backwards."""
    at = np.flatnonzero(ids < PAD)
    out = ids.copy()
    out[at] = COMPLEMENT[ids[at][::-1]]
    return out


def open_train(cfg: DnaConfig, batch: int, process_index: int, process_count: int) -> NumpyIterator:
    """Endless training batches; see `data.open_train`. Every epoch takes each sequence once, in an order of its own."""
    part, own = parts(cfg)[0]["train"], rows_of(process_index, process_count, batch)
    checksum = int(sum(int(one.sum()) for one in part.bases) + part.labels.sum())
    settings = (cfg.sequence, cfg.seed, cfg.reverse, batch, len(part.labels), checksum)
    return open_iterator(TrainRows(cfg, part, batch, own), identity((), *settings))


class TrainRows:
    """Batches of training sequences without an end."""

    def __init__(self, cfg: DnaConfig, part: Part, batch: int, own: range):
        self._cfg, self._part, self._batch, self._rows = cfg, part, batch, np.arange(own.start, own.stop)

    def __getitem__(self, step: int) -> Batch:
        count, places = len(self._part.labels), step * self._batch + self._rows
        chosen = np.array([_order(count, self._cfg.seed, int(p) // count)[int(p) % count] for p in places])
        out = rows(self._part, chosen, self._cfg.sequence)
        for row, place in zip(out["inputs"], places, strict=True):
            if self._cfg.reverse and np.random.default_rng((self._cfg.seed, int(place), 1)).random() < 0.5:
                row[:] = other_strand(row)
        return out


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def open_eval(cfg: DnaConfig, batch: int, process_index: int, process_count: int) -> Sequence[Batch]:
    """All sequences of the held-out split in order; see `data.open_eval`."""
    return EvalRows(cfg, parts(cfg)[0][cfg.eval_split], batch, rows_of(process_index, process_count, batch))


class EvalRows(Sequence):
    """Every sequence once; the last batch is filled up with rows of length 0."""

    def __init__(self, cfg: DnaConfig, part: Part, batch: int, own: range):
        self._cfg, self._part, self._batch, self._rows = cfg, part, batch, np.arange(own.start, own.stop)

    def __len__(self) -> int:
        return -(-len(self._part.labels) // self._batch)

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        numbers = step * self._batch + self._rows
        real = numbers < len(self._part.labels)
        out = rows(self._part, np.where(real, numbers, 0), self._cfg.sequence)
        out["targets"][~real] = IGNORED
        return out | {"start": real, "length": (real * self._cfg.sequence).astype(np.int32),
                      "document": np.where(real, numbers, -1).astype(np.int32)}


# ------------------------------------------------------------------------------------------------------------- facts

def input_shape(cfg: DnaConfig) -> tuple[tuple[int, ...], type]:
    """One row: int32[T]."""
    return (cfg.sequence,), np.int32


def targets(cfg: DnaConfig) -> str:
    """Tokens: the class is one, at the last place of a row."""
    return "tokens"


def vocabulary(cfg: DnaConfig) -> int:
    """Bases and signs, or classes if there are more."""
    return max(ASK + 1, len(parts(cfg)[1]))


def baselines(cfg: DnaConfig, reach: int, segment: int) -> dict[str, float]:
    """Accuracies without a trained model, by name; see `dna_baselines.py`."""
    from memtok_jax.data.dna_baselines import scores

    return {name: accuracy for name, (accuracy, _) in scores(cfg).items()}


def decode(cfg: DnaConfig, ids: Any) -> str:
    """Letters of a row."""
    letters = BASES + "N.?"
    out = ""
    for i in map(int, ids):
        if i < 0:
            break
        out += letters[i] if i < len(letters) else "\N{REPLACEMENT CHARACTER}"
    return out


def describe(cfg: DnaConfig) -> str:
    """One line: the data set, its splits and classes."""
    found, classes = parts(cfg)
    counts = ", ".join(f"{len(part.labels):,} {split}" for split, part in found.items())
    longest = max(len(one) for one in found["train"].bases)
    return f"{cfg.source}: {counts} sequences of up to {longest} bases, classes {', '.join(classes)}"
