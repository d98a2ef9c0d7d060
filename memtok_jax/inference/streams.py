"""Streams to talk to: a session together with its stream, its parameters and each row's newest token, for one's own code.

    streams = Streams.open(model, params, batch=2)
    streams.feed([b"The first row reads this", b"and the second one that"])
    for piece in streams.pieces(200, Sampling(temperature=0.8, top_p=0.95), stops=("\n\n",)):
        print(piece.text[0], end="")

It adds no computation. Everything is done by the pure functions of `stream.py`, compiled by `session.py`; what changes here is
which value the names `stream` and `last` stand for. A row keeps its newest token back: the model has not consumed it yet, because
sampling consumes it first. So a row that was fed n tokens has consumed n - 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.config import UserError
from memtok_jax.inference import host, snapshot
from memtok_jax.inference.blocks import blocks_for
from memtok_jax.inference.filters import Sampling
from memtok_jax.inference.sample import TOKENS_PER_CALL
from memtok_jax.inference.session import Session, new_stream, open_session
from memtok_jax.inference.stream import NO_TOKEN, Score, Stream, stream_bytes
from memtok_jax.inference.text import TextRow, byte_of
from memtok_jax.models.protocol import Model
from memtok_jax.params import Tree


class Row(NamedTuple):
    """One row outside of its batch. stream: of one row. last: its newest token, not consumed yet; NO_TOKEN if it was fed none."""

    stream: Stream
    last: int


class Piece(NamedTuple):
    """What the rows have said in one call.

    ids: i32[B, n], NO_TOKEN where a row said no more. text: what may be shown now, by row.
    """

    ids: np.ndarray
    text: tuple[str, ...]


class Quality(NamedTuple):
    """How well tokens were predicted, by row. nats: f64[B], their sum. tokens: i64[B]. A row without tokens has NaN."""

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def bits(self) -> np.ndarray:
        """f64[B]: mean bits of a token; of a byte, where a token is one."""
        return np.where(self.tokens > 0, self.nats / np.maximum(self.tokens, 1) / np.log(2), np.nan)

    @property
    def perplexity(self) -> np.ndarray:
        """f64[B]: two to the power of the bits."""
        return np.exp2(self.bits)


class Streams:
    """B streams of one model. Make it with `Streams.open`.

    session: the programs. params: the parameters. stream: the stream as it is now; calls end the life of older values.
    last: i32[B] on the host, each row's newest token, NO_TOKEN in a row that was fed nothing.
    """

    def __init__(self, session: Session, params: Tree, stream: Stream, as_bytes: Callable[[int], bytes] = byte_of):
        self.session, self.params, self.stream, self._as_bytes = session, params, stream, as_bytes
        self.last = np.full(session.batch, NO_TOKEN, np.int32)

    @classmethod
    def open(cls, model: Model, params: Tree, batch: int = 1, *, seed: int = 0, blocks: Sequence[int] | None = None,
             k: int = TOKENS_PER_CALL, stop: Sequence[int] = (), as_bytes: Callable[[int], bytes] = byte_of) -> Streams:
        """Compile everything for `batch` rows, and start them.

        seed: of the random bits. blocks: block lengths for `feed`, `blocks_for` chooses them if left out. k: tokens that are
        sampled at once. stop: tokens that end what a row says. as_bytes: the bytes that a token stands for.
        """
        stream = new_stream(model, params, batch, jax.random.key(seed))
        blocks = blocks_for(model.call_tokens) if blocks is None else blocks
        session = open_session(model, params, stream, feed_blocks=(), score_blocks=blocks, k=k, stop=stop)
        return cls(session, params, stream, as_bytes)

    # ------------------------------------------------------------------------------------------------- tokens in and out

    def feed(self, ids: Any, length: Any = None, mask: Any = None) -> None:
        """Let the rows read. A row that had stopped goes on.

        ids: int[B, T], or one sequence of tokens (or bytes) for each row, of any lengths. length: int[B], the real tokens of each
        row, which stand first. mask: bool[B, T], which tokens are real, wherever padding stands; give one of the two.
        """
        ids, length = _real_first(ids, length, mask, self.session.batch)
        ids, length = host.block(ids, length, self.session.vocabulary, self.session.batch)
        if not length.any():
            return
        begun, fed = self.last != NO_TOKEN, length > 0
        joined = np.zeros((len(ids), ids.shape[1] + 1), np.int32)
        for row in np.flatnonzero(fed):
            known = [self.last[row]] if begun[row] else []
            joined[row, :len(known) + length[row]] = [*known, *ids[row, :length[row]]]
        consumed = np.where(fed, length - ~begun, 0)
        self.stream = self.session.set_active(self.stream, fed, True)
        self.stream = self.session.score(self.params, self.stream, joined[:, :-1], joined[:, 1:], consumed)
        self.last = np.where(fed, joined[np.arange(len(ids)), consumed], self.last).astype(np.int32)

    def pieces(self, n: int, options: Any = 1.0, stops: Sequence[str] = (), said: Sequence[Sequence[int]] = (),
               rows: Any = None) -> Iterator[Piece]:
        """Let the rows say n tokens each, in pieces of up to `k`; when a piece comes, `stream` and `last` stand right behind it.

        options: `Sampling`, or a temperature.
        stops: strings that end a row. The row has said the string then, and its stream is the one right behind it, bit for bit; the
            text ends in front of the string.
        said: what each row has said before and counts as the same text, where a reply is taken up again.
        rows: bool[B], which rows speak; if left out, all that have been fed and have not stopped.
        The last piece has no tokens, and what was held back of the text.
        Raises UserError for n below 0, a row that has nothing to go on from, and impossible options.
        """
        batch, options = self.session.batch, host.sampling(options, self.session.batch)
        speaks = np.asarray(self.stream.active) & ((self.last != NO_TOKEN) if rows is None else host.mask(rows, batch))
        if n < 0:
            raise UserError(f"n={n} tokens to generate must be at least 0")
        if (self.last[speaks] == NO_TOKEN).any() or rows is None and not (self.last != NO_TOKEN).any():
            raise UserError("a row has no token to go on from; feed it at least one")
        texts = [TextRow(stops, self._as_bytes) for _ in range(batch)]
        for text, before in zip(texts, said, strict=False):
            text.push(before)
        return self._pieces(np.where(speaks, n, 0), options, texts, bool(stops))

    def _pieces(self, left: np.ndarray, options: Sampling, texts: list[TextRow], watch: bool) -> Iterator[Piece]:
        """left: i32[B], tokens that each row may still say. watch: whether there are stop strings."""
        while left.any():
            most = np.minimum(left, self.session.k)
            before = self.session.gather(self.stream, np.arange(self.session.batch)) if watch else self.stream
            ids, last = self._decode(self.stream, self.last, options, most)
            found = [text.push(row[row != NO_TOKEN]) for text, row in zip(texts, ids, strict=True)]
            used = np.array([k if end is None else end for (_, end), k in zip(found, most, strict=True)])
            stopped = np.array([end is not None for _, end in found])
            if stopped.any():
                # The same call again from the same stream, in which these rows say less.
                ids, last = self._decode(before, self.last, options, np.where(stopped, used, most))
                self.stream = self.session.set_active(self.stream, stopped, False)
            self.last = last
            left = np.where(np.asarray(self.stream.active), left - most, 0)
            yield Piece(ids[:, :most.max()], tuple(shown for shown, _ in found))
        yield Piece(np.zeros((len(left), 0), np.int32), tuple(text.finish() for text in texts))

    def _decode(self, stream: Stream, last: np.ndarray, options: Sampling, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, newest tokens) of one call; a row that says nothing keeps its newest token."""
        ids, after, self.stream = self.session.decode(self.params, stream, np.where(last == NO_TOKEN, 0, last), options, most)
        return np.asarray(ids), np.where(last == NO_TOKEN, NO_TOKEN, np.asarray(after))

    def generate(self, n: int, options: Any = 1.0, stops: Sequence[str] = (), rows: Any = None) -> np.ndarray:
        """All of `pieces` at once: ids i32[B, n] with NO_TOKEN behind a row's end."""
        pieces = [piece.ids for piece in self.pieces(n, options, stops, rows=rows)]
        ids = np.concatenate(pieces, axis=1)
        return np.pad(ids, ((0, 0), (0, n - ids.shape[1])), constant_values=NO_TOKEN)

    def wake(self) -> None:
        """Let all rows that have stopped speak again, without reading anything."""
        self.stream = self.session.set_active(self.stream, np.ones(self.session.batch, bool), True)

    def count_anew(self) -> None:
        """Let `read` and `said` count from here on."""
        none = lambda score: Score(*(jnp.array(np.zeros(part.shape, part.dtype)) for part in score))  # noqa: E731
        self.stream = self.stream._replace(read=none(self.stream.read), said=none(self.stream.said))

    # --------------------------------------------------------------------------------------------------------------- rows

    def take(self, slot: int) -> Row:
        """A copy of one row, to keep or to insert somewhere."""
        return Row(self.session.take(self.stream, slot), int(self.last[slot]))

    def insert(self, slot: int, row: Row) -> None:
        """Put a row into a slot, whatever stood there."""
        self.stream = self.session.insert(self.stream, slot, row.stream)
        self.last[slot] = row.last

    def reset(self, slot: int, seed: int = 0) -> None:
        """Start a new stream in a slot."""
        slot = int(host.slots(slot, self.session.batch, ()))
        chosen = np.arange(self.session.batch) == slot
        self.stream = self.session.restart(self.params, self.stream, chosen, jax.random.key(seed))
        self.last[slot] = NO_TOKEN

    def evict(self, slot: int) -> Row:
        """Take a row out; a new stream starts in its slot."""
        row = self.take(slot)
        self.reset(slot)
        return row

    def fork(self, slot: int, to: int) -> None:
        """Copy a row into another slot. Both have the same random bits and go apart when they read or ask for different things."""
        self.insert(to, self.take(slot))

    # ------------------------------------------------------------------------------------------------- files, facts

    def save(self, path: str | os.PathLike, notes: dict[str, Any] | None = None) -> None:
        """Write all rows to a file. notes: what else to write there, plain values."""
        snapshot.save(path, self.stream, self.session.model, {"last": self.last.tolist(), "notes": notes or {}})

    def load(self, path: str | os.PathLike) -> dict[str, Any]:
        """Go on with the rows of a file; returns its notes. Raises UserError for another model, or another number of rows."""
        found = snapshot.notes(path)
        stream = snapshot.restore(path, self.session.model)
        if len(found.get("last", ())) != len(stream.t):
            raise UserError(f"{path} was not saved by Streams: it has no newest token for each row; snapshot.restore reads it")
        if len(stream.t) != self.session.batch:
            raise UserError(f"{path} holds {len(stream.t)} rows; these streams have {self.session.batch}")
        self.stream, self.last = stream, np.array(found["last"], np.int32)
        return found["notes"]

    @property
    def tokens(self) -> np.ndarray:
        """i32[B]: tokens of each row so far, the newest one included."""
        return np.asarray(self.stream.t) + (self.last != NO_TOKEN)

    @property
    def bytes(self) -> int:
        """Bytes of all rows, however long they are."""
        return stream_bytes(self.session.model, self.session.batch)

    @property
    def read(self) -> Quality:
        """How well the tokens were predicted that the rows have been fed, all but the first of each row."""
        return _quality(self.stream.read)

    @property
    def said(self) -> Quality:
        """How likely the sampled tokens were, without the sampling options."""
        return _quality(self.stream.said)


