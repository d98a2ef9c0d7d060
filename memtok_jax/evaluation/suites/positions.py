"""What a memory is worth on text: loss by position in long streams, beside the same model without what it remembers.

    reset     the carry begins anew at every segment: what all earlier segments are worth
    frozen    the neural memory reads but is never written: what its writes are worth
    against   another run: a twin without memory (what training with one is worth), or full attention (what compression costs)

Every difference is the other's loss minus the model's: above 0 the memory helps. The first two change a model that was not trained
so, and overstate what the memory is worth; a twin does not share the weights. Read them together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.analysis import figures
from memtok_jax.config import UserError
from memtok_jax.evaluation import positions as at
from memtok_jax.evaluation import word_classes
from memtok_jax.evaluation.frozen import can_freeze, frozen
from memtok_jax.evaluation.suites.text import HEADLINE as HEADLINE
from memtok_jax.models.protocol import Model, bind

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

FILE = "positions"


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Bits of each token by position, in bins, and differences to the controls with 95 % intervals over streams.

    Options: `evaluation.positions`. Writes positions.md, positions.json and positions.png. Raises UserError for data that is no
    text, and for a run to compare with that reads other tokens.
    """
    yield from found(experiment, model, params, mesh, workdir, say, ways, FILE)


def found(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path, say: Callable[[str], None],
          ways: Callable[..., Iterator[tuple[str, np.ndarray]]], file: str) -> Iterator[tuple[str, Any]]:
    """What `run` does, with other controls. ways: as the function of this name. file: of the table, the numbers and the figure,
    and the name of the suite."""
    options, cfg = experiment.evaluation.positions, experiment.data
    if data.suite(cfg) != "text":
        raise UserError(f"suite {file!r} judges a model of text, and this run is on {cfg.source}; leave out --suite")
    other = other_run(experiment, mesh, workdir) if options.against else None
    streams = at.held_out_streams(cfg, options.tokens, options.streams)
    reset, far = options.reset or model.segment or experiment.call_tokens, options.far or model.reach
    say(f"{len(streams.inputs)} streams of {options.tokens:,} tokens ({cfg.eval_split}); the carry of the control is reset every "
        f"{reset:,} tokens; a far copy is a word that last stood more than {far:,} tokens back")
    bits = {name: nats / math.log(2) for name, nats in ways((experiment, model, params), other, mesh, streams, reset)}
    classes = class_of(streams, far, data.tokenizer(cfg) is None)
    lines = table(bits, classes, at.edges(options.tokens, reset), options.draws)
    free = data.baselines(cfg, model.reach, model.segment)
    text = page(lines, list(bits)[1:], data.tokenizer(cfg) is None)
    say(text)
    whole = {"streams": len(streams.inputs), "tokens": options.tokens, "reset": reset, "far": far, "against": options.against,
             "baselines": free, "lines": lines}
    (workdir / f"{file}.md").write_text(text + "\n")
    (workdir / f"{file}.json").write_text(json.dumps(whole, indent=1) + "\n")
    if figures.available():
        draw(workdir / f"{file}.png", whole, [reset, model.reach, cfg.sequence], free if data.tokenizer(cfg) is None else {})
    yield "split", cfg.eval_split
    total = next(line for line in lines if line["tokens"] == "all")
    yield HEADLINE.name if data.tokenizer(cfg) is None else "eval/bits_per_token", total["own"]
    for name in list(bits)[1:]:
        yield f"eval/{name}_minus_own", total[name][0]
    yield from ((f"baseline/{name}", value) for name, value in free.items())
    yield "by_position", whole


Run = tuple["Experiment", Model, P.Tree]


