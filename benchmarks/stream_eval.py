"""Accuracy by distance on an endless stream of lines and questions: a window with pinned tokens, and a memory beside it.

    python -m benchmarks.stream_eval --output=docs/results/stream_eval

`configs/stream_eval.py` trains the window on distances up to 4 lines, and the memory on up to 8. Here the questions of a stream 16
times as long ask for one distance at a time. The shape to expect of a window (arXiv 2309.17453, table 7): right as long as the line
is in sight, then at chance. What a reader who sees as many tokens and nothing else can reach stands beside it, by the rules of the
task.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import report, sweep
from benchmarks.stream import read_run

DISTANCES, SAMPLES, TIMES = tuple(range(1, 9)), 64, 16


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=["streaming_llm", "mag"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path("runs/stream_eval"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md, OUTPUT.json and OUTPUT.png")
    return parser.parse_args(arguments)


def experiment(name: str, seed: int, args: argparse.Namespace):
    """The training of one model, on one device."""
    from memtok_jax import config

    base = config.load(f"stream_eval:{name}")
    return replace(base, optimizer=replace(base.optimizer, steps=args.steps), data=replace(base.data, seed=seed),
                   training=replace(base.training, seed=seed, data=1), evaluation=replace(base.evaluation, lengths=(1,)))


def by_distance(place: Path) -> dict:
    """Accuracy of a trained run at each distance, and that of the reader of what attention shows one layer."""
    import jax

    from memtok_jax import data, sharding
    from memtok_jax.evaluation.score import score_data
    from memtok_jax.models.protocol import bind

    saved, params = read_run(place)
    model, mesh = bind(saved.model), sharding.make_mesh(1, 1, 1)
    layer = saved.model.pattern[0]
    accuracy, reader = [], []
    with jax.set_mesh(mesh):
        for distance in DISTANCES:
            report.progress(f"{place.parent.name}: {distance} lines back")
            task = replace(saved.data.task, nearest=distance, farthest=distance)
            cfg = replace(saved.data, task=task, sequence=TIMES * saved.data.sequence, eval_samples=SAMPLES)
            accuracy.append(score_data(saved, model, params, mesh, cfg, saved.evaluation.batch).accuracy)
            reader.append(data.baselines(replace(cfg, sequence=saved.data.sequence), layer.window, 0)["no_memory"])
    return {"accuracy": accuracy, "reader": reader}


def run_all(args: argparse.Namespace) -> list[dict]:
    """Train what is missing, and measure."""
    jobs = {f"{name}-{seed}": (name, seed) for name in args.models for seed in range(args.seeds)}
    found = sweep.run_all({job: experiment(*key, args) for job, key in jobs.items()}, args.folder)
    records = [{"model": name, "seed": seed, "seconds": found[job]["seconds"], "trained": found[job]["eval/accuracy"],
                **by_distance(args.folder / job / "run"), **sweep.software()} for job, (name, seed) in jobs.items()]
    report.progress("")
    return records


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """One line a distance, one column a model and seed."""
    header = ["lines back", *(f"{r['model']}, seed {r['seed']}" for r in records), "reader of the window"]
    rows = [[str(distance), *(f"{r['accuracy'][n]:.3f}" for r in records), f"{records[0]['reader'][n]:.3f}"]
            for n, distance in enumerate(DISTANCES)]
    about = (f"{SAMPLES} streams of {TIMES * 192:,} tokens for each distance; training: {args.steps:,} updates of 16 rows of 192 "
             "tokens, distances up to 4 lines for the window, up to 8 with the memory.")
    return "\n\n".join(["# Lines of a stream", f"`{command}`", about, report.machine(records, load), report.table(header, rows)])


def main(arguments: list[str]) -> None:
    from memtok_jax.analysis import figures

    args, load = parse(arguments), report.load_average()
    command, records = report.command_line("benchmarks.stream_eval", arguments), run_all(args)
    text = summary(records, args, command, load)
    print(text)
    report.write(args.output, text, {"command": command, "load_average": load, "runs": records})
    if args.output and figures.available():
        lines = {f"{r['model']}, seed {r['seed']}": (DISTANCES, r["accuracy"]) for r in records}
        lines["reader of the window"] = (DISTANCES, records[0]["reader"])
        figures.panels(Path(args.output + ".png"), {"": lines}, "lines back", "accuracy", "questions about a line of the stream")


if __name__ == "__main__":
    main(sys.argv[1:])
