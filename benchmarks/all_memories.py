"""One table of all memories: needles, loss by position on books, state tracking; equal parameters, tokens and care.

    python -m benchmarks.all_memories --data_dir=DATA --folder=runs/all_memories --output=docs/results/all_memories
    python -m benchmarks.all_memories --pages needles --models RMT "Titans MAG" window

One backbone of 500,000 parameters (within 1 %, without embeddings) with each memory in both layers (`benchmarks/memories.py`), the
same tokens for all, the learning rate of each chosen on validation data with a seed that is thrown away, then fresh seeds on the
test (`benchmarks/protocol.py`). Pages (`benchmarks/pages.py`):

    needles   share of whole values that the model writes, for three kinds of needle, by length
    books     bits per byte in long streams, and what the carry is worth there: loss with the carry reset, without writes, and of
              the twin, the row without this memory, minus the model's own
    parity,   share of rows of products that are right throughout, by length; the first token where accuracy falls below 0.9
    s3

--budget=tiny tries the command (minutes), small is the table, large has four times the updates and longer tests. A memory that is
better passes two tests: the ranges of the seeds do not overlap, and the page's controls say that the answer passes through it.
There is no mean over columns. Runs go on side by side, one to a core; the command given again does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import memories, memory_figure, pages, protocol, report, sweep
from benchmarks.pages import BUDGETS, Page
from benchmarks.protocol import Run


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=[], help="names of the table's rows (default: all)")
    parser.add_argument("--pages", nargs="+", default=[], help="needles, books, parity, s3 (default: all)")
    parser.add_argument("--budget", default="small", choices=list(BUDGETS))
    parser.add_argument("--seeds", type=int, default=3, help="fresh runs of each model")
    parser.add_argument("--rates", type=float, nargs="+", default=list(protocol.RATES), help="learning rates to choose from")
    parser.add_argument("--text", default="gutenberg_books", help="source of the page books")
    parser.add_argument("--data_dir", default="", help="folder of the data sets (default: $MEMTOK_DATA_DIR)")
    parser.add_argument("--folder", type=Path, default=Path("runs/all_memories"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md, OUTPUT.json and OUTPUT.png")
    return parser.parse_args(arguments)


# -------------------------------------------------------------------------------------------------------------------------- runs

def run_page(name: str, page: Page, args: argparse.Namespace) -> dict[str, Any]:
    """Choose rates, train and test all models on one page: rates, and for each model a record of each seed."""
    folder, names = args.folder / args.budget / name, list(memories.named(args.models))
    models = {model: memories.model_of(model, page.sizes) for model in with_twins(names, name)}
    experiments = lambda runs: {run.folder: page.experiment(models[run.model], run.rate, run.seed) for run in runs}
    changed = lambda run, *more: (*more, *(o.format(longest=page.longest) for o in memories.MEMORIES[run.model].evaluation))

    def score(runs: list[Run]) -> dict[Run, float]:
        found = sweep.run_all(experiments(runs), folder, page.valid)
        return {run: found[run.folder][page.judged] for run in runs}

    chosen = protocol.choose_rates(models, tuple(args.rates), score, page.lower_is_better)
    runs = protocol.final_runs(chosen, args.seeds)
    if page.suite == "positions":  # a twin must be trained before others are compared with it
        sweep.run_all(experiments(runs), folder, page.valid)
    overrides = {run.folder: changed(run, *page.test, *against(run, chosen, folder, page)) for run in runs}
    found = sweep.run_all(experiments(runs), folder, overrides, suite=page.suite)
    results: dict[str, list[dict]] = {model: [] for model in models}
    for run in runs:
        results[run.model].append({k: v for k, v in found[run.folder].items() if k != "workdir"})
    return {"about": page.about, "chosen": chosen, "models": models, "results": results,
            "columns": {model: [page.columns(one) for one in seeds] for model, seeds in results.items()}}


def with_twins(names: list[str], page: str) -> list[str]:
    """The rows of the table, and on the page of books also those that they are compared with."""
    twins = [memories.MEMORIES[name].twin for name in names if page == "books" and memories.MEMORIES[name].twin]
    return list(dict.fromkeys([*names, *twins]))


def against(run: Run, chosen: dict[str, protocol.Chosen], folder: Path, page: Page) -> tuple[str, ...]:
    """The override that names the twin of a run, the one of the same seed."""
    twin = memories.MEMORIES[run.model].twin
    if page.suite != "positions" or not twin:
        return ()
    return (f"evaluation.positions.against={folder / Run(twin, chosen[twin].rate, run.seed).folder / 'run'}",)


# ------------------------------------------------------------------------------------------------------------------------- table

def page_table(done: dict[str, Any]) -> str:
    """One line a model: every column as mean (least to most) of the seeds."""
    names = list(dict.fromkeys(column for seeds in done["columns"].values() for one in seeds for column in one))
    rows = []
    for model, seeds in done["columns"].items():
        values = {name: [one[name] for one in seeds if name in one] for name in names}
        digits = {name: 3 if max(map(abs, values[name]), default=0) < 10 else 0 for name in names}
        rows.append([model, *(protocol.spread(values[name], digits[name]) if values[name] else "" for name in names)])
    return report.table(["model", *names], rows)


def cost_table(done: dict[str, Any]) -> str:
    """One line a model: parameters, floats of carry, speed, and the rates that were tried."""
    tried, rows = protocol.tried(done["chosen"], 3), []
    for name, model in done["models"].items():
        mean = lambda key: f"{statistics.mean(one[key] for one in done['results'][name]):,.0f}"  # noqa: B023
        rows.append([name, f"{memories.parameters(model):,}", f"{memories.carry_floats(model):,}", mean("tokens_per_second"),
                     mean("seconds"), tried[name]])
    return report.table(["model", "parameters", "floats of carry", "tokens/s in training", "seconds", "rates: validation"], rows)


def free_lines(done: dict[str, Any]) -> str:
    """What needs no training, by model where it depends on what a model sees."""
    found: dict[str, dict[str, None]] = {}
    for (first, *_) in done["results"].values():
        for name in first:
            if name.startswith("baseline/"):
                found.setdefault(name.removeprefix("baseline/"), {})[f"{first[name]:.3g}"] = None
    return "Without training: " + ", ".join(f"{name} {' or '.join(values)}" for name, values in found.items()) + "."


def control_table(done: dict[str, Any]) -> str:
    """Controls of the page that a suite reports under control/, as means over the seeds; "" if it has none."""
    names = [name for name in next(iter(done["results"].values()))[0] if name.startswith("control/")]
    rows = [[model, *(f"{statistics.mean(one[name] for one in seeds):.2f}" for name in names)]
            for model, seeds in done["results"].items()]
    return report.table(["model", *(name.removeprefix("control/") for name in names)], rows) if names else ""


def summary(done: dict[str, dict], args: argparse.Namespace, command: str, load: float) -> str:
    """All pages."""
    parts = ["# All memories", f"`{command}`",
             f"Budget {args.budget}; {args.seeds} fresh seeds (mean, least to most); one backbone, {memories.PARAMETERS:,} "
             f"parameters within 1 % without embeddings, the same tokens for all. {report.machine([sweep.software()], load)}"]
    for name, page in done.items():
        controls = control_table(page)
        parts += [f"## {name}", page["about"].capitalize() + ".", page_table(page), free_lines(page), cost_table(page),
                  *(["Controls, whole values after each:", controls] if controls else [])]
    return "\n\n".join(parts)


def numbers(done: dict[str, dict]) -> dict[str, Any]:
    """All pages as plain values."""
    return {name: {"about": page["about"], "columns": page["columns"], "results": page["results"],
                   "rates": {model: one._asdict() for model, one in page["chosen"].items()},
                   "parameters": {model: memories.parameters(cfg) for model, cfg in page["models"].items()},
                   "carry": {model: memories.carry_floats(cfg) for model, cfg in page["models"].items()}}
            for name, page in done.items()}


def main(arguments: list[str]) -> None:
    args, load = parse(arguments), report.load_average()
    known = pages.pages(BUDGETS[args.budget], args.text, args.data_dir)
    for name in args.pages:
        if name not in known:
            raise SystemExit(f"error: no page {name!r}; there are {', '.join(known)}")
    done = {name: run_page(name, known[name], args) for name in args.pages or known}
    text = summary(done, args, report.command_line("benchmarks.all_memories", arguments), load)
    print(text)
    report.write(args.output, text, {"arguments": arguments, "pages": numbers(done)})
    if args.output:
        memory_figure.draw(Path(args.output + ".png"), done, BUDGETS[args.budget].lengths)
    print(json.dumps({name: page["columns"] for name, page in numbers(done).items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
