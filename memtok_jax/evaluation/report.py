"""Evaluate a run directory: everything that `eval.py` does after reading its flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from memtok_jax import config, data, sharding
from memtok_jax import params as P
from memtok_jax.analysis import figures
from memtok_jax.config import UserError
from memtok_jax.evaluation import saved_model, sets
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training.experiment import Experiment, check_vocabulary
from memtok_jax.training.run_folder import read_config


def result_file(suite: str, own: str) -> str:
    """Where a result stands: eval.json is of the suite that the run's own data names, every other suite has a file of its own."""
    return "eval.json" if suite == own else f"eval_{suite}.json"


def evaluate_run(workdir: Path, overrides: tuple[str, ...], say: Callable[[str], None], suite: str = "",
                 checkpoint: str = "latest") -> dict[str, Any]:
    """Score a checkpoint of a run on held-out data, and write `result_file` and figures into the run directory.

    overrides: changes of the run's config, such as "data.eval_split=test"; of the model, only fields that an evaluation may change.
    suite: a file of `evaluation/suites`; "": the one that the data names. checkpoint: "latest" or "best".
    The model runs on one device, or on `training.tensor` of them.
    Returns what is written: flat names, numbers, and lists for the figures.
    Raises UserError for a directory without a run or checkpoint, for a changed model, and for an unknown suite.
    """
    workdir = Path(workdir)
    saved = read_config(workdir)
    experiment = changed(saved, overrides, workdir)
    suite = suite or data.suite(experiment.data)
    chosen, file = suite_named(suite), result_file(suite, data.suite(saved.data))
    mesh = sharding.make_mesh(1, 1, experiment.training.tensor)
    with jax.set_mesh(mesh):
        _, model, found = restored(workdir, mesh, experiment, checkpoint)
        say(f"data   {data.describe(experiment.data)}")
        say(f"model  {P.count(model.specs()):,} parameters after {found.step} steps, from {found.origin}")
        result = {"workdir": str(workdir), "step": found.step, "source": experiment.data.source,
                  **dict(chosen.run(experiment, model, found.params, mesh, workdir, say)),
                  **_sets(experiment, model, found.params, mesh, say)}
    (workdir / file).write_text(json.dumps(result, indent=2) + "\n")
    say(f"written to {workdir}: {file}" + (" and figures" if figures.available() else ""))
    return result


def _sets(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, say: Callable[[str], None]) -> dict[str, float]:
    """The numbers of `evaluation.sets`."""
    values = dict(sets.scores(experiment, model, params, mesh, 0, experiment.evaluation.streams))
    for one in experiment.sets:
        say(f"{one.name}: {data.describe(one.data)}")
        say(f"{one.name}: " + ", ".join(f"{name} {values[name]:.4f}" for name in one.metrics))
    return values


def restored(workdir: Path, mesh: Mesh, experiment: Experiment | None = None,
             checkpoint: str = "latest") -> tuple[Experiment, Model, saved_model.Saved]:
    """Experiment, model and parameters on `mesh` of a run. experiment: None, the one that the run saved.

    Call it under `jax.set_mesh(mesh)`. Raises UserError for a directory without a run or checkpoint.
    """
    experiment = experiment or read_config(workdir)
    model = bind(experiment.model)
    check_vocabulary(experiment, model)
    return experiment, model, saved_model.load(workdir, experiment, model, mesh, checkpoint)


def changed(saved: Experiment, overrides: tuple[str, ...], workdir: Path) -> Experiment:
    """The experiment to evaluate. Raises UserError if a field of the model changes that an evaluation must not change."""
    experiment = config.override(saved, overrides)
    free = config.evaluation_fields(saved.model, "config.model")
    for path, old, new in config.differences(saved.model, experiment.model, "config.model"):
        if path not in free:
            raise UserError(f"{path} is {old!r} in {workdir} and cannot change to {new!r}")
    return experiment
