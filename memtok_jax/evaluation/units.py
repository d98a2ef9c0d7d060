"""What the tokens of a model of text are, for a command that reads, keeps and shows them: bytes, or pieces of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from memtok_jax.data.reading import Pieces
from memtok_jax.data.token_reading import ByteText, TokenText
from memtok_jax.data.tokenizers import Tokenizer
from memtok_jax.inference.text import byte_of

NO_BYTE = 0xFF  # what is kept of a token of a byte-level model that stands for no byte; no UTF-8 text contains it


class Units(NamedTuple):
    """word: their name in the plural. fingerprint: of the tokenizer, "" for bytes. kind: as which they are kept in files.
    as_bytes: what a token stands for. read: a text by its name; begins: the stream begins with it. ends: tokens that end what a
    row says."""

    word: str
    fingerprint: str
    kind: np.dtype
    as_bytes: Callable[[int], bytes]
    read: Callable[[str, bool], ByteText | TokenText]
    ends: tuple[int, ...]

    def kept(self, ids: np.ndarray) -> bytes:
        """Tokens as the bytes of a file."""
        ids = np.where(ids < 256, ids, NO_BYTE) if self.kind == np.uint8 else ids
        return ids.astype(self.kind).tobytes()

    def ids(self, kept: bytes) -> np.ndarray:
        """The tokens that `kept` wrote."""
        return np.frombuffer(bytes(kept), self.kind)

    def size(self, ids: np.ndarray) -> int:
        """Bytes that tokens stand for."""
        return len(ids) if self.kind == np.uint8 else sum(len(self.as_bytes(int(i))) for i in ids)


def units_of(tokenizer: Tokenizer | None) -> Units:
    """The units of a run; None: bytes. In training, `tokenizer.first` stands before a text."""
    if tokenizer is None:
        return Units("bytes", "", np.dtype(np.uint8), byte_of, lambda name, _: ByteText(Pieces(name)), ())
    return token_units(tokenizer, (tokenizer.first,))


def token_units(tokenizer: Tokenizer, front: tuple[int, ...]) -> Units:
    """Pieces of a tokenizer. front: ids before a text that begins a stream. The token that ends a text ends what a row says, and is
    not shown."""
    shown = lambda token: b"" if token == tokenizer.last else tokenizer.as_bytes(token)
    return Units("tokens", tokenizer.fingerprint, np.dtype("<u4"), shown,
                 lambda name, begins: TokenText(Pieces(name), tokenizer, begins, front), (tokenizer.last,))
