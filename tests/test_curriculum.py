"""Stages that begin with the parameters of the stage before, lengths that vary, and a goal that ends a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_run import experiment

from memtok_jax.config import UserError
from memtok_jax.models.protocol import bind
from memtok_jax.training import curriculum, metrics, step
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.run import make_mesh, train

TASK = ("task:associative", "training.call_tokens=4", "training.batch=2", "evaluation.lengths=1")


def parameters(workdir: Path, exp):
    """The newest parameters of a run, on the host."""
    with Checkpoints(workdir, None) as checkpoints:
        abstract = step.abstract_state(step.update_of(exp, bind(exp.model)), make_mesh(exp))
        return jax.device_get(checkpoints.restore(abstract)[0].params)


def test_stages_hand_on_their_parameters(tmp_path, capsys):
    """A learning rate of 0 lets the second stage end where it began: with the parameters of the first."""
    exp = experiment(*TASK, "data.sequence=16", "data.lengths=8,12,16", "training.curriculum=data.sequence=8", "optimizer.steps=3",
                     "optimizer.warmup_steps=0", "training.eval_every=0")
    first, last = curriculum.stages(exp, tmp_path / "run")
    assert first[1] == tmp_path / "run-stage1" and last[1] == tmp_path / "run"
    assert first[0].data.lengths == (8,) and last[0].data.lengths == (8, 12, 16)
    assert first[0].training.start_from == "" and last[0].training.start_from == str(first[1])
    assert train(*first) == 0
    still = replace(last[0], optimizer=replace(exp.optimizer, learning_rate=0.0))
    assert train(still, last[1]) == 0
    jax.tree.map(np.testing.assert_array_equal, parameters(last[1], still), parameters(first[1], first[0]))
    fresh = replace(still, training=replace(still.training, start_from=""))
    assert train(fresh, tmp_path / "fresh") == 0
    differs = jax.tree.map(lambda a, b: (a != b).any(), parameters(tmp_path / "fresh", fresh), parameters(*reversed(first)))
    assert any(jax.tree.leaves(differs))


def test_a_stage_changes_what_it_names_and_nothing_else():
    exp = experiment(*TASK, "data.sequence=16", "training.curriculum=data.task.value=2 data.sequence=8 optimizer.steps=7")
    first, last = curriculum.stages(exp, Path("run"))
    assert (first[0].data.task.value, first[0].data.sequence, first[0].optimizer.steps) == (2, 8, 7)
    assert (first[0].model, first[0].evaluation) == (exp.model, exp.evaluation)
    assert last[0] == replace(exp, training=replace(exp.training, curriculum=(), start_from="run-stage1"))


def test_without_a_curriculum_the_experiment_is_its_only_stage(tmp_path):
    exp = experiment(*TASK)
    assert curriculum.stages(exp, tmp_path) == [(exp, tmp_path)]


def test_a_stage_that_was_stopped_ends_the_curriculum(tmp_path):
    exp = experiment(*TASK, "training.curriculum=data.sequence=8,data.sequence=12")
    seen = []
    status = curriculum.train_stages(lambda stage, folder: seen.append(stage.data.sequence) or (143 if len(seen) == 2 else 0), exp,
                                     tmp_path / "run")
    assert status == 143 and seen == [8, 12]


def test_a_reached_goal_ends_the_run_and_its_continuation(tmp_path, capsys):
    """Any accuracy reaches a goal of nearly nothing: the first evaluation is the end, also when the command is given again."""
    exp = experiment("task:recall", "data.task.pairs=2", "data.sequence=16", "optimizer.steps=400", "training.eval_every=40",
                     "training.stop_at=0.02", "training.log_every=1")
    assert train(exp, tmp_path / "run") == 0
    steps, accuracy = metrics.column(metrics.read(tmp_path / "run"), "eval/accuracy")
    assert accuracy[-1] >= 0.02 and steps[-1] < 400
    assert "held-out accuracy has reached 0.02" in capsys.readouterr().out
    assert train(exp, tmp_path / "run") == 0
    assert metrics.column(metrics.read(tmp_path / "run"), "train/loss")[0][-1] == steps[-1]
    higher = replace(exp, training=replace(exp.training, stop_at=1.0), optimizer=replace(exp.optimizer, steps=steps[-1] + 10))
    assert train(higher, tmp_path / "run") == 0
    assert metrics.column(metrics.read(tmp_path / "run"), "train/loss")[0][-1] == steps[-1] + 10, "a higher goal is not reached yet"


@pytest.mark.parametrize("overrides, message", [
    (("training.stop_at=2",), "training.stop_at is 2.0; it must be between 0 and 1"),
    (("training.stop_at=0.9", "training.eval_every=0"), "nothing is measured on the way"),
    (("training.curriculum=data.sequence=8,data.sequence=6",), r"stage 2 \('data.sequence=6'\): data.sequence 6 does not divide"),
    (("training.curriculum=data.sequenze=8",), r"stage 1 .*unknown field config.data.sequenze; did you mean 'sequence'"),
    (("training.curriculum=training.start_from=runs/x",), "a stage cannot change training.curriculum or training.start_from"),
    (("data.lengths=8,10",), "data.lengths 10 does not divide into calls of 4"),
])
def test_impossible_curricula_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        experiment(*TASK, *overrides)


def test_a_goal_is_for_tasks(tmp_path):
    (tmp_path / "text.txt").write_text("some words")
    with pytest.raises(UserError, match="only tasks and images have an accuracy to reach"):
        experiment(str(tmp_path / "text.txt"), "training.stop_at=0.9")


def test_parameters_of_another_model_are_refused(tmp_path):
    exp = experiment(*TASK, "optimizer.steps=2")
    train(exp, tmp_path / "small")
    wide = experiment(*TASK, "optimizer.steps=2", "model.width=6", f"training.start_from={tmp_path / 'small'}")
    with pytest.raises(UserError, match=r"start_from=.*small: parameter .* is \(.*\) there and \(.*\) here"):
        train(wide, tmp_path / "wide")
    with pytest.raises(UserError, match="not a run directory"):
        train(experiment(*TASK, f"training.start_from={tmp_path / 'nowhere'}"), tmp_path / "other")
