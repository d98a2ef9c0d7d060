"""Text from the user's files, and the local real data sets. Reading needs nothing but numpy and gzip."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from pathlib import Path

import numpy as np

from memtok_jax.data.documents import Corpus, Document, document, split_by_document, split_tail
from memtok_jax.data.errors import DataError, DataNotFoundError

REAL = {
    "gutenberg_books": "https://www.gutenberg.org",
    "tinyshakespeare": "https://github.com/karpathy/char-rnn",
    "wikitext2": "https://github.com/pytorch/examples (word_language_model/data/wikitext-2)",
}
IMAGES = {"fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist", "coco_permissive": "https://cocodataset.org"}
PROBE = 65536  # a file is taken for text if its first bytes hold no NUL


def read_file(path: Path, name: str) -> Document:
    """One file as a document: a memory map where it is plain, unpacked in memory where it is .gz."""
    try:
        if path.suffix == ".gz":
            return document(name, gzip.decompress(path.read_bytes()))
        return Document(name, np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def load_path(path: Path, held_out: float) -> Corpus:
    """A text file (its end is held out), or all text files below a folder (whole files are held out)."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        documents = [d for d in (read_file(p, p.relative_to(path).as_posix()) for p in files) if _is_text(d)]
        if not documents:
            raise DataError(f"no text files in the folder {path} ({len(files)} files there, all empty or binary)")
        splits = split_by_document(documents, held_out)
    else:
        one = read_file(path, path.name)
        if not len(one.data):
            raise DataError(f"the text file {path} is empty")
        splits = split_tail([one], held_out)
    for name, documents in splits.items():
        if not documents:
            raise DataError(f"{path} is too small: nothing is left for the split '{name}' at held_out={held_out}")
    return Corpus(splits, str(path))


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _is_text(one: Document) -> bool:
    return len(one.data) > 0 and bool((one.data[:PROBE] != 0).all())


# -------------------------------------------------------------------------------------------------- real data sets

def load_real(name: str, data_dir: str) -> Corpus:
    """One of the local data sets: `gutenberg_books`, `tinyshakespeare`, `wikitext2`.

    data_dir: "" for the folder that MEMTOK_DATA_DIR names. Nothing is written there.
    Raises DataNotFoundError where the data set is absent.
    """
    folder = real_folder(name, data_dir)
    load = {"gutenberg_books": _books, "tinyshakespeare": _tinyshakespeare, "wikitext2": _wikitext2}[name]
    return load(folder)


def real_folder(name: str, data_dir: str) -> Path:
    """Folder of a local data set. Raises DataNotFoundError where it is absent."""
    root = data_dir or os.environ.get("MEMTOK_DATA_DIR", "")
    folder = Path(root, name).expanduser() if root else Path(name)
    if not root or not folder.is_dir():
        raise absent(folder, name)
    return folder


def verify(name: str, data_dir: str) -> int:
    """Compare the SHA-256 of every file of a local data set with the table in its README.md.

    Returns the number of files. Raises DataError naming the first file that is missing or has changed, or saying
    that the README.md has no table.
    """
    folder = real_folder(name, data_dir)
    readme = folder / "README.md"
    table = readme.read_text() if readme.is_file() else ""
    rows = re.findall(r"^\| *([^|]+?) *\| *\d+ *\| *([0-9a-f]{64}) *\|", table, re.M)
    if not rows:
        raise DataError(f"{readme} lists no files with their SHA-256; nothing to verify")
    for file, expected in rows:
        path = folder / file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise DataError(f"{path} is missing or is not the file listed in {readme}")
    return len(rows)


def absent(path: Path, name: str) -> DataNotFoundError:
    """The error for a local data set, or a file of one, that is not there."""
    return DataNotFoundError(f"real data not found: {path}; set MEMTOK_DATA_DIR or pass --data_dir; "
                             f"public address: {(REAL | IMAGES).get(name, name)}")


def _packed_or_plain(path: Path, name: str) -> Document:
    """The file, or the same with .gz at its end."""
    for found in (path, path.with_name(path.name + ".gz")):
        if found.is_file():
            return read_file(found, path.name)
    raise absent(path, name)


def _wikitext2(folder: Path) -> Corpus:
    splits = {s: (_packed_or_plain(folder / f"{s}.txt", "wikitext2"),) for s in ("train", "valid", "test")}
    return Corpus(splits, str(folder), words="lines")


def _tinyshakespeare(folder: Path) -> Corpus:
    """The first nine tenths train, the rest is held out: the usual split of this text."""
    return Corpus(split_tail([_packed_or_plain(folder / "input.txt", "tinyshakespeare")], 0.1), str(folder))


def _books(folder: Path) -> Corpus:
    """Whole books by split; each held-out book is scored from a fresh state. `pg19_test` is optional."""
    splits = {}
    for split in ("train", "valid", "test", "pg19_test"):
        found = [p.name for pattern in ("*.txt", "*.txt.gz") for p in (folder / split).glob(pattern)]
        names = sorted({name.removesuffix(".gz") for name in found})
        if names:
            splits[split] = tuple(_packed_or_plain(folder / split / n, "gutenberg_books") for n in names)
        elif split != "pg19_test":
            raise absent(folder / split, "gutenberg_books")
    return Corpus(splits, str(folder), separate=True)
