"""bAbI files and BABILong rows: format, exact lengths, facts in order, and rules that answer through the whole path."""

from __future__ import annotations

import gzip
import os
from types import SimpleNamespace

import numpy as np
import pytest
from task_checks import samples_are_pure

from memtok_jax.config import UserError
from memtok_jax.data import babi
from memtok_jax.data.errors import DataError, DataNotFoundError
from memtok_jax.data.task import HELD_OUT, TaskConfig
from memtok_jax.data.tasks import babilong as B
from memtok_jax.data.tasks import seeds
from memtok_jax.data.tasks.scoring import IGNORED
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.training.experiment import EvaluationConfig

TEXTS = {split: (f"The {split} went on and on. Nobody could say why! Was it for {split}? " * 200).encode() for split in
         ("train", "valid", "test")}
REAL = os.environ.get("MEMTOK_DATA_DIR", "")


def stories(count: int, seed: int) -> str:
    """Stories in the format of qa1, two questions each."""
    rng, lines = np.random.default_rng(seed), []
    for _ in range(count):
        last, n = {}, 0
        for _ in range(2):
            for _ in range(2):
                n, who, where = n + 1, rng.choice(["Ann", "Bo"]), rng.choice(babi.PLACES)
                last[who] = (where, n)
                lines.append(f"{n} {who} went to the {where}.")
            n, who = n + 1, rng.choice(sorted(last))
            lines.append(f"{n} Where is {who}? \t{last[who][0]}\t{last[who][1]}")
    return "\n".join(lines) + "\n"


@pytest.fixture()
def cfg(tmp_path, monkeypatch):
    monkeypatch.setattr(B.haystack, "text", lambda source, split: TEXTS[split])
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "qa1_single_test.txt").write_text(stories(6, 1))
    (tmp_path / "en" / "qa1_single_train.txt.gz").write_bytes(gzip.compress(stories(40, 2).encode()))
    return B.BabilongConfig(facts=str(tmp_path))


def test_questions_know_the_statements_before_them(cfg):
    test, train, valid = (babi.questions(cfg.facts, "qa1", split) for split in ("test", "train", "valid"))
    assert (len(test), len(train), len(valid)) == (12, 72, 8)
    assert {q.story for q in train}.isdisjoint(q.story for q in valid), "whole stories are held out"
    for q in (*test, *train, *valid):
        assert q.text.endswith("? ") and len(q.facts) in (2, 4) and all(n < len(q.facts) for n in q.support)
        person = q.text.split()[2].rstrip("?")
        assert babi.last_place(q.facts, person) == q.answer
        assert all(q.answer in q.facts[n] and person in q.facts[n] for n in q.support)
    assert babi.majority(train, train) == max(sum(q.answer == a for q in train) for a in babi.PLACES) / 72


def read_back(cfg, row: np.ndarray, label: np.ndarray) -> tuple[str, str]:
    """(text with the question, answer) of a row of bytes."""
    at = int(np.flatnonzero(label != IGNORED)[0])
    assert row[at] == 1
    answer = label[label != IGNORED]
    assert answer[-1] == 0
    return bytes(row[:at].tolist()).decode(errors="replace"), bytes(answer[:-1].tolist()).decode()


@pytest.mark.parametrize("length", [300, 1024])
@pytest.mark.parametrize("alone", [False, True])
def test_a_rule_answers_through_the_whole_path(cfg, length, alone):
    cfg = B.BabilongConfig(facts=cfg.facts, alone=alone)
    for n in range(12):
        ids, labels = B.sample(cfg, length, 1, HELD_OUT + n)
        text, answer = read_back(cfg, ids[0], labels[0])
        question = babi.questions(cfg.facts, "qa1", "test")[n]
        assert len(text.encode()) == length - cfg.generate - 1 and text.endswith(question.text) and answer == question.answer
        places = [text.index(" " + fact) for fact in dict.fromkeys(question.facts)]
        assert len(places) == len(set(question.facts))
        facts = [" ".join(s.split()[-5:]) + "." for s in text.split(".") if " went to the " in s]
        assert babi.last_place(facts, question.text.split()[2].rstrip("?")) == answer


def test_without_the_text_the_facts_remain_in_order(cfg):
    ids, labels = B.sample(cfg, 800, 30, 4)
    for row, label in zip(ids, labels, strict=True):
        text, _ = read_back(cfg, row, label)
        found = [" ".join(s.split()[-5:]) + "." for s in text.split(".") if " went to the " in s]
        stored = {q.facts for q in babi.questions(cfg.facts, "qa1", "train")}
        assert tuple(found) in stored


def test_samples_are_pure_and_splits_have_texts_of_their_own(cfg):
    samples_are_pure(B, cfg, 400, gaps=True)
    for split, seed in (("test", HELD_OUT), ("valid", seeds.SPLITS["valid"]), ("train", 5)):
        ids, labels = B.sample(cfg, 400, 2, seed)
        text, _ = read_back(cfg, ids[0], labels[0])
        assert f"The {split} went" in text and not any(f"The {other} went" in text for other in TEXTS if other != split)


