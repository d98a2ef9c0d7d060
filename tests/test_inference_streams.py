"""Streams as a value that one holds: reading with its perplexity, replies that stop, rows that come and go, files."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from inference_models import MODELS, ROWS, SEGMENT, TOLERANCE, load, tokens, whole

from memtok_jax.config import UserError
from memtok_jax.inference import host, sample, snapshot
from memtok_jax.inference import stream as F
from memtok_jax.inference.compiles import compile_count
from memtok_jax.inference.filters import Sampling
from memtok_jax.inference.stream import NO_TOKEN
from memtok_jax.inference.streams import Streams

K = 4
LETTERS = "abcdefghijk"   # the words of the test models


def letter(token: int) -> bytes:
    return LETTERS[token].encode()


@functools.cache
def opened(name, rows=ROWS):
    """One compiled `Streams` for each model and batch; `fresh` gives it a stream of its own."""
    return Streams.open(*load(name), rows, seed=1, blocks=(SEGMENT, 16) if name == "toy" else (SEGMENT,), k=K, as_bytes=letter)


@functools.cache
def beginning(name, rows):
    """The first carry, on the host."""
    return jax.device_get(opened(name, rows).stream)


def fresh(name="toy", rows=ROWS) -> Streams:
    shared, start = opened(name, rows), beginning(name, rows)
    return Streams(shared.session, shared.params, jax.device_put(start), letter)


def equal(a: Streams, b: Streams):
    np.testing.assert_array_equal(a.last, b.last)
    jax.tree.map(np.testing.assert_array_equal, a.stream, b.stream)


# ---------------------------------------------------------------------------------------------------------- perplexity

def surprise(name, ids):
    """-log softmax of every token but the first, f64[B, T-1], by the definition."""
    logits = np.asarray(whole(name, ids)[0], np.float64)
    logits -= logits.max(-1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(p[:, :-1], ids[:, 1:, None], 2)[..., 0])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_is_scored_by_the_definition(name):
    ids, streams = tokens(name), fresh(name)
    lengths = [41, 10, 1]
    streams.feed(ids[:, :6], [6, 6, 1])
    streams.feed(ids[:, 6:], [35, 4, 0])
    nats = surprise(name, ids)
    wanted = [row[:n - 1].sum() for row, n in zip(nats, lengths, strict=True)]
    np.testing.assert_allclose(streams.read.nats, wanted, rtol=TOLERANCE[name])
    np.testing.assert_array_equal(streams.read.tokens, [40, 9, 0])
    np.testing.assert_array_equal(streams.tokens, lengths)
    np.testing.assert_allclose(streams.read.perplexity[:2], np.exp(streams.read.nats[:2] / [40, 9]))
    assert np.isnan(streams.read.bits[2]) and not streams.said.tokens.any()


def test_what_is_said_is_scored_without_the_options():
    ids, streams = tokens("toy")[:, :9], fresh()
    streams.feed(ids)
    before = streams.read
    said = streams.generate(10, Sampling(0.5, top_k=3, repetition_penalty=1.5))
    nats = surprise("toy", np.concatenate([ids, said], 1))[:, 8:]
    np.testing.assert_allclose(streams.said.nats, nats.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(streams.said.tokens, [10] * ROWS)
    assert (streams.read.nats == before.nats).all()


def test_long_sums_lose_no_digits():
    """Ten thousand small numbers on top of a large one: float32 alone would not see them."""
    score = F.Score(np.float32([1e6]), np.float32([0]), np.int32([0]))
    add = jax.jit(F._add)
    for _ in range(10_000):
        score = add(score, np.float32([0.01]), np.int32([1]))
    assert abs(float(score.nats[0]) + float(score.rest[0]) - 1e6 - 10_000 * float(np.float32(0.01))) < 1e-3


def test_seen_is_the_last_place_of_each_token():
    ids, streams = tokens("toy"), fresh()
    streams.feed(ids[:, :7])
    streams.feed(ids[:, 7:20], [13, 0, 2])
    streams.generate(6, 1.0)
    for row, seen in enumerate(np.asarray(streams.stream.seen)):
        past = list(ids[row, :[20, 7, 9][row]])
        for token in range(11):
            places = [place for place, i in enumerate(past, 1) if i == token]
            assert seen[token] >= max(places, default=0)
            assert seen[token] > len(past) or seen[token] == max(places, default=0)


# ------------------------------------------------------------------------------------------------------------- feeding

def test_prompts_of_every_kind_are_the_same():
    ids = tokens("toy")[:, :9]
    lengths, by_length = [9, 4, 6], fresh()
    by_length.feed(ids, lengths)
    rows = [row[:n] for row, n in zip(ids, lengths, strict=True)]
    left, mask, holes = np.full((ROWS, 12), 99), np.zeros((ROWS, 12), bool), np.random.RandomState(0)
    for row, some in enumerate(rows):
        left[row, 12 - len(some):] = some
    for prompt in (dict(ids=rows), dict(ids=[list(row) for row in rows]), dict(ids=[bytes(row.tolist()) for row in rows]),
                   dict(ids=left, mask=left != 99)):
        other = fresh()
        other.feed(**prompt)
        equal(other, by_length)
    for row, some in enumerate(rows):
        places = np.sort(holes.permutation(12)[:len(some)])
        mask[row, places], left[row] = True, 99
        left[row, places] = some
    other = fresh()
    other.feed(left, mask=mask)
    equal(other, by_length)


def test_generating_is_the_function_generate():
    model, params = load("toy")
    ids, options, streams = tokens("toy")[:, :9], Sampling(0.8, top_p=0.9, repetition_penalty=1.2), fresh()
    streams.feed(ids)
    wanted = sample.generate(model, params, ids, 10, jax.random.key(1), options)
    np.testing.assert_array_equal(streams.generate(10, options), wanted)


def test_pieces_of_any_size_are_one_reply():
    one, many = fresh(), fresh()
    for streams in (one, many):
        streams.feed(tokens("toy")[:, :9])
    whole_ = one.generate(11, 1.0)
    parts = [many.generate(n, 1.0) for n in (1, 4, 0, 6)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole_)
    np.testing.assert_array_equal(many.last, one.last)
    np.testing.assert_allclose(many.said.nats, one.said.nats, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- stop strings

def replies(n=30):
    """A stream that was fed, and the letters that each row says if nothing stops it."""
    streams = fresh()
    streams.feed(tokens("toy")[:, :9])
    row = streams.take(0)
    text = ["".join(LETTERS[i] for i in ids) for ids in streams.generate(n, 1.0)]
    return row, text


@pytest.mark.parametrize("first", [0, 2, 3, 6, 9])
def test_a_stop_string_ends_a_row_exactly_behind_it(first):
    """Wherever it lies in the calls of K tokens: the stream is bit for bit the one that was asked for so many tokens."""
    _, text = replies()
    stop = text[0][first:first + 3]
    ends = [row.find(stop) + 3 if stop in row else 30 for row in text]
    streams, plain = fresh(), fresh()
    for one in (streams, plain):
        one.feed(tokens("toy")[:, :9])
    pieces = list(streams.pieces(30, 1.0, (stop,)))
    shown = ["".join(piece.text[row] for piece in pieces) for row in range(ROWS)]
    assert shown == [row[:end - 3] if end < 30 or row.endswith(stop) else row for row, end in zip(text, ends, strict=True)]
    said = np.concatenate([piece.ids for piece in pieces], 1)
    np.testing.assert_array_equal((said != NO_TOKEN).sum(1), ends)
    calls = [np.minimum(np.maximum(np.array(ends) - done, 0), K) for done in range(0, 30, K)]
    last = plain.last
    for most in calls:
        ids, last, plain.stream = plain.session.decode(plain.params, plain.stream, last, 1.0, most)
    assert bool(np.asarray(streams.stream.active)[0]) is False
    jax.tree.map(np.testing.assert_array_equal, streams.stream._replace(active=plain.stream.active), plain.stream)
    np.testing.assert_array_equal(streams.last, last)


def test_a_row_that_has_stopped_goes_on_when_it_reads():
    _, text = replies()
    streams = fresh()
    streams.feed(tokens("toy")[:, :9])
    streams.generate(30, 1.0, (text[0][:2],))
    assert (streams.generate(5, 1.0)[0] == NO_TOKEN).all()
    count = streams.tokens[0]
    streams.feed([[1, 2], [], []])
    assert streams.tokens[0] == count + 2 and (streams.generate(5, 1.0)[0] != NO_TOKEN).all()
    streams.generate(30, 1.0, tuple(LETTERS))
    streams.wake()
    assert (streams.generate(1, 1.0) != NO_TOKEN).all()


def test_a_reply_taken_up_again_knows_what_was_said():
    """A stop string that begins in the first part and ends in the second."""
    _, text = replies()
    streams = fresh()
    streams.feed(tokens("toy")[:, :9])
    said = streams.generate(5, 1.0)
    stop = text[0][3:7]
    ends = [piece.ids for piece in streams.pieces(20, 1.0, (stop,), said)]
    assert (np.concatenate(ends, 1)[0] != NO_TOKEN).sum() == 2


# ----------------------------------------------------------------------------------------------------------------- rows

class Traffic:
    """Streams of ROWS rows beside a dictionary of rows that each live alone; both are told the same."""

    def __init__(self, name, seed):
        self.name, self.random = name, np.random.RandomState(seed)
        self.batch, self.alone, self.parked = fresh(name), fresh(name, 1), []
        self.solo = {slot: self.batch.take(slot) for slot in range(ROWS)}
        self.vocabulary = self.batch.session.vocabulary

    def by_itself(self, slot, act):
        """What `act` gives with the row alone in a batch of one."""
        self.alone.insert(0, self.solo[slot])
        out = act(self.alone)
        self.solo[slot] = self.alone.take(0)
        return out

    def feed(self, slot):
        lengths = self.random.randint(0, 8, ROWS)
        prompts = [self.random.randint(0, self.vocabulary, n) for n in lengths]
        self.batch.feed(prompts)
        for row in range(ROWS):
            self.by_itself(row, lambda one, row=row: one.feed([prompts[row]]))

    def generate(self, slot):
        fed = self.batch.last != NO_TOKEN
        if not fed.any():
            return
        options = Sampling(self.random.choice([0.0, 1.0], ROWS), self.random.randint(0, 4, ROWS),
                           repetition_penalty=self.random.choice([1.0, 1.4], ROWS))
        said = self.batch.generate(6, options, ("ab",))
        for row in np.flatnonzero(fed):
            mine = Sampling(*(np.broadcast_to(field, ROWS)[row] for field in options))
            np.testing.assert_array_equal(self.by_itself(row, lambda one, mine=mine: one.generate(6, mine, ("ab",)))[0], said[row])

    def evict(self, slot):
        self.parked.append((self.batch.evict(slot), self.solo[slot]))
        self.solo[slot] = self.batch.take(slot)

    def reset(self, slot):
        self.batch.reset(slot, seed=int(self.random.randint(9)))
        self.solo[slot] = self.batch.take(slot)

    def insert(self, slot):
        if self.parked:
            row, self.solo[slot] = self.parked[self.random.randint(len(self.parked))]
            self.batch.insert(slot, row)

    def fork(self, slot):
        to = self.random.randint(ROWS)
        self.batch.fork(slot, to)
        self.solo[to] = self.solo[slot]

    def check(self):
        for slot, (stream, last) in self.solo.items():
            found = self.batch.take(slot)
            assert found.last == last
            np.testing.assert_array_equal(found.stream.seen, stream.seen)
            np.testing.assert_array_equal(found.stream.active, stream.active)
            close = functools.partial(np.testing.assert_allclose, rtol=TOLERANCE[self.name], atol=TOLERANCE[self.name])
            jax.tree.map(close, found.stream.state, stream.state)


@pytest.mark.parametrize("name", MODELS)
def test_any_traffic_is_that_of_rows_alone(name):
    traffic, acts = Traffic(name, 4), ("feed", "feed", "generate", "generate", "evict", "reset", "insert", "fork")
    for step in range(60 if name == "toy" else 20):
        getattr(traffic, acts[traffic.random.randint(len(acts))])(int(traffic.random.randint(ROWS)))
        if step % 10 == 9:
            traffic.check()


def test_nothing_compiles_and_nothing_grows():
    """Ten thousand steps and all kinds of calls behind the opening."""
    streams, one = fresh(), fresh("toy", 1)
    streams.feed([[1], [2], [3]])
    sizes, before = [], compile_count()
    for _ in range(3):
        for _ in range(830):
            streams.generate(K, Sampling(1.0, top_k=5))
        streams.feed([[1, 2], [], [3] * 30])
        streams.generate(3, 0.0, ("abc",))
        streams.fork(0, 1)
        streams.insert(2, streams.evict(0))
        streams.feed([[1], [], []])
        one.insert(0, streams.take(2))
        assert streams.read.tokens.any() and np.isfinite(streams.said.bits[1])
        sizes.append(sum(a.nbytes for a in jax.live_arrays()))
    assert compile_count() == before and sizes[1] == sizes[2]
    assert streams.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(streams.stream))


# ---------------------------------------------------------------------------------------------------------------- files

def test_a_file_goes_on_in_the_middle_of_a_reply(tmp_path):
    streams, again = fresh(), fresh()
    streams.feed(tokens("toy")[:, :9], [9, 0, 4])
    reply = streams.pieces(20, 1.0)
    next(reply)
    streams.save(tmp_path / "a", {"why": "a test", "n": 3})
    assert again.load(tmp_path / "a") == {"why": "a test", "n": 3}
    equal(again, streams)
    rest = np.concatenate([piece.ids for piece in reply], 1)
    np.testing.assert_array_equal(again.generate(16, 1.0), rest)
    equal(again, streams)


def test_files_of_something_else_are_refused(tmp_path):
    streams = fresh()
    snapshot.save(tmp_path / "plain", streams.stream, load("toy")[0])
    with pytest.raises(UserError, match="was not saved by Streams"):
        streams.load(tmp_path / "plain")
    fresh("toy", 1).save(tmp_path / "one")
    with pytest.raises(UserError, match="holds 1 rows; these streams have 3"):
        streams.load(tmp_path / "one")
    with pytest.raises(UserError, match="there is no stream at"):
        streams.load(tmp_path / "none")


@pytest.mark.parametrize("call, words", [
    (lambda s: s.generate(3), "a row has no token to go on from"),
    (lambda s: (s.feed([[1], [], []]), s.generate(3, rows=[True, True, False])), "a row has no token"),
    (lambda s: (s.feed([[1], [2], [3]]), s.generate(-1)), "n=-1"),
    (lambda s: (s.feed([[1], [2], [3]]), s.generate(3, Sampling(top_p=2.0))), "top_p 2.0"),
    (lambda s: (s.feed([[1], [2], [3]]), s.generate(3, 1.0, [""])), "must be a list of texts"),
    (lambda s: s.feed([[1], [2]]), r"\[3, T\] is needed"),
    (lambda s: s.feed([1, 2, 3]), r"\[3, T\] is needed"),
    (lambda s: s.feed([b"a", b"b", b"c"]), "token 97 is outside the vocabulary"),
    (lambda s: s.feed(["a", "b", "c"]), "must be integers"),
    (lambda s: s.feed(np.zeros((3, 2), int), mask=np.ones((3, 3), bool)), r"mask must be booleans of the shape .*\(3, 2\)"),
    (lambda s: s.feed(np.zeros((3, 2), int), [1, 1, 1], np.ones((3, 2), bool)), "a mask or a length, not both"),
    (lambda s: s.take(3), "slot 3 is not one of the 3 slots"),
    (lambda s: s.reset(-1), "slot -1"), (lambda s: s.fork(0, 7), "slot 7"),
], ids=lambda value: value if isinstance(value, str) else "call")
def test_mistakes_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call(fresh())


def test_options_reach_the_device_as_they_are_declared():
    arrays = host.sampling(Sampling(0.5, top_k=[1, 2, 3]), ROWS)
    assert [field.dtype for field in arrays] == [np.float32, np.int32, *[np.float32] * 3, np.int32]
    assert all(field.shape == (ROWS,) for field in arrays)
