"""Batches of text and tasks: what each row holds, resuming, process shards, full cover of the held-out text."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtok_jax import data
from memtok_jax.config import UserError
from memtok_jax.data import text
from memtok_jax.data.documents import document, first_bytes, split_by_document, split_tail
from memtok_jax.data.errors import DataError
from memtok_jax.data.iterators import GrainIterator, NumpyIterator
from memtok_jax.data.streams import ContiguousBatches, EvalBatches, Stream, WindowBatches
from memtok_jax.data.task import HELD_OUT, TaskConfig, training_seed
from memtok_jax.data.tasks import settings_named
from memtok_jax.data.text import TextConfig

TASKS = ("recall", "passkey", "mqar")


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes(bytes(np.random.default_rng(0).integers(1, 256, 3000, dtype=np.uint8)))
    return path


def config(text_file, **changes) -> TextConfig:
    return TextConfig(**{"source": str(text_file), "sequence": 16, "held_out": 0.2, **changes})


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
    assert bytes(stream.read(begin, count).tolist()) == joined[begin:begin + count]


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
    assert batch["inputs"][0, 0] == 0x0A and batch["targets"][0, 0] == text.eval_text(config(text_file))[0]


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
        yield TaskConfig(settings_named(name), sequence=32)


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


def test_text_that_has_changed_at_equal_size_is_noticed(text_file, tmp_path):
    other = tmp_path / "other" / text_file.name
    other.parent.mkdir()
    content = bytearray(text_file.read_bytes())
    content[100] ^= 1
    other.write_bytes(content)
    with pytest.raises(DataError, match="the files themselves have changed"):
        data.open_train(config(other), 4).set_state(data.open_train(config(text_file), 4).get_state())


def test_seeds_change_the_training_data_and_not_the_held_out_data(text_file):
    for cfg in all_configs(text_file):
        other = dataclasses.replace(cfg, seed=1)
        same = [(a["inputs"] == b["inputs"]).all() for a, b in
                zip(take(data.open_train(cfg, 4), 3), take(data.open_train(other, 4), 3), strict=True)]
        assert not all(same)
        for a, b in zip(data.open_eval(cfg, 4), data.open_eval(other, 4), strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("name", TASKS)
def test_held_out_samples_do_not_depend_on_the_batch_and_are_not_trained_on(name):
    cfg = TaskConfig(settings_named(name), sequence=32, eval_samples=10)
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


def test_training_and_held_out_samples_have_disjoint_seeds():
    """Whatever the seed and the step, so that no stage of a curriculum trains on what any stage holds out."""
    largest = TaskConfig(settings_named("copy"), seed=2**63 - 1)
    assert 0 <= training_seed(TaskConfig(settings_named("copy")), 0) < training_seed(largest, 2**63 - 1) < HELD_OUT
    assert training_seed(TaskConfig(settings_named("copy"), seed=1), 0) == 2**63


def test_task_baselines_and_names():
    cfg = TaskConfig(settings_named("recall"), sequence=64, eval_samples=400)
    stated = data.baselines(cfg, reach=16, segment=0)
    assert stated["chance"] == 1 / 32 and stated["majority"] < 0.06 and "own_segment" not in stated
    assert abs(stated["no_memory"] - 1 / 32) < 1e-12  # every pair lies further back than the model can see
    assert data.baselines(cfg, reach=64, segment=0)["no_memory"] == 1.0
    for reach, expected in ((32, 1 / 32), (64, 1.0)):      # attention that crosses borders reaches further than a segment
        bordered = data.baselines(cfg, reach, segment=32)
        assert (bordered["no_memory"], bordered["own_segment"]) == (expected, 1 / 32)
    ids = next(data.open_train(cfg, 1))["inputs"][0]
    assert data.decode(cfg, ids).split()[0] == f"k{ids[0]}" and data.vocabulary(cfg) == 80
    assert data.describe(cfg).count("\n") == 0


def test_ids_that_are_no_text_show_and_the_end_mark_ends():
    shown = data.decode(TextConfig(), [72, 105, 300, 33, -1, 72, -1])
    assert shown == "Hi\N{REPLACEMENT CHARACTER}!" and data.decode(TextConfig(), []) == ""
    assert data.decode(TaskConfig(settings_named("copy")), [2, 99, 1, -1, 2]) == "s0 \N{REPLACEMENT CHARACTER} >"


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
    ({"sequence": 0}, "data.sequence is 0; it must be at least 1"),
    ({"held_out": 1.5}, "data.held_out is 1.5; it must be between 0 and 1"),
    ({"held_out": float("nan")}, "data.held_out is nan; it must be finite"),
    ({"seed": -1}, "data.seed is -1"),
    ({"seed": 2**63}, "data.seed is 9223372036854775808"),
    ({"visit": 1.5}, "data.visit is 1.5; it must be a whole number"),
    ({"source": ""}, "source is empty"),
])
def test_config_errors_name_field_value_and_rule(changes, message):
    with pytest.raises(UserError, match=message):
        TextConfig(**changes)


@pytest.mark.parametrize("name", ["associative", "copy", "equations", "mqar", "passkey", "recall", "retrieval", "reverse"])
def test_nonsense_in_the_settings_of_a_task_is_refused_with_its_name(name):
    task = settings_named(name)
    for field in dataclasses.fields(task):
        with pytest.raises(UserError, match=f"{name}.{field.name} is "):
            dataclasses.replace(task, **{field.name: float("nan")})
    with pytest.raises(UserError, match="data.eval_samples is 0"):
        TaskConfig(task, eval_samples=0)


def test_batch_errors_name_both_numbers(text_file):
    with pytest.raises(DataError, match="5 rows does not divide among 2"):
        data.open_train(config(text_file), 5, 0, 2)
    with pytest.raises(DataError, match="2400 bytes is too short for 200 rows of 16 tokens"):
        data.open_train(config(text_file), 200)
    with pytest.raises(DataError, match="at least 32, got 16"):
        data.open_train(TaskConfig(settings_named("recall"), sequence=16), 2)