def test_facts_stand_before_every_sentence_equally_often(cfg):
    counts, question = np.zeros(10), babi.questions(cfg.facts, "qa1", "test")[0]
    sentences = [np.full(5, n, np.int32) for n in range(9)]
    B_background = B.background
    try:
        B.background = lambda *a: sentences
        for seed in range(400):
            size = 45 + sum(len(" " + f) for f in question.facts)
            row = B.text_of(cfg, question.facts, size, np.random.default_rng(seed), "test")
            begin = np.flatnonzero(row == 32)[0]
            counts[(row[:begin] < 9).sum() // 5] += 1
    finally:
        B.background = B_background
    first = 2 * 400 * (1 - (np.arange(10) + 0.5) / 10) / 10      # of the earlier of two places
    assert (((counts - first) ** 2) / first).sum() < 27.9        # 9 degrees of freedom, one in a thousand


def test_the_suite_scores_whole_answers(cfg, tmp_path, monkeypatch):
    """Who says the labels is always right; one wrong letter of an answer is a wrong answer."""
    one = TaskConfig(cfg, 300, eval_samples=6)
    experiment = SimpleNamespace(data=one, call_tokens=50, evaluation=EvaluationConfig(4, lengths=(1, 2)))
    judge, lines = suite_named("babilong").run, []
    for said, share in ((lambda ids: np.roll(ids, -1, 1), 1.0), (lambda ids: np.roll(ids, -1, 1) + (ids == 1), 0.0)):
        monkeypatch.setattr(greedy, "answer", lambda params, inputs, back, block, *, model, said=said: said(inputs))
        found = dict(judge(experiment, None, None, None, tmp_path, lines.append))
        assert found["eval/qa1_exact_at_300"] == found["eval/qa1_exact_at_600"] == found["eval/accuracy"] == share
    test, train = (babi.questions(cfg.facts, "qa1", split) for split in ("test", "train"))
    assert found["baseline/qa1_majority"] == babi.majority(train, test)
    assert found["baseline/qa1_last_place"] == np.mean([q.answer in q.facts[-1] for q in test])
    with pytest.raises(UserError, match="suite 'babilong' judges a model on task:babilong"):
        dict(judge(SimpleNamespace(data=SimpleNamespace(source="stdlib")), None, None, None, tmp_path, print))


def test_mistakes_are_one_line(cfg, tmp_path):
    with pytest.raises(UserError, match="babilong.tasks is 'qa21'"):
        B.BabilongConfig(("qa21",))
    with pytest.raises(DataNotFoundError, match=r"no file qa2_\*_train.txt or .txt.gz"):
        B.sample(B.BabilongConfig(("qa2",), facts=cfg.facts), 300, 1, 0)
    with pytest.raises(DataError, match="needs a sequence of at least 74"):
        B.sample(cfg, 60, 1, 0)
    with pytest.raises(DataError, match="raise it"):
        B.sample(B.BabilongConfig(facts=cfg.facts, generate=3), 300, 1, 0)
    (tmp_path / "en" / "qa4_x_test.txt").write_text(f"1 Ann {'really ' * 9}went.\n2 Where is Ann? \toffice\t1\n")
    with pytest.raises(DataError, match="no story of qa4 fits into 63 tokens"):
        B.sample(B.BabilongConfig(("qa4",), facts=cfg.facts), 74, 1, HELD_OUT)
    (tmp_path / "en" / "qa3_x_test.txt").write_text("1 Ann went.\nno number\n")
    with pytest.raises(DataError, match="holds the line 'no number'"):
        babi.questions(str(tmp_path), "qa3", "test")


@pytest.mark.realdata
@pytest.mark.skipif(not os.path.isdir(os.path.join(REAL, "babi")), reason="real data not found: babi; set MEMTOK_DATA_DIR")
@pytest.mark.parametrize("task, majority, rule", [("qa1", 0.187, 0.527), ("qa2", 0.187, 0.399), ("qa3", 0.185, 0.140),
                                                  ("qa4", 0.171, None), ("qa5", 0.189, None)])
def test_published_files_have_the_stated_baselines(task, majority, rule):
    folder = os.path.join(REAL, "babi", "en")
    test = babi.questions(folder, task, "test")
    every = babi.questions(folder, task, "train") + babi.questions(folder, task, "valid")
    assert len(test) == len(every) == 1000 and abs(babi.majority(every, test) - majority) < 1e-9
    if rule:
        assert abs(np.mean([babi.last_place(q.facts) == q.answer for q in test]) - rule) < 1e-9
    if task == "qa1":
        assert all(babi.last_place(q.facts, q.text.split()[2].rstrip("?")) == q.answer for q in test)


@pytest.mark.realdata
@pytest.mark.skipif(not os.path.isdir(os.path.join(REAL, "babi")), reason="real data not found: babi; set MEMTOK_DATA_DIR")
@pytest.mark.parametrize("task", [f"qa{n}" for n in range(1, 6)])
def test_rows_of_published_files_among_books(task):
    cfg = B.BabilongConfig((task,), text=os.path.join(REAL, "gutenberg_books", "valid"))
    for length in (2048, 8192):
        ids, labels = B.sample(cfg, length, 3, HELD_OUT)
        assert ids.shape == (3, length) and ((labels != IGNORED).sum(1) >= 2).all()
