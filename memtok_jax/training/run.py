"""One training run from a config to its report: everything that `train.py` does after reading its flags."""

from __future__ import annotations

import time
from pathlib import Path

import jax
from jax.sharding import Mesh

from memtok_jax import data, sharding
from memtok_jax import params as pr
from memtok_jax.config import UserError
from memtok_jax.training import report
from memtok_jax.training.checkpoint import Checkpoints, open_workdir, read_config
from memtok_jax.training.experiment import Experiment, functions_of
from memtok_jax.training.loop import Run, per_step, reached, run_loop
from memtok_jax.training.metrics import Metrics, NoMetrics
from memtok_jax.training.progress import Progress, duration
from memtok_jax.training.step import TrainState, abstract_state, init_train_state, state_shardings


def train(experiment: Experiment, workdir: Path) -> int:
    """Train, or continue the run of this directory, and report.

    Returns the exit status: 0 when the run is complete, 130 or 143 when a signal ended it early (after a checkpoint).
    Raises UserError or another ValueError for a mistake of the user, StoppedError for a run that cannot go on.
    """
    workdir, quiet = Path(workdir), jax.process_index() != 0
    mesh = make_mesh(experiment)
    check(experiment, mesh)
    batches = data.open_train(experiment.data, experiment.training.batch, *sharding.process_rows(mesh))
    open_workdir(workdir, experiment)
    with jax.set_mesh(mesh), Checkpoints(workdir, experiment.training.keep) as checkpoints:
        state, first, finished = start(experiment, mesh, checkpoints, batches)
        steps = first if finished else experiment.optimizer.steps
        progress = Progress(first, steps, per_step(experiment), quiet, unit=data.unit(experiment.data))
        _announce(experiment, mesh, workdir, first, progress)
        metrics = NoMetrics() if quiet else Metrics(workdir, first)
        run = Run(experiment, mesh, batches, checkpoints, metrics, progress,
                  evaluate=lambda params: report.held_out(experiment, params, mesh, experiment.evaluation.batches)[1])
        begun = time.monotonic()
        try:
            state = state if finished else run_loop(run, state, first)
        finally:
            batches.close()
        done = int(state.step)
        if run.stopped_by:
            progress.say(f"stopped by {run.stopped_by} after step {done} of {steps}; saved in {workdir}; "
                         "the same command goes on from here")
            metrics.close()
            return {"SIGINT": 130}.get(run.stopped_by, 143)
        if first < done:
            early = f", held-out accuracy has reached {experiment.training.stop_at}" if done < steps else ""
            progress.say(f"trained {done - first} steps in {duration(time.monotonic() - begun)}{early}")
        report.final(experiment, state.params, done, mesh, workdir, metrics, progress.say)
        metrics.close()
    return 0


def make_mesh(experiment: Experiment) -> Mesh:
    """The mesh that the config asks for.

    In one process, data -1 leaves devices idle rather than refuse a batch that does not divide over all of them.
    """
    t = experiment.training
    data, rows = t.data, (t.batch // t.microbatches, experiment.evaluation.batch)
    if data == -1 and jax.process_count() == 1:
        most = sharding.mesh_sizes(-1, t.fsdp, t.tensor, jax.device_count())[0]
        fits = [n for n in range(1, most + 1) if all(count % (n * t.fsdp) == 0 for count in rows)]
        data = max(fits, default=-1)
    return sharding.make_mesh(data, t.fsdp, t.tensor)


def check(experiment: Experiment, mesh: Mesh) -> None:
    """Raise UserError, naming both numbers, where segment, batch, vocabulary or mesh do not fit each other."""
    functions_of(experiment.model).for_training(experiment.model, experiment.segment)
    t, groups = experiment.training, sharding.row_groups(mesh)
    for name, rows in ((f"training.batch {t.batch} / microbatches {t.microbatches} =", t.batch // t.microbatches),
                       ("evaluation.batch", experiment.evaluation.batch)):
        if rows % groups:
            raise UserError(f"{name} {rows} rows do not divide over {groups} parts of the mesh "
                            f"(data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})")
    symbols, kinds = data.vocabulary(experiment.data), experiment.model.vocabulary
    if symbols > kinds:
        what, field = ("classes", "classes") if data.targets(experiment.data) in ("classes", "shares") else ("symbols", "vocabulary")
        raise UserError(f"the data has {symbols} {what}, model.{field} is {kinds}; set --config.model.{field}={symbols}")
    state_shardings(experiment, mesh)


def start(experiment: Experiment, mesh: Mesh, checkpoints: Checkpoints, batches) -> tuple[TrainState, int, bool]:
    """The state to begin with, its step, and whether nothing is left to do: the newest checkpoint (the data goes on from there
    too), or a fresh state, with the parameters of another run where `training.start_from` names one."""
    if checkpoints.latest() is None:
        init = jax.jit(lambda key: init_train_state(experiment, key), out_shardings=state_shardings(experiment, mesh))
        state = init(jax.random.key(experiment.training.seed))
        return start_from(experiment, state), 0, False
    state, meta = checkpoints.restore(abstract_state(experiment, mesh))
    batches.set_state(meta["data"])
    if meta["step"] > experiment.optimizer.steps:
        raise UserError(f"the run has done {meta['step']} steps, optimizer.steps is {experiment.optimizer.steps}")
    return state, meta["step"], reached(experiment, meta.get("accuracy", 0.0))


def start_from(experiment: Experiment, state: TrainState) -> TrainState:
    """The fresh state with the newest parameters of the run directory `training.start_from`, where it is not empty.

    Raises UserError where there is no such run, or its model has other parameters.
    """
    folder = Path(experiment.training.start_from)
    if not experiment.training.start_from:
        return state
    specs = lambda e: functions_of(e.model).specs(e.model)
    theirs, ours = (pr.abstract(specs(e)) for e in (read_config(folder), experiment))
    if difference := pr.first_difference(theirs, ours):
        raise UserError(f"training.start_from={folder}: {difference}")
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.params)
    with Checkpoints(folder, keep=None) as checkpoints:
        params, _ = checkpoints.restore_params(wanted)
    # Values made from parameters, such as a first memory, must be those of the new ones.
    carry = functions_of(experiment.model).init_state(params, experiment.model, experiment.training.batch)
    carry = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), carry, state.carry)
    return state._replace(params=params, carry=carry)


def _announce(experiment: Experiment, mesh: Mesh, workdir: Path, first: int, progress: Progress) -> None:
    """What is about to happen, in a few lines."""
    specs = functions_of(experiment.model).specs(experiment.model)
    carry = functions_of(experiment.model).state_specs(experiment.model, experiment.training.batch)
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    progress.say(f"data   {data.describe(experiment.data)}")
    progress.say(f"model  {pr.count(specs):,} parameters, carry of {pr.size_bytes(carry) / 1e6:,.1f} MB")
    progress.say(f"mesh   {sizes} ({mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es))")
    where = f"continuing after step {first}" if first else "from the start"
    progress.say(f"run    {workdir}, {where}, {experiment.optimizer.steps} steps of {experiment.training.batch} x "
                 f"{experiment.data.sequence} {data.unit(experiment.data)}")
