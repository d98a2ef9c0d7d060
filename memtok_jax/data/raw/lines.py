"""Files of JSON lines, plain, .gz or .zst: each line is an object, and one of its fields the text of a document."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from memtok_jax.data.errors import DataError
from memtok_jax.data.raw import DAMAGED, EMPTY, EXTRA, NOT_UTF8, PACKED, Item, Part, text_of

CHUNK = 1 << 20


def cut(root: Path, files: list[tuple[str, int]], column: str, part_bytes: int) -> list[Part]:
    """Plain files in ranges of `part_bytes`, packed ones whole: they can only be read from the front."""
    out = []
    for name, size in files:
        step = max(size, 1) if name.endswith(PACKED) else part_bytes
        out += [Part((name,), begin, min(begin + step, size), min(step, size - begin)) for begin in range(0, max(size, 1), step)]
    return out


def read(root: Path, part: Part, column: str) -> Iterator[Item]:
    """The lines that begin in the part. A document is named by the byte, in the unpacked file, where its line begins."""
    (name,), place = part.files, part.begin
    lines = _lines(_chunks(root / name, part.begin), part.begin)
    try:
        for place, line in lines:
            if place >= part.end and not name.endswith(PACKED):
                return
            yield _document(line, column, f"{name} at byte {place}")
            place += len(line)
    except (OSError, EOFError, zlib.error, Cut) as error:
        yield Item(f"{name} from byte {place} on ({error})", "", DAMAGED)


class Cut(ValueError):
    """A .zst file that ends early or is none."""


def _document(line: bytes, column: str, name: str) -> Item:
    if not line.strip():
        return Item(name, "", EMPTY)
    try:
        return text_of(json.loads(line)[column], name)
    except UnicodeDecodeError:
        return Item(name, "", NOT_UTF8)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Item(name, "", DAMAGED)


def _lines(chunks: Iterator[bytes], begin: int) -> Iterator[tuple[int, bytes]]:
    """(place, line with its end) of each line that begins at or after `begin`; chunks: the file from `begin - 1` on, or from 0."""
    place, held, inside = max(begin - 1, 0), b"", begin > 0
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for number, line in enumerate(whole):
            line = held + line + b"\n" if number == 0 else line + b"\n"
            if not inside:
                yield place, line
            place, inside, held = place + len(line), False, b""
        held += rest
    if held and not inside:
        yield place, held


def _chunks(path: Path, begin: int) -> Iterator[bytes]:
    """The unpacked bytes of a file, in pieces."""
    if path.suffix == ".zst":
        yield from _zst(path)
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        file.seek(max(begin - 1, 0))
        while chunk := file.read(CHUNK):
            yield chunk


def _zst(path: Path) -> Iterator[bytes]:
    """As `_chunks`, of the frames of a .zst file. Raises Cut where one is damaged or does not end."""
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"{path} needs the package zstandard ({error}); {EXTRA}") from None
    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            while chunk:
                try:
                    out, begun = frame.decompress(chunk), True
                except zstandard.ZstdError as error:
                    raise Cut(str(error)) from None
                if out:
                    yield out
                chunk = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    if begun:
        raise Cut("the file ends inside a frame")
