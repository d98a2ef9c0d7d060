"""A text of any length, read in pieces: a file, a packed file, or standard input. No more than a piece is ever in memory."""

from __future__ import annotations

import codecs
import gzip
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

from memtok_jax.data.errors import DataError
from memtok_jax.data.files import MARKS

STANDARD_INPUT = "-"
_SKIP = 1 << 20


class Pieces:
    """The bytes of one text, as training reads them: without a byte order mark, and in UTF-8 where the mark says UTF-16 or UTF-32.

    name: a path, plain or .gz, or "-" for standard input. taken: bytes given out so far. checksum: of these bytes.
    total: bytes of the file, None where they are not known beforehand.
    Raises DataError for a file that cannot be read.
    """

    def __init__(self, name: str):
        self.name, self.taken, self.checksum, self.total = name, 0, 0, None
        self._file, self._left, self._ended = self._open(name), b"", False
        self._decoder: codecs.IncrementalDecoder | None = None
        front = self._read(4)
        mark, encoding = next(((m, e) for m, e in MARKS.items() if front.startswith(m)), (b"", "utf-8"))
        self._left = front[len(mark):]
        if encoding != "utf-8":
            self._decoder, self.total = codecs.getincrementaldecoder(encoding)(errors="replace"), None
            self._left = self._decoder.decode(self._left).encode()
        elif self.total is not None:
            self.total -= len(mark)

    @property
    def label(self) -> str:
        """The name for messages."""
        return "standard input" if self.name == STANDARD_INPUT else self.name

    def _open(self, name: str) -> BinaryIO:
        if name == STANDARD_INPUT:
            return sys.stdin.buffer
        if not name or "\0" in name:
            raise DataError(f"--file={name!r} is no path; give a text file, or - for standard input")
        path = Path(name).expanduser()
        if path.is_dir():
            raise DataError(f"{name} is a folder; give a text file, or - for standard input")
        try:
            if path.suffix == ".gz":
                return gzip.open(path)
            file = path.open("rb")
            self.total = path.stat().st_size if path.is_file() else None
            return file
        except FileNotFoundError:
            raise DataError(f"there is no file {name}") from None
        except OSError as error:
            raise DataError(f"cannot read {name}: {error.strerror or error}") from None

    def _read(self, size: int) -> bytes:
        """Up to `size` bytes of the file, fewer only at its end."""
        parts, missing = [], size
        try:
            while missing and not self._ended:
                part = self._file.read(missing)
                self._ended = not part
                parts.append(part)
                missing -= len(part)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot read {self.name}: {getattr(error, 'strerror', None) or error}") from None
        return b"".join(parts)

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end of the text."""
        while len(self._left) < size and not self._ended:
            more = self._read(size - len(self._left))
            self._left += self._decoder.decode(more, final=self._ended).encode() if self._decoder else more
        piece, self._left = self._left[:size], self._left[size:]
        self.taken, self.checksum = self.taken + len(piece), zlib.crc32(piece, self.checksum)
        return piece

    def skip(self, taken: int, checksum: int) -> None:
        """Read to where another reader was. Raises DataError if the text up to there is another one."""
        while self.taken < taken and self.read(min(_SKIP, taken - self.taken)):
            pass
        if (self.taken, self.checksum) != (taken, checksum):
            raise DataError(f"the first {taken:,} bytes of {self.label} are not those that the saved stream has read")
