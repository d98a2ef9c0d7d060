"""RULER: references found in answers that the model writes, by task and length."""

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
from memtok_jax.data.ruler_texts import match_all
from memtok_jax.data.tasks import codec, ruler
from memtok_jax.data.tasks.seeds import SPLITS
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.suites import ACCURACY, of_tasks
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """For each task of the run and each length: the mean share of references that occur in the answers to `eval_samples` rows.

    Raises UserError for a run on another task.
    """
    of_tasks(experiment, "ruler", ("ruler",))
    lengths = [experiment.data.sequence * n for n in experiment.evaluation.lengths]
    cells = []
    for name in experiment.data.task.tasks:
        cells.append([score(experiment, model, params, name, length) for length in lengths])
        say(f"{name}: " + ", ".join(f"{length} tokens {share:.4f}" for length, share in zip(lengths, cells[-1], strict=True)))
        yield from ((f"eval/{name}_at_{length}", share) for length, share in zip(lengths, cells[-1], strict=True))
    for n, length in enumerate(lengths):
        yield f"eval/mean_at_{length}", float(np.mean([line[n] for line in cells]))
        if length == experiment.data.sequence:
            yield HEADLINE.name, float(np.mean([line[n] for line in cells]))
    if figures.available():
        figures.grids(workdir / "ruler.png", {"references found": cells}, lengths, experiment.data.task.tasks, "length (tokens)",
                      "", workdir.name)


def score(experiment: Experiment, model: Model, params: P.Tree, name: str, length: int) -> float:
    """Mean share of references found in the answers to one task at one length."""
    one = replace(experiment.data.task, tasks=(name,))
    cfg = replace(experiment.data, task=one, sequence=length, lengths=(), train_samples=0)
    back, begin, made, found = task.answers(cfg), length - ruler.room(one), codec.codec(one.tokenizer), []
    for batch in data.open_eval(cfg, min(experiment.evaluation.batch, cfg.eval_samples)):
        said = greedy.answer(params, batch["inputs"], back, experiment.call_tokens, model=model)
        for ids, number in zip(said[:, begin - 1:-1], batch["document"], strict=True):
            if number >= 0:
                answers = ruler.example(one, name, length, SPLITS[cfg.eval_split] + int(number)).answers
                found.append(match_all(text_of(ids, made), answers))
    return float(np.mean(found))


def text_of(ids: np.ndarray, made: codec.Codec) -> str:
    """What was said up to the sign of the end."""
    end = np.flatnonzero(ids == made.end)
    return made.decode(ids[:end[0]] if len(end) else ids)
