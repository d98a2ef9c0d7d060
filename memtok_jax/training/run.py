"""One training run from a config to its report: everything that `train.py` does after reading its flags."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from memtok_jax import data, sharding
from memtok_jax import params as pr
from memtok_jax.compiler import once_options
from memtok_jax.config import UserError
from memtok_jax.models.protocol import bind
from memtok_jax.training import average, longer, machine, report, retrofit, writers
from memtok_jax.training.best import Best, NoBest
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.experiment import Experiment, check_vocabulary
from memtok_jax.training.loop import Kept, Run, evaluated, reached, run_loop
from memtok_jax.training.metrics import Metrics, NoMetrics
from memtok_jax.training.progress import Progress, duration
from memtok_jax.training.run_folder import RunFolder, read_config, refuse_foreign
from memtok_jax.training.step import TrainState, Update, abstract_state, init_train_state, state_shardings, update_of


def train(experiment: Experiment, workdir: Path) -> int:
    """Train, or continue the run of this directory, and report.

    Returns the exit status: 0 when the run is complete, 130 or 143 when a signal ended it early (after a checkpoint).
    Raises UserError for a mistake of the user, StoppedError for a run that cannot go on.
    """
    workdir, update = Path(workdir), update_of(experiment, bind(experiment.model))
    refuse_foreign(workdir)
    machine.refuse_what_cannot_fit(update)
    mesh = make_mesh(experiment)
    check(experiment, update, mesh)
    for line in machine.warnings(update, update.batch * experiment.data.sequence):
        _note(line)
    batches = data.open_train(experiment.data, experiment.training.batch, *sharding.process_rows(mesh))
    keeper = Best(workdir, experiment.training.keep_best) if experiment.training.keep_best else NoBest()
    with (RunFolder(workdir, experiment), jax.set_mesh(mesh), Checkpoints(workdir, experiment.training.keep) as checkpoints,
          longer.open_stable(workdir) as stable, keeper as best):
        start = begin(update, experiment, mesh, checkpoints, stable, batches)
        run = _prepare(experiment, update, mesh, workdir, batches, Kept(checkpoints, stable, best), start)
        began = time.monotonic()
        try:
            state = start.state if start.finished else run_loop(run, start.state, start.step)
        finally:
            batches.close()
        status = _finish(run, state, workdir, start.step, time.monotonic() - began)
        run.metrics.close()
    return status


def _prepare(experiment: Experiment, update: Update, mesh: Mesh, workdir: Path, batches: Any, kept: Kept, start: Start) -> Run:
    """What the loop works with, after saying what is about to happen."""
    quiet = jax.process_index() != 0
    steps = start.step if start.finished else experiment.optimizer.steps
    progress = Progress(start.step, steps, quiet, unit=data.unit(experiment.data))
    _announce(experiment, update, mesh, workdir, start.step, progress)
    metrics = NoMetrics() if quiet else Metrics(workdir, start.step or -1, experiment.training.writers)
    if not start.step and (facts := data.facts(experiment.data)):
        metrics.write(0, facts)
    return Run(experiment, update, mesh, batches, kept, metrics, progress, tokens=start.tokens,
               evaluate=lambda params: report.held_out(experiment, update.model, params, mesh, experiment.evaluation.batches)[1])


def _finish(run: Run, state: TrainState, workdir: Path, first: int, seconds: float) -> int:
    """Say how the loop ended, and report if the run is complete; returns the exit status."""
    done, steps, say = int(state.step), run.experiment.optimizer.steps, run.progress.say
    if run.stopped_by:
        say(f"stopped by {run.stopped_by} after step {done} of {steps}; saved in {workdir}; the same command goes on from here")
        return {"SIGINT": 130}.get(run.stopped_by, 143)
    if first < done:
        early = f", held-out accuracy has reached {run.experiment.training.stop_at}" if done < steps else ""
        say(f"trained {done - first} steps in {duration(seconds)}{early}")
    say("scoring all held-out data (compiled for it first)")
    report.final(run.experiment, run.update.model, evaluated(state), done, run.mesh, workdir, run.metrics, say)
    return 0


def _note(line: str) -> None:
    """Print a line about something unusual, once."""
    if jax.process_index() == 0:
        print(f"note   {line}", flush=True)


def make_mesh(experiment: Experiment) -> Mesh:
    """The mesh that the config asks for.

    In one process, data -1 leaves devices idle rather than refuse a batch that does not divide over all of them.
    """
    t = experiment.training
    size = t.data
    if size == -1 and jax.process_count() == 1:
        sharding.mesh_sizes(-1, t.fsdp, t.tensor, jax.device_count())  # refuses axes that do not divide the devices
        size = sharding.data_axis(jax.device_count(), t.fsdp, t.tensor, rows_at_once(experiment))
    return sharding.make_mesh(size, t.fsdp, t.tensor)


def rows_at_once(experiment: Experiment) -> tuple[int, int]:
    """Rows that go through the model together, in training and in evaluation; the mesh divides both."""
    return experiment.training.batch // experiment.training.microbatches, experiment.evaluation.batch


def check(experiment: Experiment, update: Update, mesh: Mesh) -> None:
    """Raise UserError, naming both numbers, where call, batch, vocabulary or mesh do not fit each other."""
    model, t, groups = update.model, experiment.training, sharding.row_groups(mesh)
    if update.call_tokens % model.call_tokens:
        raise UserError(f"a call has {update.call_tokens} tokens (training.call_tokens, or data.sequence if that is 0); this model "
                        f"needs a multiple of {model.call_tokens}")
    for name, rows in zip((f"training.batch {t.batch} / microbatches {t.microbatches} =", "evaluation.batch"),
                          rows_at_once(experiment), strict=True):
        if rows % groups:
            raise UserError(f"{name} {rows} rows do not divide over {groups} parts of the mesh "
                            f"(data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})")
    writers.refuse_missing(t.writers)
    check_vocabulary(experiment, model)
    state_shardings(update, mesh)


class Start(NamedTuple):
    """Where a run begins."""

    state: TrainState
    step: int        # updates done
    tokens: int      # tokens or images read
    finished: bool   # nothing is left to do


def begin(update: Update, experiment: Experiment, mesh: Mesh, checkpoints: Checkpoints, stable: Checkpoints, batches) -> Start:
    """The checkpoint to go on from (`longer.resume`), with the data at its place; or a fresh state, with the parameters of another
    run if `training.start_from` names one."""
    if checkpoints.latest() is None and stable.latest() is None:
        init = jax.jit(lambda key: init_train_state(update, key), out_shardings=state_shardings(update, mesh),
                       compiler_options=once_options(mesh.devices.flat[0].platform))
        state = init(jax.random.key(experiment.training.seed))
        folder = experiment.training.start_from
        begun = retrofitted if experiment.training.retrofit else start_from
        return Start(begun(Path(folder), update, state) if folder else state, 0, 0, False)
    state, meta = longer.resume(experiment, abstract_state(update, mesh), checkpoints, stable, _note)
    batches.set_state(meta["data"])
    if meta["step"] > experiment.optimizer.steps:
        raise UserError(f"the run has done {meta['step']} steps, optimizer.steps is {experiment.optimizer.steps}")
    return Start(state, meta["step"], meta["tokens"], reached(experiment, meta["accuracy"]))


def start_from(folder: Path, update: Update, state: TrainState) -> TrainState:
    """The fresh state with the newest parameters of the run directory `folder`.

    Raises UserError if there is no such run, or if its model has other parameters.
    """
    theirs, ours = (pr.abstract(model.specs()) for model in (bind(read_config(folder).model), update.model))
    if difference := pr.first_difference(theirs, ours):
        raise UserError(f"training.start_from={folder}: {difference}")
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.params)
    with Checkpoints(folder, keep=None) as checkpoints:
        params, _ = checkpoints.restore_params(wanted)
    return with_params(state, params, update)


def retrofitted(folder: Path, update: Update, state: TrainState) -> TrainState:
    """The fresh state with the parameters of the model in `folder`, a run or a pretrained model, beside those of its new memory.

    A run whose model has the memory already (an earlier stage) gives all of its parameters.
    """
    cfg = update.model.cfg
    if retrofit.has_memory(folder, cfg):
        return start_from(folder, update, state)
    source = retrofit.base_config(folder, cfg)
    if retrofit.around(cfg, source) != cfg:
        raise UserError(f"training.start_from={folder} holds another model than the one that this run was begun with")
    mesh = jax.tree.leaves(state.params)[0].sharding.mesh
    params = retrofit.graft(state.params, cfg, retrofit.base_params(folder, source, cfg, mesh), source)
    placed = jax.tree.map(lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), params, state.params)
    return with_params(state, placed, update)


def with_params(state: TrainState, params: pr.Tree, update: Update) -> TrainState:
    """The state with other parameters. Leaves derived from parameters, such as a first memory, become those of the new ones."""
    carry = update.model.init_state(params, update.batch)
    return state._replace(params=params, carry=jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), carry, state.carry),
                          average=average.begin(update.optimizer.ema, params))


def _announce(experiment: Experiment, update: Update, mesh: Mesh, workdir: Path, first: int, progress: Progress) -> None:
    """What is about to happen, in a few lines."""
    model = update.model
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    progress.say(f"data   {data.describe(experiment.data)}")
    progress.say(f"model  {pr.count(model.specs()):,} parameters, carry of "
                 f"{pr.size_bytes(model.state_specs(update.batch)) / 1e6:,.1f} MB")
    progress.say(f"mesh   {sizes} ({mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es))")
    where = f"continuing after step {first}" if first else "from the start"
    progress.say(f"run    {workdir}, {where}, {experiment.optimizer.steps} steps of {update.batch} x "
                 f"{experiment.data.sequence} {data.unit(experiment.data)}")
