"""Numbers of a run: one JSON object a line in `metrics.jsonl`; on request also elsewhere, see `writers.py`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memtok_jax.config import StoppedError
from memtok_jax.training.writers import open_all

FILE = "metrics.jsonl"
BASELINE = "baseline/"    # names of what costs nothing; they stand in the last record of a run only


class Metrics:
    """Writer of one run. Every record holds `step`, `time` (seconds since 1970) and flat names with numbers.

    Raises StoppedError if the disk refuses.
    """

    def __init__(self, workdir: Path, step: int, writers: tuple[str, ...] = ()):
        """Open the file and drop what will be written again: updates after `step`, and the report of an end. writers: names."""
        self._path = Path(workdir) / FILE
        kept = [r for r in read(workdir) if r["step"] <= step and not any(n.startswith(BASELINE) for n in r)]
        scratch = self._path.with_name(FILE + ".new")
        with self._disk():
            scratch.write_text("".join(_line(r) for r in kept))
            scratch.replace(self._path)
            self._file = self._path.open("a")
        self._writers = open_all(writers, Path(workdir), step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one record; it is on its way to disk when this returns."""
        with self._disk():
            self._file.write(_line({"step": step, "time": round(time.time(), 3), **values}))
            self._file.flush()
        for writer in self._writers:
            writer.write(step, values)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoppedError(f"{self._path} could not be written ({error.strerror}); the same command goes on from the newest "
                               "checkpoint") from None

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for writer in self._writers:
            writer.close()


class NoMetrics:
    """The writer of processes other than the first: it writes nothing."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read(workdir: Path) -> list[dict[str, float]]:
    """All records of a run, in order; lines that a kill or the disk has damaged are left out."""
    path = Path(workdir) / FILE
    records = []
    for line in path.read_text(errors="replace").split("\n") if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def column(records: list[dict[str, float]], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one name."""
    found = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [s for s, _ in found], [v for _, v in found]


def _line(record: dict) -> str:
    # JSON has no NaN and no infinity.
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean) + "\n"
