"""Parquet files: each row is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memtok_jax.data.errors import DataError, nearest
from memtok_jax.data.raw import DAMAGED, EXTRA, Item, Part, text_of

ROWS = 256  # read at a time


def arrow(path: Path) -> Any:
    """The package pyarrow."""
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"{path} needs the package pyarrow ({error}); {EXTRA}") from None
    return pyarrow


def check_column(path: Path, schema: Any, column: str) -> None:
    """Raise DataError if a table has no such column of texts."""
    pyarrow = arrow(path)
    if column not in schema.names:
        raise DataError(f"{path} has no column {column!r}{nearest(column, schema.names)}; it has {', '.join(schema.names)}: set "
                        "--column")
    kind = schema.field(column).type
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary()):
        raise DataError(f"column {column!r} of {path} holds {kind}, not text; set --column")


def rows(column: Any, name: str, first: int) -> Iterator[Item]:
    """The documents of an arrow array of texts. first: number of its first row. An absent text is damaged."""
    import pyarrow

    # As bytes, so that a text that is not UTF-8 arrives.
    plain = column.cast(pyarrow.large_binary()) if column.type != pyarrow.binary() else column
    for number, value in enumerate(plain, first):
        yield text_of(value.as_py(), f"{name} row {number}")


def _open(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path, page_checksum_verification=True)  # where the file has checksums


def cut(root: Path, files: list[tuple[str, int]], column: str, part_bytes: int) -> list[Part]:
    """Neighbouring row groups of a file, up to `part_bytes` together. A file that cannot be opened is one part."""
    out = []
    for name, size in files:
        pyarrow = arrow(root / name)
        try:
            file = _open(root / name)
        except (OSError, pyarrow.ArrowException):
            out.append(Part((name,), 0, 1, size))
            continue
        check_column(root / name, file.schema_arrow, column)
        groups, per_group = file.num_row_groups, max(size // max(file.num_row_groups, 1), 1)
        step = max(part_bytes // per_group, 1)
        out += [Part((name,), begin, min(begin + step, groups), per_group * (min(begin + step, groups) - begin))
                for begin in range(0, groups, step)]
    return out


def read(root: Path, part: Part, column: str) -> Iterator[Item]:
    """The rows of some row groups; a row group that cannot be read counts once."""
    import pyarrow

    (name,) = part.files
    for group in range(part.begin, part.end):
        try:
            file = _open(root / name)
            first = sum(file.metadata.row_group(before).num_rows for before in range(group))
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column]):
                yield from rows(batch.column(0), name, first)
                first += batch.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            yield Item(f"{name} row group {group} ({str(error).splitlines()[0]})", "", DAMAGED)
