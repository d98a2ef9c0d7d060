"""Arrow streams, as `save_to_disk` of Hugging Face datasets writes them: each row is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memtok_jax.data.raw import DAMAGED, Item, Part
from memtok_jax.data.raw.parquet import arrow, check_column, rows


def cut(root: Path, files: list[tuple[str, int]], column: str, part_bytes: int) -> list[Part]:
    """Each file is one part: a stream can only be read from the front."""
    for name, _ in files:
        pyarrow = arrow(root / name)
        try:
            check_column(root / name, _open(root / name).schema, column)
        except (OSError, pyarrow.ArrowException):
            continue  # `read` counts it
    return [Part((name,), 0, 0, size) for name, size in files]


def _open(path: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))


def read(root: Path, part: Part, column: str) -> Iterator[Item]:
    """The rows of a file; what cannot be read counts once."""
    import pyarrow

    (name,), first = part.files, 0
    try:
        for batch in _open(root / name):
            yield from rows(batch.column(column), name, first)
            first += batch.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        yield Item(f"{name} from row {first} on ({str(error).splitlines()[0]})", "", DAMAGED)
