"""What a run shows at its end: held-out score beside baselines that need no training, a sample, a curve, and where things are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from memtok_jax import data, sharding
from memtok_jax.analysis import figures
from memtok_jax.evaluation import sets
from memtok_jax.evaluation.frozen import can_freeze, frozen
from memtok_jax.evaluation.score import Score, memory_statistics, score_data
from memtok_jax.evaluation.suites import Headline, suite_named
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training import metrics as mx
from memtok_jax.training.experiment import Experiment

PROMPT_TOKENS = 64


def headline(experiment: Experiment) -> Headline:
    """The number by which a run is judged: that of the data's evaluation suite."""
    return suite_named(data.suite(experiment.data)).HEADLINE


def held_out(experiment: Experiment, model: Model, params: Any, mesh: Mesh, most: int) -> tuple[Score, dict[str, float]]:
    """Score held-out data with parameters that lie on `mesh`. most: batches to score, 0 for all.

    Returns the score, and flat names for `metrics.jsonl`: loss and headline, also of `evaluation.sets`, and what the memories do.
    """
    judged, rows = headline(experiment), experiment.evaluation.batch
    result = score_data(experiment, model, params, mesh, experiment.data, rows, most)
    values = {"eval/loss": result.loss, judged.name: judged.of(result)}
    values |= dict(sets.scores(experiment, model, params, mesh, most, rows))
    return result, values | first_call(experiment, model, params, mesh)


def first_call(experiment: Experiment, model: Model, params: Any, mesh: Mesh) -> dict[str, float]:
    """What the memories do with the first call of the held-out data: names with "memory/"."""
    first, tokens = data.open_eval(experiment.data, experiment.evaluation.batch)[0], experiment.call_tokens
    inputs, length = first["inputs"][:, :tokens], np.minimum(first["length"], tokens)
    whole = bool((length == tokens).all()) and tokens % model.call_tokens == 0
    arrays = (sharding.place_rows(mesh, x) for x in (inputs, length))
    stats = memory_statistics(params, *arrays, model=model, whole=whole)
    return {f"memory/{name}": float(value) for name, value in stats.items()}


def without_writes(experiment: Experiment, model: Model, params: Any, mesh: Mesh) -> dict[str, float]:
    """Bits per byte of the held-out text with the same weights, the neural memories' writes switched off: one more scoring pass.

    Nothing for a model without a neural memory, and for data that is no text.
    """
    if data.suite(experiment.data) != "text" or not can_freeze(model.cfg):
        return {}
    judged = headline(experiment)
    still = score_data(experiment, bind(frozen(model.cfg)), params, mesh, experiment.data, experiment.evaluation.batch)
    return {judged.name.replace("eval/", "eval/frozen_"): judged.of(still)}


def final(experiment: Experiment, model: Model, params: Any, step: int, mesh: Mesh, workdir: Path, metrics: Any,
          say: Callable[[str], None]) -> None:
    """Score all held-out data with the parameters after `step` updates, and write and print the report."""
    cfg, judged = experiment.data, headline(experiment)
    result, values = held_out(experiment, model, params, mesh, 0)
    still = without_writes(experiment, model, params, mesh)
    if jax.process_index() != 0:
        return
    free = data.baselines(cfg, model.reach, model.segment)
    metrics.write(step, values | still | {f"{mx.BASELINE}{name}": value for name, value in free.items()})
    say(f"held out: {result.count:,} targets, {judged.label} {values[judged.name]:.4f}; on the same data "
        + ", ".join(f"{n} {v:.4f}" for n, v in free.items()))
    for value in still.values():
        say(f"the same with its memory frozen (no writes): {judged.label} {value:.4f}")
    for one in experiment.sets:
        say(f"{one.name}: " + ", ".join(f"{name} {values[name]:.4f}" for name in one.metrics))
    memory = {name.removeprefix("memory/"): value for name, value in values.items() if name.startswith("memory/")}
    if memory:
        say("memory: " + ", ".join(f"{name} {value:.4g}" for name, value in memory.items()))
    if experiment.training.sample_tokens and data.suite(cfg) == "text" and jax.process_count() == 1:
        say("sample of generated text (the prompt is held-out text and ends at the bar):")
        say("  " + sample_text(experiment, model, params, mesh).replace("\n", "\n  "))
    draw_curve(experiment, workdir, free, say, result.count / max(result.bytes, 1))
    curve = ", loss_curve.png" if figures.available() else ""
    say(f"written to {workdir}: config.json, {mx.FILE}, checkpoints{curve}")


def sample_text(experiment: Experiment, model: Model, params: Any, mesh: Mesh) -> str:
    """A prompt from the held-out text, a bar, and what the model writes after it."""
    from memtok_jax.inference.sample import generate

    first = data.open_eval(experiment.data, 1)[0]
    prompt = np.asarray(first["inputs"][:1, :min(PROMPT_TOKENS, int(first["length"][0]))])
    # As many equal rows as the mesh divides a batch into; one of them is shown.
    rows = np.repeat(prompt, sharding.row_groups(mesh), axis=0)
    ids = generate(model, params, rows, experiment.training.sample_tokens, jax.random.key(experiment.training.seed), 0.8)
    return data.decode(experiment.data, prompt[0]) + "|" + data.decode(experiment.data, np.asarray(ids)[0])


def draw_curve(experiment: Experiment, workdir: Path, free: dict[str, float], say: Callable[[str], None],
               per_byte: float) -> None:
    """Draw training and held-out numbers over the tokens read, with the baselines as levels.

    per_byte: targets for each byte of the held-out text, which also brings the loss of training to bits per byte; 1 for other data.
    """
    if not figures.available():
        say("matplotlib is not installed: no figure is drawn")
        return
    records, judged, unit = mx.read(workdir), headline(experiment), data.unit(experiment.data)
    steps_known, read = mx.column(records, f"train/{unit}_seen")
    lines = {}
    for label, column, scale in (("training batches", judged.train, judged.scale * per_byte), ("held out", judged.name, 1.0)):
        steps, values = mx.column(records, column)
        lines[label] = (list(np.interp(steps, [0, *steps_known], [0, *read])), [v * scale for v in values])
    figures.curves(workdir / "loss_curve.png", lines, free, f"{unit} read", judged.label,
                   f"{workdir.name}: {experiment.data.source}")
