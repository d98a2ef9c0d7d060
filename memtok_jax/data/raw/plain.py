"""Text files, plain or .gz: each is one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memtok_jax.data.errors import DataError
from memtok_jax.data.files import read_file
from memtok_jax.data.raw import DAMAGED, Item, Part, item


def cut(root: Path, files: list[tuple[str, int]], column: str, part_bytes: int) -> list[Part]:
    """Neighbouring files, up to `part_bytes` together."""
    parts: list[Part] = []
    for name, size in files:
        if not parts or parts[-1].size + size > part_bytes:
            parts.append(Part((), 0, 0, 0))
        parts[-1] = Part((*parts[-1].files, name), 0, 0, parts[-1].size + size)
    return parts


def read(root: Path, part: Part, column: str) -> Iterator[Item]:
    """The files in order."""
    for name in part.files:
        try:
            yield item(name, read_file(root / name, name).data.tobytes())
        except DataError as error:
            yield Item(f"{name} ({error.__cause__})", "", DAMAGED)
