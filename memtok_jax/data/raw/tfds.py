"""The training split of a prepared TFDS data set: each record is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memtok_jax.data.errors import DataError
from memtok_jax.data.prepared import open_builder, open_split, text_key
from memtok_jax.data.raw import Item, Part, text_of

SPLIT = "train"


def folder(name: str, data_dir: str) -> Path:
    """Where a data set lies. Raises DataError if it is unknown, not prepared, or has no text feature."""
    return Path(open_builder(name, data_dir, text_key).data_path)


def _records(root: Path):
    """The records by number, and the key of their text."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(root))
    if SPLIT not in builder.info.splits:
        raise DataError(f"{root} has no split '{SPLIT}', only {', '.join(builder.info.splits)}")
    records, declared = open_split(builder, builder.info.name, SPLIT), builder.info.splits[SPLIT].num_examples
    if len(records) != declared:
        raise DataError(f"split '{SPLIT}' of {root} has {len(records)} records, declared are {declared}")
    return records, text_key(builder)[0]


def cut(root: Path, files: list[tuple[str, int]], column: str, part_bytes: int) -> list[Part]:
    """Neighbouring records, about `part_bytes` of them. The text feature is found by its type, not by `column`."""
    records, _ = _records(root)
    size = max(sum(size for _, size in files) // max(len(records), 1), 1)
    step, names = max(part_bytes // size, 1), tuple(name for name, _ in files)
    return [Part(names, begin, min(begin + step, len(records)), size * (min(begin + step, len(records)) - begin))
            for begin in range(0, len(records), step)]


def read(root: Path, part: Part, column: str) -> Iterator[Item]:
    """Some records."""
    records, key = _records(root)
    for number in range(part.begin, part.end):
        yield text_of(records[number][key], f"record {number}")
