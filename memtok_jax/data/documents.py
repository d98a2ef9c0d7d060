"""Text as named byte arrays, and the ways to divide it into training and held-out parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SEPARATOR = b"\0"  # stands between joined documents; no text holds it


class Document(NamedTuple):
    """One text: its name, and its bytes as uint8[n] (a memory map where it is a plain file) or its tokens as int32[n].

    sizes: int32[n], bytes of each token; None if every token is one byte.
    """

    name: str
    data: np.ndarray
    sizes: np.ndarray | None = None


@dataclass(frozen=True)
class Corpus:
    """Documents by split.

    splits: "train" and one or more held-out names. origin: where the text lies, for the log.
    separate: True where held-out documents are scored one by one, each from a fresh state (books); False where
        they are joined into one text.
    words: "whitespace", or "lines" where each line end counts as a word as well (word-tokenised WikiText).
    notes: what a reader should know about the files, such as those that were left out.
    """

    splits: dict[str, tuple[Document, ...]]
    origin: str
    separate: bool = False
    words: str = "whitespace"
    notes: tuple[str, ...] = ()


def document(name: str, text: bytes) -> Document:
    """A document from bytes."""
    return Document(name, np.frombuffer(text, np.uint8))


def total(documents: tuple[Document, ...]) -> int:
    """Bytes of all documents, without separators."""
    return sum(len(d.data) for d in documents)


def by_hash(documents: list[Document]) -> list[Document]:
    """The documents in an order that depends on their names alone and mixes folders well."""
    return sorted(documents, key=lambda d: (hashlib.sha256(d.name.encode()).digest(), d.name))


def split_by_document(documents: list[Document], fraction: float) -> dict[str, tuple[Document, ...]]:
    """Hold out whole documents, about `fraction` of the bytes, chosen by the hash of their names.

    In hash order a document is held out if it still fits. Where none fits (few or very unequal documents), the end
    of the joined text is held out instead. Both splits come in hash order.
    """
    budget = int(fraction * total(tuple(documents)))
    held, train = [], []
    for one in by_hash(documents):
        fits = 0 < len(one.data) <= budget
        budget -= len(one.data) if fits else 0
        (held if fits else train).append(one)
    if not held or not train:
        return split_tail(documents, fraction)
    return {"train": tuple(train), "valid": tuple(held)}


def split_tail(documents: list[Document], fraction: float) -> dict[str, tuple[Document, ...]]:
    """Hold out the last `fraction` of the bytes: the cut goes through one document."""
    keep = int(round((1 - fraction) * total(tuple(documents)), 6))
    train, held = [], []
    for one in documents:
        head = min(keep, len(one.data))
        keep -= head
        train += [Document(one.name, one.data[:head])] if head else []
        held += [Document(one.name, one.data[head:])] if head < len(one.data) else []
    return {"train": tuple(train), "valid": tuple(held)}


def first_bytes(documents: tuple[Document, ...], limit: int) -> tuple[Document, ...]:
    """The documents up to `limit` bytes in all, the last one cut; all of them where limit is 0."""
    if limit == 0:
        return documents
    out, left = [], limit
    for one in documents:
        if left > 0:
            out.append(Document(one.name, one.data[:left]))
            left -= len(one.data)
    return tuple(out)
