"""A run that is made longer: does it go on as if it had been so long from the start?

It does if the learning rate of every update that it has done is that of the longer run: under "constant" always, under "cosine"
never, and under "wsd" up to where the fall begins. The state there is kept in the folder `stable`, so that a finished run goes on
from it; the checkpoints of the fall are set aside, not lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import config
from memtok_jax.training.checkpoint import STABLE_FOLDER, Checkpoints
from memtok_jax.training.experiment import Experiment, OptimizerConfig
from memtok_jax.training.optimizer import schedule
from memtok_jax.training.step import TrainState


def fall_begins(cfg: OptimizerConfig) -> int:
    """Updates before the fall of "wsd"; 0 for other schedules."""
    return cfg.steps - cfg.decay_steps if cfg.schedule == "wsd" else 0


def first_other_rate(old: OptimizerConfig, new: OptimizerConfig, done: int) -> int:
    """Number, from 0, of the first of `done` updates whose learning rate differs; `done` if none does."""
    differ = np.flatnonzero(rates(old, done) != rates(new, done))
    return int(differ[0]) if len(differ) else done


def rates(cfg: OptimizerConfig, count: int) -> np.ndarray:
    """f32[count]: learning rates of the first updates."""
    one = schedule(cfg)
    return np.asarray(jax.jit(jax.vmap(lambda n: jnp.asarray(one(n), jnp.float32)))(jnp.arange(count)))


def resume(experiment: Experiment, abstract: TrainState, newest: Checkpoints, stable: Checkpoints,
           say: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]]:
    """State and meta from which the run goes on; at least one of the two folders must hold a checkpoint.

    Sets the newest checkpoints aside if they belong to a fall that the run no longer has there. Says in one line what a reader of
    the results must know. Raises UserError as `Checkpoints.restore` does.
    """
    new = experiment.optimizer
    if newest.latest() is None:
        say(f"going on from {stable.folder}: there is no newer checkpoint")
        return stable.restore(abstract)
    meta = newest.meta()
    done, old = meta["step"], config.from_dict(meta["config"]).optimizer
    if done > new.steps or (first := first_other_rate(old, new, done)) == done:
        return newest.restore(abstract)
    if _fits(stable, new):
        before, aside = stable.meta()["step"], newest.set_aside(f"{newest.folder.name}-{done}")
        say(f"the learning rate fell after step {before}; going on from there as one run of {new.steps} steps would, the "
            f"checkpoints of the fall are in {aside}")
        return stable.restore(abstract)
    say(_difference(old, new, first, done))
    return newest.restore(abstract)


def _fits(stable: Checkpoints, new: OptimizerConfig) -> bool:
    """Whether the state before the fall is one of the longer run."""
    if stable.latest() is None:
        return False
    meta = stable.meta()
    step = meta["step"]
    return step <= new.steps and first_other_rate(config.from_dict(meta["config"]).optimizer, new, step) == step


def _difference(old: OptimizerConfig, new: OptimizerConfig, first: int, done: int) -> str:
    changed = ", ".join(f"{field.name} {getattr(old, field.name)} to {getattr(new, field.name)}" for field in
                        dataclasses.fields(new) if getattr(old, field.name) != getattr(new, field.name))
    last, following = rates(old, done)[-1], rates(new, done + 1)[-1]
    return (f"the optimizer changed ({changed}), and under {new.schedule!r} that changes the learning rate from step {first + 1} "
            f"on: it was {last:.3g} and goes on at {following:.3g}, which is not what one run of {new.steps} steps would have done")


def open_stable(workdir: Any) -> Checkpoints:
    """The folder for the state before a fall."""
    return Checkpoints(workdir, 1, STABLE_FOLDER)


def keep_stable(stable: Checkpoints, state: TrainState, meta: dict[str, Any]) -> None:
    """Write the state before the fall; it takes the place of an earlier one."""
    stable.save(state, meta, 1 + (stable.latest() or 0))
