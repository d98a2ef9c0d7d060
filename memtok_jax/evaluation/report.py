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
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training.checkpoint import Checkpoints, read_config
from memtok_jax.training.experiment import Experiment, check_vocabulary

RESULT_FILE = "eval.json"


def evaluate_run(workdir: Path, overrides: tuple[str, ...], say: Callable[[str], None], suite: str = "") -> dict[str, Any]:
    """Score the newest checkpoint of a run on held-out data, and write `eval.json` and figures into the run directory.

    overrides: changes of the run's config, such as "data.eval_split=test"; of the model, only fields that an evaluation may change.
    suite: a file of `evaluation/suites`; "": the one that the data names.
    The model runs on one device, or on `training.tensor` of them.
    Returns what is written: flat names, numbers, and lists for the figures.
    Raises UserError for a directory without a run or checkpoint, for a changed model, and for an unknown suite.
    """
    workdir = Path(workdir)
    experiment = changed(read_config(workdir), overrides, workdir)
    chosen = suite_named(suite or data.suite(experiment.data))
    mesh = sharding.make_mesh(1, 1, experiment.training.tensor)
    with jax.set_mesh(mesh):
        _, model, params, step = restored(workdir, mesh, experiment)
        say(f"data   {data.describe(experiment.data)}")
        say(f"model  {P.count(model.specs()):,} parameters after {step} steps, from {workdir}")
        result = {"workdir": str(workdir), "step": step, "source": experiment.data.source,
                  **dict(chosen.run(experiment, model, params, mesh, workdir, say))}
    (workdir / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n")
    say(f"written to {workdir}: {RESULT_FILE}" + (" and figures" if figures.available() else ""))
    return result


def restored(workdir: Path, mesh: Mesh, experiment: Experiment | None = None) -> tuple[Experiment, Model, P.Tree, int]:
    """Experiment, model, newest parameters on `mesh` and steps of a run. experiment: None, the one that the run saved.

    Call it under `jax.set_mesh(mesh)`. Raises UserError for a directory without a run or checkpoint.
    """
    experiment = experiment or read_config(workdir)
    model = bind(experiment.model)
    check_vocabulary(experiment, model)
    with Checkpoints(workdir, experiment.training.keep) as checkpoints:
        params, meta = checkpoints.restore_params(abstract_params(model, mesh))
    return experiment, model, params, meta["step"]


def changed(saved: Experiment, overrides: tuple[str, ...], workdir: Path) -> Experiment:
    """The experiment to evaluate. Raises UserError if a field of the model changes that an evaluation must not change."""
    experiment = config.override(saved, overrides)
    free = config.evaluation_fields(saved.model, "config.model")
    for path, old, new in config.differences(saved.model, experiment.model, "config.model"):
        if path not in free:
            raise UserError(f"{path} is {old!r} in {workdir} and cannot change to {new!r}")
    return experiment


def abstract_params(model: Model, mesh: Mesh) -> P.Tree:
    """Shapes, dtypes and shardings of the parameters."""
    specs = model.specs()
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), P.abstract(specs),
                        sharding.shardings(mesh, specs))
