"""A prepared corpus on disk: a folder of shards and a manifest.

    manifest.json              what is in the folder, and what was left out of the source; written last
    tokenizer.json or .model   a copy of the tokenizer
    train-00007.array_record   a record is the tokens of one document: uint16, or uint32 if the vocabulary is larger; little-endian
    train-00007.npy            int64[documents], tokens of each document of that shard
    valid-00007.array_record   a record is the UTF-8 text of one held-out document
    part-00007.json            what the shards of a part hold, and every document of the part that was left out
    plan.json                  source, tokenizer and settings, as the first command found them

Every file is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memtok_jax.data.errors import DataError
from memtok_jax.data.raw import EXTRA

MANIFEST, PLAN, FORMAT = "manifest.json", "plan.json", 1
HIDDEN = ".writing-"  # begins the names of files that are not complete
SPLITS = ("train", "valid")
RECORDS = "group_size:1,zstd:3"  # each record can be read alone


def part_file(number: int) -> str:
    """Name of the file that says a part is finished."""
    return f"part-{number:05d}.json"


def shard_file(split: str, number: int) -> str:
    """Name of a shard."""
    return f"{split}-{number:05d}.array_record"


def lengths_file(shard: str) -> str:
    """Name of the lengths of a shard's documents."""
    return str(Path(shard).with_suffix(".npy"))


def token_type(vocabulary: int) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path to write to; the file gets its own name when the block ends without an error."""
    hidden = path.with_name(f"{HIDDEN}{os.getpid()}-{path.name}")
    yield hidden
    with hidden.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(hidden, path)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON."""
    with complete(path) as hidden:
        hidden.write_text(json.dumps(value, indent=1) + "\n")


def sha256(path: Path) -> str:
    """Checksum of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_record(name: str) -> Any:
    """A module of the package array_record, or grain. Raises DataError if it is not installed."""
    try:
        if name == "grain":
            import grain

            return grain
        from array_record.python import array_record_module
    except ImportError as error:
        raise DataError(f"a prepared corpus needs the packages array_record and grain ({error}); {EXTRA}") from None
    return array_record_module


# -------------------------------------------------------------------------------------------------------- reading

def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared corpus. Raises DataError for a folder that is none, is not finished, or has damaged files."""
    path = folder / MANIFEST
    if not path.is_file():
        begun = (folder / PLAN).is_file()
        raise DataError(f"{folder} is {'not prepared to the end; give' if begun else 'no prepared corpus; make one with'} "
                        f"python -m memtok_jax.data.prepare SOURCE --tokenizer=FILE --output={folder}{' again' if begun else ''}")
    manifest = json.loads(path.read_text())
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}; prepare the corpus again")
    for split in SPLITS:
        for shard in manifest["splits"][split]["shards"]:
            found = folder / shard["file"]
            size = found.stat().st_size if found.is_file() else None
            if size != shard["size"]:
                raise DataError(f"{found} {'is missing' if size is None else f'has {size:,} bytes'}, the manifest says "
                                f"{shard['size']:,} bytes; copy it again, or prepare the corpus again")
    return manifest


class Records(Sequence):
    """The records of a split by number, each bytes. Opened when the first is read."""

    def __init__(self, folder: Path, manifest: dict[str, Any], split: str):
        self._folder, self._paths = folder, [str(folder / one["file"]) for one in manifest["splits"][split]["shards"]]
        self._count, self._opened = manifest["splits"][split]["documents"], None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        try:
            if self._opened is None:
                self._opened = array_record("grain").sources.ArrayRecordDataSource(self._paths)
                if len(self._opened) != self._count:
                    raise DataError(f"the shards of {self._folder} hold {len(self._opened)} documents, "
                                    f"the manifest says {self._count}")
            return self._opened[index]
        except RuntimeError as error:
            raise DataError(f"a shard of {self._folder} cannot be read ({str(error).splitlines()[0]}); prepare it again") from None


def read_lengths(folder: Path, manifest: dict[str, Any]) -> np.ndarray:
    """int64[training documents]: tokens of each. Raises DataError if they do not add up to what the manifest says."""
    train = manifest["splits"]["train"]
    try:
        parts = [np.load(folder / lengths_file(shard["file"])) for shard in train["shards"]]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot read the lengths of the documents ({error}); prepare it again") from None
    lengths = np.concatenate([*parts, np.zeros(0, np.int64)])
    if (len(lengths), int(lengths.sum())) != (train["documents"], train["tokens"]):
        raise DataError(f"{folder}: the lengths are of {len(lengths)} documents and {int(lengths.sum())} tokens, the manifest says "
                        f"{train['documents']} and {train['tokens']}; prepare it again")
    return lengths
