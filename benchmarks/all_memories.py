"""One table of all memories: needles, loss by position on books, state tracking; equal parameters, tokens and care.

    python -m benchmarks.all_memories --data_dir=DATA --folder=runs/all_memories --output=docs/results/all_memories
    python -m benchmarks.all_memories --pages needles --models RMT "Titans MAG" window
    python -m benchmarks.all_memories --output=docs/results/all_memories --minutes=90      what is missing, as far as it gets

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

OUTPUT.json also keeps what each run has found (`benchmarks/records.py`). The same command takes it from there, even if the run
directories are gone, and adds what is missing: more rows (`--models NEW`), pages or seeds; rows and pages that it is not asked for
stay in the table. So a long table is made in several sittings (`--minutes`) on several machines (`--records` reads the files of
others). A record whose experiment is not the same any more is refused in one line; with --again such rows are trained once more,
and are left out of the table until that is done. A row of books is compared with the run directory of its twin, so a twin that is
only a record is trained again there.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import memories, memory_figure, pages, protocol, records, report
from benchmarks.page_runs import Work, run_page
from benchmarks.pages import BUDGETS


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
    parser.add_argument("--output", default="", help="write OUTPUT.md, OUTPUT.json and OUTPUT.png; go on from OUTPUT.json")
    parser.add_argument("--records", type=Path, nargs="+", default=[], help="take runs from these files too: OUTPUT.json of others")
    parser.add_argument("--again", action="store_true", help="train rows once more whose record is of another experiment")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many minutes")
    return parser.parse_args(arguments)


# ------------------------------------------------------------------------------------------------------------------------- table

def page_table(done: dict[str, Any]) -> str:
    """One line a model: the number of its seeds, and every column as mean (least to most) of them."""
    names = list(dict.fromkeys(column for seeds in done["columns"].values() for one in seeds for column in one))
    rows = []
    for model, seeds in done["columns"].items():
        values = {name: [one[name] for one in seeds if name in one] for name in names}
        digits = {name: 3 if max(map(abs, values[name]), default=0) < 10 else 0 for name in names}
        rows.append([model, done["seeds"][model],
                     *(protocol.spread(values[name], digits[name]) if values[name] else "" for name in names)])
    return report.table(["model", "seeds", *names], rows)


def cost_table(done: dict[str, Any]) -> str:
    """One line a model: parameters, floats of carry, speed, and the rates that were tried."""
    tried, rows = protocol.tried(done["chosen"], 3), []
    for name, model in done["models"].items():
        seeds = done["results"][name]
        mean = lambda key: f"{statistics.mean(one[key] for one in seeds):,.0f}" if seeds else ""  # noqa: B023
        rows.append([name, f"{memories.parameters(model):,}", f"{memories.carry_floats(model):,}", mean("tokens_per_second"),
                     mean("seconds"), tried.get(name, "")])
    return report.table(["model", "parameters", "floats of carry", "tokens/s in training", "seconds", "rates: validation"], rows)


def at_all_lengths(one: dict[str, Any], kind: str) -> dict[str, list[float]]:
    """What a suite reports under `kind/`, the numbers of all lengths ("..._at_256") under one name."""
    found: dict[str, list[float]] = {}
    for name, value in one.items():
        if name.startswith(kind + "/"):
            found.setdefault(re.sub(r"_at_\d+$", "", name.removeprefix(kind + "/")), []).append(value)
    return found


def free_lines(done: dict[str, Any]) -> str:
    """What needs no training, by model where it depends on what a model sees; "" as long as nothing is known."""
    found: dict[str, dict[str, None]] = {}
    for first in (seeds[0] for seeds in done["results"].values() if seeds):
        for name, values in at_all_lengths(first, "baseline").items():
            found.setdefault(name, {}).update({f"{value:.3g}": None for value in values})
    values = ", ".join(f"{name} {' or '.join(values)}" for name, values in found.items())
    return f"Without training: {values}." if values else ""


def control_table(done: dict[str, Any]) -> str:
    """Controls of the page that a suite reports under control/, as means over lengths and seeds; "" if it has none.

    One line for a model and what comes before the name of a control ("passkey_swap").
    """
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for model, seeds in done["results"].items():
        for one in seeds:
            for name, values in at_all_lengths(one, "control").items():
                task, _, control = name.partition("_")
                rows.setdefault((model, task), {}).setdefault(control, []).extend(values)
    names = list(dict.fromkeys(control for line in rows.values() for control in line))
    mean = lambda values: f"{statistics.mean(values):.2f}" if values else ""
    cells = [[*key, *(mean(line.get(name, [])) for name in names)] for key, line in rows.items()]
    return report.table(["model", "task", *(name.replace("_", " ") for name in names)], cells) if cells else ""


def made_with(done: dict[str, dict]) -> str:
    """On what the runs were made, from their records; speeds compare only where that is one thing."""
    found = Counter(f"jax {one['jax']} on {one['device']}" for page in done.values() for seeds in page["results"].values()
                    for one in seeds if "jax" in one)
    return "Tested runs: " + ", ".join(f"{count} with {what}" for what, count in found.items()) + "." if found else ""


def summary(done: dict[str, dict], args: argparse.Namespace, command: str) -> str:
    """All pages."""
    parts = ["# All memories", f"`{command}`",
             f"Budget {args.budget}; {args.seeds} fresh seeds (mean, least to most); one backbone, {memories.PARAMETERS:,} "
             f"parameters within 1 % without embeddings, the same tokens for all. {made_with(done)}".rstrip()]
    for name, page in done.items():
        controls, missing = control_table(page), ", ".join(page["missing"])
        parts += [f"## {name}", page["about"].capitalize() + ".", page_table(page), free_lines(page), cost_table(page),
                  *(["Controls, whole values after each, the mean of all lengths:", controls] if controls else []),
                  *([f"Missing: {missing}."] if missing else [])]
    return "\n\n".join(filter(None, parts))


def numbers(done: dict[str, dict]) -> dict[str, Any]:
    """All pages as plain values; the results of their runs are the records."""
    return {name: {"about": page["about"], "columns": page["columns"], "missing": page["missing"],
                   "rates": {model: one._asdict() for model, one in page["chosen"].items()},
                   "parameters": {model: memories.parameters(cfg) for model, cfg in page["models"].items()},
                   "carry": {model: memories.carry_floats(cfg) for model, cfg in page["models"].items()}}
            for name, page in done.items()}


# ----------------------------------------------------------------------------------------------------------------------- command

def known_records(args: argparse.Namespace) -> records.Records:
    """Those of the output and of other tables. Leaves with one line for a row that is none any more."""
    own = Path(args.output + ".json")
    known = records.read([*([own] if args.output and own.exists() else []), *args.records])
    for key in known:
        if key.model not in memories.MEMORIES and not args.again:
            raise SystemExit(f"error: there is a record of {key.model!r}, which is no row any more; give another --output, or "
                             "--again")
    return {key: record for key, record in known.items() if key.model in memories.MEMORIES}


def run_pages(known: dict[str, pages.Page], args: argparse.Namespace, command: str) -> dict[str, dict]:
    """All pages that are asked for or have records; new records are written as they come."""
    there, until = known_records(args), time.monotonic() + 60 * args.minutes

    def save(done: dict[str, dict]) -> None:
        if args.output:
            records.write(Path(args.output + ".json"), {"command": command, "pages": numbers(done)}, there)

    done: dict[str, dict] = {}
    asked, shown = args.pages or [*known], {key.page for key in there if key.budget == args.budget}
    for name in known:
        if name in {*asked, *shown}:
            work = Work(name, known[name], args.budget, args.folder / args.budget / name, tuple(args.rates), args.seeds, there,
                        args.again, until, lambda: save(done))
            done[name] = run_page(work, list(memories.named(args.models)) if name in asked else [])
    save(done)
    return done


def main(arguments: list[str]) -> None:
    args, command = parse(arguments), report.command_line("benchmarks.all_memories", arguments)
    known = pages.pages(BUDGETS[args.budget], args.text, args.data_dir)
    for name in args.pages:
        if name not in known:
            raise SystemExit(f"error: no page {name!r}; there are {', '.join(known)}")
    memories.named(args.models)
    done = run_pages(known, args, command)
    text = summary(done, args, command)
    print(text)
    if args.output:
        Path(args.output + ".md").write_text(text.rstrip() + "\n")
        memory_figure.draw(Path(args.output + ".png"), done, BUDGETS[args.budget].lengths)
    print(json.dumps({name: page["columns"] for name, page in done.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
