"""Further held-out sets under names of their own, and the best checkpoint of a run."""

from __future__ import annotations

import random
import shutil

import jax
import numpy as np
import pytest
import tokenizer_toys
from toy_run import experiment

from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.evaluation import saved_model
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.models.protocol import bind
from memtok_jax.training import metrics, run
from memtok_jax.training.best import better
from memtok_jax.training.checkpoint import BEST_FOLDER, Checkpoints
from memtok_jax.training.run import make_mesh, train


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, str]:
    """Two texts that differ: words to learn, and digits that a model of words does not expect."""
    folder, chance = tmp_path_factory.mktemp("data"), random.Random(0)
    (folder / "words.txt").write_text(" ".join(chance.choice(["one", "two", "three", "four"]) for _ in range(1200)))
    (folder / "digits.txt").write_text("".join(chance.choice("0123456789") for _ in range(900)))
    return {name: str(folder / f"{name}.txt") for name in ("words", "digits")}


def with_sets(texts, *overrides):
    sets = f"evaluation.sets=again={texts['words']},digits={texts['digits']} held_out=1 eval_bytes=0"
    return experiment(texts["words"], sets, "training.keep_best=eval/digits/bits_per_byte",
                      "optimizer.learning_rate=0.3", "optimizer.warmup_steps=0", "evaluation.batches=0", *overrides)


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    """A run of 12 updates, measured at 4, 8 and 12: (workdir, experiment). What is learned of words makes digits less likely."""
    exp, workdir = with_sets(texts), tmp_path_factory.mktemp("sets") / "run"
    assert train(exp, workdir) == 0
    return workdir, exp


def test_each_set_has_its_own_numbers(finished, capsys):
    workdir, exp = finished
    records = metrics.read(workdir)
    assert exp.metrics == ("eval/loss", "eval/bits_per_byte", "eval/again/loss", "eval/again/bits_per_byte", "eval/digits/loss",
                           "eval/digits/bits_per_byte")
    for name in exp.metrics:
        assert metrics.column(records, name)[0] == [4, 8, 12]
    assert metrics.column(records, "eval/again/loss") == metrics.column(records, "eval/loss"), "the same text"
    digits = metrics.column(records, "eval/digits/loss")[1]
    np.testing.assert_allclose(metrics.column(records, "eval/digits/bits_per_byte")[1], np.array(digits) / np.log(2), rtol=1e-6)
    found, alone = (evaluate_run(workdir, (f"evaluation.streams={n}",), print)["eval/digits/loss"] for n in (2, 1))
    assert found == pytest.approx(digits[-1], rel=1e-5) and alone != pytest.approx(found, rel=1e-5)
    assert "900 bytes in 1 files held out (valid), 900 of them scored" in capsys.readouterr().out


def read(workdir, exp, which="latest"):
    return saved_model.load(workdir, exp, bind(exp.model), make_mesh(exp), which)


def test_the_best_checkpoint_is_that_of_the_best_number(finished):
    workdir, exp = finished
    steps, bits = metrics.column(metrics.read(workdir), "eval/digits/bits_per_byte")
    best = read(workdir, exp, "best")
    assert best.step == steps[int(np.argmin(bits))] != 12
    assert best.fingerprint != read(workdir, exp).fingerprint
    assert evaluate_run(workdir, (), print, checkpoint="best")["step"] == best.step
    with Checkpoints(workdir, None, BEST_FOLDER) as kept:
        assert len(kept.steps()) == 1
        assert kept.meta()["best"] == {"metric": "eval/digits/bits_per_byte", "value": min(bits)}


