"""DNA: accuracy and Matthews correlation over all held-out sequences, beside a k-mer ridge and the most frequent class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.data import dna_baselines
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.suites import ACCURACY
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Accuracy and Matthews correlation of the class with the highest output. Raises UserError for a run on other data."""
    cfg = experiment.data
    if data.suite(cfg) != "dna":
        raise UserError(f"suite 'dna' judges classes of DNA sequences, and this run is on {cfg.source}; leave out --suite")
    said, labels = [], []
    for batch in data.open_eval(cfg, experiment.evaluation.batch):
        real = batch["length"] > 0
        found = greedy.answer(params, batch["inputs"], np.zeros(cfg.sequence, bool), experiment.call_tokens, model=model)
        said.append(found[real, -1])
        labels.append(batch["targets"][real, -1])
    said, labels = np.concatenate(said), np.concatenate(labels)
    accuracy, correlation = float((said == labels).mean()), dna_baselines.matthews(said, labels)
    say(f"{cfg.source}, {cfg.eval_split}: accuracy {accuracy:.4f}, Matthews correlation {100 * correlation:.2f} (x 100) over "
        f"{len(labels):,} sequences")
    yield "split", cfg.eval_split
    yield HEADLINE.name, accuracy
    yield "eval/matthews", correlation
    yield "eval/sequences", len(labels)
    for name, (free, matthews) in dna_baselines.scores(cfg).items():
        say(f"    {name}: {free:.4f}, {100 * matthews:.2f}")
        yield f"baseline/{name}", free
        yield f"baseline/{name}_matthews", matthews
