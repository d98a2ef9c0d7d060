"""State tracking: rows whose products are all right, by length, and where a model loses track."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.analysis import figures
from memtok_jax.data import task
from memtok_jax.data.tasks.scoring import IGNORED
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.suites import ACCURACY, of_tasks
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY
LOST = 0.9   # a model has lost track where its accuracy falls below this


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Over rows of the longest of `evaluation.lengths` times the trained length: the share of rows whose products are all right up
    to each of these lengths, accuracy at each position, and the first position where that is below 0.9. Raises UserError for a run
    on another task.
    """
    of_tasks(experiment, "state_tracking", ("state_tracking",))
    trained, multiples = experiment.data.sequence, sorted(experiment.evaluation.lengths)
    cfg = replace(experiment.data, sequence=trained * multiples[-1], lengths=(), train_samples=0)
    right, at = judged(experiment, model, params, cfg)
    by_position = right.mean(0)
    chance = task.baselines(replace(cfg, sequence=trained), model.reach, model.segment)
    for multiple in multiples:
        inside = at < trained * multiple
        whole, symbols = float(right[:, inside].all(1).mean()), float(by_position[inside].mean())
        say(f"{cfg.task.group}, {trained * multiple} tokens ({multiple}x): {whole:.4f} of {len(right):,} rows right throughout; "
            f"accuracy {symbols:.4f}, at the last position {by_position[inside][-1]:.4f}")
        yield f"eval/whole_rows_at_{trained * multiple}", whole
        yield f"eval/accuracy_at_{trained * multiple}", symbols
    yield HEADLINE.name, float(by_position[at < trained].mean())
    lost = np.flatnonzero(by_position < LOST)
    place = int(at[lost[0]]) if len(lost) else cfg.sequence
    say(f"accuracy is first below {LOST} at token {place}" if len(lost) else f"accuracy is nowhere below {LOST}")
    say(f"at {trained} tokens, without a model: " + ", ".join(f"{name} {value:.4f}" for name, value in chance.items()))
    yield "eval/first_lost", place
    yield from ((f"baseline/{name}", value) for name, value in chance.items())
    yield "by_position", by_position.tolist()
    if figures.available():
        figures.curves(workdir / "state_tracking.png", {"model": (at + 1, by_position)}, {"chance": chance["chance"]},
                       "tokens read", "accuracy", f"{workdir.name}: {cfg.task.group}, trained on {trained} tokens")


def judged(experiment: Experiment, model: Model, params: P.Tree, cfg: task.TaskConfig) -> tuple[np.ndarray, np.ndarray]:
    """(right bool[rows, N] at each scored position, positions int[N])."""
    right, nothing = [], np.zeros(cfg.sequence, bool)
    for batch in data.open_eval(cfg, min(experiment.evaluation.batch, cfg.eval_samples)):
        real = batch["length"] > 0
        labels = batch["targets"][real]
        said = greedy.answer(params, batch["inputs"], nothing, experiment.call_tokens, model=model)[real]
        at = np.flatnonzero((labels != IGNORED).all(0))
        right.append((said == labels)[:, at])
    return np.concatenate(right), at
