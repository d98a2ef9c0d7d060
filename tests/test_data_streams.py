"""Batches of text and tasks: what each row holds, resuming, process shards, full cover of the held-out text."""

from __future__ import annotations

import itertools
import json
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtok_jax import data
from memtok_jax.data.documents import document, first_bytes, split_by_document, split_tail
from memtok_jax.data.errors import DataError
from memtok_jax.data.iterators import GrainIterator, NumpyIterator
from memtok_jax.data.streams import ContiguousBatches, EvalBatches, Stream, WindowBatches

TASKS = ("task:recall", "task:passkey", "task:mqar")


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes(bytes(np.random.default_rng(0).integers(1, 256, 3000, dtype=np.uint8)))
    return path


def config(text_file, **changes) -> data.DataConfig:
    return data.DataConfig(**{"source": str(text_file), "sequence": 16, "held_out": 0.2, **changes})


def take(iterator, n: int) -> list[dict]:
    return list(itertools.islice(iterator, n))


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        assert one[key].dtype == other[key].dtype


def documents_of(sizes) -> tuple:
    """Documents whose bytes count on from one to the next (never zero), so that any place can be recognised."""
    bytes_, out, at = np.arange(sum(sizes)) % 255 + 1, [], 0
    for i, n in enumerate(sizes):
        out.append(document(f"d{i}", bytes(bytes_[at:at + n].astype(np.uint8))))
        at += n
    return tuple(out)


# ---------------------------------------------------------------------------------------------------- text streams

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_stream_reads_any_slice_of_the_joined_text(sizes, draw):
    documents = documents_of(sizes)
    order = np.array(draw.draw(st.permutations(range(len(sizes)))))
    joined = b"\n" + b"".join(documents[i].data.tobytes() + b"\0" for i in order)
    stream = Stream(documents, order)
    assert len(stream) == len(joined)
    begin = draw.draw(st.integers(0, len(joined) - 1))
    count = draw.draw(st.integers(1, len(joined) - begin))
    assert stream.read(begin, count).tobytes() == joined[begin:begin + count]


def test_contiguous_rows_continue_and_cover_an_epoch_once():
    documents = documents_of((100, 37, 64, 11))
    source = ContiguousBatches(documents, 3, 8, 5, range(3))
    for epoch in range(3):
        batches = [source[epoch * source.steps_per_epoch + s] for s in range(source.steps_per_epoch)]
        assert [b["start"].tolist() for b in batches] == [[s == 0] * 3 for s in range(len(batches))]
        targets = np.concatenate([b["targets"] for b in batches], axis=1)
        ids = np.concatenate([b["inputs"] for b in batches], axis=1)
        np.testing.assert_array_equal(ids[:, 1:], targets[:, :-1])
        stream, first = source._epoch(epoch)
        np.testing.assert_array_equal(targets.ravel(), stream.read(first + 1, targets.size))
        assert len(stream) - 1 - targets.size < 3 * 8
    assert any((source[0]["inputs"] != source[k * source.steps_per_epoch]["inputs"]).any() for k in (1, 2))


def test_windows_are_pieces_of_the_text_and_reach_both_ends():
    documents = documents_of((40,))
    source = WindowBatches(documents, 8, 4, 0, range(8), 1)
    whole = Stream(documents, np.arange(1)).read(0, 42).tolist()
    begins = set()
    for step in range(60):
        batch = source[step]
        assert batch["start"].all()
        for ids, targets in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
            begin = next(i for i in range(38) if whole[i:i + 4] == ids)
            assert targets == whole[begin + 1:begin + 5]
            begins.add(begin)
    assert begins == set(range(38))


def test_a_visit_is_contiguous_and_rows_jump_at_different_times():
    documents = [document("a", bytes(range(1, 251)))]
    source = WindowBatches(documents, 4, 5, 0, range(4), 4)
    jumps = []
    for step in range(12):
        now, after = source[step], source[step + 1]
        continued = now["targets"][:, -1] == after["inputs"][:, 0]
        np.testing.assert_array_equal(continued | after["start"], True)
        jumps.append(after["start"])
    assert source[0]["start"].all()
    np.testing.assert_array_equal(np.sum(jumps, axis=1), 1)  # one of four rows at each step
    np.testing.assert_array_equal(np.sum(jumps, axis=0), 3)


def test_first_byte_is_predicted_from_a_newline(text_file):
    batch = data.open_eval(config(text_file), 1)[0]
    assert batch["inputs"][0, 0] == 0x0A and batch["targets"][0, 0] == data.eval_text(config(text_file))[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 9))
