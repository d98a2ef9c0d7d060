"""Generators of tasks: golden samples, structure, determinism, scores and free baselines."""

from __future__ import annotations

import numpy as np
import pytest
from task_checks import samples_are_pure

from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks import associative, backcopy, copy, lines, mqar, passkey, recall, retrieval, reverse
from memtok_jax.data.tasks.scoring import IGNORED, Sample, accuracy, exact_match, majority, table_accuracy

CASES = {
    "recall": (recall, recall.RecallConfig(), (32, 96)),
    "recall_small": (recall, recall.RecallConfig(keys=4, values=3, noise=2, pairs=3), (12, 45)),
    "passkey": (passkey, passkey.PasskeyConfig(), (11, 64)),
    "passkey_tail": (passkey, passkey.PasskeyConfig(digits=1, noise=1, tail=9), (12, 40)),
    "backcopy": (backcopy, backcopy.BackcopyConfig(), (4, 70)),
    "lines": (lines, lines.LinesConfig(), (72, 200)),
    "lines_small": (lines, lines.LinesConfig(tokens=3, every=1, farthest=3, keys=3, values=2, noise=1), (18, 31)),
    "mqar": (mqar, mqar.MqarConfig(tokens=64, pairs=4), (16, 48)),
    "mqar_random": (mqar, mqar.MqarConfig(tokens=64, pairs=4, random_fill=True), (16, 48)),
}


def labelled(row) -> dict[int, int]:
    return {int(i): int(row[i]) for i in np.flatnonzero(row != IGNORED)}


@pytest.mark.parametrize("name", CASES)
def test_samples_are_pure_functions_of_the_seed(name):
    module, cfg, lengths = CASES[name]
    for length in lengths:
        assert samples_are_pure(module, cfg, length).ids.shape == (5, length)


@pytest.mark.parametrize("name", CASES)
def test_a_length_that_cannot_hold_the_task_is_refused(name):
    module, cfg, lengths = CASES[name]
    with pytest.raises(DataError, match="at least"):
        module.sample(cfg, lengths[0] - 2, 1, 0)


def test_recall_layout_and_extrapolation():
    cfg = recall.RecallConfig(keys=8, values=8, noise=4, pairs=4)
    for length in (16, 64, 256):
        ids, labels = recall.sample(cfg, length, 20, 0)
        assert (ids[:, 0:8:2] < 8).all() and ((ids[:, 1:8:2] >= 8) & (ids[:, 1:8:2] < 16)).all()
        assert (ids[:, 8:length - 8] >= 16).all()
        assert ((labels != IGNORED).sum(1) == 4).all()
        for row in ids:
            assert dict(zip(row[0:8:2], row[1:8:2], strict=True)) == dict(zip(row[-8::2], row[-7::2], strict=True))
            assert len(set(row[0:8:2])) == 4


def test_backcopy_follows_its_table_and_copies_behind_triggers():
    cfg = backcopy.BackcopyConfig(triggers=2, others=9, successors=3)
    ids, labels = backcopy.sample(cfg, 400, 50, 0)
    table = backcopy.followers(cfg)
    np.testing.assert_array_equal(labels[:, :-1], ids[:, 1:])
    assert (ids[:, 0] == backcopy.FIRST).all() and (ids[:, 1:] != backcopy.FIRST).all() and (ids[:, 1] > cfg.triggers).all()
    trigger = (ids >= 1) & (ids <= cfg.triggers)
    for row, asks in zip(ids, trigger, strict=True):
        for t in range(1, 399):
            assert row[t + 1] == row[t - 1] if asks[t] else row[t + 1] in table[row[t]]
    assert trigger.mean() == pytest.approx(1 / (cfg.successors + 1), abs=0.01), "the share that `chance` counts as missed"


