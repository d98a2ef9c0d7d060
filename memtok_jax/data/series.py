"""Multivariate time series as a source of data: forecasts from a look-back, on the protocol of the long-horizon benchmarks.

A case is `look_back` rows of a table and the `horizon` rows behind them. It is a sequence of one: inputs float32[1, look_back, C],
targets float32[1, horizon * C], step by step, all C channels of a step side by side. Cases overlap: each begins one row later.
Values are z-scores by mean and standard deviation (of the population) of the training rows, and errors are those of z-scores.

Splits of ETT (Zhou et al., arXiv 2012.07436, as everybody uses it): 12, 4 and 4 months of 30 days; rows behind them are not used.
Any other table: the first 70 % and the last 20 % of the rows train and test, what is between validates. Validation and test cases
look back into the rows before their split, so that their first target is its first row. No case is left out, whatever the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data import files
from memtok_jax.data.errors import DataError, DataNotFoundError
from memtok_jax.data.iterators import NumpyIterator, open_iterator
from memtok_jax.data.streams import Batch, identity, rows_of

SUITE, UNIT = "series", "cases"
ETT = {"ETTh1": 24, "ETTh2": 24, "ETTm1": 96, "ETTm2": 96}     # rows a day
ETT_DAYS = (360, 480, 600)                                      # where training, validation and test end


@dataclass(frozen=True)
class SeriesConfig:
    """A table and its cases.

    source: ETTh1, ETTh2, ETTm1, ETTm2, or the path of a CSV file (plain or .gz): a first line of names, then numbers, with
        a column of dates in front or none.
    look_back, horizon: rows that are seen, and rows to forecast.
    seed: order of the training cases.
    data_dir: folder whose subfolder "ett" holds the ETT files. "": environment variable MEMTOK_DATA_DIR.
    eval_split: "valid" or "test".
    """

    source: str = "ETTh1"
    look_back: int = 96
    horizon: int = 96
    seed: int = 0
    data_dir: str = ""
    eval_split: str = "valid"

    def __post_init__(self):
        check_numbers("data", self, at_least=dict(look_back=1, horizon=1, seed=0))
        choose("data.eval_split", self.eval_split, ("valid", "test"))
        if not self.source:
            raise DataError(f"data.source is empty; name one of {', '.join(ETT)} or a CSV file")

    @property
    def sequence(self) -> int:
        """A case is a sequence of one."""
        return 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """None."""
        return ()


class Table(NamedTuple):
    """A table and what follows from it.

    values: float64[rows, C], z-scores. names: of the channels. mean, std: float64[C], of the training rows. ends: rows where the
    splits end. day: rows of 24 hours, by the dates of the first two rows; 1 without dates. origin: path of the file.
    """

    values: np.ndarray
    names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    ends: tuple[int, int, int]
    day: int
    origin: str


def named(old: Any, name: str) -> SeriesConfig:
    """The config of another table."""
    return replace(old, source=name) if isinstance(old, SeriesConfig) else SeriesConfig(source=name, seed=old.seed)


def table(cfg: SeriesConfig) -> Table:
    """The table of a config. Raises DataError for a file that is not there, is no table of numbers, or is too short."""
    found = _load(str(_path(cfg)), ETT.get(cfg.source, 0))
    for split in ("train", "valid", "test"):
        if len(starts(cfg, found, split)) < 1:
            raise DataError(f"{cfg.source} has {len(found.values):,} rows, too few in its part {split!r} for look_back="
                            f"{cfg.look_back} and horizon={cfg.horizon}; make data.look_back or data.horizon shorter")
    return found


def _path(cfg: SeriesConfig) -> Path:
    if cfg.source not in ETT:
        path = Path(cfg.source).expanduser()
        if not path.is_file():
            raise DataNotFoundError(f"unknown series {cfg.source!r}: no such file, and not one of {', '.join(ETT)}")
        return path
    folder = files.real_folder("ett", cfg.data_dir)
    for name in (f"{cfg.source}.csv", f"{cfg.source}.csv.gz"):
        if (folder / name).is_file():
            return folder / name
    raise DataNotFoundError(f"real data not found: {folder / cfg.source}.csv; set MEMTOK_DATA_DIR or pass --data_dir; public "
                            "address: https://github.com/zhouhaoyi/ETDataset")


@functools.lru_cache(maxsize=4)
def _load(path: str, day: int) -> Table:
    lines = files.read_file(Path(path), path).data.tobytes().decode(errors="replace").split("\n")
    names, rows = lines[0].strip().split(","), [line.strip().split(",") for line in lines[1:] if line.strip()]
    dated = names[0].lower() in ("date", "datetime", "time", "timestamp", "")
    try:
        values = np.array([row[dated:] for row in rows], float)
    except ValueError as error:
        raise DataError(f"{path} is no table of numbers behind a line of names ({error})") from None
    if values.ndim != 2 or values.shape[1] != len(names) - dated or not len(values):
        raise DataError(f"{path} has {len(names) - dated} names of channels and rows of another length, or none")
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds values that are not finite numbers; fill them first")
    count = len(values)
    ends = tuple(day * d for d in ETT_DAYS) if day else (int(0.7 * count), count - int(0.2 * count), count)
    if count < ends[-1]:
        raise DataError(f"{path} has {count:,} rows; the splits of ETT need {ends[-1]:,}")
    mean, std = values[:ends[0]].mean(0), values[:ends[0]].std(0)
    std = np.where(std > 0, std, 1.0)
    return Table((values - mean) / std, tuple(names[dated:]), mean, std, ends, day or _rows_of_a_day(rows, dated), path)


def _rows_of_a_day(rows: list[list[str]], dated: bool) -> int:
    try:
        first, second = (datetime.fromisoformat(row[0]) for row in rows[:2])
        return max(round(86_400 / (second - first).total_seconds()), 1) if dated else 1
    except (ValueError, ZeroDivisionError):
        return 1


def starts(cfg: SeriesConfig, found: Table, split: str) -> np.ndarray:
    """int[n]: first row of each case of a split."""
    train, valid, test = found.ends
    begin, end = {"train": (0, train), "valid": (train - cfg.look_back, valid), "test": (valid - cfg.look_back, test)}[split]
    return np.arange(max(begin, 0), end - cfg.look_back - cfg.horizon + 1)


# ------------------------------------------------------------------------------------------------------------- batches

def open_train(cfg: SeriesConfig, batch: int, process_index: int, process_count: int) -> NumpyIterator:
    """Endless training batches; see `data.open_train`. Every epoch takes each case once, in an order of its own."""
    found, rows = table(cfg), rows_of(process_index, process_count, batch)
    source = TrainCases(cfg, found, batch, rows)
    checksum = round(float(np.abs(found.values).sum()), 3)
    return open_iterator(source, identity((), cfg.source, cfg.look_back, cfg.horizon, batch, cfg.seed, checksum))


def open_eval(cfg: SeriesConfig, batch: int, process_index: int, process_count: int) -> Sequence[Batch]:
    """All cases of the held-out split in order; see `data.open_eval`."""
    return EvalCases(cfg, table(cfg), batch, rows_of(process_index, process_count, batch))


def cases(cfg: SeriesConfig, found: Table, begins: np.ndarray) -> Batch:
    """Inputs, targets and starts of the cases that begin at these rows."""
    at = begins[:, None] + np.arange(cfg.look_back + cfg.horizon)
    both = found.values[at].astype(np.float32)
    return {"inputs": both[:, None, :cfg.look_back], "targets": both[:, None, cfg.look_back:].reshape(len(begins), 1, -1),
            "start": np.ones(len(begins), bool)}


class TrainCases:
    """Batches of training cases without an end."""

    def __init__(self, cfg: SeriesConfig, found: Table, batch: int, rows: range):
        self._cfg, self._table, self._batch, self._rows = cfg, found, batch, np.arange(rows.start, rows.stop)
        self._starts = starts(cfg, found, "train")

    def __getitem__(self, step: int) -> Batch:
        count = len(self._starts)
        epochs, places = np.divmod(step * self._batch + self._rows, count)
        chosen = [_order(count, self._cfg.seed, int(e))[p] for e, p in zip(epochs, places, strict=True)]
        return cases(self._cfg, self._table, self._starts[chosen])


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class EvalCases(Sequence):
    """Every case of the held-out split once; the last batch is filled up with rows of length 0."""

    def __init__(self, cfg: SeriesConfig, found: Table, batch: int, rows: range):
        self._cfg, self._table, self._batch, self._rows = cfg, found, batch, np.arange(rows.start, rows.stop)
        self._starts = starts(cfg, found, cfg.eval_split)

    def __len__(self) -> int:
        return -(-len(self._starts) // self._batch)

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        numbers = step * self._batch + self._rows
        real = numbers < len(self._starts)
        out = cases(self._cfg, self._table, self._starts[np.where(real, numbers, 0)])
        out["targets"][~real] = np.nan
        return out | {"start": real, "length": real.astype(np.int32), "document": np.where(real, numbers, -1).astype(np.int32)}


# ------------------------------------------------------------------------------------------------------------- facts

def input_shape(cfg: SeriesConfig) -> tuple[tuple[int, ...], type]:
    """One case: float32[1, look_back, C]."""
    return (1, cfg.look_back, table(cfg).values.shape[1]), np.float32


def targets(cfg: SeriesConfig) -> str:
    """Numbers."""
    return "values"


def vocabulary(cfg: SeriesConfig) -> int:
    """Numbers of a forecast: horizon * C."""
    return cfg.horizon * table(cfg).values.shape[1]


def baselines(cfg: SeriesConfig, reach: int, segment: int) -> dict[str, float]:
    """Mean squared errors without a trained model, by name; see `series_baselines.py`."""
    from memtok_jax.data.series_baselines import errors

    return {name: squared for name, (squared, _) in errors(cfg).items()}


def describe(cfg: SeriesConfig) -> str:
    """One line: the table, its splits, and where it lies."""
    found = table(cfg)
    counts = ", ".join(f"{len(starts(cfg, found, split)):,} {split}" for split in ("train", "valid", "test"))
    return (f"{cfg.source}: {len(found.values):,} rows of {len(found.names)} channels, look-back {cfg.look_back}, horizon "
            f"{cfg.horizon}; cases: {counts}; from {found.origin}")