def _quality(score: Score) -> Quality:
    nats, rest, tokens = (np.asarray(part) for part in score)
    return Quality(nats.astype(np.float64) + rest, tokens.astype(np.int64))


def _real_first(ids: Any, length: Any, mask: Any, batch: int) -> tuple[np.ndarray, Any]:
    """(int[B, T] with the real tokens of each row first, their number, None for all)."""
    if isinstance(ids, (list, tuple)) and not any(np.isscalar(row) and not isinstance(row, bytes) for row in ids):
        rows = [np.frombuffer(row, np.uint8) if isinstance(row, bytes) else host.integers("tokens", row) for row in ids]
        if mask is None and length is None:
            length = np.array([len(row) for row in rows], np.int32)
        padded = np.zeros((len(rows), max((len(row) for row in rows), default=0)), np.int64)
        for place, row in zip(padded, rows, strict=True):
            place[:len(row)] = row
        ids = padded
    if mask is None:
        return ids, length
    mask, ids = np.asarray(mask), np.asarray(ids)
    if length is not None or mask.dtype != bool or mask.shape != ids.shape:
        raise UserError(f"mask must be booleans of the shape of the tokens, {ids.shape}, got {mask.dtype.name} {mask.shape}"
                        if length is None else "give a mask or a length, not both")
    order = np.argsort(~mask, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), mask.sum(1)
