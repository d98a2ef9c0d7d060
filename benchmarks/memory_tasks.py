"""Copy, reverse and retrieval in more and more segments: no memory, Transformer-XL, Compressive Transformer, RMT.

    python -m benchmarks.memory_tasks --folder=runs/memory_tasks --output=docs/results/memory_tasks

The tasks and segments of RMT (arXiv 2207.06881, section 4.1). All models have two layers of width 64 with two heads and relative
positions (RMT and none in retrieval: learned ones, small embeddings, an output layer of its own). RMT has as many memory tokens
as there are symbols to remember; Transformer-XL a cache of one segment; the Compressive Transformer half of one and as many slots
of two rows. A run stops when 99.7 % of the held-out symbols are right (retrieval: 99.5 %), or after --steps. Accuracy counts
single symbols with the right ones shown (as in training); "written" counts samples that the model writes without a mistake,
nothing shown. Published numbers are per symbol, by the rule of the public code, after up to 900,000 updates.
Runs go on side by side, one to a core; the command given again does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report, sweep

# Segments of each task: tokens of a segment -> number of segments.
SEGMENTS = {"copy": (24, 12, 8), "reverse": (24, 12, 8), "retrieval": (4,)}
LENGTH = {"copy": 72, "reverse": 48, "retrieval": 12}  # tokens of a row
# (task, segments) -> published accuracy without memory, of Transformer-XL (cache of one segment), of RMT.
PUBLISHED = {
    ("copy", 3): (".12", "1.0", "1.0"), ("copy", 6): (".10", ".90 to 1", "1.0"), ("copy", 9): (".10", ".19 to .45", "1.0"),
    ("reverse", 2): (".10", ".39 to .96", "1.0"), ("reverse", 4): (".10", ".83 to .88", "1.0"),
    ("reverse", 6): (".10", ".63 to .70", ".70 to 1"), ("retrieval", 3): (".10", ".67 to .97", ".99")}
# What comes first, for all models alike, where `configs/rmt.py` has no such segments: the answer to the whole row needs a memory
# handed on, which is learnt in steps.
CURRICULUM = {("copy", 12): ("data.sequence=36",), ("copy", 8): ("data.sequence=24", "data.sequence=48"),
              ("reverse", 8): ("data.sequence=16", "data.sequence=32")}
MODELS = ("none", "transformer_xl", "compressive", "rmt")
COLUMN = {"none": 0, "transformer_xl": 1, "rmt": 2}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--tasks", nargs="+", default=list(SEGMENTS), choices=list(SEGMENTS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--segments", type=int, nargs="+", default=[], help="only these numbers of segments")
    parser.add_argument("--steps", type=int, default=2000, help="updates of 32 samples (retrieval: 256) at most, in each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/memory_tasks"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md, OUTPUT.json and OUTPUT.png")
    return parser.parse_args(arguments)


def model_of(name: str, task: str, segment: int, rmt: Any) -> Any:
    """The model of one row of the table. rmt: the RMT of `configs/rmt.py` for this task."""
    from memtok_jax.memory.compressive import CompressiveConfig
    from memtok_jax.memory.xl import XlConfig
    from memtok_jax.models.mixers.cached import CachedConfig
    from memtok_jax.models.style import COMPRESSIVE

    inside = replace(rmt.model, segment=segment)
    if name in ("none", "rmt"):
        return replace(rmt, model=inside, tokens=rmt.tokens if name == "rmt" else 0)
    half = segment // 2
    memory = XlConfig(segment) if name == "transformer_xl" else CompressiveConfig(half, half, 2)
    style = replace(COMPRESSIVE, shared_position=True, std=0.125)
    return replace(inside, hidden=256, style=style, positions=0, pattern=(CachedConfig(memory),))


def experiment(name: str, task: str, segment: int, args: argparse.Namespace) -> Any:
    """One run: as `configs/rmt.py` trains RMT on the task, on one device, with another model."""
    from memtok_jax import config

    base = config.load(f"rmt:{task}")
    stages = CURRICULUM.get((task, segment), base.training.curriculum if segment == base.model.segment else ())
    return replace(
        base, model=model_of(name, task, segment, base.model),
        data=replace(base.data, seed=args.seed, eval_samples=512),
        optimizer=replace(base.optimizer, steps=args.steps, warmup_steps=min(100, args.steps)),
        training=replace(base.training, call_tokens=segment, seed=args.seed, log_every=50, data=1, curriculum=stages))


def rows_of(found: dict[str, dict], jobs: dict[str, tuple]) -> list[dict]:
    """One record a run. own_segment: accuracy of who reads the segment that asks and nothing else, whatever the model."""
    from memtok_jax import data
    from memtok_jax.data.task import TaskConfig
    from memtok_jax.data.tasks import settings_named

    own = {(task, segment): data.baselines(TaskConfig(settings_named(task), LENGTH[task]), segment, segment)["own_segment"]
           for task, segment, _ in jobs.values()}
    return [{"task": task, "segments": LENGTH[task] // segment, "model": name, "updates": found[job]["step"],
             "accuracy": found[job]["eval/accuracy"], "written": found[job].get("eval/strict_exact_match"),
             "own_segment": own[task, segment], "seconds": found[job]["seconds"]}
            for job, (task, segment, name) in jobs.items()]


def table(records: list[dict]) -> str:
    """All records beside the published numbers."""
    lines = []
    for r in sorted(records, key=lambda r: (r["task"], r["segments"], MODELS.index(r["model"]))):
        published = PUBLISHED.get((r["task"], r["segments"]))
        column = COLUMN.get(r["model"])
        lines.append([r["task"], str(r["segments"]), r["model"], f"{r['accuracy']:.3f}",
                      "" if r["written"] is None else f"{r['written']:.3f}", f"{r['own_segment']:.3f}", str(r["updates"]),
                      f"{r['seconds']:.0f}", published[column] if published and column is not None else ""])
    header = ["task", "segments", "model", "accuracy", "written", "own segment", "updates", "seconds", "published"]
    return report.table(header, lines)


def draw(path: str, records: list[dict]) -> None:
    """Accuracy over the number of segments, one panel a task."""
    from memtok_jax.analysis import figures

    if not figures.available():
        return
    panels = {}
    for task in dict.fromkeys(r["task"] for r in records):
        mine = sorted((r for r in records if r["task"] == task), key=lambda r: r["segments"])
        line = lambda number, runs: ([r["segments"] for r in runs], [r[number] for r in runs])
        lines = {name: line("accuracy", [r for r in mine if r["model"] == name]) for name in MODELS}
        first = [r for r in mine if r["model"] == mine[0]["model"]]
        panels[task] = {name: xy for name, xy in lines.items() if xy[0]} | {"reader of its own segment": line("own_segment", first)}
    figures.panels(Path(path + ".png"), panels, "segments", "accuracy", "held-out symbols that are right")


def main(arguments: list[str]) -> None:
    args, load = parse(arguments), report.load_average()
    jobs = {f"{task}-{segment}-{name}-{args.seed}": (task, segment, name) for task in args.tasks for segment in SEGMENTS[task]
            if not args.segments or LENGTH[task] // segment in args.segments for name in args.models}
    found = sweep.run_all({job: experiment(name, task, segment, args) for job, (task, segment, name) in jobs.items()}, args.folder)
    records = rows_of(found, jobs)
    text = "\n\n".join(["# Copy, reverse, retrieval", f"`{report.command_line('benchmarks.memory_tasks', arguments)}`",
                        f"Seed {args.seed}. {report.machine([sweep.software()], load)}", table(records)])
    print(text)
    report.write(args.output, text, {"arguments": arguments, "runs": records})
    if args.output:
        draw(args.output, records)
    print(json.dumps({f"{r['task']}/{r['segments']}/{r['model']}": r["accuracy"] for r in records}))


if __name__ == "__main__":
    main(sys.argv[1:])