def test_every_held_out_byte_is_scored_once(sizes, batch, sequence):
    """From the batches alone the texts can be put together again, whatever the batch and the segment."""
    documents = documents_of(sizes)
    batches = EvalBatches(documents, batch, sequence, range(batch))
    rows: dict[tuple[int, int], list[int]] = {}
    for one in batches:
        real = np.arange(sequence) < one["length"][:, None]
        assert ((one["targets"] >= 0) == real).all() and (one["inputs"][~real] == 0).all()
        assert ((one["document"] >= 0) == (one["length"] > 0)).all()
        for b in np.flatnonzero(one["length"]):
            n, key = one["length"][b], (int(one["document"][b]), int(b))
            assert one["start"][b] == (key not in rows)
            before = rows.get(key, [one["inputs"][b, 0]])
            assert one["inputs"][b, :n].tolist() == [before[-1], *one["targets"][b, :n - 1].tolist()]
            rows[key] = rows.get(key, []) + one["targets"][b, :n].tolist()
    for index, expected in enumerate(documents):
        parts = [rows[key] for key in sorted(rows) if key[0] == index]
        assert sum(parts, []) == expected.data.tolist()
        assert len(parts) == 1 or len(documents) == 1


# --------------------------------------------------------------------------------- iterators, for text and for tasks

def all_configs(text_file):
    yield config(text_file)
    yield config(text_file, contiguous=False)
    for name in TASKS:
        yield data.DataConfig(source=name, sequence=32)


def test_resuming_is_exact_and_the_state_is_json(text_file):
    for cfg in all_configs(text_file):
        one = data.open_train(cfg, 4)
        take(one, 7)
        state = json.loads(json.dumps(one.get_state()))
        rest = take(one, 50)
        other = data.open_train(cfg, 4)
        take(other, 3)
        other.set_state(state)
        for a, b in zip(rest, take(other, 50), strict=True):
            assert_same(a, b)
        assert one.get_state() == other.get_state()
        one.close()
        other.close()


def test_processes_share_a_batch_without_overlap(text_file):
    for cfg in all_configs(text_file):
        whole = take(data.open_train(cfg, 4), 5)
        for count in (2, 4):
            parts = [take(data.open_train(cfg, 4, p, count), 5) for p in range(count)]
            for step in range(5):
                joined = {k: np.concatenate([p[step][k] for p in parts]) for k in whole[step]}
                assert_same(joined, whole[step])
            for e, expected in enumerate(data.open_eval(cfg, 4)):
                pieces = [data.open_eval(cfg, 4, p, count)[e] for p in range(count)]
                assert_same({k: np.concatenate([p[k] for p in pieces]) for k in expected}, expected)


def test_state_is_the_same_for_every_process_count(text_file):
    cfg = config(text_file)
    one, two = data.open_train(cfg, 4), data.open_train(cfg, 4, 1, 2)
    take(one, 5)
    two.set_state(one.get_state())
    np.testing.assert_array_equal(next(two)["inputs"], next(one)["inputs"][2:])


def test_numpy_reader_equals_grain_reader(text_file, monkeypatch):
    pytest.importorskip("grain")
    for cfg in all_configs(text_file):
        with_grain = data.open_train(cfg, 2)
        assert isinstance(with_grain, GrainIterator)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "grain", None)
            plain = data.open_train(cfg, 2)
        assert type(plain) is NumpyIterator
        for a, b in zip(take(with_grain, 6), take(plain, 6), strict=True):
            assert_same(a, b)
        plain.set_state(with_grain.get_state())
        assert_same(next(plain), next(with_grain))


def test_foreign_states_are_refused(text_file):
    it = data.open_train(config(text_file), 4)
    with pytest.raises(DataError, match="'step' and 'identity'"):
        it.set_state({"next_index": 3})
    for changes in ({"sequence": 8}, {"seed": 1}, {"contiguous": False}):
        with pytest.raises(DataError, match="other data"):
            it.set_state(data.open_train(config(text_file, **changes), 4).get_state())


