"""Function executor: what each call does to the stores, and the text that it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from memtok_jax.config import UserError
from memtok_jax.virtual_context import codec, search
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.embed import Vectors
from memtok_jax.virtual_context.grammar import OPS, Call
from memtok_jax.virtual_context.queue import State
from memtok_jax.virtual_context.search import Query
from memtok_jax.virtual_context.store import Row, Store

CUT = "..."
MARKS = 2   # tokens around a result


class Found(NamedTuple):
    """A search that was looked up. new: it shows its first page."""

    query: Query
    cursor: search.Cursor
    new: bool


@dataclass(frozen=True)
class Outcome:
    """What a call did. text: its answer. ops: for the state. rows: what a search showed. failed: it did nothing, text says why."""

    text: str
    ops: tuple[dict[str, Any], ...] = ()
    rows: tuple[int, ...] = ()
    failed: bool = False


@dataclass(frozen=True)
class Executor:
    """The stores of one conversation."""

    store: Store
    vectors: Vectors
    conv: int
    cfg: ContextConfig

    def run(self, call: Call, state: State, t_us: int, found: Found | None) -> Outcome:
        """Do a call (not `send` or `yield`), inside a transaction of the caller. A mistake of the policy becomes the answer.

        found: what `look_up` gave for the call.
        """
        functions = {"archival_insert": self._insert, "working_append": self._append, "working_replace": self._replace}
        try:
            return self._show(call, found) if found else functions[call.op](call, state, t_us)
        except UserError as error:
            return Outcome(f"error: {error}", failed=True)

    def look_up(self, call: Call, state: State) -> Found | None:
        """The cursor of a search, before the transaction, because a search may embed rows first; None for other calls.

        The first page makes a new one. Recall storage is searched up to the oldest message that is whole in the fifo: what the
        model sees need not be shown again.
        """
        if not OPS[call.op].search:
            return None
        query = query_of(call)
        known = dict(state.cursors).get(query)
        if call.page > 1 and known:
            return Found(query, known, False)
        oldest = state.fifo[0] if state.fifo and query.table == "messages" else None
        bound = None if oldest is None else oldest.row if oldest.start else oldest.row - 1
        return Found(query, search.begin(self.store, self.vectors, self.conv, query, bound), True)

    def _show(self, call: Call, found: Found) -> Outcome:
        query, cursor, new = found
        page = search.page(self.store, self.conv, query, cursor, call.page, self.cfg.page_size)
        text = show(page, call, self.cfg.page_tokens - MARKS)
        ops = ({"op": "cursor", "key": list(query), "bound": cursor.bound, "ids": list(cursor.ids)},) if new else ()
        return Outcome(text, ops, tuple(row.id for row in page.rows))

    def _insert(self, call: Call, state: State, t_us: int) -> Outcome:
        return Outcome(f"kept as {self.store.add_passage(self.conv, t_us, call.args[0], {})}")

    def _append(self, call: Call, state: State, t_us: int) -> Outcome:
        name, more = call.args
        old = self._block(name, state)
        return self._write(name, f"{old}\n{more}" if old else more)

    def _replace(self, call: Call, state: State, t_us: int) -> Outcome:
        name, old, new = call.args
        text = self._block(name, state)
        if text.count(old) != 1:
            raise UserError(f"block {name} holds {old[:40]!r} {text.count(old)} times; give a text that it holds once")
        return self._write(name, text.replace(old, new))

    def _block(self, name: str, state: State) -> str:
        if name not in state.working:
            raise UserError(f"no block is called {name[:40]!r}; there are {', '.join(state.working) or 'none'}")
        return state.working[name]

    def _write(self, name: str, text: str) -> Outcome:
        limit = next(block.limit for block in self.cfg.blocks if block.name == name)
        if len(codec.encode(text)) > limit:
            raise UserError(f"block {name} would hold {len(codec.encode(text))} tokens; its limit is {limit}, shorten it first")
        self.store.set_block(self.conv, name, text, limit)
        return Outcome("written", ({"op": "working", "name": name, "text": text},))


def query_of(call: Call) -> Query:
    """What a call of a search asks for."""
    return Query("messages" if call.op == "recall_search" else "passages", call.mode, call.args[0])


def show(page: search.Page, call: Call, most: int) -> str:
    """A page as text of at most `most` tokens: a line that counts, and a line for each row, cut around what was asked for."""
    last = "" if page.more else ", the last"
    lines = [f"page {call.page}{last}" if page.rows else "nothing found" if call.page == 1 else f"page {call.page} is empty"]
    left = most - len(lines[0])
    for place, row in enumerate(page.rows):
        head = f"\n{row.id} {row.role}: "
        room = left // (len(page.rows) - place) - len(head)
        if room < len(CUT):
            break
        lines.append(head[1:] + cut(_one_line(row), call.args[0], room))
        left -= len(codec.encode(lines[-1])) + 1
    return "\n".join(lines)


def _one_line(row: Row) -> str:
    return " ".join(row.text.split("\n"))


def cut(text: str, query: str, most: int) -> str:
    """At most `most` tokens of a text, around the first place that holds the query; dots show where it was cut."""
    if len(codec.encode(text)) <= most:
        return text
    place, room = max(0, text.casefold().find(query.casefold())), most - 2 * len(CUT)
    first = max(0, min(place - max(0, room - len(query)) // 2, len(text) - room))
    kept = codec.encode(text[first:])[:max(0, room)].decode(errors="ignore")
    return (CUT + kept + CUT)[:most] if first else (kept + CUT)[:most]
