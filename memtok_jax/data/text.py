"""Text as a source of data: a named data set, a file or a folder. One token is one byte, or one piece of a tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data import corpus as _corpus
from memtok_jax.data.compressors import text_baselines
from memtok_jax.data.documents import SEPARATOR, Document, total
from memtok_jax.data.encoded import encoded, lossy, not_utf8
from memtok_jax.data.errors import DataError
from memtok_jax.data.iterators import NumpyIterator, open_iterator
from memtok_jax.data.streams import (
    BYTES,
    LAYOUTS,
    Batch,
    ContiguousBatches,
    DocumentBatches,
    EvalBatches,
    Marks,
    WindowBatches,
    identity,
    lengths,
    packing,
    rows_of,
    said_of_gaps,
)
from memtok_jax.data.tokenizers import Tokenizer, load

SUITE, UNIT = "text", "tokens"
SAMPLE = 65_536  # bytes of text on which a tokenizer is tried
NO_TEXT = 0xFF  # a byte that no UTF-8 text has: it is shown as a replacement sign


@dataclass(frozen=True)
class TextConfig:
    """Source and cut of a text.

    source: "stdlib", "gutenberg_books", "wikitext2", "tinyshakespeare", "tfds:NAME", or the path of a text file (plain or .gz) or
        of a folder of text files.
    column: the source is a file or folder of .jsonl (plain, .gz, .zst) or .parquet, and this field of each record is a document.
        "": files are read as they stand.
    sequence: T, tokens per row of a batch.
    tokenizer: a tokenizer.json or a SentencePiece .model. "": tokens are bytes. The text is encoded when it is opened and stays in
        memory; a large corpus is better prepared once, see `prepare.py`.
    seed: order of the training data; the held-out data does not depend on it.
    contiguous: True: row b of a batch continues row b of the batch before, through the whole epoch. False: rows begin at random
        places and jump.
    layout: "joined": documents one after the other, as `contiguous` says. "documents": each begins at the front of a piece of a row
        and resets the memory there; the rest of its last piece is empty.
    piece: tokens of a piece, which divide the sequence; training takes one call or several for each. 0: the whole row.
    visit: batches that a row stays at a random place before it jumps and its carry is reset (only if contiguous is False).
    data_dir: folder of the local data sets. "": environment variable MEMTOK_DATA_DIR, read when data is opened.
    cache_dir: folder of the prepared stdlib data set. "": $XDG_CACHE_HOME/memtok_jax or ~/.cache/memtok_jax.
    held_out: fraction of the text kept for evaluation if the source has no split of its own; 1: all, nothing is left to train on.
    max_bytes: train on at most this many bytes; 0: all.
    eval_split: the held-out split that is scored: "valid" everywhere, "test" or others if the source has them.
    eval_bytes: score at most this many held-out bytes; 0: all.
    """

    source: str = "stdlib"
    sequence: int = 512
    seed: int = 0
    column: str = ""
    contiguous: bool = True
    layout: str = "joined"
    piece: int = 0
    visit: int = 1
    data_dir: str = ""
    cache_dir: str = ""
    held_out: float = 0.05
    max_bytes: int = 0
    eval_split: str = "valid"
    eval_bytes: int = 262_144
    tokenizer: str = ""

    def __post_init__(self):
        check_numbers("data", self, at_least=dict(sequence=1, visit=1, seed=0, max_bytes=0, eval_bytes=0, piece=0),
                      above=dict(held_out=0), between=dict(held_out=(0, 1)))
        if not self.source:
            raise DataError("data.source is empty; name a data set, a path or tfds:NAME")
        choose("data.layout", self.layout, LAYOUTS)
        if self.layout == "joined" and self.piece:
            raise DataError(f"data.piece={self.piece} is for data.layout=documents; joined documents have no pieces")
        if self.layout == "documents" and not self.contiguous:
            raise DataError("data.contiguous=False is for data.layout=joined; documents that begin at pieces do not jump")
        if self.piece and self.sequence % self.piece:
            raise DataError(f"data.piece={self.piece} does not divide data.sequence={self.sequence}")

    @property
    def parts(self) -> int:
        """Pieces of a row; each may begin a document."""
        return self.sequence // self.piece if self.piece else 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """All rows have `sequence` tokens."""
        return ()


def named(old: Any, name: str) -> TextConfig:
    """The config of another text."""
    if isinstance(old, TextConfig):
        return replace(old, source=name)
    return TextConfig(source=name, sequence=old.sequence, seed=old.seed)


def tokenizer(cfg: TextConfig) -> Tokenizer | None:
    """What cuts the text into tokens; None: tokens are bytes."""
    return load(cfg.tokenizer) if cfg.tokenizer else None


def _marks(cfg: TextConfig) -> Marks:
    chosen = tokenizer(cfg)
    return Marks(chosen.first, chosen.last) if chosen else BYTES


def _documents(cfg: TextConfig, part: str) -> tuple[Document, ...]:
    """The texts to train on ("training") or to score ("held_out"), in tokens."""
    if not cfg.tokenizer:
        return getattr(_corpus, part)(cfg, _corpus.load(cfg))
    fingerprint = load(cfg.tokenizer).fingerprint
    # What does not change the texts is left out, so that they are encoded once.
    return _encoded(TextConfig(source=cfg.source, column=cfg.column, data_dir=_corpus.folder(cfg), cache_dir=cfg.cache_dir,
                               held_out=cfg.held_out, max_bytes=cfg.max_bytes, eval_split=cfg.eval_split, eval_bytes=cfg.eval_bytes,
                               tokenizer=cfg.tokenizer), part, fingerprint)


@functools.lru_cache(maxsize=4)
def _encoded(cfg: TextConfig, part: str, fingerprint: str) -> tuple[Document, ...]:
    return encoded(getattr(_corpus, part)(cfg, _corpus.load(cfg)), load(cfg.tokenizer))


def open_train(cfg: TextConfig, batch: int, process_index: int, process_count: int) -> NumpyIterator:
    """Endless training batches; see `data.open_train`."""
    rows, documents, marks = rows_of(process_index, process_count, batch), _documents(cfg, "training"), _marks(cfg)
    if cfg.layout == "documents":
        source = DocumentBatches(documents, batch, cfg.sequence, cfg.seed, rows, marks, cfg.parts)
        return open_iterator(source, identity(documents, cfg.layout, cfg.parts, batch, cfg.sequence, cfg.seed, marks))
    if cfg.contiguous:
        source = ContiguousBatches(documents, batch, cfg.sequence, cfg.seed, rows, marks)
    else:
        source = WindowBatches(documents, batch, cfg.sequence, cfg.seed, rows, cfg.visit, marks)
    return open_iterator(source, identity(documents, cfg.contiguous, cfg.visit, batch, cfg.sequence, cfg.seed, marks))


def open_eval(cfg: TextConfig, batch: int, process_index: int, process_count: int) -> Sequence[Batch]:
    """Held-out batches; see `data.open_eval` and `streams.EvalBatches`."""
    rows = rows_of(process_index, process_count, batch)
    return EvalBatches(_documents(cfg, "held_out"), batch, cfg.sequence, rows, _marks(cfg))


def input_shape(cfg: TextConfig) -> tuple[tuple[int, ...], type]:
    """One row: int32[T]."""
    return (cfg.sequence,), np.int32


def targets(cfg: TextConfig) -> str:
    """The next token."""
    return "tokens"


def vocabulary(cfg: TextConfig) -> int:
    """Number of bytes, or of ids of the tokenizer."""
    chosen = tokenizer(cfg)
    return chosen.vocabulary if chosen else 256


def baselines(cfg: TextConfig, reach: int, segment: int) -> dict[str, float]:
    """Bits per byte of compressors and of a count model; what a model can see does not matter for them."""
    return text_baselines(train_text(cfg), eval_text(cfg))


def eval_text(cfg: TextConfig) -> bytes:
    """The held-out bytes that `open_eval` scores."""
    return b"".join(d.data.tobytes() for d in _corpus.held_out(cfg, _corpus.load(cfg)))


def train_text(cfg: TextConfig) -> bytes:
    """The training bytes, joined, for baselines."""
    return SEPARATOR.join(d.data.tobytes() for d in _corpus.training(cfg, _corpus.load(cfg)))


def reference_words(cfg: TextConfig) -> int:
    """Words of the held-out text for word perplexity: separated by white space, and each line end if the data set counts it as a
    word (WikiText)."""
    text = eval_text(cfg)
    return len(text.split()) + (text.count(b"\n") if _corpus.load(cfg).words == "lines" else 0)


def decode(cfg: TextConfig, ids: Any) -> str:
    """Text of tokens; see `data.decode`."""
    if chosen := tokenizer(cfg):
        return chosen.decode(ids)
    numbers = [int(i) for i in ids]
    end = next((n for n, i in enumerate(numbers) if i < 0), len(numbers))
    return bytes(i if i < 256 else NO_TEXT for i in numbers[:end]).decode(errors="replace")


def describe(cfg: TextConfig) -> str:
    """One line: data set, sizes of its splits, where it lies, and what a reader should know about its files."""
    corpus = _corpus.load(cfg)
    train, scored = _corpus.training(cfg, corpus), _corpus.held_out(cfg, corpus)
    held = corpus.splits[cfg.eval_split]
    said = (f"{cfg.source}: {total(train):,} bytes in {len(train)} files to train on, {total(held):,} bytes in "
            f"{len(held)} files held out ({cfg.eval_split}), {total(scored):,} of them scored; from {corpus.origin}")
    return "; ".join([said, *corpus.notes, *_said_of_tokens(cfg, (*train, *scored)), *said_of_gaps(facts(cfg))])


def facts(cfg: TextConfig) -> dict[str, float]:
    """What the layout costs; see `data.facts`."""
    return packing(lengths(_documents(cfg, "training")), cfg.sequence, cfg.parts) if cfg.layout == "documents" else {}


def _said_of_tokens(cfg: TextConfig, documents: tuple[Document, ...]) -> list[str]:
    """What a reader should know about the tokens; nothing if they are bytes."""
    chosen = tokenizer(cfg)
    if chosen is None:
        return []
    tokens = sum(len(one.data) for part in ("training", "held_out") for one in _documents(cfg, part))
    said = [f"{tokens:,} tokens by {chosen.name} of {chosen.vocabulary:,} ids ({total(documents) / tokens:.2f} bytes each)"]
    if broken := not_utf8(documents):
        said.append(f"{broken} text(s) are not UTF-8 everywhere and are read with replacement signs")
    if lossy(eval_text(cfg)[:SAMPLE], chosen):
        said.append("the tokenizer does not give back this text exactly, so its bits per byte are not those of the whole text")
    return said
