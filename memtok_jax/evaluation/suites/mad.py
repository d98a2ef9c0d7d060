"""MAD: accuracy over labels, and over classes as the paper scores it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.data.tasks.scoring import IGNORED, macro_accuracy
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.suites import ACCURACY, of_tasks
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Accuracy over labels ("micro"), and the mean over batches of the mean over classes ("macro", published for batches of 128
    rows), on the held-out rows and on the validation rows. Raises UserError for a run on another task.

    Choose learning rates by the validation rows: the paper chooses them, and when to stop, by the rows that it scores.
    """
    of_tasks(experiment, "mad", ("mad",))
    for split in ("test", "valid"):
        micro, macro, count = scored(experiment, model, params, split)
        say(f"{experiment.data.task.task}, {split}: accuracy {micro:.4f} over {count:,} labels, {macro:.4f} over classes")
        yield (HEADLINE.name if split == "test" else "valid/accuracy"), micro
        yield ("eval" if split == "test" else "valid") + "/macro_accuracy", macro
    free = data.baselines(experiment.data, model.reach, model.segment)
    say("without a model: " + ", ".join(f"{name} {value:.4f}" for name, value in free.items()))
    yield from ((f"baseline/{name}", value) for name, value in free.items())


def scored(experiment: Experiment, model: Model, params: P.Tree, split: str) -> tuple[float, float, int]:
    """(micro, macro, number of labels) on one split."""
    cfg = replace(experiment.data, eval_split=split)
    right, macro, weights, nothing = 0, [], [], np.zeros(cfg.sequence, bool)
    for batch in data.open_eval(cfg, experiment.evaluation.batch):
        real = batch["length"] > 0
        labels = batch["targets"][real]
        said = greedy.answer(params, batch["inputs"], nothing, experiment.call_tokens, model=model)[real]
        at = labels != IGNORED
        right, weights = right + int((said == labels)[at].sum()), [*weights, int(at.sum())]
        macro.append(macro_accuracy(said, labels))
    return right / sum(weights), float(np.mean(macro)), sum(weights)
