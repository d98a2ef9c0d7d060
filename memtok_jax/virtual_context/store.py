"""Recall storage, archival storage, working blocks, events and snapshots of conversations, in one SQLite file.

One process writes to a file at a time: a lock beside it refuses the second. Rows are only ever added (working blocks are replaced),
so a search can be continued from the largest row that it began with. Every function takes the conversation it is about.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from memtok_jax.config import UserError, choose
from memtok_jax.virtual_context import schema

SYNCHRONOUS = ("NORMAL", "FULL")


class Row(NamedTuple):
    """A message or a passage. role: "passage" for those. text: without NUL. tokens: its text exactly, or a call with its marks."""

    id: int
    role: str
    t_us: int
    text: str
    tokens: bytes


class Store:
    """A database. Use it as a context manager, or `close` it.

    path: the file; it is made if it is missing, its folder is not. synchronous: "FULL" also keeps the last rows at a power cut;
    "NORMAL" is faster, and loses nothing when the process is killed.
    Raises UserError if the file is in use, is no database, cannot be written, or has a newer schema.
    """

    def __init__(self, path: str | Path, synchronous: str = "FULL"):
        choose("synchronous", synchronous, SYNCHRONOUS)
        self.path, self._open = Path(path), False
        self._lock = _locked(self.path)
        try:
            with told(self.path):
                self.connection = sqlite3.connect(self.path, isolation_level=None)
                for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON", "busy_timeout=2000"):
                    self.connection.execute(f"PRAGMA {pragma}")
                schema.migrate(self.connection, str(self.path))
                self.indexes = schema.make_indexes(self.connection)
        except UserError:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block is written, or nothing. Raises UserError if it cannot be written (disk full, file locked)."""
        with told(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def _one(self, sql: str, *values: Any) -> Any:
        return self.connection.execute(sql, values).fetchone()

    # -------------------------------------------------------------------------------------------------- conversations

    def add_conversation(self, title: str, t_us: int, config: str, device: str, seed: int) -> int:
        """A new conversation; returns its number. config, device: what it was opened with."""
        return self.connection.execute("INSERT INTO conversations(created_us, title, config, device, seed) VALUES(?, ?, ?, ?, ?)",
                                       (t_us, title, config, device, seed)).lastrowid

    def conversation(self, title: str) -> tuple[int, str, str, int] | None:
        """(number, config, device, seed) of a conversation, None if there is none."""
        return self._one("SELECT id, config, device, seed FROM conversations WHERE title=?", title)

    def titles(self) -> list[str]:
        """Titles of all conversations, oldest first."""
        return [title for title, in self.connection.execute("SELECT title FROM conversations ORDER BY id")]

    def set_device(self, conv: int, device: str) -> None:
        """The model is another one from here on; snapshots of the old one are no use."""
        self.connection.execute("UPDATE conversations SET device=? WHERE id=?", (device, conv))
        self.connection.execute("DELETE FROM snapshots WHERE conv=?", (conv,))

    # ----------------------------------------------------------------------------------------------------------- rows

    def add_message(self, conv: int, role: str, t_us: int, text: str, tokens: bytes, n_tokens: int) -> int:
        """A row of recall storage; returns its number. n_tokens: with its marks."""
        text = text.replace("\0", "")
        return self.connection.execute(
            "INSERT INTO messages(conv, role, t_us, text, folded, tokens, n_tokens) VALUES(?, ?, ?, ?, ?, ?, ?)",
            (conv, role, t_us, text, text.casefold(), tokens, n_tokens)).lastrowid

    def add_passage(self, conv: int, t_us: int, text: str, meta: dict[str, Any]) -> int:
        """A row of archival storage; returns its number."""
        text = text.replace("\0", "")
        return self.connection.execute("INSERT INTO passages(conv, t_us, text, folded, meta) VALUES(?, ?, ?, ?, ?)",
                                       (conv, t_us, text, text.casefold(), json.dumps(meta))).lastrowid

    def message(self, conv: int, row: int) -> Row:
        """One message. Raises UserError if the conversation has none of this number."""
        found = self._one("SELECT id, role, t_us, text, tokens FROM messages WHERE conv=? AND id=?", conv, row)
        if found is None:
            raise UserError(f"this conversation has no message {row}")
        return Row(*found)

    def rows(self, conv: int, table: str, ids: list[int]) -> list[Row]:
        """Messages or passages, in the order of their numbers `ids`."""
        fields = "id, role, t_us, text, tokens" if table == "messages" else "id, 'passage', t_us, text, x''"
        marks = ", ".join("?" * len(ids))
        found = self.connection.execute(f"SELECT {fields} FROM {table} WHERE conv=? AND id IN ({marks})", (conv, *ids))
        by_id = {row[0]: Row(*row) for row in found}
        return [by_id[i] for i in ids]

    def messages(self, conv: int, after: int = 0) -> Iterator[Row]:
        """All messages with a larger number, oldest first."""
        fields = "SELECT id, role, t_us, text, tokens FROM messages WHERE conv=? AND id>? ORDER BY id"
        return map(Row._make, self.connection.execute(fields, (conv, after)))

    def count(self, conv: int, table: str) -> int:
        """Number of messages or passages."""
        return self._one(f"SELECT count(*) FROM {table} WHERE conv=?", conv)[0]

    def last(self, conv: int, table: str) -> int:
        """Number of the newest message or passage, 0 if there is none."""
        return self._one(f"SELECT coalesce(max(id), 0) FROM {table} WHERE conv=?", conv)[0]

    def set_block(self, conv: int, name: str, text: str, limit: int) -> None:
        """Write a block of the working context; its version counts up."""
        self.connection.execute(
            "INSERT INTO working_blocks(conv, name, text, limit_tokens, version) VALUES(?, ?, ?, ?, 1) ON CONFLICT(conv, name) "
            "DO UPDATE SET text=excluded.text, version=version + 1", (conv, name, text, limit))

    # --------------------------------------------------------------------------------------------- events and snapshots

    def add_event(self, conv: int, kind: str, content: dict[str, Any]) -> int:
        """An event; returns its number."""
        return self.connection.execute("INSERT INTO events(conv, kind, json) VALUES(?, ?, ?)",
                                       (conv, kind, json.dumps(content))).lastrowid

    def events(self, conv: int, after: int = 0) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(number, kind, content) of all events with a larger number, oldest first."""
        for seq, kind, text in self.connection.execute("SELECT seq, kind, json FROM events WHERE conv=? AND seq>? ORDER BY seq",
                                                       (conv, after)):
            yield seq, kind, json.loads(text)

    def add_snapshot(self, conv: int, last_seq: int, path: str, digest: str) -> None:
        """Note a snapshot that lies in a folder."""
        self.connection.execute("INSERT INTO snapshots(conv, last_seq, path, manifest_sha256) VALUES(?, ?, ?, ?)",
                                (conv, last_seq, path, digest))

    def snapshots(self, conv: int) -> list[tuple[int, int, str, str]]:
        """(id, number of the last event, path, digest of the manifest) of all snapshots, newest first."""
        return self.connection.execute("SELECT id, last_seq, path, manifest_sha256 FROM snapshots WHERE conv=? ORDER BY id DESC",
                                       (conv,)).fetchall()

    def drop_snapshots(self, conv: int, before: int) -> None:
        """Forget snapshots with a smaller id."""
        self.connection.execute("DELETE FROM snapshots WHERE conv=? AND id<?", (conv, before))

    def copy(self, path: str | Path) -> None:
        """A copy of the whole database as it is now, while it is in use."""
        with told(Path(path)), contextlib.closing(sqlite3.connect(path)) as target:
            self.connection.backup(target)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of SQLite as UserError in one line."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        text = str(error)
        hint = {"database or disk is full": "make room and go on: nothing that was written is lost",
                "file is not a database": "give the file of a conversation, or a new name",
                "unable to open database file": "is there such a folder, and may you write to it?",
                "attempt to write a readonly database": "make the file writable"}.get(text, "what was written before is kept")
        raise UserError(f"{path}: {text}; {hint}") from error


def _locked(path: Path) -> Any:
    """The open lock file beside a database. Raises UserError if another process holds it."""
    if str(path) == ":memory:":
        return io.BytesIO()  # a database that no other process can open
    try:
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise UserError(f"{path} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(f"another process is using {path}; wait for it, or give another file") from None
    except OSError:
        pass  # a file system without locks
    return lock
