"""Needles: layout, golden rows, baselines against closed forms, and the suite with readers whose scores are known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from task_checks import samples_are_pure

from memtok_jax import config, data
from memtok_jax.config import UserError
from memtok_jax.data.errors import DataError
from memtok_jax.data.task import TaskConfig, sights
from memtok_jax.data.tasks import needles as N
from memtok_jax.data.tasks import seeds
from memtok_jax.data.tasks.scoring import IGNORED, accuracy
from memtok_jax.evaluation.controls import CONTROLS
from memtok_jax.training.memories import MEMORIES

TEXTS = {"train": b"ab cd. EF? 12\n" * 400, "valid": b"uv wx. " * 400, "test": b"zz yy, " * 400}


@pytest.fixture(autouse=True)
def _corpus(monkeypatch):
    monkeypatch.setattr(N.haystack, "text", lambda source, split: TEXTS[split])


CASES = [(N.NeedlesConfig(), 64), (N.NeedlesConfig(("number", "uuid"), needles=(1, 3), questions=3), 200),
         (N.NeedlesConfig(("word",), needles=(4, 4), questions=2, tail=9), 150)]


@pytest.mark.parametrize("cfg, length", CASES)
def test_samples_are_pure_functions_of_the_seed(cfg, length):
    one = samples_are_pure(N, cfg, length, gaps=len(cfg.kinds) > 1)
    scored = one.labels[:, np.flatnonzero(N.answers(cfg, length)) - 1] != IGNORED
    assert ((one.labels != IGNORED).sum(1) == scored.sum(1)).all()
    with pytest.raises(DataError, match="at least"):
        N.sample(cfg, 22, 1, 0)


@pytest.mark.parametrize("kind, sums, begin", [
    ("passkey", (110_962, 2_166), "the grass is green. "), ("number", (99_689, 2_155), None), ("word", (108_655, 10_439), None),
    ("uuid", (85_116, 4_956), None)])
def test_golden_rows(kind, sums, begin):
    """A change of these numbers changes every row that a run has been trained or judged on."""
    ids, labels = N.sample(N.NeedlesConfig((kind,), needles=(1, 2)), 128, 30, 5)
    assert (ids.sum(), labels[labels != IGNORED].sum()) == sums
    if begin:
        assert "".join(np.array(list(N.CHARACTERS))[ids[1, :20]]) == begin


@pytest.mark.parametrize("cfg, length", CASES)
def test_without_needles_the_haystack_remains_and_every_question_has_its_needle(cfg, length):
    ids, labels = N.sample(cfg, length, 60, 1)
    for row, label in zip(ids, labels, strict=True):
        needles, hay, questions = [], [], []
        text, t = row.tolist(), 0
        while t < length:
            if text[t] not in (N.NEEDLE, N.ASK):
                hay.append(text[t])
                t += 1
                continue
            end = text.index(N.END, t)
            (needles if text[t] == N.NEEDLE else questions).append((tuple(text[t + 1:t + 5]), tuple(text[t + 6:end + 1])))
            assert text[t + 5] == N.IS
            t = end + 1
        found = dict(needles)
        assert cfg.needles[0] <= len(needles) == len(found) <= cfg.needles[1] and len(questions) == cfg.questions
        assert all(found[key] == value for key, value in questions), "the oracle is always right"
        assert len({key for key, _ in questions}) == min(len(needles), cfg.questions)
        assert label[label != IGNORED].tolist() == [i for _, value in questions for i in value]
        assert max(hay) < N.NEEDLE
        if cfg.kinds == ("passkey",):
            sentence = N.encode(N.SENTENCE).tolist()
            assert hay == (sentence * 9)[:len(hay)]
        elif len(cfg.kinds) == 1:
            text = N.encode(TEXTS["train"]).tolist()
            front = "".join(map(chr, hay[:N.questions_begin(cfg, length) - len(needles) * N.needle_tokens(cfg.kinds[0])]))
            assert front in "".join(map(chr, text))


@pytest.mark.parametrize("kind, step", [("passkey", 20), ("number", 1)])
def test_places_are_even_over_the_slots(kind, step):
    cfg = N.NeedlesConfig((kind,))
    length = 12 + 12 + 19 * step
    ids, _ = N.sample(cfg, length, 2000, 3)
    counts = np.bincount(np.argmax(ids == N.NEEDLE, axis=1) // step)
    assert len(counts) == 20 and (((counts - 100) ** 2) / 100).sum() < 43.8   # 19 degrees of freedom, one in a thousand
    deep, _ = N.sample(dataclasses.replace(cfg, depth=(1.0, 1.0)), length, 5, 3)
    assert (np.argmax(deep == N.NEEDLE, axis=1) == 19 * step).all()


def test_texts_and_seeds_of_the_splits_do_not_meet():
    cfg = N.NeedlesConfig(("number",))
    for split, seed in (("train", 2**126 - 1), ("test", 2**126), ("test", 2**126 + 2**64 - 1), ("valid", 2**126 + 2**64)):
        assert seeds.split_of(seed) == split
        ids, _ = N.sample(cfg, 80, 3, seed)
        text = set(N.encode(TEXTS[split]).tolist())
        row = ids[0].tolist()
        assert set(row[:row.index(N.NEEDLE)]) <= text
    one, other = (data.open_eval(TaskConfig(cfg, 80, eval_samples=3, eval_split=split), 3)[0] for split in ("test", "valid"))
    assert (one["inputs"] != other["inputs"]).any(1).all()
    with pytest.raises(UserError, match="data.eval_split is 'tset'.*did you mean 'test'"):
        TaskConfig(cfg, 80, eval_split="tset")


@pytest.mark.parametrize("kind", N.KINDS)
@pytest.mark.parametrize("times", [1, 16])
def test_a_reader_of_a_window_is_right_as_often_as_stated(kind, times):
    """It says what it sees of the needle and guesses the rest; at 1x and 16x."""
    cfg, length = N.NeedlesConfig((kind,)), 96 * times
    first, rows = sights(length, 60, 0)["no_memory"], 1500 if times == 1 else 300
    ids, labels = N.sample(cfg, length, rows, 7)
    guess, rng, right, whole = N.guesses(kind), np.random.default_rng(0), [], []
    for row, label in zip(ids, labels, strict=True):
        value = np.argmax(row == N.NEEDLE) + 6 + np.arange(len(guess))
        t = np.flatnonzero(label != IGNORED)
        assert (row[value] == label[t]).all()
        seen = value >= first[t]
        right.append(np.where(seen, 1.0, guess))
        if kind != "word":
            whole.append((seen | (rng.random(len(guess)) < guess)).all())
    error = 4 * 0.5 / rows ** 0.5
    assert N.reader(cfg, length, first) == pytest.approx(np.mean(right), abs=error)
    if kind != "word":
        assert N.exact_reader(cfg, kind, length, first) == pytest.approx(np.mean(whole), abs=error)
    everything = np.zeros(length, int)
    assert N.reader(cfg, length, everything) == 1 == N.exact_reader(cfg, kind, length, everything)
    nothing = np.arange(length)
    assert N.reader(cfg, length, nothing) == pytest.approx(N.chance(cfg, length)["chance"])
    assert N.exact_reader(cfg, kind, length, nothing) == pytest.approx(N.exact_chance(kind))


def test_guessing_words_by_their_letters_scores_what_is_stated():
    """The most frequent next letter, found by counting values, against the lists of words."""
    rng = np.random.default_rng(0)
    values = np.array([[*N.value("word", rng), N.END] for _ in range(20_000)])
    found = []
    for t in range(values.shape[1]):
        word = values[:, t // 6 * 6:t]
        _, group = np.unique(word, axis=0, return_inverse=True) if word.size else (None, np.zeros(len(values), int))
        table = np.zeros((group.max() + 1, N.END + 1))
        np.add.at(table, (group.ravel(), values[:, t]), 1)
        found.append(table.max(1).sum() / len(values))
    np.testing.assert_allclose(found, N.guesses("word"), atol=0.02)


def test_a_reader_of_several_needles_is_right_as_often_as_one_who_looks():
    cfg, length = N.NeedlesConfig(("number",), needles=(2, 3), questions=4), 160
    ids, labels = N.sample(cfg, length, 600, 2)
    first, right = sights(length, 70, 0)["no_memory"], []
    for row, label in zip(ids, labels, strict=True):
        for t in np.flatnonzero(label != IGNORED):
            begin = np.flatnonzero(row[:t + 1] == N.ASK)[-1]
            key, place = row[begin + 1:begin + 5].tolist(), t + 1 - begin
            begins = np.flatnonzero((row[:begin] == N.NEEDLE) | (row[:begin] == N.ASK))
            starts = [s for s in begins if row[s + 1:s + 5].tolist() == key]
            right.append(1.0 if max(starts) + place >= first[t] else 1.0 if label[t] == N.END else 0.1)
    assert N.reader(cfg, length, first) == pytest.approx(np.mean(right), abs=0.03)


def test_mistakes_are_one_line():
    for wrong, message in ((dict(kinds=("pass",)), "needles.kinds is 'pass'.*did you mean 'passkey'"), (dict(kinds=()), "is empty"),
                           (dict(needles=(2, 1)), "must not exceed"), (dict(depth=(0.0, 1.5)), "between 0 and 1")):
        with pytest.raises(UserError, match=message):
            N.NeedlesConfig(**wrong)
    with pytest.raises(DataError, match="the text has 2,800 bytes, and a sample needs"):
        N.sample(N.NeedlesConfig(("number",)), 9000, 1, 2**126)


def test_accuracy_of_the_labels_is_one():
    _, labels = N.sample(CASES[1][0], 200, 20, 0)
    assert accuracy(labels, labels) == 1.0


@pytest.mark.parametrize("name", ["window", *(pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES if n != "window")])
def test_every_memory_runs_on_the_rows_of_its_config(name):
    """Shapes only: a training call of each preset, and the general path of the control runs."""
    import jax

    from memtok_jax import params as P
    from memtok_jax.models.call import Call
    from memtok_jax.models.protocol import bind

    one = config.load(f"needles:{name}")
    model = bind(one.model)
    assert one.call_tokens % model.call_tokens == 0
    params = P.abstract(model.specs())
    state = jax.eval_shape(lambda p: model.init_state(p, 2), params)
    for call in (Call(whole=True), Call()):
        ids = jax.ShapeDtypeStruct((2, one.call_tokens), np.int32)
        logits, after, _ = jax.eval_shape(lambda p, s, x, call=call: model.run(p, s, x, call), params, state, ids)
        assert logits.shape == (2, one.call_tokens, 51)
    assert jax.tree.structure(after) == jax.tree.structure(state)


# ----------------------------------------------------------------------------------------------------------- the suite

def judged(tmp_path, **changes):
    """(results, lines) of the suite for the scripted reader."""
    import needle_reader

    from memtok_jax import sharding
    from memtok_jax.evaluation.suites import suite_named
    from memtok_jax.models.protocol import bind
    from memtok_jax.training.experiment import EvaluationConfig

    task = TaskConfig(N.NeedlesConfig(("uuid",), needles=(1, 2), questions=2), 128, eval_samples=20)
    experiment = SimpleNamespace(data=dataclasses.replace(task, **changes), call_tokens=16,
                                 evaluation=EvaluationConfig(4, lengths=(2,)))
    lines, mesh = [], sharding.make_mesh(1, 1, 1)
    run = suite_named("needles").run(experiment, bind(needle_reader.ReaderConfig()), {}, mesh, tmp_path, lines.append)
    return dict(run), lines


def test_the_suite_gives_full_marks_to_an_oracle_and_its_controls_find_the_carry(tmp_path):
    found, lines = judged(tmp_path)
    assert found["eval/uuid_exact_at_256"] == 1 == found["eval/uuid_beyond_at_256"]
    after = {name: found[f"control/uuid_{name}_at_256"] for name in CONTROLS}
    assert after == dict(intact=1, reset_before=1, reset_after=0, frozen=0, swap=1)
    assert found["baseline/uuid_chance_at_256"] == N.exact_chance("uuid")
    assert np.array(found["grids"]["uuid"]).shape == (5, 1) and (tmp_path / "needles.png").exists()
    assert any("by depth 0: 1.00" in line for line in lines)


def test_swapping_twice_is_the_identity():
    import jax
    import needle_reader

    from memtok_jax.evaluation.controls import swapped
    from memtok_jax.models.protocol import bind

    model = bind(needle_reader.ReaderConfig())
    state = jax.tree.map(lambda leaf: np.arange(leaf.size).reshape(leaf.shape), model.init_state({}, 2))
    once = swapped(state, model, 2)
    assert (once["kind"] == state["kind"][::-1]).all() and (swapped(once, model, 2)["value"] == state["value"]).all()


def test_other_tasks_are_refused(tmp_path):
    from memtok_jax.data.tasks import settings_named

    with pytest.raises(UserError, match="suite 'needles' judges a model on task:needles, and this run is on task:recall"):
        judged(tmp_path, task=settings_named("recall"))