def test_lines_ask_for_what_stands_so_many_lines_back():
    cfg = lines.LinesConfig(tokens=4, every=2, nearest=2, farthest=5, keys=6, values=50, noise=3)
    ids, labels = lines.sample(cfg, 100, 300, 0)
    counts = np.zeros(6, int)
    for row, label in zip(ids, labels, strict=True):
        written = []
        for begin in range(0, 100, 4):
            kind, key, value = row[begin:begin + 3]
            if kind != 6 + 50 + 3:
                assert kind < 6 and 6 <= key < 56 and value >= 56 and not (label[begin:begin + 4] != IGNORED).any()
                written.append((kind, key))
                continue
            distance = next(d for d in range(1, 7) if written[-d][0] == key)
            assert written[-distance][1] == value, "the answer is that of the nearest line with this key"
            if len(written) < 5:
                assert distance == 1 and not (label[begin:begin + 4] != IGNORED).any()
            else:
                counts[distance] += 1
                assert label[begin + 1] == value and (label[begin:begin + 4] != IGNORED).sum() == 1
    assert counts[:2].sum() == 0 and (np.abs(counts[2:] - counts.sum() / 4) < 4 * counts.sum() ** 0.5).all()


@pytest.mark.parametrize("sight", [3, 9, 17, 40])
def test_the_reader_of_lines_is_right_as_often_as_one_who_looks(sight):
    """A reader who looks for the key in what it sees and else guesses."""
    cfg = lines.LinesConfig(tokens=3, every=2, nearest=1, farthest=6, keys=40, values=5, noise=2)
    ids, labels = lines.sample(cfg, 90, 400, 0)
    first, right = np.maximum(np.arange(90) - sight + 1, 0), []
    for row, label in zip(ids, labels, strict=True):
        for t in np.flatnonzero(label != IGNORED):
            seen = (row[first[t]:t - 1] == row[t]).any()
            right.append(1.0 if seen else 1 / 5)
    assert lines.reader(cfg, 90, first) == pytest.approx(np.mean(right), abs=5 * 0.5 / len(right) ** 0.5)


def test_passkey_depth_covers_every_place_evenly():
    cfg = passkey.PasskeyConfig(digits=2, noise=3, tail=4)
    ids, labels = passkey.sample(cfg, 24, 8000, 1)
    places = np.argmax(ids == passkey.MARK, axis=1)
    counts = np.bincount(places, minlength=16)
    assert counts.size == 16 and (np.abs(counts - 500) < 5 * np.sqrt(500)).all()
    assert ((ids == passkey.MARK).sum(1) == 1).all() and (ids[:, -2] == passkey.QUERY).all()
    np.testing.assert_array_equal(ids[:, -1], labels[:, -2])
    assert places.max() + 2 < 24 - 2 - cfg.tail, "so many noise tokens lie behind the number"


def test_mqar_golden_samples():
    cfg = mqar.MqarConfig(tokens=32, pairs=2)
    ids, labels = mqar.draw(cfg, 16, 2, np.random.RandomState(0))
    np.testing.assert_array_equal(ids[0], [2, 20, 7, 28, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 7, 0])
    np.testing.assert_array_equal(ids[1], [3, 29, 5, 22, 5, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])
    assert labelled(labels[0]) == {8: 20, 14: 28} and labelled(labels[1]) == {4: 22, 8: 29}
    ids, labels = mqar.draw(mqar.MqarConfig(tokens=8192, pairs=4), 64, 100, np.random.RandomState(123))
    np.testing.assert_array_equal(ids[0, :9], [554, 7060, 3731, 5672, 3241, 4847, 2335, 4209, 3241])
    assert labelled(labels[0]) == {8: 4847, 18: 5672, 44: 7060, 58: 4209}
    assert ids.sum() == 4131857 and labels[labels >= 0].sum() == 2448807


def test_mqar_queries_and_gaps():
    ids, labels = mqar.sample(mqar.MqarConfig(tokens=128, pairs=3), 32, 200, 5)
    for row, answer in zip(ids, labels, strict=True):
        known = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        assert all((row == key).sum() == 2 for key in known)
        assert {t: known[row[t]] for t in labelled(answer)} == labelled(answer)


def test_mqar_gap_histogram_follows_the_power_law():
    cfg = mqar.MqarConfig(tokens=64, pairs=1, power=0.3)
    _, labels = mqar.sample(cfg, 18, 20_000, 2)
    gaps = (np.argmax(labels != IGNORED, axis=1) - 2) // 2
    expected = 0.3 * np.arange(1, 9) ** -0.7
    expected *= len(gaps) / expected.sum()
    chi2 = (((np.bincount(gaps, minlength=8) - expected) ** 2) / expected).sum()
    assert chi2 < 24.3  # 7 degrees of freedom, one in a thousand


