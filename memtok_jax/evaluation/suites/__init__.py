"""Evaluation suites as plug-ins: one file each, found by its name. The source of the data names its suite (`SUITE`).

A suite has

    HEADLINE                                                      the number by which a run is judged, see `Headline`
    run(experiment, model, params, mesh, workdir, say)            yields (name, value) pairs for the result file

`run` writes figures into `workdir`, if matplotlib is installed, and says in a few lines what it has found. Names with a slash are
numbers for `metrics.jsonl`; others may be lists or texts. model: a bound `Model`. params: lie on `mesh`. say: takes a line of text.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from memtok_jax.config import UserError, choose


class Headline(NamedTuple):
    """The number by which a run is judged.

    name: in `metrics.jsonl` and the result file. label: for axes, with its unit. of: Score -> the number. train: the column of
    `metrics.jsonl` that shows it while training. scale: factor from that column to the number.
    """

    name: str
    label: str
    of: Callable[[Any], float]
    train: str
    scale: float = 1.0


ACCURACY = Headline("eval/accuracy", "accuracy (share of targets)", lambda score: score.accuracy, "train/accuracy")


def of_tasks(experiment: Any, suite: str, known: tuple[str, ...]) -> str:
    """Name of the task of an experiment. Raises UserError if it is none of the tasks that a suite is for."""
    task = experiment.data.source.removeprefix("task:")
    if task not in known:
        raise UserError(f"suite {suite!r} judges a model on task:{' or task:'.join(known)}, and this run is on "
                        f"{experiment.data.source}; leave out --suite, or give --data=task:{known[0]}")
    return task


def names() -> tuple[str, ...]:
    """Names of the suites: the files of this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def suite_named(name: str) -> ModuleType:
    """The suite in the file `name`. Raises UserError with the nearest right name."""
    choose("suite", name, names())
    return importlib.import_module(f"{__name__}.{name}")
