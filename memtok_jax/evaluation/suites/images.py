"""Images: accuracy and loss on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.evaluation.score import score_data
from memtok_jax.evaluation.suites import ACCURACY
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Accuracy and loss on all held-out images, beside baselines that need no training."""
    cfg = experiment.data
    result = score_data(experiment, model, params, mesh, cfg, experiment.evaluation.batch)
    free = data.baselines(cfg, model.reach, model.segment)
    say(f"accuracy {result.accuracy:.4f}, loss {result.loss:.4f} on {result.count:,} images ({cfg.eval_split}); on the same images "
        + ", ".join(f"{name} {value:.4f}" for name, value in free.items()))
    yield "split", cfg.eval_split
    yield "eval/loss", result.loss
    yield HEADLINE.name, result.accuracy
    yield "eval/images", result.count
    yield from ((f"baseline/{name}", value) for name, value in free.items())
