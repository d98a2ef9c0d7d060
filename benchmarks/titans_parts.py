"""What the parts of Titans' memory are worth on books: its depth, with shared and with per-layer gates, and the paper's ablation.

    python -m benchmarks.titans_parts --data_dir=DATA --output=docs/results/titans_parts        13 models x 2 seeds

Two layers of width 128 with heads of 32 and 500,000 parameters (within 1 %, without embeddings) in all models, the same rows of 256
bytes for all; then streams of 4,096 bytes, 16 times as long as the trained rows. The learning rate is that of "LMM, depth 2" on
validation text with a seed that is thrown away (`benchmarks/protocol.py`).

    LMM, depth 1 to 4      layers of the memory network; depth 1 is a matrix with residual and norm
    per layer              the same, each dense layer of the memory with gates of its own (Titans, NeurIPS 2025, section 3.1)
    MAG                    as it is, then one part less at a time, in the paper's order of damage (v1, table 5: perplexity + 2.03
                           without forgetting, 1.97 momentum, 1.72 convolution, 1.48 depth, .62 persistent tokens)

Bits per byte of all bytes and of the last bin of positions; "reset" is what the carry is worth: loss with the carry reset every 64
bytes, minus the model's own; "frozen" what the writes are worth.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import memories, pages, protocol, report, sweep
from benchmarks.memories import Sizes

SIZES = Sizes(256, 64, 256)
BASE = "LMM, depth 2"
DEPTHS = {"LMM, depth 1": dict(depth=1)} | {
    f"LMM, depth {depth}{name}": dict(depth=depth, gates=gates) for depth in (2, 3, 4)
    for name, gates in (("", "shared"), (", per layer", "per_layer"))}
PARTS = {"MAG": {}, "no forgetting": dict(forget=False), "no momentum": dict(momentum=False), "no convolution": dict(conv=1),
         "linear memory": dict(depth=1, residual=False, norm=False), "no persistent tokens": {}}
MODELS = {name: ("Titans LMM", change) for name, change in DEPTHS.items()} | {
    name: ("Titans MAG", change) for name, change in PARTS.items()}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="MODEL", help="rows (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=250, help="updates of 4,096 bytes")
    parser.add_argument("--rates", type=float, nargs="+", default=list(protocol.RATES), help="learning rates to choose from")
    parser.add_argument("--data_dir", default="", help="folder of the data sets (default: $MEMTOK_DATA_DIR)")
    parser.add_argument("--folder", type=Path, default=Path("runs/titans_parts"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def model_of(name: str):
    """The fitted model of one row."""
    row, change = MODELS[name]
    model = memories.MEMORIES[row].build(SIZES)
    (mixer,) = model.pattern
    model = replace(model, pattern=(replace(mixer, memory=replace(mixer.memory, **change)),))
    return memories.fitted(replace(model, prefix=0) if name == "no persistent tokens" else model)


def page_of(args: argparse.Namespace) -> pages.Page:
    """Books as in the table of all memories, shorter."""
    budget = pages.BUDGETS["small"]._replace(books_steps=args.steps, stream=4096, streams=32)
    return pages.books(budget, "gutenberg_books", args.data_dir or os.environ.get("MEMTOK_DATA_DIR", ""))


def run_all(args: argparse.Namespace) -> list[dict]:
    """Choose the rate, then train and test what is missing."""
    page, folder = page_of(args), args.folder / str(args.steps)
    experiment = lambda name, rate, seed: page.experiment(model_of(name), rate, seed)

    def score(runs: list[protocol.Run]) -> dict:
        found = sweep.run_all({run.folder: experiment(*run) for run in runs}, folder, page.valid)
        return {run: found[run.folder][page.judged] for run in runs}

    chosen = protocol.choose_rates([BASE], tuple(args.rates), score, page.lower_is_better)[BASE]
    runs = [protocol.Run(name, chosen.rate, seed) for name in args.models for seed in args.seeds]
    found = sweep.run_all({run.folder: experiment(*run) for run in runs}, folder, page.test, suite=page.suite)
    return [{**run._asdict(), "tried": chosen.tried, "parameters": memories.parameters(model_of(run.model)), **sweep.software(),
             **{key: found[run.folder][key] for key in ("seconds", "tokens_per_second", "by_position")},
             **page.columns(found[run.folder])} for run in runs]


def last_bin(record: dict) -> dict:
    """The line of the last bin of positions."""
    return [line for line in record["by_position"]["lines"] if "first" in line][-1]


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """One line a model; mean, least and most of the seeds."""
    rows = []
    for name in args.models:
        mine = [record for record in records if record["model"] == name]
        spread = lambda key, mine=mine: protocol.spread([record[key] for record in mine], 3) if key in mine[0] else ""
        rows.append([name, spread("bits per byte"), protocol.spread([last_bin(record)["own"] for record in mine], 3),
                     spread("reset"), spread("frozen"), f"{mine[0]['parameters']:,}", f"{mine[0]['tokens_per_second']:,.0f}"])
    tried = ", ".join(f"{rate}: {value:.3f}" for rate, value in records[0]["tried"].items()) or "given"
    about = (f"{args.steps} updates of 4,096 bytes, {len(args.seeds)} seeds (mean, least to most). Learning rate "
             f"{records[0]['rate']:g} for all; {BASE} on validation text: {tried}.")
    header = ["model", "bits per byte", f"of bytes {last_bin(records[0])['tokens']}", "reset", "frozen", "parameters",
              "tokens/s in training"]
    return "\n\n".join(["# Parts of Titans' memory on books", f"`{command}`", about, report.machine(records, load),
                        report.table(header, rows)])


if __name__ == "__main__":
    report.main("benchmarks.titans_parts", sys.argv[1:], parse, run_all, summary)
