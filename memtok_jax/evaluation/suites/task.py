"""Tasks: accuracy at the length of training and at multiples of it, and answers that the model generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.analysis import figures
from memtok_jax.data import task
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.score import score_data
from memtok_jax.evaluation.suites import ACCURACY
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY
GENERATED = 256  # at most this many held-out samples are answered token by token


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Accuracy on held-out samples by length, beside baselines that need no training, and scores of generated answers."""
    trained = experiment.data.sequence
    lengths = [trained * multiple for multiple in experiment.evaluation.lengths]
    accuracy, free = [], []
    for length in lengths:
        cfg = replace(experiment.data, sequence=length)
        result = score_data(experiment, model, params, mesh, cfg, experiment.evaluation.batch)
        accuracy.append(result.accuracy)
        free.append(data.baselines(cfg, model.reach, model.segment))
        say(f"length {length} ({length / trained:g}x): accuracy {result.accuracy:.4f} on {result.count:,} targets; "
            + ", ".join(f"{name} {value:.4f}" for name, value in free[-1].items()))
        yield f"eval/accuracy_at_{length}", result.accuracy
        if length == trained:
            yield "eval/loss", result.loss
            yield HEADLINE.name, result.accuracy
            yield "eval/targets", result.count
            yield from ((f"baseline/{name}", value) for name, value in free[-1].items())
    yield from written_answers(experiment, model, params, say)
    if figures.available() and lengths:
        levels = {name: [values[name] for values in free] for name in free[0]}
        figures.by_length(workdir / "accuracy_by_length.png", lengths, accuracy, levels, trained,
                          f"{workdir.name}: held-out accuracy by length, {experiment.data.source}")


def written_answers(experiment: Experiment, model: Model, params: P.Tree,
                    say: Callable[[str], None]) -> Iterator[tuple[str, float]]:
    """Scores of answers that the model generates, by the rules of `greedy.py`; nothing for a task whose inputs have no answers."""
    cfg, rows = experiment.data, experiment.evaluation.batch
    answers, answer_right = task.answers(cfg), task.answer_right(cfg)
    if not answers.any():
        return
    batches = list(islice(data.open_eval(cfg, rows), -(-GENERATED // rows)))
    for rule in greedy.RULES if answer_right else ("strict", "published"):
        found = greedy.generated(params, batches, answers, experiment.call_tokens, rule, model=model, answer_right=answer_right)
        who = "with all before it shown" if rule == "shown" else f"written by the model, {rule}"
        say(f"{who}: " + ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in found.items()))
        yield from ((f"eval/{rule}_{name}", value) for name, value in found.items())