@pytest.mark.parametrize("name", CASES)
def test_guessing_scores_what_is_stated(name):
    module, cfg, lengths = CASES[name]
    _, labels = module.sample(cfg, lengths[-1], 3000, 11)
    assert accuracy(labels, labels) == 1.0 == exact_match(labels, labels)
    answers = np.arange(32, 64) if module is mqar else np.unique(labels[labels != IGNORED])
    guess, stated = np.random.default_rng(0).choice(answers, size=labels.shape), module.chance(cfg, lengths[-1])["chance"]
    assert abs(accuracy(guess, labels) - stated) < 0.02 and abs(majority(labels) - stated) < 0.03


# Tasks so small that the best reader of the last tokens is found by counting: (module, settings, length, windows).
SMALL = {
    "recall": (recall, recall.RecallConfig(keys=3, values=2, noise=1, pairs=2), 9, range(1, 10)),
    "passkey": (passkey, passkey.PasskeyConfig(digits=2, noise=1), 8, range(1, 9)),
    "copy": (copy, copy.CopyConfig(length=3, symbols=2), 9, range(1, 7)),
    "reverse": (reverse, reverse.ReverseConfig(length=3, symbols=2), 6, range(1, 7)),
    "retrieval": (retrieval, retrieval.RetrievalConfig(pairs=3, keys=4, values=4), 8, range(1, 9)),
    "retrieval_ordered": (retrieval, retrieval.RetrievalConfig(pairs=3, keys=5, values=4, questions=2, ordered=True), 10,
                          (3, 5, 6, 8, 9)),
    "remember": (associative, associative.AssociativeConfig(), 12, range(1, 6)),
    "rewrite": (associative, associative.AssociativeConfig(rule="rewrite"), 12, range(1, 6)),
}


@pytest.mark.parametrize("name", SMALL)
def test_no_reader_of_the_last_tokens_beats_the_stated_one_which_is_reached(name):
    """Also where the first token in sight is a value without its key."""
    module, cfg, length, windows = SMALL[name]
    train, test = module.sample(cfg, length, 30_000, 1), module.sample(cfg, length, 10_000, 2)
    for window in windows:
        stated = module.reader(cfg, length, np.maximum(np.arange(length) - window + 1, 0))
        assert abs(table_accuracy(train, test, window) - stated) < 0.015, (window, stated)


def test_a_reader_of_mqar_reaches_what_is_stated():
    cfg = mqar.MqarConfig(tokens=10, pairs=2)
    train, test = mqar.sample(cfg, 8, 20_000, 1), mqar.sample(cfg, 8, 5000, 2)
    for window in range(1, 9):
        stated = mqar.reader(cfg, 8, np.maximum(np.arange(8) - window + 1, 0))
        found = table_accuracy(train, test, window)
        assert stated < found + 0.03 and (found < stated + 0.1), (window, stated, found)


def test_table_accuracy_by_hand():
    ids = np.array([[1, 2, 1, 2], [1, 2, 2, 2]])
    one = Sample(ids, np.array([[IGNORED, 5, 6, 7], [IGNORED, 5, 5, 7]]))
    assert table_accuracy(one, one, 2) == 1 and table_accuracy(one, Sample(ids + 1, one.labels), 2) == 0
    assert table_accuracy(Sample(ids * 0, one.labels), Sample(ids * 0, one.labels), 1) == 5 / 6


def test_scores_on_hand_made_predictions():
    labels = np.array([[IGNORED, 3, IGNORED, 4], [IGNORED, IGNORED, 5, IGNORED]])
    predicted = np.array([[0, 3, 0, 9], [0, 0, 5, 0]])
    assert accuracy(predicted, labels) == 0.75
    assert exact_match(predicted, labels) == 0.5
    assert majority(np.array([[1, 1, 2, IGNORED]])) == 2 / 3
    with pytest.raises(ValueError, match="labelled"):
        accuracy(predicted, np.full((2, 4), IGNORED))
