"""State tracking: rows whose products, or values of expressions, are all right, by length, and where a model loses track."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    """At each of `evaluation.lengths` times the trained length: the share of rows whose answers are all right and accuracy; then
    accuracy by position, and the first position where it is below 0.9.

    If every product is scored, rows of the longest length give all of this; if only the last one is, each length has rows of its
    own, and the positions are their ends. Raises UserError for a run on another task.
    """
    of_tasks(experiment, "state_tracking", ("state_tracking", "modular_arithmetic"))
    trained, multiples = experiment.data.sequence, sorted(experiment.evaluation.lengths)
    cfg = replace(experiment.data, sequence=trained * multiples[-1], lengths=(), train_samples=0)
    found = by_length(experiment, model, params, cfg, [trained * multiple for multiple in multiples])
    chance = task.baselines(replace(cfg, sequence=trained), model.reach, model.segment)
    for multiple, right in zip(multiples, found.right, strict=True):
        whole, symbols = float(right.all(1).mean()), float(right.mean())
        say(f"{cfg.task.title}, {trained * multiple} tokens ({multiple}x): {whole:.4f} of {len(right):,} rows right throughout; "
            f"accuracy {symbols:.4f}, at the last position {right[:, -1].mean():.4f}")
        yield f"eval/whole_rows_at_{trained * multiple}", whole
        yield f"eval/accuracy_at_{trained * multiple}", symbols
    at, by_position = found.at, found.accuracy
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
                       "tokens read", "accuracy", f"{workdir.name}: {cfg.task.title}, trained on {trained} tokens")


class Found(NamedTuple):
    """right: bool[rows, n] for each length, at its scored positions. at, accuracy: int[N], f[N], of all scored positions."""

    right: list[np.ndarray]
    at: np.ndarray
    accuracy: np.ndarray


def by_length(experiment: Experiment, model: Model, params: P.Tree, cfg: task.TaskConfig, lengths: list[int]) -> Found:
    """Answers of rows of the longest length, cut at each length; or, if the last one alone is scored, of rows of each length."""
    if cfg.task.scored == "every":
        right, at = judged(experiment, model, params, cfg)
        return Found([right[:, at < length] for length in lengths], at, right.mean(0))
    rights, places = zip(*(judged(experiment, model, params, replace(cfg, sequence=length)) for length in lengths), strict=True)
    return Found(list(rights), np.concatenate(places), np.array([right.mean() for right in rights]))


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
