"""A curriculum: runs on growing lengths, each begins with the parameters of the one before.

Recurrent memories are trained like this (arXiv 2304.11062, section 5; 2407.04841, section 4.1). `training.curriculum` holds the
lengths of the early stages; the last stage is the experiment itself, in the directory that was asked for, and stages before it
lie beside it. A stage ends after `optimizer.steps` or, for a task, when its held-out accuracy reaches `training.stop_at`. Each
stage is an ordinary run: killed and started again, the command goes on inside the stage that was not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from memtok_jax.training.experiment import Experiment


def stages(experiment: Experiment, workdir: Path) -> list[tuple[Experiment, Path]]:
    """The runs of an experiment and their directories, in order; without a curriculum the experiment alone."""
    out, before = [], experiment.training.start_from
    for tokens in (*experiment.training.curriculum, experiment.data.sequence):
        last = tokens == experiment.data.sequence
        folder = workdir if last else workdir.with_name(f"{workdir.name}-{tokens}")
        lengths = tuple(n for n in experiment.data.lengths if n <= tokens)
        data = experiment.data if last else replace(experiment.data, sequence=tokens, lengths=lengths)
        training = replace(experiment.training, curriculum=(), start_from=before)
        out.append((replace(experiment, data=data, training=training), folder))
        before = str(folder)
    return out


def train_stages(train: Callable[[Experiment, Path], int], experiment: Experiment, workdir: Path) -> int:
    """Run `train` on every stage until one does not return 0; returns the last status."""
    for stage, folder in stages(experiment, workdir):
        status = train(stage, folder)
        if status:
            return status
    return 0
