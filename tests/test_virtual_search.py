"""Stores: search against the definition, pages under inserts, migrations, indexes that are made anew."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pytest

from memtok_jax.config import UserError
from memtok_jax.virtual_context import grammar, schema, search
from memtok_jax.virtual_context.embed import HashingEmbedder, VectorIndex, Vectors, unit
from memtok_jax.virtual_context.search import Cursor, Query
from memtok_jax.virtual_context.store import Store

HOUR = 3_600_000_000
PIECES = ["cat", "CAT", "Straße", "STRASSE", "İstanbul", "ǆ", "Größe", "\N{OWL}", "\0", "%", "_", '"', "'", "NOT", "AND", "(",
          "a:b", "-abc", "abc*", "^x", "NEAR(", "ﬁ", " ", "\n", "\\", "é", "e\u0301", "日本語", "ab"]


def filled(store: Store, texts, conv: int = 0, table: str = "messages") -> int:
    """A conversation with rows, one an hour."""
    with store.transaction():
        conv = conv or store.add_conversation(f"c{store.count(0, 'messages')}-{len(store.titles())}", 0, "{}", "{}", 0)
        for number, text in enumerate(texts):
            if table == "messages":
                store.add_message(conv, "user", number * HOUR, text, text.encode(), len(text))
            else:
                store.add_passage(conv, number * HOUR, text, {})
    return conv


def found(store: Store, conv: int, mode: str, text: str, table: str = "messages", size: int = 1000) -> list[int]:
    """Numbers of all rows that a search finds."""
    query = Query(table, mode, text)
    cursor = search.begin(store, Vectors(store, conv, HashingEmbedder(32)), conv, query)
    return [row.id for row in search.page(store, conv, query, cursor, 1, size).rows]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "a.db", "NORMAL") as store:
        yield store


@pytest.mark.parametrize("indexed", [True, False])
def test_text_search_is_in_of_python(indexed, store):
    """1,000 random queries: operators, quotes, NUL, emoji, characters whose case folding is longer; rows of another conversation
    are never found."""
    rng = np.random.default_rng(0)
    make = lambda most: "".join(rng.choice(PIECES, int(rng.integers(0, most))))  # noqa: E731
    texts = [make(12) for _ in range(80)]
    conv, other = filled(store, texts), filled(store, [make(12) for _ in range(40)])
    if not indexed:
        store.indexes = frozenset()
    hits = 0
    for number in range(1000):
        query = make(4) if number % 3 else texts[number % 80][number % 5:number % 5 + 6]
        folded = query.casefold()
        wanted = [i for i, text in enumerate(texts, 1) if folded and folded in text.replace("\0", "").casefold()]
        assert found(store, conv, "text", query) == wanted[::-1], repr(query)
        hits += bool(wanted)
    assert 200 < hits < 950
    assert all(row > 80 for row in found(store, other, "text", "a"))


def test_no_query_is_an_operator(store):
    """Whatever is asked for in any mode, nothing is raised, and only rows that hold all words are found."""
    texts = ["x abc", "NOT near", "a:b c", 'say "hi"', "(paren", "star*"]
    conv = filled(store, texts)
    for query in ("", '"', 'abc"', "a:b", "-abc", "NOT", "AND abc", "(", "x:abc", "NEAR(a b)", "abc*", "^abc", "\0", '"a\0b"', "*",
                  "   "):
        for mode in ("words", "hybrid", "vector", "text"):
            found(store, conv, mode, query)
    assert found(store, conv, "words", "NOT") == [2] and found(store, conv, "words", "abc x") == [1]
    assert found(store, conv, "words", "abc NOT") == [] and found(store, conv, "words", "ab*") == []
    store.indexes = frozenset()
    assert found(store, conv, "words", "abc x") == [1]


def test_vector_search_is_exact(store):
    rng = np.random.default_rng(1)
    vectors, index = unit(rng.normal(size=(300, 16))), VectorIndex(16)
    vectors[7] = vectors[3]
    for first in range(0, 300, 37):
        index.add(range(first + 1, min(first + 37, 300) + 1), vectors[first:first + 37])
    for bound in (300, 120, 5):
        query = unit(rng.normal(size=(1, 16)))[0] if bound < 300 else vectors[3]
        scores = vectors[:bound].astype(np.float64) @ query.astype(np.float64)
        wanted = sorted(range(bound), key=lambda i: (-scores[i], i))[:20]
        assert index.nearest(query, 20, bound) == [i + 1 for i in wanted]
    assert index.nearest(vectors[3], 2, 300) == [4, 8], "equal ones by number"


def test_an_embedder_is_the_same_everywhere_and_near_for_like_texts(store):
    one = HashingEmbedder(64)
    a, b, c, none = one.embed(["the garage code", "code of the Garage", "a boat on the lake", "?!"])
    np.testing.assert_allclose([np.linalg.norm(x) for x in (a, b, c)], 1, rtol=1e-6)
    assert a @ b > 0.4 > a @ c and not none.any()
    np.testing.assert_allclose(one.embed(["ab"])[0].nonzero()[0], [44, 54], err_msg="hashes must not depend on the process")
    conv = filled(store, ["the garage code", "a boat on the lake", "code of the Garage"])
    assert found(store, conv, "vector", "garage code") == [1, 3, 2]
    rows = "SELECT count(*), min(embedder_hash) FROM embeddings"
    assert store.connection.execute(rows).fetchone() == (3, "hashing-32-4")
    again = Vectors(store, conv, HashingEmbedder(32))
    assert again.nearest("messages", "garage code", 3, 3) == [1, 3, 2] and store.connection.execute(rows).fetchone()[0] == 3
    Vectors(store, conv, HashingEmbedder(16)).nearest("messages", "x", 1, 3)
    assert store.connection.execute("SELECT count(*) FROM embeddings").fetchone()[0] == 6, "two embedders side by side"


def test_hybrid_by_hand():
    """1/61 + 1/62 for b, 1/61 + 1/63 for a; c and d are found once."""
    assert search.fuse([1, 2, 3], [2, 4, 1]) == [2, 1, 4, 3]
    assert search.fuse([5], [4]) == [4, 5], "equal ones by number"


def test_dates_are_half_open(store):
    conv = filled(store, [f"hour {n}" for n in range(50)])
    hours = lambda text: [i - 1 for i in found(store, conv, "date", text)][::-1]  # noqa: E731
    assert hours("1970-01-01") == list(range(24)) and hours("1970-01-02") == list(range(24, 48))
    assert hours("1970-01-01T05:00 1970-01-01T07:00") == [5, 6]
    assert hours("1970-01-01T05:00+01:00 1970-01-01T05:00") == [4]
    for text in ("", "soon", "1970-01-01 x", "1970-01-01 1970-01-02 1970-01-03", "0001-01-01T00:00+23:00 9999-99-99"):
        with pytest.raises(UserError, match="is no date"):
            found(store, conv, "date", text)


@pytest.mark.parametrize("mode", ["text", "words", "vector", "hybrid", "date"])
def test_pages_neither_repeat_nor_skip_under_inserts(mode, store):
    rng = np.random.default_rng(2)
    some = lambda n: [f"cat {' '.join(rng.choice(['dog', 'tree', 'owl'], 3))}" for _ in range(n)]  # noqa: E731
    conv = filled(store, some(23))
    query, vectors = Query("messages", mode, "1970-01-01" if mode == "date" else "cat dog" if mode != "text" else "cat"), Vectors(
        store, conv, HashingEmbedder(32))
    everything = found(store, conv, mode, query.text)
    cursor, pages, number, more = search.begin(store, vectors, conv, query), [], 1, True
    while more and number < 30:
        page = search.page(store, conv, query, cursor, number, 4)
        pages += [row.id for row in page.rows]
        number, more = number + 1, page.more
        filled(store, some(5), conv)
        vectors.nearest("messages", "cat", 1, 10 ** 9)
    assert pages == everything and len(set(pages)) == len(pages) >= 10


def test_passages_and_messages_are_apart_and_calls_are_not_found(store):
    conv = filled(store, ["cat one"])
    filled(store, ["cat two"], conv, "passages")
    with store.transaction():
        store.add_message(conv, "function", 0, "cat three", b"", 1)
        store.add_message(conv, "system", 0, "cat four", b"", 1)
    for mode in ("text", "words", "vector", "hybrid"):
        assert found(store, conv, mode, "cat") == [1]
        assert [row.text for row in store.rows(conv, "passages", found(store, conv, mode, "cat", "passages"))] == ["cat two"]
    with pytest.raises(UserError, match="no message 99"):
        store.message(conv, 99)


def test_indexes_follow_every_change(store):
    """FTS5's own check, after rows were added, changed and removed by hand; and rows of a time without FTS5 come in."""
    conv = filled(store, ["old words", "more words"])
    store.connection.execute("UPDATE messages SET folded='new words' WHERE id=1")
    store.connection.execute("DELETE FROM messages WHERE id=2")
    for name in ("messages_words", "messages_grams", "passages_words", "passages_grams"):
        store.connection.execute(f"INSERT INTO {name}({name}, rank) VALUES('integrity-check', 1)")
    assert found(store, conv, "words", "new") == [1] and found(store, conv, "words", "more") == []
    for name in ("messages_words", "messages_grams"):
        schema._set_index(store.connection, "messages", name.split("_")[1], False)
    filled(store, ["without an index"], conv)
    assert found(store, conv, "words", "index") == []
    schema.make_indexes(store.connection)
    assert found(store, conv, "words", "index") == found(store, conv, "text", "index") == [3]


