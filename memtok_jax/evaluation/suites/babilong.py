"""BABILong: answers that the model writes, right as whole texts, by task and length."""

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
from memtok_jax.data import babi, task
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.suites import ACCURACY, of_tasks
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY
ABOUT_PLACES = ("qa1", "qa2", "qa3")


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """For each task and each length: share of the first `eval_samples` questions whose answer is written exactly, up to its end,
    beside the most frequent answer of the training questions and, where answers are places, the one that was mentioned last. Raises
    UserError for a run on another task.
    """
    of_tasks(experiment, "babilong", ("babilong",))
    settings, lengths = experiment.data.task, [experiment.data.sequence * n for n in experiment.evaluation.lengths]
    cells = []
    for name in settings.tasks:
        cells.append([])
        for length in lengths:
            cfg = replace(experiment.data, task=replace(settings, tasks=(name,)), sequence=length, lengths=(), train_samples=0)
            batches = data.open_eval(cfg, min(experiment.evaluation.batch, cfg.eval_samples))
            found = greedy.generated(params, batches, task.answers(cfg), experiment.call_tokens, "strict", model=model)
            cells[-1].append(found["exact_match"])
            yield f"eval/{name}_exact_at_{length}", found["exact_match"]
        held_out = babi.questions(settings.facts, name, experiment.data.eval_split)
        free = {"majority": babi.majority(babi.questions(settings.facts, name, "train"), held_out)}
        if name in ABOUT_PLACES:
            free["last_place"] = float(np.mean([babi.last_place(q.facts) == q.answer for q in held_out]))
        say(f"{name}, whole answers written: " + ", ".join(f"{length} tokens {share:.4f}"
                                                           for length, share in zip(lengths, cells[-1], strict=True))
            + "; without a model " + ", ".join(f"{rule} {share:.4f}" for rule, share in free.items()))
        yield from ((f"baseline/{name}_{rule}", share) for rule, share in free.items())
    if experiment.data.sequence in lengths:
        yield HEADLINE.name, float(np.mean([line[lengths.index(experiment.data.sequence)] for line in cells]))
    if figures.available():
        figures.grids(workdir / "babilong.png", {"whole answers": cells}, lengths, settings.tasks, "length (tokens)", "",
                      workdir.name)