@pytest.mark.slow
def test_a_continued_run_compares_with_the_best_so_far(finished, texts, tmp_path):
    """Up to here, and then on: what was kept before stays if nothing better comes, and gives way if something does."""
    workdir, _ = finished
    begun = with_sets(texts, "optimizer.steps=4")
    train(begun, tmp_path / "run")
    first = read(tmp_path / "run", begun, "best")
    worse = with_sets(texts, "optimizer.steps=8")
    train(worse, tmp_path / "run")
    bits = metrics.column(metrics.read(tmp_path / "run"), "eval/digits/bits_per_byte")[1]
    assert read(tmp_path / "run", worse, "best").step == (4 if bits[0] <= bits[-1] else 8)
    other = config.override(worse, ("training.keep_best=eval/loss", "optimizer.steps=12"))
    train(other, tmp_path / "run")
    assert read(tmp_path / "run", other, "best").step == 12, "of another number all begins anew"
    assert first.step == 4


@pytest.mark.slow
def test_a_run_ended_in_an_evaluation_keeps_the_best(finished, tmp_path, monkeypatch):
    """Ended right after the best one was written and before the next checkpoint, the run measures the same again."""
    workdir, exp = finished
    wanted = read(workdir, exp, "best")
    longer = config.override(exp, ("training.checkpoint_every=0",))
    real = run.report.held_out

    def ending(*args):
        ending.calls += 1
        if ending.calls == 2:
            raise KeyboardInterrupt
        return real(*args)

    ending.calls = 0
    monkeypatch.setattr(run.report, "held_out", ending)
    with pytest.raises(KeyboardInterrupt):
        train(longer, tmp_path / "run")
    monkeypatch.setattr(run.report, "held_out", real)
    assert train(longer, tmp_path / "run") == 0
    again = read(tmp_path / "run", longer, "best")
    assert (again.step, again.fingerprint) == (wanted.step, wanted.fingerprint)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.params), jax.device_get(wanted.params))


def test_a_run_without_a_best_one(texts, finished, tmp_path):
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.copy(finished[0] / "config.json", tmp_path / "run" / "config.json")
    with pytest.raises(UserError, match="has no best checkpoint: train with --config.training.keep_best=eval/loss"):
        evaluate_run(tmp_path / "run", (), print, checkpoint="best")
    assert not (tmp_path / "run" / "best").exists()
    with pytest.raises(UserError, match="--checkpoint is 'bets'.*did you mean 'best'"):
        evaluate_run(tmp_path / "run", (), print, checkpoint="bets")


def test_what_is_better():
    assert better("eval/accuracy", 0.5, 0.4) and not better("eval/accuracy", 0.4, 0.4)
    assert better("eval/x/loss", 1.0, 2.0) and not better("eval/x/loss", 2.0, 1.0) and better("eval/x/loss", 2.0, None)
    assert not better("eval/loss", float("nan"), None)


@pytest.mark.parametrize("changes, message", [
    (("evaluation.sets=words",), "evaluation.sets has 'words'; it must be NAME=SOURCE"),
    (("evaluation.sets=a/b=stdlib",), "it must be NAME=SOURCE"),
    (("evaluation.sets=a=stdlib,a=stdlib",), "names 'a' 2 times"),
    (("evaluation.sets=a=stdlib eval_splt=test",), "evaluation.sets, a: unknown field config.eval_splt; did you mean 'eval_split'"),
    (("evaluation.sets=a=stdlib sequence=12",), "data.sequence of the set 'a': 12 does not divide into calls of 8 tokens"),
    (("training.keep_best=eval/los",), "training.keep_best is 'eval/los'.*did you mean 'eval/loss'"),
    (("training.keep_best=eval/loss", "training.eval_every=0"), "training.eval_every is 0: nothing is measured")])
def test_sets_that_cannot_be(texts, changes, message):
    with pytest.raises(UserError, match=message) as error:
        experiment(texts["words"], *changes)
    assert "\n" not in str(error.value)


def test_a_set_in_other_tokens_is_refused(texts, tmp_path):
    path = tokenizer_toys.make("bpe", tmp_path)
    exp = experiment(texts["words"], f"evaluation.sets=words={texts['words']} tokenizer={path}", "model.vocabulary=320")
    with pytest.raises(UserError, match="words: its text is read as tokens of tokenizer.json, that of the run as bytes"):
        train(exp, tmp_path / "run")
