"""Needles: whole values written by the model, by length and depth, and controls that show what the answer passes through."""

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
from memtok_jax.data.tasks import needles
from memtok_jax.evaluation import controls, greedy
from memtok_jax.evaluation.suites import ACCURACY, of_tasks
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MIDDLE = 0.5          # where the controls have their needle
CONTROLLED = 4        # controls are done up to this multiple of the trained length


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """For each kind of needle and each length: share of whole values (and END) that the model writes, one needle and one question
    in a row, beside chance and the best reader without a memory.

    "beyond" is the mean over the depths whose needle lies out of the model's reach. `data.eval_samples` rows are shared among the
    depths. Raises UserError for a run on another task.
    """
    of_tasks(experiment, "needles", ("needles",))
    trained, lengths = experiment.data.sequence, [experiment.data.sequence * n for n in experiment.evaluation.lengths]
    grids, symbols = {}, []
    for kind in experiment.data.task.kinds:
        cells = []
        for length in lengths:
            exact, right = zip(*(written(experiment, model, params, kind, length, depth) for depth in DEPTHS), strict=True)
            cells.append(exact)
            symbols += right if length == trained else ()
            free = baselines(model, kind, length, beyond := out_of_reach(model, kind, length))
            found = {"exact": np.mean(exact)} | ({"beyond": np.mean([exact[n] for n in beyond])} if beyond else {})
            say(f"{kind}, length {length} ({length / trained:g}x): whole values written "
                + ", ".join(f"{name} {value:.4f}" for name, value in found.items()) + "; by depth "
                + " ".join(f"{depth:g}: {value:.2f}" for depth, value in zip(DEPTHS, exact, strict=True)) + "; "
                + ", ".join(f"{name} {value:.2g}" for name, value in free.items()))
            yield from ((f"eval/{kind}_{name}_at_{length}", float(value)) for name, value in found.items())
            yield from ((f"baseline/{kind}_{name}_at_{length}", value) for name, value in free.items())
            if length <= CONTROLLED * trained:
                yield from controlled(experiment, model, params, kind, length, say)
        grids[kind] = [list(line) for line in zip(*cells, strict=True)]
    if symbols:
        yield HEADLINE.name, float(np.mean(symbols))
    yield "grids", {"depths": DEPTHS, "lengths": lengths, **grids}
    if figures.available():
        figures.grids(workdir / "needles.png", grids, lengths, DEPTHS, "length (tokens)", "depth of the needle",
                      f"{workdir.name}: whole values written by the model")


def cut(experiment: Experiment, kind: str, length: int, depth: float) -> task.TaskConfig:
    """Held-out rows of one length with one needle at one depth."""
    one = replace(experiment.data.task, kinds=(kind,), needles=(1, 1), questions=1, depth=(depth, depth), tail=0)
    return replace(experiment.data, task=one, sequence=length, lengths=(), train_samples=0,
                   eval_samples=max(experiment.data.eval_samples // len(DEPTHS), 1))


def span(cfg: task.TaskConfig) -> tuple[int, int]:
    """First position of the needle, and the one behind its last."""
    (kind,) = cfg.task.kinds
    begin = int(needles.slots(cfg.task, kind, cfg.sequence, 1)[0])
    return begin, begin + needles.needle_tokens(kind)


def written(experiment: Experiment, model: Model, params: P.Tree, kind: str, length: int, depth: float) -> tuple[float, float]:
    """(share of whole values, share of symbols) that the model writes at one depth."""
    cfg = cut(experiment, kind, length, depth)
    batches = data.open_eval(cfg, min(experiment.evaluation.batch, cfg.eval_samples))
    found = greedy.generated(params, batches, task.answers(cfg), experiment.call_tokens, "strict", model=model)
    return found["exact_match"], found["accuracy"]


def out_of_reach(model: Model, kind: str, length: int) -> list[int]:
    """Indices of the depths at which no symbol of the needle is in sight of its question."""
    cfg = needles.NeedlesConfig(kinds=(kind,))
    at = needles.questions_begin(cfg, length) + needles.KEY + 1
    first = task.sights(length, model.reach, model.segment)["no_memory"][at]
    places = [needles.slots(replace(cfg, depth=(depth, depth)), kind, length, 1)[0] for depth in DEPTHS]
    return [n for n, place in enumerate(places) if place + needles.needle_tokens(kind) <= first]


def baselines(model: Model, kind: str, length: int, beyond: list[int]) -> dict[str, float]:
    """Whole values that are guessed, and that the best reader of what the model sees without its memory says, over all depths."""
    cfg, first = needles.NeedlesConfig(kinds=(kind,)), task.sights(length, model.reach, model.segment)
    readers = {name: np.mean([needles.exact_reader(replace(cfg, depth=(d, d)), kind, length, seen) for d in DEPTHS])
               for name, seen in first.items()}
    return {"chance": needles.exact_chance(kind)} | {name: float(value) for name, value in readers.items()}


def controlled(experiment: Experiment, model: Model, params: P.Tree, kind: str, length: int,
               say: Callable[[str], None]) -> Iterator[tuple[str, float]]:
    """Whole values of one batch after each of the controls, the needle in the middle of the text."""
    cfg = cut(experiment, kind, length, MIDDLE)
    rows = max(min(experiment.evaluation.batch, cfg.eval_samples), 2)
    batch = data.open_eval(replace(cfg, eval_samples=rows), rows)[0]
    found = controls.right_after(params, batch, task.answers(cfg), span(cfg), experiment.call_tokens, model=model)
    say(f"{kind}, length {length}, needle at depth {MIDDLE:g}, {rows} rows: "
        + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    yield from ((f"control/{kind}_{name}_at_{length}", value) for name, value in found.items())
