"""Evaluate a run directory: everything that `eval.py` does after reading its flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from memtok_jax import config, data, sharding
from memtok_jax import params as pr
from memtok_jax.analysis import figures
from memtok_jax.config import UserError
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.baselines import bits_per_byte, text_baselines, word_perplexity
from memtok_jax.evaluation.image_baselines import image_baselines
from memtok_jax.evaluation.score import Score, score
from memtok_jax.models.protocol import functions_of
from memtok_jax.training.checkpoint import Checkpoints, read_config
from memtok_jax.training.experiment import Experiment

RESULT_FILE, GENERATED = "eval.json", 256


def evaluate_run(workdir: Path, overrides: tuple[str, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """Score the newest checkpoint of a run on held-out data, write `eval.json` and figures beside it.

    overrides: changes of the run's config, such as "data.eval_split=test"; of the model, only fields that its module lists in
    EVALUATION_FIELDS can change. The model runs on one device, or on `training.tensor` of them.
    Returns what is written: flat names, numbers, and lists for the figures.
    Raises UserError for a directory without a run or checkpoint, and for a changed model.
    """
    workdir = Path(workdir)
    saved = read_config(workdir)
    experiment = config.override(saved, overrides)
    free = {f"config.model.{name}" for name in getattr(functions_of(saved.model), "EVALUATION_FIELDS", ())}
    changed = [d for d in config.differences(saved.model, experiment.model, "config.model") if d[0] not in free]
    if changed:
        raise UserError(f"{changed[0][0]} is {changed[0][1]!r} in {workdir} and cannot change to {changed[0][2]!r}")
    mesh = sharding.make_mesh(1, 1, experiment.training.tensor)
    with jax.set_mesh(mesh), Checkpoints(workdir, experiment.training.keep) as checkpoints:
        params, meta = checkpoints.restore_params(abstract_params(experiment, mesh))
        say(f"data   {data.describe(experiment.data)}")
        say(f"model  {pr.count(functions_of(experiment.model).specs(experiment.model)):,} parameters after "
            f"{meta['step']} steps, from {checkpoints.folder / str(meta['step'])}")
        evaluate = _suite(experiment.data)
        result = {"workdir": str(workdir), "step": meta["step"], "source": experiment.data.source,
                  **evaluate(experiment, params, mesh, workdir, say)}
    (workdir / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n")
    say(f"written to {workdir}: {RESULT_FILE}" + (" and figures" if figures.available() else ""))
    return result


def _suite(cfg: Any) -> Callable:
    if data.is_images(cfg):
        return evaluate_images
    return evaluate_task if data.is_task(cfg) else evaluate_text


def abstract_params(experiment: Experiment, mesh: Mesh) -> pr.Tree:
    """Shapes, dtypes and shardings of the parameters."""
    specs = functions_of(experiment.model).specs(experiment.model)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), pr.abstract(specs),
                        sharding.shardings(mesh, specs))


def _score(experiment: Experiment, params: pr.Tree, mesh: Mesh, cfg: data.DataConfig, rows: int) -> Score:
    return score(params, data.open_eval(cfg, rows), mesh, functions=functions_of(experiment.model),
                 model=experiment.model, segment=experiment.call_tokens)


def evaluate_text(experiment: Experiment, params: pr.Tree, mesh: Mesh, workdir: Path,
                  say: Callable[[str], None]) -> dict[str, Any]:
    """Bits per byte and word perplexity of the held-out text, loss by position, and the free baselines.

    Every text is one stream: its carry is never reset inside, and every byte is scored once. One text over several
    `evaluation.streams` is cut into as many streams, each without history at its start.
    """
    cfg, streams = experiment.data, experiment.evaluation.streams
    text, words = data.eval_text(cfg), data.reference_words(cfg)
    result = _score(experiment, params, mesh, cfg, streams)
    if result.count != len(text):
        raise ValueError(f"{result.count} bytes were scored, the held-out text has {len(text)}")
    bits = bits_per_byte(result.nats, len(text))
    free = text_baselines(data.train_text(cfg), text)
    out = {"split": cfg.eval_split, "streams": streams, "eval/bytes": len(text), "eval/loss": result.loss,
           "eval/bits_per_byte": bits, "eval/accuracy": result.accuracy, "eval/words": words}
    # Far from convergence the number of a word perplexity overflows; it is left out then.
    exponent = bits * len(text) / max(words, 1)
    if words and exponent < 1000:
        out["eval/word_perplexity"] = word_perplexity(bits, len(text), words)
    say(f"bits per byte {bits:.4f} on {len(text):,} bytes ({cfg.eval_split}, {streams} stream(s)); on the same bytes "
        + ", ".join(f"{name} {value:.4f}" for name, value in free.items()))
    if "eval/word_perplexity" in out:
        say(f"word perplexity {out['eval/word_perplexity']:.2f} over {words:,} words")
    if figures.available():
        scale = bits_per_byte(1.0, 1)
        points = [(first, last, nats * scale, count) for first, last, nats, count in result.positions]
        figures.by_distance(workdir / "loss_by_position.png", points, free, "bits per byte",
                            f"held-out loss by position in its stream, {cfg.source}")
    return out | {f"baseline/{name}": value for name, value in free.items()} | {"positions": result.positions}


def written_answers(experiment: Experiment, params: pr.Tree, say: Callable[[str], None]) -> dict[str, float]:
    """Scores of answers that the model writes by itself, by the rules of `greedy.py`; nothing for a task whose next inputs are
    questions. At most GENERATED held-out samples are answered, one token at a time."""
    rows = experiment.evaluation.batch
    batches = list(islice(data.open_eval(experiment.data, rows), -(-GENERATED // rows)))
    if not any(greedy.fed_back(b["inputs"], b["targets"], experiment.call_tokens, "strict").any() for b in batches):
        return {}
    out, answer_right = {}, data.answer_right(experiment.data)
    for rule in greedy.RULES if answer_right else ("strict", "published"):
        found = greedy.generated(params, batches, experiment.call_tokens, rule, functions=functions_of(experiment.model),
                                 model=experiment.model, answer_right=answer_right)
        out |= {f"eval/{rule}_{name}": value for name, value in found.items()}
        who = "with all before it shown" if rule == "shown" else f"written by the model, {rule}"
        say(f"{who}: " + ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in found.items()))
    return out


def evaluate_task(experiment: Experiment, params: pr.Tree, mesh: Mesh, workdir: Path,
                  say: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy on held-out samples at the length of training and at multiples of it, beside what costs nothing."""
    trained, window = experiment.data.sequence, max(experiment.model.window, experiment.model.segment)
    lengths = [trained * multiple for multiple in experiment.evaluation.lengths]
    accuracy, free, out = [], [], {}
    for length in lengths:
        cfg = replace(experiment.data, sequence=length)
        result = _score(experiment, params, mesh, cfg, experiment.evaluation.batch)
        accuracy.append(result.accuracy)
        free.append(data.task_baselines(cfg, window))
        say(f"length {length} ({length / trained:g}x): accuracy {result.accuracy:.4f} on {result.count:,} targets; "
            + ", ".join(f"{name} {value:.4f}" for name, value in free[-1].items()))
        if length == trained:
            out = {"eval/loss": result.loss, "eval/accuracy": result.accuracy, "eval/targets": result.count,
                   **{f"baseline/{name}": value for name, value in free[-1].items()}}
    out |= written_answers(experiment, params, say)
    levels = {name: [values[name] for values in free] for name in free[0]} if free else {}
    if figures.available() and lengths:
        figures.by_length(workdir / "accuracy_by_length.png", lengths, accuracy, levels, trained,
                          f"{experiment.data.source}: held-out accuracy by length")
    return out | {f"eval/accuracy_at_{length}": value for length, value in zip(lengths, accuracy, strict=True)}


def evaluate_images(experiment: Experiment, params: pr.Tree, mesh: Mesh, workdir: Path,
                    say: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy and loss on held-out images, beside what costs nothing."""
    cfg = experiment.data
    result, free = _score(experiment, params, mesh, cfg, experiment.evaluation.batch), image_baselines(cfg)
    say(f"accuracy {result.accuracy:.4f}, loss {result.loss:.4f} on {result.count:,} images ({cfg.eval_split}); on the same images "
        + ", ".join(f"{name} {value:.4f}" for name, value in free.items()))
    return {"split": cfg.eval_split, "eval/loss": result.loss, "eval/accuracy": result.accuracy, "eval/images": result.count,
            **{f"baseline/{name}": value for name, value in free.items()}}
