"""A curriculum: easier runs come first, each begins with the parameters of the one before.

Recurrent memories are trained like this (arXiv 2304.11062, section 5; 2407.04841, section 4.1). `training.curriculum` holds what
differs in each of the early stages, as on the command line ("data.sequence=24 model.segment=8"); the last stage is the experiment
itself, in the directory that was asked for, and stages before it lie beside it. A stage ends after `optimizer.steps` or, for a
task, when its held-out accuracy reaches `training.stop_at`. Each stage is an ordinary run: killed and started again, the command
goes on inside the stage that was not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from memtok_jax.training.experiment import Experiment, stage


def stages(experiment: Experiment, workdir: Path) -> list[tuple[Experiment, Path]]:
    """The runs of an experiment and their directories, in order; without a curriculum the experiment alone."""
    early = [(stage(experiment, text), workdir.with_name(f"{workdir.name}-stage{number}"))
             for number, text in enumerate(experiment.training.curriculum, 1)]
    out, before = [], experiment.training.start_from
    for one, folder in (*early, (stage(experiment, ""), workdir)):
        out.append((replace(one, training=replace(one.training, start_from=before)), folder))
        before = str(folder)
    return out


def train_stages(train: Callable[[Experiment, Path], int], experiment: Experiment, workdir: Path) -> int:
    """Run `train` on every stage until one does not return 0; returns the last status."""
    for one, folder in stages(experiment, workdir):
        status = train(one, folder)
        if status:
            return status
    return 0
