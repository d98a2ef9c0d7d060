"""The loop: one update after the other, and what happens every so many of them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from memtok_jax import config, data, sharding
from memtok_jax.config import StoppedError
from memtok_jax.training import average, longer
from memtok_jax.training.best import Best, NoBest
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.progress import Progress
from memtok_jax.training.step import Batch, TrainState, Update, compile_step


class Signals:
    """Turns the first SIGTERM or SIGINT into a wish to stop; a second one ends the process at once."""

    def __init__(self):
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _note(self, number: int, _frame: Any) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Kept(NamedTuple):
    """Where states are kept: the newest ones, that before a fall of the learning rate, and the best one."""

    newest: Checkpoints
    stable: Checkpoints
    best: Best | NoBest


@dataclass
class Run:
    """What the loop works with, and what it has seen.

    evaluate: function params -> flat names and numbers.
    tokens: tokens or images read so far, over all devices.
    stopped_by: the signal that ended the loop.
    skipped: updates in a row, up to the last one reported, that were not finite.
    first_done: the first update has been reported.
    accuracy: the last one measured on held-out data.
    """

    experiment: Experiment
    update: Update
    mesh: Mesh
    batches: Any
    kept: Kept
    metrics: Any
    progress: Progress
    evaluate: Callable[[Any], dict[str, float]]
    tokens: int = 0
    stopped_by: str | None = None
    skipped: int = 0
    first_done: bool = False
    accuracy: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the held-out accuracy has reached `training.stop_at`."""
        return reached(self.experiment, self.accuracy)


def reached(experiment: Experiment, accuracy: float) -> bool:
    """Whether an accuracy is the goal of the run; a goal of 0 is never reached."""
    return 0 < experiment.training.stop_at <= accuracy


def run_loop(run: Run, state: TrainState, first: int) -> TrainState:
    """Updates `first + 1` to the last. Returns the state after the last update done.

    The numbers of one update are fetched while the next one runs. A wish to stop is granted between two updates,
    after a checkpoint; `run.stopped_by` then names the signal.
    Raises StoppedError where too many updates in a row are not finite.
    """
    training, steps = run.experiment.training, run.experiment.optimizer.steps
    train_step = compile_step(run.update, run.mesh)
    waiting: list[tuple[int, int, dict[str, jax.Array]]] = []
    step = first
    run.progress.say("compiling the training step")
    with Signals() as signals:
        while step < steps:
            batch = _placed(next(run.batches), run.mesh)
            state, numbers = train_step(state, batch)
            step, run.tokens = step + 1, run.tokens + run.update.batch * batch.targets.shape[1]
            _report_all(run, waiting)
            waiting.append((step, run.tokens, numbers))
            if step == first + 1 or step == steps or _due(step, training.eval_every):
                _report_all(run, waiting)
            if _due(step, training.eval_every) and step < steps:
                _evaluate(run, state, step)
            if step == steps and training.keep_best:
                _offer_last(run, state, step)
            if _stop_agreed(signals, step, training.log_every):
                run.stopped_by = signals.received or "another process"
            if step == longer.fall_begins(run.experiment.optimizer):
                _report_all(run, waiting)
                _save_stable(run, state, step)
            if run.stopped_by or run.finished or step == steps or _due(step, training.checkpoint_every):
                _report_all(run, waiting)
                _save(run, state, step)
            if run.stopped_by or run.finished:
                break
    run.kept.newest.wait()
    run.kept.stable.wait()
    return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _placed(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    return Batch(*(sharding.place_own_rows(mesh, batch[name]) for name in Batch._fields))


def _save(run: Run, state: TrainState, step: int) -> None:
    """Write a checkpoint, unless the last update was not finite: its parameters may be what made it so."""
    if run.skipped:
        return
    run.progress.pause()
    run.kept.newest.save(state, _meta(run, step))
    run.progress.resume()


def _save_stable(run: Run, state: TrainState, step: int) -> None:
    """Write the state before the fall, as `_save`."""
    if not run.skipped:
        longer.keep_stable(run.kept.stable, state, _meta(run, step))


def _meta(run: Run, step: int) -> dict[str, Any]:
    return {"step": step, "tokens": run.tokens, "config": config.to_dict(run.experiment), "data": run.batches.get_state(),
            "accuracy": run.accuracy}


def _report_all(run: Run, waiting: list[tuple[int, int, dict[str, jax.Array]]]) -> None:
    """Report the updates that wait, and empty the list."""
    while waiting:
        _report(run, *waiting.pop(0))


def _report(run: Run, step: int, tokens: int, numbers: dict[str, jax.Array]) -> None:
    """Fetch the numbers of an update, log them if due, and stop the run if it has gone wrong. tokens: read by then."""
    values = {name: float(value) for name, value in jax.device_get(numbers).items()}
    if not run.first_done:
        run.first_done = True
        run.progress.first_step_done(tokens)
    run.skipped = int(values["skipped"])
    if run.skipped > run.experiment.optimizer.max_skipped:
        raise StoppedError(_not_finite(run, step, values))
    steps, every = run.experiment.optimizer.steps, run.experiment.training.log_every
    if not (_due(step, every) or step == steps):
        return
    rate, unit = run.progress.rate(tokens), data.unit(run.experiment.data)
    run.metrics.write(step, {f"train/{name}": value for name, value in values.items()}
                      | {f"train/{unit}_per_second": rate, f"train/{unit}_seen": float(tokens)})
    run.progress.show(step, values["loss"], rate)


def _not_finite(run: Run, step: int, values: dict[str, float]) -> str:
    name = "loss" if not np.isfinite(values["loss"]) else "gradient_norm"
    run.kept.newest.wait()
    # The parameters after update n were good if update n + 1 was finite.
    good = [s for s in run.kept.newest.steps() if s < step - run.skipped]
    where = f"the last good checkpoint is {run.kept.newest.folder / str(good[-1])}" if good else "no checkpoint is good"
    return (f"train/{name} is {values[name]} at step {step}, after {run.skipped} updates in a row that were not finite "
            f"(and were left out); {where}")


def _evaluate(run: Run, state: TrainState, step: int) -> None:
    run.progress.pause()
    values = run.evaluate(evaluated(state))
    run.metrics.write(step, values)
    run.accuracy = values.get("eval/accuracy", 0.0)
    best = run.kept.best.offer(state, values, _meta(run, step))
    shown = [f"{name} {value:.4f}" for name, value in values.items() if name.startswith("eval/")]
    run.progress.say("  ".join([f"step {step}", *shown, *([best] if best else [])]))
    run.progress.resume()


def _offer_last(run: Run, state: TrainState, step: int) -> None:
    """Measure the last update as those before, to compare it with them; the report of the run follows."""
    said = run.kept.best.offer(state, run.evaluate(evaluated(state)), _meta(run, step))
    run.progress.say(f"step {step}  {said or f'{run.experiment.training.keep_best} was better before'}")


def evaluated(state: TrainState) -> Any:
    """The parameters that are evaluated: their average if the run keeps one."""
    return average.used(state.average, state.params)


def _stop_agreed(signals: Signals, step: int, every: int) -> bool:
    """Whether any process was told to stop. Several processes ask each other at the same steps only."""
    if jax.process_count() == 1:
        return signals.received is not None
    if not _due(step, every):
        return False
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(signals.received is not None)).any())
