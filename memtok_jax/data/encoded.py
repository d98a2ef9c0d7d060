"""Documents of bytes as documents of token ids."""

from __future__ import annotations

import numpy as np

from memtok_jax.data.documents import SEPARATOR, Document
from memtok_jax.data.errors import DataError
from memtok_jax.data.tokenizers import Tokenizer


def encoded(documents: tuple[Document, ...], tokenizer: Tokenizer) -> tuple[Document, ...]:
    """The documents in tokens: `data` int32[n] and `sizes` int32[n], the bytes of each token.

    Texts that a separator joins are encoded one by one and joined by `tokenizer.last`, which counts as the byte of the separator.
    Bytes that are not UTF-8 are read as replacement signs. The sizes add up to the bytes of the document all the same.
    Raises DataError for a document that gives no token.
    """
    return tuple(_encoded(one, tokenizer) for one in documents)


def _encoded(one: Document, tokenizer: Tokenizer) -> Document:
    ids, sizes = [], []
    for number, part in enumerate(one.data.tobytes().split(SEPARATOR)):
        if number:
            ids.append(np.array([tokenizer.last], np.int32))
            sizes.append(np.ones(1, np.int32))
        for out, new in zip((ids, sizes), tokenizer.measure(part.decode(errors="replace")), strict=True):
            out.append(new)
    data, sizes = np.concatenate(ids), np.concatenate(sizes)
    if not len(data):
        raise DataError(f"the tokenizer {tokenizer.name} gives no token for {one.name}, a text of {len(one.data):,} bytes")
    sizes[-1] += len(one.data) - sizes.sum()
    return Document(one.name, data, sizes)


def not_utf8(documents: tuple[Document, ...]) -> int:
    """Number of documents whose bytes are not UTF-8."""
    return sum(not _is_utf8(one.data.tobytes()) for one in documents)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def lossy(text: bytes, tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer does not give back this text, so that bits per byte leave out what it drops."""
    shown = text.decode(errors="ignore").replace(SEPARATOR.decode(), "")
    return tokenizer.decode(tokenizer.encode(shown)) != shown
