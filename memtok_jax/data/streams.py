"""Batches of text as pure index arithmetic: batch number -> arrays.

A training source is a plain sequence without an end; its state is the number of the next batch. Evaluation is a
finite sequence that covers every held-out byte exactly once.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from memtok_jax.data.documents import Document
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import IGNORED

Batch = dict[str, np.ndarray]
LAYOUTS = ("documents", "joined")
NAMED_GAP = 0.01  # share of a batch that is empty before it is mentioned


class Marks(NamedTuple):
    """Tokens that are not of a text: `first` stands before it, so that its first token is predicted as well; `last` ends it."""

    first: int
    last: int


BYTES = Marks(first=0x0A, last=0)


def lengths(documents: Sequence[Document]) -> np.ndarray:
    """int64[number of documents]: tokens of each. A sequence that reads its documents when asked knows them, as `lengths`."""
    known = getattr(documents, "lengths", None)
    return np.array([len(one.data) for one in documents], np.int64) if known is None else known


class Stream:
    """Documents one after the other, each followed by `marks.last`, behind one `marks.first`; nothing is copied.

    order: int[number of documents], which document comes when.
    """

    def __init__(self, documents: Sequence[Document], order: np.ndarray, marks: Marks = BYTES):
        self._documents, self._order, self._marks = documents, order, marks
        self._ends = np.cumsum(lengths(documents)[order] + 1)

    def __len__(self) -> int:
        return 1 + int(self._ends[-1])

    def read(self, position: int, count: int) -> np.ndarray:
        """int32[count] from `position` on, which must lie inside."""
        out, filled, position = np.full(count, self._marks.last, np.int32), 0, position - 1
        if position < 0:
            out[0], filled, position = self._marks.first, 1, 0
        piece = int(np.searchsorted(self._ends, position, side="right"))
        while filled < count:
            data = self._documents[self._order[piece]].data
            offset = position - (int(self._ends[piece]) - len(data) - 1)
            part = data[offset:offset + count - filled]
            out[filled:filled + len(part)] = part
            filled, position, piece = filled + len(part) + 1, int(self._ends[piece]), piece + 1
        return out


def rows_of(process_index: int, process_count: int, batch: int) -> range:
    """Rows of the whole batch that one process reads. Raises DataError where they do not divide."""
    if batch < 1 or batch % process_count:
        raise DataError(f"a batch of {batch} rows does not divide among {process_count} processes")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index must lie in [0, {process_count}), got {process_index}")
    share = batch // process_count
    return range(process_index * share, (process_index + 1) * share)


def _shifted(rows: np.ndarray, start: np.ndarray) -> Batch:
    """Inputs and next-token targets from int32[B, T + 1]."""
    return {"inputs": rows[:, :-1].copy(), "targets": rows[:, 1:].copy(), "start": start}


def _check_length(documents: Sequence[Document], batch: int, sequence: int, marks: Marks) -> None:
    size, unit = int(lengths(documents).sum()), "bytes" if marks == BYTES else "tokens"
    if size < batch * sequence + 1:
        raise DataError(f"the training text of {size} {unit} is too short for {batch} rows of {sequence} tokens "
                        f"({batch * sequence + 1} {unit}); lower the batch or the sequence")


def identity(documents: Sequence[Document], *settings) -> str:
    """A checksum of the data and of what decides its order, saved beside the position in it."""
    content = [(d.name, len(d.data), zlib.crc32(np.ascontiguousarray(d.data))) for d in documents]
    return f"{zlib.crc32(repr((content, settings)).encode()):08x}"


class ContiguousBatches:
    """Row b of batch t + 1 continues row b of batch t.

    In each epoch the documents come in a new order, and the joined text is cut into B equal rows from a random first
    byte on, so that what does not fill a row is different each time. `start` is True in the first batch of an epoch.
    """

    def __init__(self, documents: Sequence[Document], batch: int, sequence: int, seed: int, rows: range, marks: Marks = BYTES):
        _check_length(documents, batch, sequence, marks)
        self._documents, self._rows, self._sequence, self._seed, self._marks = documents, rows, sequence, seed, marks
        self._size = 1 + int((lengths(documents) + 1).sum())
        self.steps_per_epoch = (self._size - 1) // (batch * sequence)
        self._slack = self._size - batch * self.steps_per_epoch * sequence
        self._cached: tuple[int, Stream, int] | None = None

    def __getitem__(self, step: int) -> Batch:
        epoch, inner = divmod(step, self.steps_per_epoch)
        stream, first = self._epoch(epoch)
        row_length, T = self.steps_per_epoch * self._sequence, self._sequence
        rows = [stream.read(first + b * row_length + inner * T, T + 1) for b in self._rows]
        return _shifted(np.stack(rows), np.full(len(rows), inner == 0))

    def _epoch(self, epoch: int) -> tuple[Stream, int]:
        """The text of an epoch, and where its first row begins."""
        if self._cached is None or self._cached[0] != epoch:
            rng = np.random.default_rng((self._seed, epoch))
            stream = Stream(self._documents, rng.permutation(len(self._documents)), self._marks)
            self._cached = (epoch, stream, int(rng.integers(self._slack)))
        return self._cached[1:]


class WindowBatches:
    """Windows at independent random places of the joined text, each `visit` batches long.

    A row stays at its place for `visit` batches, then jumps; `start` is True in the first batch of each visit. Rows jump
    at different times, so that a batch always holds young and old streams.
    """

    def __init__(self, documents: Sequence[Document], batch: int, sequence: int, seed: int, rows: range, visit: int,
                 marks: Marks = BYTES):
        _check_length(documents, 1, sequence * visit, marks)
        self._stream = Stream(documents, np.arange(len(documents)), marks)
        self._batch, self._rows, self._sequence, self._seed, self._visit = batch, rows, sequence, seed, visit

    def __getitem__(self, step: int) -> Batch:
        T = self._sequence
        visits = [divmod(step + b * self._visit // self._batch, self._visit) for b in self._rows]
        places = [self._place(b, number) for b, (number, _) in zip(self._rows, visits, strict=True)]
        rows = [self._stream.read(place + inner * T, T + 1) for place, (_, inner) in zip(places, visits, strict=True)]
        return _shifted(np.stack(rows), np.array([step == 0 or inner == 0 for _, inner in visits]))

    def _place(self, row: int, number: int) -> int:
        rng = np.random.default_rng((self._seed, row, number))
        return int(rng.integers(len(self._stream) - self._sequence * self._visit))


def packing(lengths: np.ndarray, sequence: int, parts: int) -> dict[str, float]:
    """What `DocumentBatches` makes of documents of these lengths: the share of a batch that is empty behind their ends, and the
    mean number of documents in a row of `sequence` tokens."""
    piece = sequence // parts
    pieces = -(-(lengths + 1) // piece)
    return {"data/empty_share": float(1 - (lengths + 1).sum() / (pieces * piece).sum()),
            "data/documents_per_row": float(len(lengths) * parts / pieces.sum())}


def said_of_gaps(facts: dict[str, float]) -> list[str]:
    """The same in words; nothing if next to nothing is empty."""
    if facts.get("data/empty_share", 0) < NAMED_GAP:
        return []
    return [f"{facts['data/empty_share']:.0%} of a batch is empty behind the ends of documents (a smaller data.piece wastes less)"]


class DocumentBatches:
    """Row b of batch t + 1 continues row b of batch t, and every document begins at the front of a piece of a row.

    In each epoch the documents come in a new order. Each is cut into pieces of T / `parts` tokens; `marks.first` stands before its
    first token, `marks.last` is the target after its last one, and what is left of its last piece is not scored. The pieces of all
    documents are cut into B equal rows from a random first piece on. `start`, bool[B] or with several parts bool[B, parts], is True
    where a document begins, and at the front of the first batch of an epoch.
    """

    def __init__(self, documents: Sequence[Document], batch: int, sequence: int, seed: int, rows: range, marks: Marks,
                 parts: int = 1):
        self._documents, self._rows, self._seed, self._marks, self._parts = documents, rows, seed, marks, parts
        self._size = sequence // parts
        self._pieces = -(-(lengths(documents) + 1) // self._size)
        self.steps_per_epoch, self._slack = divmod(int(self._pieces.sum()), batch * parts)
        if not self.steps_per_epoch:
            raise DataError(f"the {len(documents)} training documents make {self._slack} pieces of {self._size} tokens, fewer than "
                            f"the {batch * parts} pieces of a batch; lower the batch or the sequence")
        self._cached: tuple[int, np.ndarray, np.ndarray, int] | None = None

    def __getitem__(self, step: int) -> Batch:
        epoch, inner = divmod(step, self.steps_per_epoch)
        order, ends, first = self._epoch(epoch)
        B, P, n = len(self._rows), self._size, self._parts
        batch = {"inputs": np.zeros((B * n, P), np.int32), "targets": np.full((B * n, P), IGNORED, np.int32),
                 "start": np.zeros(B * n, bool)}
        for b, part in np.ndindex(B, n):
            place = first + (self._rows[b] * self.steps_per_epoch + inner) * n + part
            at = int(np.searchsorted(ends, place, side="right"))
            piece = place - int(ends[at]) + int(self._pieces[order[at]])
            self._fill(batch, b * n + part, self._documents[order[at]].data, piece * P)
            batch["start"][b * n + part] = piece == 0 or (inner, part) == (0, 0)
        start = batch["start"].reshape((B, n) if n > 1 else B)
        return {"inputs": batch["inputs"].reshape(B, n * P), "targets": batch["targets"].reshape(B, n * P), "start": start}

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Order of the documents in an epoch, where the pieces of each end, and the first piece of the first row."""
        if self._cached is None or self._cached[0] != epoch:
            rng = np.random.default_rng((self._seed, epoch))
            order = rng.permutation(len(self._documents))
            self._cached = (epoch, order, np.cumsum(self._pieces[order]), int(rng.integers(self._slack + 1)))
        return self._cached[1:]

    def _fill(self, batch: Batch, b: int, ids: np.ndarray, begin: int) -> None:
        """Piece b from token `begin` of a document on."""
        marks, n = self._marks, min(self._size, len(ids) + 1 - begin)
        batch["inputs"][b, 0] = ids[begin - 1] if begin else marks.first
        batch["inputs"][b, 1:n] = ids[begin:begin + n - 1]
        batch["targets"][b, :n - 1] = ids[begin:begin + n - 1]
        batch["targets"][b, n - 1] = ids[begin + n - 1] if begin + n - 1 < len(ids) else marks.last


