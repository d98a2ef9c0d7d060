"""The tables of a database, its versions, and the search indexes, which can be made anew at any time.

`PRAGMA user_version` numbers the schema: version n is what the first n migrations make. A new column or table is a new migration at
the end; the ones before never change. The FTS5 tables are no part of a version, because a build of SQLite may lack FTS5: they are
indexes over the columns `folded`, made when they are missing.
"""

from __future__ import annotations

import sqlite3

from memtok_jax.config import UserError

_FIRST = """
CREATE TABLE conversations(id INTEGER PRIMARY KEY, created_us INTEGER NOT NULL, title TEXT NOT NULL UNIQUE, config TEXT NOT NULL,
                           device TEXT NOT NULL, seed INTEGER NOT NULL);
CREATE TABLE messages(id INTEGER PRIMARY KEY AUTOINCREMENT, conv INTEGER NOT NULL REFERENCES conversations(id), role TEXT NOT NULL,
                      t_us INTEGER NOT NULL, text TEXT NOT NULL, folded TEXT NOT NULL, tokens BLOB NOT NULL,
                      n_tokens INTEGER NOT NULL);
CREATE INDEX messages_by_time ON messages(conv, t_us);
CREATE INDEX messages_by_conversation ON messages(conv, id);
CREATE TABLE passages(id INTEGER PRIMARY KEY AUTOINCREMENT, conv INTEGER NOT NULL REFERENCES conversations(id),
                      t_us INTEGER NOT NULL, text TEXT NOT NULL, folded TEXT NOT NULL, meta TEXT NOT NULL);
CREATE INDEX passages_by_conversation ON passages(conv, id);
CREATE TABLE working_blocks(conv INTEGER NOT NULL REFERENCES conversations(id), name TEXT NOT NULL, text TEXT NOT NULL,
                            limit_tokens INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY(conv, name));
CREATE TABLE events(seq INTEGER PRIMARY KEY AUTOINCREMENT, conv INTEGER NOT NULL REFERENCES conversations(id), kind TEXT NOT NULL,
                    json TEXT NOT NULL);
CREATE INDEX events_by_conversation ON events(conv, seq);
"""
_SECOND = """
CREATE TABLE embeddings(kind TEXT NOT NULL, row_id INTEGER NOT NULL, conv INTEGER NOT NULL REFERENCES conversations(id),
                        embedder_hash TEXT NOT NULL, dim INTEGER NOT NULL, dtype TEXT NOT NULL, vec BLOB NOT NULL,
                        PRIMARY KEY(kind, embedder_hash, conv, row_id)) WITHOUT ROWID;
CREATE TABLE snapshots(id INTEGER PRIMARY KEY AUTOINCREMENT, conv INTEGER NOT NULL REFERENCES conversations(id),
                       last_seq INTEGER NOT NULL, path TEXT NOT NULL, manifest_sha256 TEXT NOT NULL);
"""
MIGRATIONS = (_FIRST, _SECOND)
VERSION = len(MIGRATIONS)
INDEXES = {"words": "tokenize='unicode61 remove_diacritics 0'", "grams": "tokenize='trigram case_sensitive 1'"}
TABLES = ("messages", "passages")


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring a database to the newest version, each step in a transaction. Raises UserError for a version that is not known yet."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise UserError(f"{path} has schema version {version}; this version of memtok_jax knows versions up to {VERSION}, use "
                        "a newer one")
    for number in range(version, VERSION):
        connection.execute("BEGIN IMMEDIATE")
        for statement in MIGRATIONS[number].split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={number + 1}")
        connection.execute("COMMIT")


def make_indexes(connection: sqlite3.Connection) -> frozenset[str]:
    """Make the FTS5 tables that are missing, and fill them. Returns the names of the indexes that this build of SQLite has.

    Triggers keep them. In a build that cannot keep one its triggers are dropped, until a build with FTS5 fills it anew.
    """
    have = set()
    for name, options in INDEXES.items():
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"CREATE VIRTUAL TABLE temp.probe USING fts5(x, {options})")
            connection.execute("DROP TABLE temp.probe")
            connection.execute("COMMIT")
            have.add(name)
        except sqlite3.OperationalError as error:
            connection.execute("ROLLBACK")
            if "no such" not in str(error) and "tokenize" not in str(error):
                raise
    for table in TABLES:
        for name in INDEXES:
            _set_index(connection, table, name, name in have)
    return frozenset(have)


def _set_index(connection: sqlite3.Connection, table: str, name: str, wanted: bool) -> None:
    """Make and fill an index that lacks its triggers; or drop the triggers, in a build that cannot keep it."""
    fts = f"{table}_{name}"
    triggers = [f"{fts}_{event}" for event in ("insert", "delete", "update")]
    count = "SELECT count(*) FROM sqlite_master WHERE type='trigger' AND name IN (?, ?, ?)"
    kept = connection.execute(count, triggers).fetchone()[0]
    if kept == 3 and wanted or not kept and not wanted:
        return
    connection.execute("BEGIN IMMEDIATE")
    for trigger in triggers:
        connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    if wanted:
        connection.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS {fts} USING fts5(folded, content='{table}', content_rowid='id', "
                           f"{INDEXES[name]})")
        connection.execute(f"INSERT INTO {fts}({fts}) VALUES('rebuild')")
        add = f"INSERT INTO {fts}(rowid, folded) VALUES(new.id, new.folded);"
        remove = f"INSERT INTO {fts}({fts}, rowid, folded) VALUES('delete', old.id, old.folded);"
        for trigger, when, body in zip(triggers, ("INSERT", "DELETE", "UPDATE"), (add, remove, remove + add), strict=True):
            connection.execute(f"CREATE TRIGGER {trigger} AFTER {when} ON {table} BEGIN {body} END")
    connection.execute("COMMIT")
