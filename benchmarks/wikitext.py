"""All memories of this package as small language models: equal parameters, data and updates, a learning rate of their own each.

    python -m benchmarks.wikitext --data_dir=DATA --folder=runs/wikitext --output=docs/results/wikitext2
    python -m benchmarks.wikitext --source=gutenberg_books --data_dir=DATA --folder=runs/books --output=docs/results/books

The rows are those of `benchmarks/memories.py` with segments, windows, caches and chunks of 64 bytes. Every model reads bytes, 256
to a row, and carries its memory over eight rows of a batch that follow each other. Its learning rate is chosen on the validation
split with a seed that is thrown away; then it is trained with fresh seeds and scored once on the test split, each text as one
stream, every byte once (`benchmarks/protocol.py`). Word perplexity is 2^(bits of the text / words).

Beside them, on the same bytes: compressors, counts of order 3, dynamic evaluation of models without a memory, which also learns
while it is tested, and every neural memory without its writes.
Runs go on side by side, one to a core; the command given again does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import memories, protocol, report, sweep
from benchmarks.memories import Sizes
from benchmarks.protocol import Run

SEGMENT, ROW, VISIT, BATCH = 64, 256, 8, 8
SIZES = Sizes(256, SEGMENT, ROW * VISIT)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=[], help="names of the table's rows (default: all)")
    parser.add_argument("--source", default="wikitext2", help="a text with the splits valid and test: wikitext2 or gutenberg_books")
    parser.add_argument("--seeds", type=int, default=3, help="fresh runs of each model")
    parser.add_argument("--steps", type=int, default=700, help=f"updates of {BATCH} x {ROW} bytes")
    parser.add_argument("--rates", type=float, nargs="+", default=list(protocol.RATES), help="learning rates to choose from")
    parser.add_argument("--parameters", type=int, default=memories.PARAMETERS, help="of each model, without embeddings")
    parser.add_argument("--valid_bytes", type=int, default=131_072, help="bytes of the validation split on which rates are chosen")
    parser.add_argument("--eval_bytes", type=int, default=262_144, help="bytes of the test split that are scored")
    parser.add_argument("--dynamic", nargs="*", default=[memories.SEGMENT, memories.WINDOW], help="rows with dynamic evaluation")
    parser.add_argument("--data_dir", default="", help="folder of the data sets (default: $MEMTOK_DATA_DIR)")
    parser.add_argument("--folder", type=Path, default=Path("runs/wikitext"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def experiment(run: Run, args: argparse.Namespace) -> Any:
    """One run: the same data, budget and recipe for every model. The held-out score on the way is of the validation split."""
    from memtok_jax.data.text import TextConfig
    from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

    return Experiment(
        model=memories.model_of(run.model, SIZES._replace(parameters=args.parameters)),
        data=TextConfig(args.source, sequence=ROW, contiguous=False, visit=VISIT, seed=run.seed, data_dir=args.data_dir,
                        eval_bytes=16_384),
        optimizer=OptimizerConfig(learning_rate=run.rate, steps=args.steps, warmup_steps=args.steps // 20, final_fraction=0.02),
        training=TrainingConfig(batch=BATCH, call_tokens=SEGMENT, seed=run.seed, log_every=min(50, args.steps), sample_tokens=0,
                                data=1),
        evaluation=EvaluationConfig(batch=BATCH, streams=1),
    )


def choose(args: argparse.Namespace, names: list[str]) -> dict[str, protocol.Chosen]:
    """The learning rate of each model, by bits per byte of the validation split."""
    overrides = ("data.eval_split=valid", f"data.eval_bytes={args.valid_bytes}", "evaluation.streams=8")

    def score(runs: list[Run]) -> dict[Run, float]:
        found = sweep.run_all({run.folder: experiment(run, args) for run in runs}, args.folder, overrides)
        return {run: found[run.folder]["eval/bits_per_byte"] for run in runs}

    return protocol.choose_rates(names, tuple(args.rates), score, lower_is_better=True)


def test(args: argparse.Namespace, chosen: dict[str, protocol.Chosen]) -> dict[str, list[dict]]:
    """Results of the fresh runs on the test split, one for each seed; rows "NAME + dynamic evaluation" behind the others."""
    test_text = ("data.eval_split=test", f"data.eval_bytes={args.eval_bytes}")
    runs = protocol.final_runs(chosen, args.seeds)
    found = sweep.run_all({run.folder: experiment(run, args) for run in runs}, args.folder, test_text)
    results: dict[str, list[dict]] = {name: [] for name in chosen}
    for run in runs:
        results[run.model].append(found[run.folder])
    learning = [run for run in runs if run.model in args.dynamic]
    found = sweep.run_all({run.folder: experiment(run, args) for run in learning}, args.folder, test_text, suite="dynamic")
    for run in learning:
        own = found[run.folder]
        as_scored = {"eval/bits_per_byte": own["eval/dynamic_bits_per_byte"],
                     "eval/word_perplexity": own.get("eval/dynamic_word_perplexity", float("nan"))}
        results.setdefault(f"{run.model} + dynamic evaluation", []).append(own | as_scored)
    return results


def table(results: dict[str, list[dict]], args: argparse.Namespace) -> str:
    """Mean and spread over the seeds, best first."""
    rows = []
    for name, runs in sorted(results.items(), key=lambda item: statistics.mean(r["eval/bits_per_byte"] for r in item[1])):
        column = lambda key: [r[key] for r in runs if key in r]  # noqa: B023
        model = memories.model_of(name.removesuffix(" + dynamic evaluation"), SIZES._replace(parameters=args.parameters))
        still, words = column("eval/frozen_bits_per_byte"), column("eval/word_perplexity")
        rows.append([name, f"{memories.parameters(model):,}", f"{memories.carry_floats(model):,}",
                     protocol.spread(column("eval/bits_per_byte"), 3), protocol.spread(words, 0) if words else "",
                     protocol.spread(still, 3) if still else "", f"{statistics.mean(column('tokens_per_second')):,.0f}"])
    return report.table(["model", "parameters", "floats of carry", "bits per byte", "word perplexity", "without writes",
                         "tokens/s in training"], rows)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    load, names = report.load_average(), list(memories.named(args.models))
    memories.named(args.dynamic)
    chosen = choose(args, names)
    results = test(args, chosen)
    first = next(iter(results.values()))[0]
    free = {k.removeprefix("baseline/"): v for k, v in first.items() if k.startswith("baseline/")}
    text = "\n\n".join([
        f"# {args.source}, equal parameters and budget", f"`{report.command_line('benchmarks.wikitext', arguments)}`",
        f"{args.steps} updates of {BATCH} x {ROW} bytes; learning rate of each model chosen on the first {args.valid_bytes:,} "
        f"bytes of the validation split; {args.seeds} fresh seeds (mean, least to most); first {first.get('eval/bytes', 0):,} "
        f"bytes of the test split, {first.get('eval/words', 0):,} words, each text one stream. Parameters are without embeddings. "
        "Bits per byte without training, on the same bytes: " + ", ".join(f"{k} {v:.3f}" for k, v in free.items())
        + f". {report.machine([sweep.software()], load)}", table(results, args),
        "Learning rates that were tried, with validation bits per byte:",
        report.table(["model", "rates"], [list(item) for item in protocol.tried(chosen, 3).items()])])
    print(text)
    kept = {name: [{k: v for k, v in run.items() if k not in ("positions", "workdir")} for run in runs]
            for name, runs in results.items()}
    rates = {name: one._asdict() for name, one in chosen.items()}
    report.write(args.output, text, {"arguments": arguments, "baselines": free, "rates": rates, "results": kept})
    print(json.dumps({name: statistics.mean(r["eval/bits_per_byte"] for r in runs) for name, runs in results.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