# ------------------------------------------------------------------------------------------------------ evaluation

class Span(NamedTuple):
    """Tokens [begin, end) of held-out document `document`, scored in one row without a break."""

    document: int
    begin: int
    end: int


class EvalBatches(Sequence):
    """Batches that cover every held-out token exactly once.

    One text is cut into B rows that go on from batch to batch; several texts are given to the rows whole, the longest
    first, and each starts from a fresh state. Beside `inputs`, `targets` and `start` (int32[B, T] twice, bool[B]) a batch
    holds `length` int32[B], the real tokens at the front of the row (0 where a row has ended; behind them inputs are 0 and
    targets -100), `document` int32[B], the index of the text (-1 where a row has ended), and `bytes` int32[B], the bytes of the
    text that the row's targets stand for.
    """

    def __init__(self, documents: Sequence[Document], batch: int, sequence: int, rows: range, marks: Marks = BYTES):
        spans = _cut(documents, batch) if len(documents) == 1 else _deal(documents, batch, sequence)
        plans = [[(span, begin) for span in row for begin in range(span.begin, span.end, sequence)] for row in spans]
        self._documents, self._sequence, self._marks = documents, sequence, marks
        self._plans = [plans[b] for b in rows]
        self._steps = max(len(plan) for plan in plans)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        B, T = len(self._plans), self._sequence
        batch = {"inputs": np.zeros((B, T), np.int32), "targets": np.full((B, T), IGNORED, np.int32),
                 "start": np.zeros(B, bool), "length": np.zeros(B, np.int32), "document": np.full(B, -1, np.int32),
                 "bytes": np.zeros(B, np.int32)}
        for b, plan in enumerate(self._plans):
            if step < len(plan):
                self._fill(batch, b, *plan[step])
        return batch

    def _fill(self, batch: Batch, b: int, span: Span, begin: int) -> None:
        _, data, sizes = self._documents[span.document]
        end = min(begin + self._sequence, span.end)
        n = end - begin
        batch["targets"][b, :n] = data[begin:end]
        batch["inputs"][b, 0] = data[begin - 1] if begin else self._marks.first
        batch["inputs"][b, 1:n] = data[begin:end - 1]
        batch["start"][b], batch["length"][b], batch["document"][b] = begin == span.begin, n, span.document
        batch["bytes"][b] = n if sizes is None else sizes[begin:end].sum()


def _cut(documents: Sequence[Document], batch: int) -> list[list[Span]]:
    """One text in `batch` equal rows; the last ones may be shorter or empty."""
    size = len(documents[0].data)
    row = -(-size // batch)
    return [[Span(0, b * row, min(size, (b + 1) * row))] if b * row < size else [] for b in range(batch)]


def _deal(documents: Sequence[Document], batch: int, sequence: int) -> list[list[Span]]:
    """Whole texts to the rows: the longest first, each to the row with the fewest batches so far."""
    rows, load = [[] for _ in range(batch)], [0] * batch
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i].data), i)):
        row = load.index(min(load))
        rows[row].append(Span(index, 0, len(documents[index].data)))
        load[row] += -(-len(documents[index].data) // sequence)
    return rows
