"""A finished run that is made longer: bit for bit one long run, or one line about what is different."""

from __future__ import annotations

import dataclasses
import random

import jax
import numpy as np
import pytest
from toy_run import experiment

from memtok_jax.models.protocol import bind
from memtok_jax.training import longer, metrics, step
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.experiment import OptimizerConfig
from memtok_jax.training.run import make_mesh, train

QUIET = ("training.eval_every=0", "training.checkpoint_every=0", "training.log_every=1", "optimizer.ema=0.5")
WSD = (*QUIET, "optimizer.schedule=wsd", "optimizer.decay_steps=3")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path, chance = tmp_path_factory.mktemp("data") / "words.txt", random.Random(0)
    path.write_text(" ".join(chance.choice(["one", "two", "three", "four"]) for _ in range(1200)))
    return str(path)


def state_of(workdir, exp, name="checkpoints"):
    with Checkpoints(workdir, None, name) as checkpoints:
        return jax.device_get(checkpoints.restore(step.abstract_state(step.update_of(exp, bind(exp.model)), make_mesh(exp)))[0])


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def same_numbers(one, other):
    for name in ("train/loss", "train/learning_rate", "train/tokens_seen"):
        assert metrics.column(metrics.read(one), name) == metrics.column(metrics.read(other), name)


@pytest.mark.slow
def test_at_a_constant_rate_it_is_one_long_run(text, tmp_path, capsys):
    short, long = (experiment(text, *QUIET, "optimizer.schedule=constant", f"optimizer.steps={n}") for n in (6, 9))
    for exp in (short, long):
        train(exp, tmp_path / "two")
    assert "note" not in capsys.readouterr().out
    train(long, tmp_path / "one")
    equal(state_of(tmp_path / "two", long), state_of(tmp_path / "one", long))
    same_numbers(tmp_path / "two", tmp_path / "one")


@pytest.fixture(scope="module")
def fallen(text, tmp_path_factory):
    """A finished run of 7 updates whose rate falls in the last 3, one of 10 made of it, and one of 10 in one go: their folders."""
    short, long = (experiment(text, *WSD, f"optimizer.steps={n}") for n in (7, 10))
    folder = tmp_path_factory.mktemp("wsd")
    for exp, name in ((short, "two"), (long, "two"), (long, "one")):
        train(exp, folder / name)
    return folder, short, long


def test_with_a_fall_at_the_end_it_is_one_long_run(fallen):
    folder, _, long = fallen
    equal(state_of(folder / "two", long), state_of(folder / "one", long))
    same_numbers(folder / "two", folder / "one")
    assert state_of(folder / "two", long, "stable").step == 7


@pytest.mark.slow
def test_the_end_of_the_shorter_run_is_not_lost(fallen, text, tmp_path):
    folder, short, _ = fallen
    aside = state_of(folder / "two", short, "checkpoints-7")
    train(short, tmp_path / "alone")
    equal(aside, state_of(tmp_path / "alone", short))


@pytest.mark.slow
def test_ended_before_its_first_checkpoint_it_goes_on_all_the_same(fallen, text, tmp_path, monkeypatch, capsys):
    """The checkpoints of the fall have been set aside, and no new one is written yet."""
    folder, short, long = fallen
    train(short, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("memtok_jax.training.run.run_loop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(long, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert "fell after step 4; going on from there as one run of 10 steps would" in capsys.readouterr().out
    train(long, tmp_path / "run")
    equal(state_of(tmp_path / "run", long), state_of(folder / "one", long))


def test_under_a_cosine_it_says_what_changes(text, tmp_path, capsys):
    short, long = (experiment(text, *QUIET, f"optimizer.steps={n}", "optimizer.warmup_steps=2") for n in (4, 6))
    train(short, tmp_path / "run")
    capsys.readouterr()
    train(long, tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    before, after = (longer.rates(exp.optimizer, 5) for exp in (short, long))
    (one,) = said
    assert "the optimizer changed (steps 4 to 6), and under 'cosine' that changes the learning rate from step 4 on" in one
    assert one.endswith(f"{before[3]:.3g} and goes on at {after[4]:.3g}, which is not what one run of 6 steps would have done")
    assert metrics.column(metrics.read(tmp_path / "run"), "train/learning_rate")[1] == pytest.approx([*before[:4], *longer.rates(
        long.optimizer, 6)[4:]])
    train(long, tmp_path / "run")
    assert "note" not in capsys.readouterr().out, "said once"


def test_the_first_update_that_differs():
    base = OptimizerConfig(learning_rate=1.0, steps=20, warmup_steps=4, schedule="wsd", decay_steps=5)
    later = dataclasses.replace(base, steps=30)
    # Update 15, counted from 0, is still at the peak: the straight line begins there.
    assert longer.fall_begins(base) == 15 and longer.first_other_rate(base, later, 20) == 16
    assert longer.first_other_rate(base, later, 15) == 15
    constant = dataclasses.replace(base, schedule="constant", decay_steps=0)
    assert longer.first_other_rate(constant, dataclasses.replace(constant, steps=99), 20) == 20
    cosine = dataclasses.replace(constant, schedule="cosine")
    assert longer.first_other_rate(cosine, dataclasses.replace(cosine, steps=99), 20) == 5 and longer.fall_begins(cosine) == 0
