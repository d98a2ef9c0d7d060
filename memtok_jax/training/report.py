"""What a run shows at its end: held-out score beside what costs nothing, a sample, a curve, and where things are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from memtok_jax import data, sharding
from memtok_jax.analysis import figures
from memtok_jax.data.config import DataConfig
from memtok_jax.evaluation.baselines import bits_per_byte, text_baselines
from memtok_jax.evaluation.image_baselines import image_baselines
from memtok_jax.evaluation.score import Score, memory_statistics, score
from memtok_jax.models.protocol import functions_of
from memtok_jax.training import metrics as mx
from memtok_jax.training.experiment import Experiment

PROMPT_TOKENS = 64


def headline(cfg: DataConfig, result: Score) -> dict[str, float]:
    """The number by which a run is judged: bits per byte of text (one token is one byte), accuracy of tasks and images."""
    if data.is_text(cfg):
        return {"eval/bits_per_byte": bits_per_byte(result.nats, result.count)}
    return {"eval/accuracy": result.accuracy}


def held_out(experiment: Experiment, params: Any, mesh: Mesh, most: int) -> tuple[Score, dict[str, float]]:
    """Score held-out data with parameters that lie on `mesh`. most: batches to score, 0 for all.

    Returns the score, and flat names for `metrics.jsonl`: the loss, the headline, and what the memories do.
    """
    model, functions = experiment.model, functions_of(experiment.model)
    batches = data.open_eval(experiment.data, experiment.evaluation.batch)
    result = score(params, islice(batches, most or None), mesh, functions=functions, model=model,
                   segment=experiment.call_tokens)
    first = next(iter(batches))
    inputs = first["inputs"][:, :experiment.call_tokens]
    length = np.minimum(first["length"], experiment.call_tokens)
    seen = memory_statistics(params, sharding.place_rows(mesh, inputs), sharding.place_rows(mesh, length),
                             functions=functions, model=model)
    memory = {f"memory/{name}": float(value) for name, value in seen.items()}
    return result, {"eval/loss": result.loss, **headline(experiment.data, result), **memory}


def baselines(cfg: DataConfig, model: Any) -> dict[str, float]:
    """What costs nothing on the same held-out data: bits per byte by name, or accuracies of a task or of images.

    For a task one of them is a perfect reader of the tokens that one layer of attention sees.
    """
    if data.is_images(cfg):
        return image_baselines(cfg)
    if data.is_task(cfg):
        return data.task_baselines(cfg, max(model.window, model.segment))
    return text_baselines(data.train_text(cfg), data.eval_text(cfg))


def final(experiment: Experiment, params: Any, step: int, mesh: Mesh, workdir: Path, metrics: Any,
          say: Callable[[str], None]) -> None:
    """Score all held-out data with the parameters after `step` updates, and write and print the report."""
    cfg = experiment.data
    result, values = held_out(experiment, params, mesh, 0)
    if jax.process_index() != 0:
        return
    free = baselines(cfg, experiment.model)
    metrics.write(step, values | {f"{mx.BASELINE}{name}": value for name, value in free.items()})
    (name, value), = headline(cfg, result).items()
    unit = name.removeprefix("eval/").replace("_", " ")
    say(f"held out: {result.count:,} targets, {unit} {value:.4f}; on the same data "
        + ", ".join(f"{n} {v:.4f}" for n, v in free.items()))
    memory = {name.removeprefix("memory/"): value for name, value in values.items() if name.startswith("memory/")}
    if memory:
        say("memory: " + ", ".join(f"{name} {value:.4g}" for name, value in memory.items()))
    if experiment.training.sample_tokens and data.is_text(cfg) and jax.process_count() == 1:
        say("sample of generated text (the prompt is held-out text and ends at the bar):")
        say("  " + sample_text(experiment, params, mesh).replace("\n", "\n  "))
    draw_curve(experiment, workdir, free, say)
    curve = ", loss_curve.png" if figures.available() else ""
    say(f"written to {workdir}: config.json, {mx.FILE}, checkpoints{curve}")


def sample_text(experiment: Experiment, params: Any, mesh: Mesh) -> str:
    """A prompt from the held-out text, a bar, and what the model writes after it."""
    from memtok_jax.inference.sample import generate

    first = next(iter(data.open_eval(experiment.data, 1)))
    prompt = np.asarray(first["inputs"][:1, :min(PROMPT_TOKENS, int(first["length"][0]))])
    # As many equal rows as the mesh divides a batch into; one of them is shown.
    rows = np.repeat(prompt, sharding.row_groups(mesh), axis=0)
    ids = generate(params, experiment.model, rows, experiment.training.sample_tokens,
                   jax.random.key(experiment.training.seed), 0.8, model=functions_of(experiment.model))
    return data.decode(experiment.data, prompt[0]) + "|" + data.decode(experiment.data, np.asarray(ids)[0])


def draw_curve(experiment: Experiment, workdir: Path, free: dict[str, float], say: Callable[[str], None]) -> None:
    """Draw training and held-out numbers over the tokens read, with the baselines as levels."""
    if not figures.available():
        say("matplotlib is not installed: no figure is drawn")
        return
    records = mx.read(workdir)
    per_step, text = experiment.training.batch * experiment.data.sequence, data.is_text(experiment.data)
    train_name, eval_name = ("train/loss", "eval/bits_per_byte") if text else ("train/accuracy", "eval/accuracy")
    lines = {}
    for label, column in (("training batches", train_name), ("held out", eval_name)):
        steps, values = mx.column(records, column)
        scale = 1 / np.log(2) if column == "train/loss" else 1.0
        lines[label] = ([s * per_step for s in steps], [v * scale for v in values])
    figures.curves(workdir / "loss_curve.png", lines, free, f"{data.unit(experiment.data)} read",
                   "bits per byte" if text else "accuracy", f"{experiment.data.source}, {type(experiment.model).__name__}")
