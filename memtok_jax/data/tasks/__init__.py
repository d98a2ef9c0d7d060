"""Generators of tasks with a known answer: pure numpy functions of (settings, length, batch, seed).

Each file holds a frozen dataclass of settings, named like the file (`CopyConfig` in `copy.py`), and the functions

    vocabulary(cfg) -> int                          number of tokens
    symbols(cfg) -> tuple of str                    a readable name for each token
    check(cfg, sequence)                            raises DataError if the length cannot hold the task
    sample(cfg, sequence, batch, seed) -> Sample    seed: any non-negative integer; its range says whether the samples are for
                                                    training, see `seeds.py`
    answers(cfg, sequence) -> bool[T]               inputs that are answers: a model that writes by itself reads its own there.
                                                    Answers that differ in length leave places behind the shorter ones, unscored
    chance(cfg, sequence) -> dict                   accuracy of rules that need no evidence: name -> number

and, if the task has them,

    reader(cfg, sequence, first) -> float           expected accuracy of the best reader who sees, at position t, the tokens from
                                                    first[t] to t. first: int[T]
    answer_right(predicted, labels) -> bool[B]      of a task whose answer is a part of what is predicted, both int[B, T]

A file in this folder is a task: nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from memtok_jax.data.errors import DataError, nearest

HELPERS = ("codec", "haystack", "scoring", "seeds", "words")


def names() -> tuple[str, ...]:
    """Names of the tasks: the files of this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS))


def module_named(name: str) -> ModuleType:
    """The task in the file `name`. Raises DataError with the nearest right name."""
    if name not in names():
        raise DataError(f"unknown task '{name}', known: {', '.join(names())}{nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")


def settings_named(name: str) -> Any:
    """The settings of a task, all at their defaults."""
    kind = "".join(word.capitalize() for word in name.split("_")) + "Config"
    return getattr(module_named(name), kind)()
