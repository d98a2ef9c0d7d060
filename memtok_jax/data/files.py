"""Text from the user's files, and the local real data sets. Reading needs nothing but numpy and gzip."""

from __future__ import annotations

import codecs
import gzip
import os
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
# Byte order marks; that of UTF-32 begins with that of UTF-16.
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
         codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
PROBE = 65536  # a file is taken for text if its first bytes hold no NUL


def read_file(path: Path, name: str) -> Document:
    """One file as a document of UTF-8 bytes: a memory map if it is plain, unpacked in memory if it is .gz.

    A byte order mark is left out; text that it marks as UTF-16 or UTF-32 is turned into UTF-8.
    """
    try:
        if path.suffix == ".gz":
            return _unmarked(document(name, gzip.decompress(path.read_bytes())))
        return _unmarked(Document(name, np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _unmarked(one: Document) -> Document:
    """The document without a byte order mark, in UTF-8; unchanged if its bytes are not what the mark says."""
    front = one.data[:4].tobytes()
    mark, encoding = next(((m, e) for m, e in MARKS.items() if front.startswith(m)), (b"", "utf-8"))
    if encoding == "utf-8":
        return Document(one.name, one.data[len(mark):])
    try:
        return document(one.name, one.data[len(mark):].tobytes().decode(encoding).encode())
    except UnicodeError:
        return one


def load_path(path: Path, held_out: float) -> Corpus:
    """A text file (its end is held out), or all text files below a folder (whole files are held out).

    The notes of the corpus name files that were left out, or that are read in a way that may surprise.
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        documents = [read_file(p, p.relative_to(path).as_posix()) for p in found]
        notes = _notes("left out, as they hold zero bytes", [d for d in documents if len(d.data) and not _is_text(d)])
        documents = [d for d in documents if _is_text(d)]
        if not documents:
            raise DataError(f"no text files in the folder {path} ({len(found)} files there, all empty or binary)")
        splits = split_by_document(documents, held_out)
    else:
        documents = [read_file(path, path.name)]
        if not len(documents[0].data):
            raise DataError(f"the text file {path} is empty")
        notes = _notes("read byte by byte, though it holds zero bytes and may be no text",
                       [d for d in documents if not _is_text(d)])
        splits = split_tail(documents, held_out)
    for name, part in splits.items():
        if not part and not (name == "train" and held_out == 1):
            raise DataError(f"{path} is too small: nothing is left for the split '{name}' at held_out={held_out}")
    notes += _notes("read as they stand, braces and field names included",
                    [d for d in documents if d.name.removesuffix(".gz").endswith((".jsonl", ".json"))])
    return Corpus(splits, str(path), notes=notes)


def _notes(what: str, documents: list[Document]) -> tuple[str, ...]:
    """One note on some documents, none if there are none."""
    more = f" and {len(documents) - 1} more" if len(documents) > 1 else ""
    return (f"{documents[0].name}{more}: {what}",) if documents else ()


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
