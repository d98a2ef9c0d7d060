"""Millions of tokens through small memories: is a needle still found, is the text still predicted, and does anything grow?

    python -m benchmarks.two_million --folder=runs/two_million --output=docs/results/two_million
    python -m benchmarks.two_million --text=gutenberg_books --tokens=10000000 --models RMT ARMT

Each model (`benchmarks/memories.py`, 500,000 parameters) is trained on needles in rows of up to 256 tokens, as on the page
"needles" of `benchmarks.all_memories`, but so that it must predict the text too (--values_only: not). Then streams of --tokens
tokens, with one needle in each, go through it side by side: equal blocks, one compiled program, constant memory
(`memtok_jax/evaluation/suites/needle_stream.py`). What is found:

    by depth      share of whole values that a copy of the carry writes at the end of the streams
    by distance   the same on the way, at distances that double
    by position   bits per token, and peak memory, of each eighth of the streams

A text that is shorter than the streams is read again from its beginning. The command given again does only what is missing; for
another number of --tokens nothing is trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import memories, memory_figure, pages, protocol, report, sweep
from benchmarks.protocol import Run

MODELS = ("Titans LMM", "Titans MAC", "Titans MAG", "RMT", "ARMT", "window + sinks")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="rows of the tables of memories")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="of a stream")
    parser.add_argument("--block", type=int, default=1024, help="tokens of all streams that are read in one go")
    parser.add_argument("--depths", type=float, nargs="+", default=[n / 10 for n in range(11)], help="of needles, from 0 to 1")
    parser.add_argument("--repeats", type=int, default=1, help="streams for each depth")
    parser.add_argument("--kind", default="number", help="of needles: passkey, number, word or uuid")
    parser.add_argument("--text", default="stdlib", help="of the haystack, as in --data")
    parser.add_argument("--budget", default="small", choices=list(pages.BUDGETS), help="of training")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model")
    parser.add_argument("--values_only", action="store_true", help="train on the values of needles alone, not on the text")
    parser.add_argument("--at_once", type=int, default=0, help="runs side by side (default: one to a core)")
    parser.add_argument("--folder", type=Path, default=Path("runs/two_million"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md, OUTPUT.json and OUTPUT.png")
    return parser.parse_args(arguments)


def experiment(run: Run, page: pages.Page, args: argparse.Namespace) -> Any:
    """The training of one model: the page "needles", with a text that counts."""
    kinds = tuple(dict.fromkeys((*pages.KINDS, args.kind)))
    base = page.experiment(memories.model_of(run.model, page.sizes), run.rate, run.seed)
    task = replace(base.data.task, kinds=kinds, text=args.text, learn_text=not args.values_only)
    # Accuracy in training counts the text too, so it cannot say when to stop.
    return replace(base, data=replace(base.data, task=task), training=replace(base.training, stop_at=0.0))


def stream_options(args: argparse.Namespace) -> tuple[str, ...]:
    """Overrides of the evaluation."""
    options = {"tokens": args.tokens, "block": args.block, "depths": ",".join(map(str, args.depths)), "repeats": args.repeats,
               "kind": args.kind}
    return tuple(f"evaluation.needle_stream.{name}={value}" for name, value in options.items())


def run_all(args: argparse.Namespace) -> list[dict]:
    """Train what is missing, then stream in processes of their own, so that their memory is that of streaming."""
    page, folder = pages.needles(pages.BUDGETS[args.budget]), args.folder / args.budget
    runs = [Run(name, args.rate, seed) for name in memories.named(args.models) for seed in range(args.seeds)]
    experiments = {run.folder: experiment(run, page, args) for run in runs}
    trained = sweep.run_all(experiments, folder, ("data.eval_split=valid", "evaluation.lengths=1"), at_once=args.at_once)
    found = sweep.run_all(experiments, folder, stream_options(args), at_once=args.at_once, suite="needle_stream")
    return [{"model": run.model, "seed": run.seed, "trained": trained[run.folder]["eval/accuracy"],
             **{name: value for name, value in found[run.folder].items() if name != "workdir"}} for run in runs]


# ------------------------------------------------------------------------------------------------------------------------ results

def by_model(records: list[dict]) -> dict[str, list[dict]]:
    """The runs of each model."""
    return {name: [one for one in records if one["model"] == name] for name in dict.fromkeys(one["model"] for one in records)}


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """One line a model."""
    first = records[0]
    header = ["model", "floats of carry", "symbols at the trained length", *(f"depth {depth:g}" for depth in args.depths),
              "symbols", "bits per token, first and last eighth", "tokens/s", "peak MB, first and last eighth"]
    rows = []
    for name, seeds in by_model(records).items():
        mean = lambda value: statistics.mean(map(value, seeds))  # noqa: B023
        part = lambda at, key: mean(lambda one: one["parts"][at][key])  # noqa: B023
        model = memories.model_of(name, pages.needles(pages.BUDGETS[args.budget]).sizes)
        rows.append([name, f"{memories.carry_floats(model):,}", f"{mean(lambda one: one['trained']):.3f}",
                     *(f"{mean(lambda one, n=n: one['by_depth'][n][1]):.2f}" for n in range(len(args.depths))),
                     protocol.spread([one["eval/accuracy"] for one in seeds], 3),
                     f"{part(0, 'bits_per_token'):.3f}, {part(-1, 'bits_per_token'):.3f}",
                     f"{mean(lambda one: one['eval/tokens_per_second']):,.0f}",
                     f"{part(0, 'peak_mb'):,.1f}, {part(-1, 'peak_mb'):,.1f}"])
    streams = len(args.depths) * args.repeats
    about = (f"{streams} streams of {first['parts'][-1]['tokens']:,} tokens side by side, one needle of kind {args.kind} in each; "
             f"trained on rows of up to 256 tokens, {args.seeds} seeds. Whole values by depth; guessing says a whole one with "
             f"probability {first['baseline/chance']:.1g} and {first['baseline/symbols']:.3f} of the symbols.")
    return "\n\n".join([f"# {args.tokens:,} tokens", f"`{command}`", about, report.machine(records, load),
                        report.table(header, rows)])


def draw(path: Path, records: list[dict]) -> None:
    """Panels: symbols by depth, symbols by distance, bits per token and peak memory by position."""
    from memtok_jax.analysis import figures

    if not figures.available():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    axes = figure.subplots(1, 4)
    of = [("depth", "symbols right", lambda one: [(depth, symbols) for depth, _, symbols in one["by_depth"]]),
          ("distance (tokens)", "symbols right", lambda one: [(far, symbols) for far, _, symbols, _ in one["by_distance"]]),
          ("tokens read", "bits per token", lambda one: [(part["tokens"], part["bits_per_token"]) for part in one["parts"]]),
          ("tokens read", "peak memory (MB)", lambda one: [(part["tokens"], part["peak_mb"]) for part in one["parts"]])]
    for ax, (label, height, points) in zip(axes, of, strict=True):
        for name, seeds in by_model(records).items():
            memory_figure.line(ax, [x for x, _ in points(seeds[0])], [[y for _, y in points(one)] for one in seeds],
                               memory_figure.style_of(name))
        ax.set(xlabel=label, ylabel=height)
        ax.grid(alpha=0.3)
    for ax in axes[:2]:
        ax.axhline(records[0]["baseline/symbols"], color="black", linewidth=0.8)
        ax.set_ylim(-0.02, 1.02)
    axes[1].set_xscale("log", base=2)
    axes[3].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize="small")
    figure.savefig(path, dpi=130)


def main(arguments: list[str]) -> None:
    args, load = parse(arguments), report.load_average()
    command, records = report.command_line("benchmarks.two_million", arguments), run_all(args)
    text = summary(records, args, command, load)
    print(text)
    report.write(args.output, text, {"command": command, "load_average": load, "runs": records})
    if args.output:
        draw(Path(args.output + ".png"), records)
    print(json.dumps({f"{one['model']}, seed {one['seed']}": one["eval/accuracy"] for one in records}))


if __name__ == "__main__":
    main(sys.argv[1:])