@pytest.mark.parametrize("version", range(schema.VERSION))
def test_an_older_database_is_migrated(version, tmp_path):
    """Made by the migrations up to a version, with rows in it."""
    connection = sqlite3.connect(tmp_path / "old.db")
    for number in range(version):
        connection.executescript(schema.MIGRATIONS[number])
    if version:
        connection.execute("INSERT INTO conversations VALUES(1, 0, 'main', '{}', '{}', 0)")
        connection.execute("INSERT INTO messages VALUES(1, 1, 'user', 0, 'Hello', 'hello', x'48', 1)")
    connection.execute(f"PRAGMA user_version={version}")
    connection.commit()
    connection.close()
    with Store(tmp_path / "old.db") as store:
        assert store.connection.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION
        if version:
            assert all(found(store, 1, mode, "HELLO") == [1] for mode in ("text", "words", "vector", "hybrid"))
        assert store.snapshots(1) == []


def test_files_that_are_no_database_are_refused_in_one_line(tmp_path):
    with Store(tmp_path / "new.db") as store:
        store.connection.execute("PRAGMA user_version=99")
    (tmp_path / "text.db").write_text("this is no database, it is a text of some length\n" * 40)
    for path, text in (("new.db", "schema version 99; this version of memtok_jax knows"), ("text.db", "not a database"),
                       ("none/a.db", "cannot be used: No such file"), (".", "unable to open")):
        with pytest.raises(UserError, match=text) as error:
            Store(tmp_path / path)
        assert "\n" not in str(error.value)
    with Store(tmp_path / "again.db"):
        pass
    Store(tmp_path / "again.db").close()


def test_pragmas_and_a_copy_while_in_use(store, tmp_path):
    pragma = lambda name: store.connection.execute(f"PRAGMA {name}").fetchone()[0]  # noqa: E731
    assert (pragma("journal_mode"), pragma("foreign_keys"), pragma("synchronous")) == ("wal", 1, 1)
    with pytest.raises(sqlite3.IntegrityError), store.transaction():
        store.add_message(77, "user", 0, "a", b"a", 1)
    conv = filled(store, ["hello"])
    store.copy(tmp_path / "copy.db")
    with Store(tmp_path / "copy.db") as copy:
        assert copy.message(conv, 1).text == "hello"


def test_a_cursor_goes_through_json():
    cursor = Cursor(7, (3, 1))
    assert Cursor(*json.loads(json.dumps(cursor))) == (7, [3, 1])
    assert set(grammar.MODES) == {"text", "words", "vector", "hybrid", "date"}