def ways(own: Run, other: Run | None, mesh: Mesh, streams: at.Streams, reset: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, nats f32[S, n]) of the model itself, which comes first, and of its controls. other: a run to compare with."""
    def scored(experiment: Experiment, model: Model, params: P.Tree, **more: int) -> np.ndarray:
        return at.losses(params, streams, mesh, model=model, call_tokens=experiment.call_tokens,
                         batch_tokens=experiment.data.sequence, rows=experiment.evaluation.batch, **more)

    experiment, model, params = own
    yield "own", scored(*own)
    yield "reset", scored(*own, reset=reset)
    if can_freeze(model.cfg):
        yield "frozen", scored(experiment, bind(frozen(model.cfg)), params)
    if other:
        yield "against", scored(*other)


def other_run(experiment: Experiment, mesh: Mesh, workdir: Path) -> Run:
    """The run to compare with. Raises UserError if there is none, or if it reads other tokens."""
    from memtok_jax.evaluation.report import restored

    folder = Path(experiment.evaluation.positions.against)
    other, model, (params, *_) = restored(folder, mesh)
    for what, of in (("suite", data.suite), ("tokenizer", data.tokenizer)):
        if of(other.data) != of(experiment.data):
            raise UserError(f"{folder} reads other tokens than {workdir}: its {what} is another; compare runs on the same tokens")
    return other, model, params


def class_of(streams: at.Streams, far: int, of_bytes: bool) -> np.ndarray:
    """i8[S, n], the class of each target."""
    kind = word_classes.of_bytes if of_bytes else word_classes.of_tokens
    return np.stack([kind(targets, far) for targets in streams.targets])


def table(bits: dict[str, np.ndarray], classes: np.ndarray, edges: list[int], draws: int) -> list[dict[str, Any]]:
    """One record for each bin of positions, for all tokens, and for each class of words: the model's bits, and every difference as
    (mean, low, high). bits: name -> f[S, n], the model itself first."""
    own, drawn = bits["own"], at.draw_streams(len(classes), draws)
    place = np.broadcast_to(np.arange(own.shape[1]), own.shape)
    groups = {f"{a:,} to {b - 1:,}": (place >= a) & (place < b) for a, b in zip(edges, edges[1:], strict=False)}
    groups |= {"all": np.ones_like(classes, bool)} | {name: classes == kind for kind, name in word_classes.NAMES.items()}
    out = []
    for name, counted in groups.items():
        if counted.any():
            line = {"tokens": name, "count": int(counted.sum()), "own": at.mean_of(own, counted, drawn).value}
            out.append(line | {other: tuple(at.mean_of(x - own, counted, drawn)) for other, x in bits.items() if other != "own"})
    bins = iter(zip(edges, edges[1:], strict=False))
    return [line | (dict(zip(("first", "behind"), next(bins), strict=True)) if " to " in line["tokens"] else {}) for line in out]


def page(lines: list[dict[str, Any]], others: list[str], of_bytes: bool) -> str:
    """The records as a Markdown table."""
    shown = lambda m: f"{m[0]:+.4f}" + ("" if math.isnan(m[1]) else f" [{m[1]:+.4f}, {m[2]:+.4f}]")
    header = ["tokens", "count", "bits per byte" if of_bytes else "bits per token", *(f"{name} - own" for name in others)]
    rows = [[line["tokens"], f"{line['count']:,}", f"{line['own']:.4f}", *(shown(line[name]) for name in others)] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def draw(file: Path, whole: dict[str, Any], marks: list[int], free: dict[str, float]) -> None:
    """Left the losses, right the differences with their intervals."""
    bins = [line for line in whole["lines"] if "first" in line]
    middle = [(line["first"] + line["behind"] - 1) / 2 + 1 for line in bins]
    others = [name for name in bins[0] if name not in ("tokens", "count", "own", "first", "behind")]
    left = {"model": [line["own"] for line in bins]} | {name: [line["own"] + line[name][0] for line in bins] for name in others}
    right = {name: tuple(zip(*(line[name] for line in bins), strict=True)) for name in others}
    figures.with_differences(file, middle, left, right, marks, free, "bits of a token",
                             f"{file.parent.name}: loss by position in {whole['streams']} streams")
