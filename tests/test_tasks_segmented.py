"""Tasks of RMT and ARMT: layout, statistics, free baselines, and how they fall into segments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from task_checks import samples_are_pure

from memtok_jax.config import UserError
from memtok_jax.data import baselines, open_eval, open_train, vocabulary
from memtok_jax.data.errors import DataError
from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks import associative, copy, equations, retrieval, reverse, settings_named
from memtok_jax.data.tasks.scoring import IGNORED, accuracy, exact_match

CASES = {  # module, settings, length, shortest length
    "copy": (copy, copy.CopyConfig(), 72, 3),
    "copy_small": (copy, copy.CopyConfig(length=3, symbols=4, repeats=3), 14, 12),
    "reverse": (reverse, reverse.ReverseConfig(), 48, 2),
    "retrieval": (retrieval, retrieval.RetrievalConfig(), 12, 10),
    "equations": (equations, equations.EquationsConfig(), 180, 180),
    "remember": (associative, associative.AssociativeConfig(), 24, 8),
    "rewrite": (associative, associative.AssociativeConfig(rule="rewrite", key=2, value=2), 36, 12),
}


@pytest.mark.parametrize("name", CASES)
def test_samples_are_pure_functions_of_the_seed(name):
    module, cfg, length, least = CASES[name]
    one = samples_are_pure(module, cfg, length)
    assert accuracy(one.labels, one.labels) == 1 == exact_match(one.labels, one.labels)
    with pytest.raises(DataError, match="at least"):
        module.check(cfg, least - 1 if module is not associative else least - associative.unit(cfg))


@pytest.mark.parametrize("name", [n for n in CASES if n != "equations"])
def test_labels_are_the_next_tokens(name):
    """Every scored label is the token that follows, if one that is scored or an answer does."""
    module, cfg, length, _ = CASES[name]
    ids, labels = module.sample(cfg, length, 200, 3)
    for b, t in zip(*np.nonzero(labels != IGNORED), strict=True):
        if t + 1 < length and (labels[b, t + 1] != IGNORED or module is associative):
            assert ids[b, t + 1] == labels[b, t]


@pytest.mark.parametrize("module, cfg", [(copy, copy.CopyConfig(length=8)), (reverse, reverse.ReverseConfig(length=8))])
def test_as_many_symbols_as_fill_the_row(module, cfg):
    """Length 0 is the length that fills the row; what does not divide is filled up."""
    tokens = 8 * (3 if module is copy else 2)
    for row in (tokens, tokens + 1):
        for given, filling in zip(module.sample(cfg, row, 4, 1), module.sample(type(cfg)(), row, 4, 1), strict=True):
            np.testing.assert_array_equal(given, filling)


def test_copy_and_reverse_layout():
    ids, labels = copy.sample(copy.CopyConfig(), 72, 100, 0)
    whole = np.concatenate([ids, labels[:, -1:]], axis=1)
    assert (whole[:, :24] == whole[:, 25:49]).all() and (whole[:, :24] == whole[:, 49:]).all() and (whole[:, 24] == 1).all()
    assert ((labels != IGNORED).sum(1) == 48).all() and (labels[:, 24:] == whole[:, 25:]).all()
    ids, labels = reverse.sample(reverse.ReverseConfig(), 48, 100, 0)
    whole = np.concatenate([ids, labels[:, -1:]], axis=1)
    assert (whole[:, :24] == whole[:, :24:-1]).all() and ((labels != IGNORED).sum(1) == 24).all()
    assert set(np.unique(ids)) == set(range(1, 10))
    counts = np.bincount(ids[:, :24].ravel(), minlength=10)[2:]
    assert (np.abs(counts - 300) < 5 * np.sqrt(300)).all()


def test_retrieval_asks_for_one_of_its_keys():
    cfg = retrieval.RetrievalConfig()
    ids, labels = retrieval.sample(cfg, 12, 4000, 1)
    for row, answer in zip(ids, labels, strict=True):
        pairs = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert len(pairs) == 4 == len(set(pairs.values())) and row[9] == 10
        assert answer[9] == pairs[row[8]] and (np.flatnonzero(answer != IGNORED) == [9]).all()
    place = np.argmax(ids[:, 0:8:2] == ids[:, 8:9], axis=1)
    assert (np.abs(np.bincount(place, minlength=4) - 1000) < 5 * np.sqrt(1000)).all()
    assert (ids[:, 10:] == 0).all() and ids[:, 0:8:2].min() == 11 and ids[:, 0:8:2].max() == 36


def test_retrieval_may_ask_for_more_keys_of_a_row():
    """Any keys of the row, each with its value; a reader of the last segment knows what stands in it."""
    cfg = retrieval.RetrievalConfig(pairs=3, questions=2)
    ids, labels = retrieval.sample(cfg, 12, 3000, 1)
    for row, answer in zip(ids, labels, strict=True):
        pairs = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        assert (row[[7, 9]] == 10).all() and (np.flatnonzero(answer != IGNORED) == [7, 9]).all()
        for t in (7, 9):
            assert answer[t] == pairs[row[t - 1]]
    place = np.argmax(ids[:, 0:6:2] == ids[:, 8:9], axis=1)
    assert (np.abs(np.bincount(place, minlength=3) - 1000) < 5 * np.sqrt(1000)).all()
    assert abs((ids[:, 6] == ids[:, 8]).mean() - 1 / 3) < 0.05, "drawn anew, whatever was asked before"
    plain, ordered = (retrieval.sample(replace(cfg, ordered=o), 12, 3000, 1).ids for o in (False, True))
    np.testing.assert_array_equal(ordered[:, 0:6:2], np.sort(plain[:, 0:6:2], axis=1))
    # Segments of 8: the first question stands beside the pairs, the second does not.
    assert abs(retrieval.reader(cfg, 12, segments_of(12, 8)) - (1 + 0.1) / 2) < 1e-12
    with pytest.raises(UserError, match="retrieval.questions is 0; it must be at least 1"):
        retrieval.RetrievalConfig(questions=0)
    with pytest.raises(DataError, match="3 pairs and 2 questions need a sequence of at least 10, got 8"):
        retrieval.sample(cfg, 8, 1, 1)


@pytest.mark.parametrize("segment, expected", [(10, 1.0), (5, 0.5), (4, 0.1), (3, 0.1), (2, 0.1)])
def test_best_reader_of_the_last_segment(segment, expected):
    """Half for segments 5 + 5, a tenth for 4 + 4 + 2; and no rule of a reader that counts frequencies does better."""
    cfg = retrieval.RetrievalConfig(pairs=4)
    assert abs(retrieval.reader(cfg, 12, segments_of(12, segment)) - expected) < 1e-12
    ids, labels = retrieval.sample(cfg, 10, 40_000, 2)
    first = 9 // segment * segment
    seen, answers = ids[:, first:], labels[:, 9]
    whole = np.zeros(len(ids), bool)
    for p in range(4):
        if 2 * p >= first:
            whole |= ids[:, 2 * p] == ids[:, 8]
    lone = seen[:, 0] if first % 2 and first < 8 else np.zeros(len(ids), int)
    assert abs(np.mean(np.where(whole, True, lone == answers)) - expected) < 0.01


def test_remember_and_rewrite_by_brute_force():
    for rule, key in (("remember", 1), ("rewrite", 1), ("rewrite", 2)):
        cfg = associative.AssociativeConfig(rule=rule, key=key)
        u = associative.unit(cfg)
        ids, labels = associative.sample(cfg, 11 * u, 400, 5)
        chosen = []
        for row, answer in zip(ids, labels, strict=True):
            body = row.reshape(11, u)
            assert (body[:10, key] == 16).all() and body[10, key] == 17 and (body[:, -1] == 18).all()
            keys = [tuple(segment[:key]) for segment in body]
            known = {k: int(segment[key + 1]) for k, segment in zip(keys[:10], body, strict=False)}  # the last one stays
            assert rule == "rewrite" or len(known) == 10
            scored = np.flatnonzero(answer != IGNORED)
            assert list(scored) == [10 * u + key, 10 * u + key + 1]
            assert answer[scored].tolist() == [known[keys[10]], 18]
            chosen.append(sorted(known).index(keys[10]) / len(known))
        assert abs(np.mean(chosen) - 0.5 * (1 - np.mean([1 / 10]))) < 0.06


def test_keys_are_written_lowest_symbol_first_and_run_out():
    np.testing.assert_array_equal(associative.spell(np.array([0x1a2]), 3), [[2, 10, 1]])
    with pytest.raises(DataError, match="17 pairs need as many distinct keys, 1 symbols make 16"):
        associative.check(associative.AssociativeConfig(), 18 * 4)
    associative.check(associative.AssociativeConfig(rule="rewrite"), 18 * 4)
    with pytest.raises(DataError, match="multiple of 4"):
        associative.check(associative.AssociativeConfig(), 14)
    with pytest.raises(UserError, match="did you mean 'rewrite'"):
        associative.AssociativeConfig(rule="rewrit")


def test_length_of_a_batch_is_drawn_evenly_and_alike_in_all_processes():
    cfg = TaskConfig(associative.AssociativeConfig(), sequence=24, lengths=(8, 12, 24))
    reader = lambda index: open_train(cfg, 4, index, 2)
    drawn = [(next(a)["inputs"], next(b)["inputs"]) for a, b in [(reader(0), reader(1))] for _ in range(300)]
    assert all(a.shape == b.shape == (2, a.shape[1]) for a, b in drawn)
    counts = {tokens: sum(a.shape[1] == tokens for a, _ in drawn) for tokens in (8, 12, 24)}
    assert sum(counts.values()) == 300 and all(75 < n < 125 for n in counts.values()), counts
    with pytest.raises(DataError, match=r"data.lengths \(28,\) must lie between 1 and data.sequence 24"):
        TaskConfig(associative.AssociativeConfig(), sequence=24, lengths=(28,))
    with pytest.raises(UserError, match=r"data.lengths is \(0,\); it must be at least 1"):
        TaskConfig(associative.AssociativeConfig(), sequence=24, lengths=(0,))


# ----------------------------------------------------------------------------------------------------------- equations

def value(text: str, x: int) -> int:
    """A polynomial with terms like -3*x^2 at a whole number."""
    total = 0
    for part in text.removesuffix("=0").replace("-", "+-").split("+"):
        if part:
            factor, _, power = part.partition("*") if "*" in part else ("", "", part)
            sign, power = (-1, power[1:]) if power.startswith("-") else (1, power)
            scale = int(factor) if factor else sign
            total += scale * (x ** 2 if power == "x^2" else x if power == "x" else int(power))
    return total


def test_equations_are_solved_by_their_answers():
    rng = np.random.default_rng(0)
    rootless = 0
    for _ in range(3000):
        scaled, plain, disc, low, high, answer = texts = equations.draw(rng, 0.2)
        assert max(map(len, texts)) <= 30
        left, right = disc.removeprefix("D=").split("=")[:2]
        b, rest = left.split("^2-4*1*")
        assert int(b) ** 2 - 4 * int(rest) == int(right)
        if int(right) < 0:
            rootless += 1
            assert low == high == answer == ""
            continue
        roots = [int(r) for r in answer.split(",")]
        assert roots == sorted(set(roots)) and int(disc.split("=")[3].removesuffix("^2")) ** 2 == int(right)
        assert all(value(plain, r) == value(scaled, r) == 0 for r in roots)
        assert low.endswith(f"={roots[0]}") and high.endswith(f"={roots[-1]}")
    assert abs(rootless / 3000 - 0.2) < 0.03


def test_equations_of_the_specification():
    assert equations.stages(2, -15, 2) == ["2*x^2+4*x-30=0", "x^2+2*x-15=0", "D=2^2-4*1*-15=64=8^2", "x=(-2-8)/2=-5",
                                           "x=(-2+8)/2=3", "-5,3"]
    assert equations.polynomial(-1, 1, 0) == "-x^2+x=0" and equations.polynomial(1, -1, 1) == "x^2-x+1=0"
    assert equations.stages(-2, 1, 1)[-1] == "1"
    widest = max(len(t) for r in ((-99, -98), (99, 98), (-99, 99), (0, 99)) for s in (-10, 10)
                 for t in equations.stages(-sum(r), r[0] * r[1], s))
    widest = max(widest, *(len(t) for b, c in ((199, 10_000), (199, 9901), (0, 10_000)) for t in equations.stages(b, c, -10)))
    assert widest <= 30


def test_equations_layout_and_scores():
    cfg = equations.EquationsConfig()
    ids, labels = equations.sample(cfg, 180, 50, 4)
    assert ((labels != IGNORED).sum(1) == 150).all() and (labels[:, 29:179] == ids[:, 30:]).all()
    assert equations.answer_right(labels, labels).all()
    wrong = labels.copy()
    wrong[:, 149] += 1  # the first character of the answer counts too
    assert not equations.answer_right(wrong, labels).any()
    free = equations.chance(cfg, 180)
    assert abs(accuracy(np.zeros_like(labels), labels) - free["filler"]) < 0.03 and free["last_two_characters"] > 0.8


@pytest.mark.parametrize("name, segment, expected", [
    ("copy", 24, (1 / 8 * 47 + 1) / 48), ("reverse", 12, 1 / 8), ("retrieval", 4, 0.1), ("remember", 4, 17 / 32),
    ("remember", 12, (1 + 2 / 5 + 3 / 5 / 16) / 2)])
def test_readers_of_their_own_segment(name, segment, expected):
    """As the configs state them: one symbol of 48 stands in the segment that asks for it; of remember, two of five pairs stand in
    the last 12 tokens."""
    module, cfg, length, _ = CASES[name]
    assert module.reader(cfg, length, segments_of(length, segment)) == pytest.approx(expected)


def segments_of(length: int, segment: int) -> np.ndarray:
    """First token of the segment of each position."""
    return np.arange(length) // segment * segment


@pytest.mark.parametrize("name", ["copy", "reverse", "retrieval", "equations", "associative"])
def test_tasks_are_data_sources(name):
    """Through `TaskConfig`: training batches, held-out samples, baselines; training and held-out samples differ."""
    lengths = {"copy": 72, "reverse": 48, "retrieval": 12, "equations": 180, "associative": 24}
    cfg = TaskConfig(settings_named(name), lengths[name], eval_samples=8)
    train, held = next(open_train(cfg, 4)), open_eval(cfg, 8)[0]
    assert train["inputs"].shape == (4, lengths[name]) and (train["inputs"] != held["inputs"][:4]).any()
    assert train["inputs"].max() < vocabulary(cfg) and train["start"].all()
    free = baselines(cfg, 12, 0)
    assert all(0 < value <= 1 for value in free.values()) and "majority" in free
