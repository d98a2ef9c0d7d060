"""Raw corpora: a source is cut into parts that processes read apart from each other, in an order that depends on its files alone.

A kind of file is a module of this folder with

    cut(root, files, column, part_bytes) -> list[Part]     files: (name, size) in order
    read(root, part, column) -> iterator of Item           every document of the part, usable or not

root: the folder that the names of files are relative to.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from memtok_jax.data.errors import DataError

TFDS, EXTRA = "tfds:", "pip install 'memtok_jax[corpora]'"
ENDINGS = {"lines": (".jsonl", ".json", ".ndjson"), "parquet": (".parquet",), "arrow": (".arrow",)}
PACKED = (".gz", ".zst")
# Why a document is left out. A damaged file counts once, from the place on where it cannot be read.
DAMAGED, EMPTY, NOT_UTF8, ZEROS = "damaged", "empty", "not UTF-8", "holds zero bytes"


class Part(NamedTuple):
    """What one process reads at a time.

    files: names. begin, end: a range inside of the only file, in units of its kind. size: bytes, for the progress.
    """

    files: tuple[str, ...]
    begin: int
    end: int
    size: int


class Item(NamedTuple):
    """One document: its name, its text, and "" or the problem for which it is left out."""

    name: str
    text: str
    problem: str = ""


class File(NamedTuple):
    """A file as it was found. changed: nanoseconds of its last change."""

    name: str
    size: int
    changed: int


@dataclass(frozen=True)
class Source:
    """A corpus on disk.

    root: folder. kind: module of this folder. column: field that holds the text.
    """

    root: str
    kind: str
    column: str
    files: tuple[File, ...]
    parts: tuple[Part, ...]

    def read(self, part: Part) -> Iterator[Item]:
        """The documents of a part. Raises DataError if one of its files is not as it was when the source was opened."""
        self._check(part)
        yield from _module(self.kind).read(Path(self.root), part, self.column)
        self._check(part)

    def _check(self, part: Part) -> None:
        known = {file.name: file for file in self.files}
        for name in part.files:
            if _file(Path(self.root), name) != known[name]:
                raise DataError(f"{Path(self.root, name)} has changed while the corpus was prepared; prepare into another folder")


def open_source(name: str, column: str, pattern: str, part_bytes: int, data_dir: str = "") -> Source:
    """A corpus: a text file, a folder of text files, .jsonl or .json (plain, .gz, .zst), .parquet, a folder of `save_to_disk` of
    Hugging Face datasets, or tfds:NAME.

    column: field of the text. pattern: files of a folder to read, such as "*.parquet"; "": all. part_bytes: size of a part of the
    source, about. data_dir: where a TFDS data set was prepared.
    Raises DataError for what is not there, holds files of several kinds, or lacks the column.
    """
    if name.startswith(TFDS):
        root, kind = _module("tfds").folder(name.removeprefix(TFDS), data_dir), "tfds"
        names = _names(root, "")
    else:
        root, names = _listed(Path(name).expanduser(), pattern)
        kind = _kind(root, names)
    files = tuple(_file(root, one) for one in names)
    parts = _module(kind).cut(root, [(file.name, file.size) for file in files], column, part_bytes)
    return Source(str(root), kind, column, files, tuple(parts))


def item(name: str, raw: bytes) -> Item:
    """A document from its bytes."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Item(name, "", NOT_UTF8)
    if not text.strip():
        return Item(name, "", EMPTY)
    return Item(name, "", ZEROS) if "\0" in text else Item(name, text)


def text_of(value: object, name: str) -> Item:
    """A document from the value of a field: text or bytes; anything else is damaged."""
    if isinstance(value, bytes):
        return item(name, value)
    if not isinstance(value, str):
        return Item(name, "", DAMAGED)
    return item(name, value.encode(errors="surrogatepass"))


def _module(kind: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{kind}")


def _file(root: Path, name: str) -> File:
    try:
        found = (root / name).stat()
    except OSError:
        return File(name, -1, -1)
    return File(name, found.st_size, found.st_mtime_ns)


def _names(folder: Path, pattern: str) -> list[str]:
    """Names of the files below a folder, hidden ones left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    return sorted(name for name in names if fnmatch.fnmatch(name, pattern or "*"))


def _listed(path: Path, pattern: str) -> tuple[Path, list[str]]:
    """The folder, and the names of its files in order."""
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise DataError(f"unknown source '{path}': no such file or folder, and not {TFDS}NAME")
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        raise DataError(f"{path} holds the splits {', '.join(splits)}; name one of them, as in {path / splits[0]}")
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return path, [one["filename"] for one in json.loads((path / "state.json").read_text())["_data_files"]]
    names = _names(path, pattern)
    if not names:
        raise DataError(f"no files in the folder {path}" + (f" are called {pattern}" if pattern else ""))
    return path, names


def _kind(root: Path, names: list[str]) -> str:
    """The kind of all files."""
    by_kind: dict[str, str] = {}
    for name in names:
        plain = next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name)
        kinds = [kind for kind, ends in ENDINGS.items() if plain.endswith(ends)]
        by_kind.setdefault(kinds[0] if kinds else "plain", name)
    if len(by_kind) > 1:
        examples = ", ".join(f"{kind} ({name})" for kind, name in by_kind.items())
        raise DataError(f"{root} holds files of several kinds: {examples}; choose some, as in --files='*{Path(names[0]).suffix}'")
    return next(iter(by_kind))
