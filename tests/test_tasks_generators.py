"""Generators of tasks: golden samples, structure, determinism, scores and free baselines."""

from __future__ import annotations

import numpy as np
import pytest
from task_checks import samples_are_pure

from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks import mqar, passkey, recall
from memtok_jax.data.tasks.scoring import IGNORED, accuracy, accuracy_by_distance, exact_match, majority

CASES = {
    "recall": (recall, recall.RecallConfig(), (32, 96)),
    "recall_small": (recall, recall.RecallConfig(keys=4, values=3, noise=2, pairs=3), (12, 45)),
    "passkey": (passkey, passkey.PasskeyConfig(), (11, 64)),
    "passkey_tail": (passkey, passkey.PasskeyConfig(digits=1, noise=1, tail=9), (12, 40)),
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
def test_evidence_stands_at_the_stated_distance(name):
    """The token after the one at `position - distance` is the label, except that pass-key counts from its digit."""
    module, cfg, lengths = CASES[name]
    ids, labels, distance = module.sample(cfg, lengths[-1], 50, 3)
    for b, t in zip(*np.nonzero(labels != IGNORED), strict=True):
        evidence = t - distance[b, t]
        assert evidence >= 0 and distance[b, t] > 0
        if module is passkey:
            assert ids[b, evidence] == labels[b, t]
        else:
            assert ids[b, evidence] == ids[b, t] and ids[b, evidence + 1] == labels[b, t]


@pytest.mark.parametrize("name", CASES)
def test_a_length_that_cannot_hold_the_task_is_refused(name):
    module, cfg, lengths = CASES[name]
    with pytest.raises(DataError, match="at least"):
        module.sample(cfg, lengths[0] - 2, 1, 0)


def test_recall_layout_and_extrapolation():
    cfg = recall.RecallConfig(keys=8, values=8, noise=4, pairs=4)
    for length in (16, 64, 256):
        ids, labels, distance = recall.sample(cfg, length, 20, 0)
        assert (ids[:, 0:8:2] < 8).all() and ((ids[:, 1:8:2] >= 8) & (ids[:, 1:8:2] < 16)).all()
        assert (ids[:, 8:length - 8] >= 16).all()
        assert ((labels != IGNORED).sum(1) == 4).all()
        for row in ids:
            assert dict(zip(row[0:8:2], row[1:8:2], strict=True)) == dict(zip(row[-8::2], row[-7::2], strict=True))
            assert len(set(row[0:8:2])) == 4
        scored = distance[labels != IGNORED]
        assert scored.min() >= length - 8 - 6 and scored.max() <= length - 2


def test_passkey_depth_covers_every_place_evenly():
    cfg = passkey.PasskeyConfig(digits=2, noise=3, tail=4)
    ids, labels, distance = passkey.sample(cfg, 24, 8000, 1)
    places = np.argmax(ids == passkey.MARK, axis=1)
    counts = np.bincount(places, minlength=16)
    assert counts.size == 16 and (np.abs(counts - 500) < 5 * np.sqrt(500)).all()
    assert ((ids == passkey.MARK).sum(1) == 1).all() and (ids[:, -2] == passkey.QUERY).all()
    np.testing.assert_array_equal(ids[:, -1], labels[:, -2])
    assert distance[labels != IGNORED].min() > cfg.tail


def test_mqar_golden_samples():
    cfg = mqar.MqarConfig(tokens=32, pairs=2)
    ids, labels, _ = mqar.draw(cfg, 16, 2, np.random.RandomState(0))
    np.testing.assert_array_equal(ids[0], [2, 20, 7, 28, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 7, 0])
    np.testing.assert_array_equal(ids[1], [3, 29, 5, 22, 5, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])
    assert labelled(labels[0]) == {8: 20, 14: 28} and labelled(labels[1]) == {4: 22, 8: 29}
    ids, labels, _ = mqar.draw(mqar.MqarConfig(tokens=8192, pairs=4), 64, 100, np.random.RandomState(123))
    np.testing.assert_array_equal(ids[0, :9], [554, 7060, 3731, 5672, 3241, 4847, 2335, 4209, 3241])
    assert labelled(labels[0]) == {8: 4847, 18: 5672, 44: 7060, 58: 4209}
    assert ids.sum() == 4131857 and labels[labels >= 0].sum() == 2448807


def test_mqar_queries_and_gaps():
    ids, labels, _ = mqar.sample(mqar.MqarConfig(tokens=128, pairs=3), 32, 200, 5)
    for row, answer in zip(ids, labels, strict=True):
        known = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        assert all((row == key).sum() == 2 for key in known)
        assert {t: known[row[t]] for t in labelled(answer)} == labelled(answer)


def test_mqar_gap_histogram_follows_the_power_law():
    cfg = mqar.MqarConfig(tokens=64, pairs=1, power=0.3)
    _, labels, _ = mqar.sample(cfg, 18, 20_000, 2)
    gaps = (np.argmax(labels != IGNORED, axis=1) - 2) // 2
    expected = 0.3 * np.arange(1, 9) ** -0.7
    expected *= len(gaps) / expected.sum()
    chi2 = (((np.bincount(gaps, minlength=8) - expected) ** 2) / expected).sum()
    assert chi2 < 24.3  # 7 degrees of freedom, one in a thousand


@pytest.mark.parametrize("name", CASES)
def test_oracle_scores_one_and_window_reader_scores_its_baseline(name):
    """A reader of the last W tokens that guesses the rest scores what `baselines` states, measured by drawing."""
    module, cfg, lengths = CASES[name]
    length, window = lengths[-1], lengths[-1] // 2
    ids, labels, distance = module.sample(cfg, length, 3000, 11)
    assert accuracy(labels, labels) == 1.0 == exact_match(labels, labels)
    rng, scored = np.random.default_rng(0), labels != IGNORED
    answers = np.unique(labels[scored])
    if module is mqar:
        answers = np.arange(32, 64)
    guess = rng.choice(answers, size=labels.shape)
    stated = module.baselines(cfg, length, window)
    assert abs(accuracy(guess, labels) - stated["chance"]) < 0.02
    assert abs(accuracy(np.where(distance < window, labels, guess), labels) - stated["no_memory"]) < 0.035
    assert abs(majority(labels) - stated["chance"]) < 0.03


def test_scores_on_hand_made_predictions():
    labels = np.array([[IGNORED, 3, IGNORED, 4], [IGNORED, IGNORED, 5, IGNORED]])
    predicted = np.array([[0, 3, 0, 9], [0, 0, 5, 0]])
    distance = np.array([[0, 2, 0, 6], [0, 0, 3, 0]])
    assert accuracy(predicted, labels) == 0.75
    assert exact_match(predicted, labels) == 0.5
    assert accuracy_by_distance(predicted, labels, distance, (0, 4, 8, 16)) == [(0, 4, 2, 1.0), (4, 8, 1, 0.0)]
    assert majority(np.array([[1, 1, 2, IGNORED]])) == 2 / 3
    with pytest.raises(ValueError, match="labelled"):
        accuracy(predicted, np.full((2, 4), IGNORED))
