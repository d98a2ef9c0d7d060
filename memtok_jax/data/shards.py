"""Prepared corpora as a source of data, `--data=shards:FOLDER`: the shards that `prepare.py` has written."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data.compressors import COUNT_MODEL_BYTES, text_baselines
from memtok_jax.data.documents import Document, document, first_bytes, total
from memtok_jax.data.encoded import encoded
from memtok_jax.data.errors import DataError
from memtok_jax.data.iterators import NumpyIterator, open_iterator
from memtok_jax.data.prepared_corpus import MANIFEST, Records, read_lengths, read_manifest, token_type
from memtok_jax.data.streams import (
    LAYOUTS,
    Batch,
    ContiguousBatches,
    DocumentBatches,
    EvalBatches,
    Marks,
    packing,
    rows_of,
    said_of_gaps,
)
from memtok_jax.data.tokenizers import Tokenizer, load

SUITE, UNIT = "text", "tokens"
KEPT = 4  # documents in memory for each row of a batch


@dataclass(frozen=True)
class ShardsConfig:
    """A prepared corpus and the cut of its documents.

    folder: --output of `prepare.py`.
    sequence: T, tokens per row of a batch.
    seed: order of the documents; the held-out data does not depend on it.
    layout: "documents": each document begins at the front of a piece of a row and resets the memory there; the rest of its last
        piece is not scored, which wastes much if documents are shorter than a piece. "joined": documents one after the other
        without gaps, as bytes of text are read; a row is reset once in an epoch.
    piece: tokens of a piece, which divide the sequence; training takes one call or several for each. 0: the whole row.
    eval_bytes: score at most this many bytes of held-out text; 0: all.
    """

    folder: str
    sequence: int = 512
    seed: int = 0
    layout: str = "documents"
    piece: int = 0
    eval_bytes: int = 262_144

    def __post_init__(self):
        check_numbers("data", self, at_least=dict(sequence=1, seed=0, piece=0, eval_bytes=0))
        choose("data.layout", self.layout, LAYOUTS)
        if not self.folder:
            raise DataError("data.folder is empty; name the folder of a prepared corpus, as in --data=shards:FOLDER")
        if self.piece and self.sequence % self.piece:
            raise DataError(f"data.piece={self.piece} does not divide data.sequence={self.sequence}")

    @property
    def lengths(self) -> tuple[int, ...]:
        """All rows have `sequence` tokens."""
        return ()

    @property
    def parts(self) -> int:
        """Pieces of a row; each may begin a document."""
        return self.sequence // self.piece if self.piece and self.layout == "documents" else 1

    @property
    def source(self) -> str:
        """Name of the corpus, as in --data=shards:FOLDER."""
        return f"shards:{self.folder}"

    @property
    def eval_split(self) -> str:
        """The split that is scored."""
        return "valid"


def named(old: Any, name: str) -> ShardsConfig:
    """The config of another prepared corpus."""
    return replace(old, folder=name) if isinstance(old, ShardsConfig) else ShardsConfig(name, old.sequence, old.seed)


@dataclass(frozen=True, eq=False)
class _Corpus:
    """An opened corpus; the same object as long as its manifest does not change."""

    folder: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer

    @property
    def marks(self) -> Marks:
        """What stands before and after a document."""
        return Marks(self.tokenizer.first, self.tokenizer.last)


def _open(cfg: ShardsConfig) -> _Corpus:
    folder = Path(cfg.folder).expanduser()
    path = folder / MANIFEST
    return _opened(folder, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=2)
def _opened(folder: Path, changed: int) -> _Corpus:
    manifest = read_manifest(folder)
    file = folder / manifest["tokenizer"]["file"]
    tokenizer = load(str(file))
    if tokenizer.fingerprint != manifest["tokenizer"]["sha256"]:
        raise DataError(f"{file} is not the tokenizer that {folder} was prepared with; copy it again")
    return _Corpus(folder, manifest, tokenizer)


class _Documents(Sequence):
    """The training documents, read when asked for; the last few stay in memory. lengths: int64[documents], tokens of each."""

    def __init__(self, corpus: _Corpus, kept: int):
        self.lengths = read_lengths(corpus.folder, corpus.manifest)
        self._records, self._kind = Records(corpus.folder, corpus.manifest, "train"), token_type(corpus.tokenizer.vocabulary)
        self._read = functools.lru_cache(maxsize=kept)(self._read_one)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        return self._read(int(index))

    def _read_one(self, index: int) -> Document:
        ids = np.frombuffer(self._records[index], self._kind)
        if len(ids) != self.lengths[index]:
            raise DataError(f"training document {index} has {len(ids)} tokens, its shard says {self.lengths[index]}; prepare again")
        return Document(str(index), ids)


def open_train(cfg: ShardsConfig, batch: int, process_index: int, process_count: int) -> NumpyIterator:
    """Endless training batches; see `data.open_train`."""
    rows, corpus = rows_of(process_index, process_count, batch), _open(cfg)
    documents = _Documents(corpus, KEPT * len(rows) * cfg.parts)
    if cfg.layout == "documents":
        source = DocumentBatches(documents, batch, cfg.sequence, cfg.seed, rows, corpus.marks, cfg.parts)
    else:
        source = ContiguousBatches(documents, batch, cfg.sequence, cfg.seed, rows, corpus.marks)
    content = [shard["sha256"] for shard in corpus.manifest["splits"]["train"]["shards"]]
    settings = (content, cfg.layout, cfg.parts, batch, cfg.sequence, cfg.seed, corpus.marks)
    return open_iterator(source, f"{zlib.crc32(repr(settings).encode()):08x}")


def open_eval(cfg: ShardsConfig, batch: int, process_index: int, process_count: int) -> Sequence[Batch]:
    """Held-out batches; see `data.open_eval` and `streams.EvalBatches`. Each document starts from a fresh state."""
    rows, corpus = rows_of(process_index, process_count, batch), _open(cfg)
    return EvalBatches(_scored(corpus, cfg.eval_bytes), batch, cfg.sequence, rows, corpus.marks)


@functools.lru_cache(maxsize=2)
def _scored(corpus: _Corpus, limit: int) -> tuple[Document, ...]:
    """The texts to score, in tokens."""
    return encoded(_held_out(corpus, limit), corpus.tokenizer)


@functools.lru_cache(maxsize=2)
def _held_out(corpus: _Corpus, limit: int) -> tuple[Document, ...]:
    """The texts to score, in an order that mixes the source; the last one may be cut. Raises DataError if there is none."""
    records = Records(corpus.folder, corpus.manifest, "valid")
    if not len(records):
        raise DataError(f"no document of {corpus.folder} is held out, so nothing can be scored; prepare again with a larger "
                        "--held_out")
    out, size = [], 0
    for index in np.random.default_rng(0).permutation(len(records)):
        if limit and size >= limit:
            break
        out.append(document(f"held-out document {index}", records[int(index)]))
        size += len(out[-1].data)
    return first_bytes(tuple(out), limit)


def tokenizer(cfg: ShardsConfig) -> Tokenizer:
    """What has cut the text into tokens."""
    return _open(cfg).tokenizer


def input_shape(cfg: ShardsConfig) -> tuple[tuple[int, ...], type]:
    """One row: int32[T]."""
    return (cfg.sequence,), np.int32


def targets(cfg: ShardsConfig) -> str:
    """The next token."""
    return "tokens"


def vocabulary(cfg: ShardsConfig) -> int:
    """Number of ids of the tokenizer."""
    return tokenizer(cfg).vocabulary


def eval_text(cfg: ShardsConfig) -> bytes:
    """The held-out bytes that `open_eval` scores."""
    return b"".join(one.data.tobytes() for one in _held_out(_open(cfg), cfg.eval_bytes))


def reference_words(cfg: ShardsConfig) -> int:
    """Words of the held-out text, separated by white space."""
    return len(eval_text(cfg).split())


def baselines(cfg: ShardsConfig, reach: int, segment: int) -> dict[str, float]:
    """Bits per byte of compressors and of a count model; what a model can see does not matter for them."""
    corpus, train, size = _open(cfg), [], 0
    documents = _Documents(corpus, 1)
    for index in np.random.default_rng(0).permutation(len(documents)):
        if size > COUNT_MODEL_BYTES:
            break
        train.append(corpus.tokenizer.decode(documents[index].data).encode())
        size += len(train[-1])
    return text_baselines(b"\0".join(train), eval_text(cfg))


def decode(cfg: ShardsConfig, ids: Any) -> str:
    """Text of tokens; see `data.decode`."""
    return tokenizer(cfg).decode(ids)


def describe(cfg: ShardsConfig) -> str:
    """One line: corpus, sizes of its splits, tokenizer, and what the layout costs."""
    corpus = _open(cfg)
    train, valid = (corpus.manifest["splits"][split] for split in ("train", "valid"))
    scored = total(_held_out(corpus, cfg.eval_bytes))
    said = (f"{cfg.source}: {train['tokens']:,} tokens in {train['documents']:,} documents to train on, {valid['bytes']:,} bytes "
            f"in {valid['documents']:,} documents held out, {scored:,} of them scored; {corpus.tokenizer.name} of "
            f"{corpus.tokenizer.vocabulary:,} ids, {train['bytes'] / train['tokens']:.2f} bytes per token")
    return "; ".join([said, *said_of_gaps(facts(cfg))])


def facts(cfg: ShardsConfig) -> dict[str, float]:
    """What the layout costs; see `data.facts`."""
    corpus = _open(cfg)
    return packing(read_lengths(corpus.folder, corpus.manifest), cfg.sequence, cfg.parts) if cfg.layout == "documents" else {}