def test_seeds_change_the_training_data_and_not_the_held_out_data(text_file):
    for cfg in all_configs(text_file):
        other = data.DataConfig(**{**cfg.__dict__, "seed": 1})
        same = [(a["inputs"] == b["inputs"]).all() for a, b in
                zip(take(data.open_train(cfg, 4), 3), take(data.open_train(other, 4), 3), strict=True)]
        assert not all(same)
        for a, b in zip(data.open_eval(cfg, 4), data.open_eval(other, 4), strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("source", TASKS)
def test_held_out_samples_do_not_depend_on_the_batch_and_are_not_trained_on(source):
    cfg = data.DataConfig(source=source, sequence=32, eval_samples=10)
    samples = {}
    for batch in (1, 3, 10, 16):
        rows = [(one["inputs"][b], one["targets"][b]) for one in data.open_eval(cfg, batch)
                for b in np.flatnonzero(one["length"])]
        assert len(rows) == 10
        samples[batch] = rows
        np.testing.assert_array_equal(rows, samples[1])
    last = data.open_eval(cfg, 16)[0]
    assert last["start"].tolist() == [True] * 10 + [False] * 6
    assert (last["targets"][10:] == -100).all() and (last["document"] == [*range(10), *[-1] * 6]).all()
    trained = {row.tobytes() for b in take(data.open_train(cfg, 50), 20) for row in b["inputs"]}
    assert len(trained) == 1000 and not trained & {ids.tobytes() for ids, _ in samples[1]}


def test_task_baselines_and_names():
    cfg = data.DataConfig(source="task:recall", sequence=64, eval_samples=400)
    stated = data.task_baselines(cfg, window=16)
    assert stated["chance"] == 1 / 32 and stated["majority"] < 0.06
    assert abs(stated["no_memory"] - 1 / 32) < 1e-12  # every pair lies further back than the window
    assert data.task_baselines(cfg, window=64)["no_memory"] == 1.0
    ids = next(data.open_train(cfg, 1))["inputs"][0]
    assert data.decode(cfg, ids).split()[0] == f"k{ids[0]}" and data.vocabulary(cfg) == 80
    assert data.describe(cfg).count("\n") == 0


def test_a_batch_costs_little(text_file):
    """The bound is ten times what an idle machine needs."""
    for contiguous in (True, False):
        cfg = config(text_file, sequence=64, contiguous=contiguous)
        it = data.open_train(cfg, 16)
        next(it)
        spent = []
        for _ in range(20):
            begin = time.perf_counter()
            next(it)
            spent.append(time.perf_counter() - begin)
        assert np.median(spent) < 5e-3


# ------------------------------------------------------------------------------------------------ splits and errors

def test_splits_keep_every_byte_and_hold_out_whole_documents():
    documents = list(documents_of([7 * k + 3 for k in range(40)]))
    size = sum(len(d.data) for d in documents)
    splits = split_by_document(documents, 0.1)
    names = {k: {d.name for d in v} for k, v in splits.items()}
    assert names["train"] | names["valid"] == {d.name for d in documents} and not names["train"] & names["valid"]
    held = sum(len(d.data) for d in splits["valid"])
    assert 0.05 * size < held <= 0.1 * size
    assert split_by_document(documents[::-1], 0.1) == splits
    for sizes in ((50,), (5, 90, 5)):
        parts = split_tail(list(documents_of(sizes)), 0.1)
        joined = b"".join(d.data.tobytes() for k in ("train", "valid") for d in parts[k])
        assert joined == b"".join(d.data.tobytes() for d in documents_of(sizes))
        assert sum(len(d.data) for d in parts["valid"]) == sum(sizes) // 10


def test_first_bytes_cuts_the_last_document():
    documents = documents_of((5, 5, 5))
    assert first_bytes(documents, 0) == documents
    assert [len(d.data) for d in first_bytes(documents, 7)] == [5, 2]
    assert [len(d.data) for d in first_bytes(documents, 10)] == [5, 5]


@pytest.mark.parametrize("changes, message", [
    ({"sequence": 0}, "sequence must be at least 1, got 0"),
    ({"held_out": 1.0}, "held_out is a fraction"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"source": ""}, "source is empty"),
    ({"source": "task:recal"}, "did you mean 'recall'"),
    ({"eval_samples": 0}, "eval_samples"),
])
def test_config_errors_name_the_rule(changes, message):
    with pytest.raises(DataError, match=message):
        data.DataConfig(**changes)


def test_batch_errors_name_both_numbers(text_file):
    with pytest.raises(DataError, match="5 rows does not divide among 2"):
        data.open_train(config(text_file), 5, 0, 2)
    with pytest.raises(DataError, match="2400 bytes is too short for 200 rows of 16 tokens"):
        data.open_train(config(text_file), 200)
    with pytest.raises(DataError, match="at least 32, got 16"):
        data.open_train(data.DataConfig(source="task:recall", sequence=16), 2)
    with pytest.raises(DataError, match="generates its samples"):
        data.eval_text(data.DataConfig(source="task:recall"))
