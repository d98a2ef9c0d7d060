"""Search in recall and archival storage, page by page, within one conversation.

| mode   | finds | order |
|--------|-------|-------|
| text   | rows that hold the query as a part, after `str.casefold` on both sides | newest first |
| words  | rows that hold all words of the query (FTS5) | bm25, then oldest first |
| vector | the nearest rows by inner product of unit vectors | nearest first, then oldest first |
| hybrid | both of these, joined by reciprocal ranks, sum of 1 / (60 + rank) (Cormack et al. 2009) | then oldest first |
| date   | rows of a half-open interval of UTC time | newest first |

A cursor fixes what was there when the first page was shown: the largest row, and for ranked modes the ranked rows themselves,
because bm25 of a row changes as the corpus grows. So pages neither repeat nor skip rows while new ones come in. A query never
reaches MATCH as it is: its words are quoted.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from memtok_jax.config import UserError, choose
from memtok_jax.virtual_context.embed import Vectors
from memtok_jax.virtual_context.grammar import MODES
from memtok_jax.virtual_context.store import Row, Store

DEPTH = 100      # ranked rows that a cursor holds
RANK_OFFSET = 60
RANKED = ("words", "vector", "hybrid")
ROLES = "AND role IN ('user', 'assistant')"


class Query(NamedTuple):
    """What is searched. table: "messages" or "passages". mode: see above. text: the query; of mode "date", one or two dates."""

    table: str
    mode: str
    text: str


class Cursor(NamedTuple):
    """What a search began with. bound: the largest row that it sees. ids: ranked rows, best first, of a ranked mode."""

    bound: int
    ids: tuple[int, ...] = ()


class Page(NamedTuple):
    """Rows of one page. more: another page follows."""

    rows: tuple[Row, ...]
    more: bool


def begin(store: Store, vectors: Vectors, conv: int, query: Query, bound: int | None = None) -> Cursor:
    """A cursor before the first page. bound: the largest row that may be found; all that are there now, if left out."""
    choose("mode", query.mode, MODES)
    last = store.last(conv, query.table)
    bound = last if bound is None else min(bound, last)
    if query.mode not in RANKED:
        return Cursor(bound)
    ranked = {"words": _words, "vector": _vector, "hybrid": _hybrid}[query.mode]
    return Cursor(bound, tuple(ranked(store, vectors, conv, query, bound)))


def page(store: Store, conv: int, query: Query, cursor: Cursor, number: int, size: int) -> Page:
    """Page `number`, from 1, of `size` rows. Raises UserError for a date that is none."""
    first = (number - 1) * size
    if query.mode in RANKED:
        ids = list(cursor.ids[first:first + size + 1])
    elif query.mode == "text":
        ids = _substring(store, conv, query, cursor.bound, first, size + 1)
    else:
        ids = _dates(store, conv, query, cursor.bound, first, size + 1)
    return Page(tuple(store.rows(conv, query.table, ids[:size])), len(ids) > size)


def _roles(table: str) -> str:
    """Calls and warnings are not searched."""
    return ROLES if table == "messages" else ""


def _substring(store: Store, conv: int, query: Query, bound: int, first: int, most: int) -> list[int]:
    folded, table = query.text.replace("\0", "").casefold(), query.table
    if "\0" in query.text or not folded:
        return []   # no text holds NUL; and an empty query asks for nothing
    where, values = "", []
    if len(folded) >= 3 and "grams" in store.indexes:
        where, values = f"AND id IN (SELECT rowid FROM {table}_grams WHERE {table}_grams MATCH ?)", [quoted(folded)]
    sql = (f"SELECT id FROM {table} WHERE conv=? AND id<=? {_roles(table)} {where} AND instr(folded, ?) > 0 "
           "ORDER BY id DESC LIMIT ? OFFSET ?")
    return [i for i, in store.connection.execute(sql, (conv, bound, *values, folded, most, first))]


def quoted(term: str) -> str:
    """A term that FTS5 takes as plain text."""
    return '"' + term.replace('"', '""') + '"'


def terms(text: str) -> list[str]:
    """The words of a query, without those that no index holds."""
    words = text.replace("\0", " ").casefold().split()
    return [word for word in words if any(c.isalnum() for c in word)]


def _words(store: Store, vectors: Vectors, conv: int, query: Query, bound: int) -> list[int]:
    table, words = query.table, terms(query.text)
    if not words:
        return []
    if "words" not in store.indexes:
        holds = " AND ".join(["instr(folded, ?) > 0"] * len(words))
        sql = f"SELECT id FROM {table} WHERE conv=? AND id<=? {_roles(table)} AND {holds} ORDER BY id DESC LIMIT ?"
        return [i for i, in store.connection.execute(sql, (conv, bound, *words, DEPTH))]
    fts = f"{table}_words"
    return _match(store, fts, table, conv, " ".join(map(quoted, words)), bound)


def _match(store: Store, fts: str, table: str, conv: int, match: str, bound: int) -> list[int]:
    sql = (f"SELECT {table}.id FROM {fts} JOIN {table} ON {table}.id = {fts}.rowid WHERE {fts} MATCH ? AND conv=? "
           f"AND {table}.id<=? {_roles(table)} ORDER BY bm25({fts}), {table}.id LIMIT ?")
    return [i for i, in store.connection.execute(sql, (match, conv, bound, DEPTH))]


def _any_words(store: Store, vectors: Vectors, conv: int, query: Query, bound: int) -> list[int]:
    """Rows with at least one of the words: beside vectors, a word that a row lacks must not hide it."""
    words = terms(query.text)
    if not words or "words" not in store.indexes:
        return _words(store, vectors, conv, query, bound)
    return _match(store, f"{query.table}_words", query.table, conv, " OR ".join(map(quoted, words)), bound)


def _vector(store: Store, vectors: Vectors, conv: int, query: Query, bound: int) -> list[int]:
    return vectors.nearest(query.table, query.text.replace("\0", ""), DEPTH, bound)


def _hybrid(store: Store, vectors: Vectors, conv: int, query: Query, bound: int) -> list[int]:
    return fuse(_any_words(store, vectors, conv, query, bound), _vector(store, vectors, conv, query, bound))[:DEPTH]


def fuse(*rankings: list[int]) -> list[int]:
    """Reciprocal rank fusion: numbers by the sum of 1 / (60 + rank) over the rankings, equal ones by number."""
    score: dict[int, float] = {}
    for ranking in rankings:
        for rank, i in enumerate(ranking, 1):
            score[i] = score.get(i, 0.0) + 1 / (RANK_OFFSET + rank)
    return sorted(score, key=lambda i: (-score[i], i))


def _dates(store: Store, conv: int, query: Query, bound: int, first: int, most: int) -> list[int]:
    low, high = interval(query.text)
    sql = (f"SELECT id FROM {query.table} WHERE conv=? AND id<=? AND t_us>=? AND t_us<? {_roles(query.table)} "
           "ORDER BY id DESC LIMIT ? OFFSET ?")
    return [i for i, in store.connection.execute(sql, (conv, bound, low, high, most, first))]


def interval(text: str) -> tuple[int, int]:
    """UTC microseconds [low, high) of "2026-11-30" (that day), or of two dates or times, the second of which is left out."""
    words = text.split()
    try:
        times = [datetime.fromisoformat(word) for word in words]
        times = [time.replace(tzinfo=UTC) if time.tzinfo is None else time for time in times]
        low, high = times if len(times) == 2 else (times[0], times[0] + timedelta(days=1)) if len(times) == 1 else ()
    except (ValueError, OverflowError):
        raise UserError(f"{text!r} is no date; give a day such as 2026-11-30, or two days or times with a space between "
                        "them") from None
    return microseconds(low), microseconds(high)


def microseconds(time: datetime) -> int:
    """UTC microseconds since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
