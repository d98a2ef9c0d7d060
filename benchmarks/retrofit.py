"""Does a memory help a decoder that is trained already, more than training on as long without one?

    python -m benchmarks.retrofit --data=FOLDER --output=docs/results/retrofit              hours
    python -m benchmarks.retrofit --tiny                                                    minutes; nothing to conclude from

The base is a Llama-style decoder of bytes with a window, trained on whole books until its curve is flat (--base_steps). Every arm
begins with its parameters and reads the same tokens in the same order, a part of the base's budget, with the same learning rates to
choose from (`benchmarks/protocol.py`), judged on validation text; then fresh seeds are tested (--test_split).

    plain        trained on without memory: what a memory must beat
    plain_lora   the same, low-rank changes alone
    mag          a neural memory beside attention; everything learns
    mag_memory   the memory alone learns
    mag_lora     the memory and low-rank changes
    mag_upper    mag in the upper half of the layers
    armt, rmt, xl    the other memories; everything learns

The suite "positions" scores each arm beside itself with its carry reset at every window ("reset"). A gain counts if the arm is
better than plain beyond the spread of its seeds, if it grows with the position, and if reset takes it away.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import measure, protocol, report, sweep
from benchmarks.protocol import Run

ARMS = {"plain": "plain", "plain_lora": "plain_lora", "mag": "mag", "mag_memory": "mag_memory", "mag_lora": "mag_lora",
        "mag_upper": "mag", "armt": "armt", "rmt": "rmt", "xl": "xl"}
SCORE = "eval/bits_per_byte"
TINY = dict(base_steps=30, steps=10, rates=[1e-3], seeds=1, width=32, layers=2, window=32, sequence=64, tokens=256, eval_bytes=4096)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--data", default="stdlib", help="as `train.py --data`")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--base_steps", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=6000, help="updates of every arm")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--sequence", type=int, default=1024, help="tokens of a row of an update")
    parser.add_argument("--tokens", type=int, default=8192, help="length of a stream that is scored")
    parser.add_argument("--eval_bytes", type=int, default=524_288)
    parser.add_argument("--test_split", default="valid", help="split of the last scores; test, where the data has one")
    parser.add_argument("--tiny", action="store_true", help="a run that shows that the program runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/retrofit"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    args = parser.parse_args(arguments)
    vars(args).update(TINY if args.tiny else {})
    return args


def text(args: argparse.Namespace, seed: int, **training) -> tuple:
    """(data, training) that the base and all arms have in common; rows go through whole documents with the carry kept."""
    from memtok_jax.data.text import TextConfig
    from memtok_jax.training.experiment import TrainingConfig

    source = TextConfig(source=args.data, sequence=args.sequence, eval_bytes=args.eval_bytes)
    return source, TrainingConfig(batch=4, call_tokens=args.window, seed=seed, log_every=10, sample_tokens=0, data=1, **training)


def base(args: argparse.Namespace):
    """The training of the base."""
    from memtok_jax.models.language_model import LanguageModelConfig
    from memtok_jax.models.mixers.window import WindowConfig
    from memtok_jax.models.style import TITANS
    from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig

    model = LanguageModelConfig(width=args.width, layers=args.layers, head_dim=args.width // 4,
                                pattern=(WindowConfig(args.window),), style=replace(TITANS, scale_embedding=False))
    source, training = text(args, 0)
    return Experiment(model, source, OptimizerConfig(2e-3, args.base_steps, args.base_steps // 20), training,
                      EvaluationConfig(batch=4))


def arm(run: Run, args: argparse.Namespace, folder: Path):
    """The training of one arm, with the base's sizes and parameters."""
    from memtok_jax import config
    from memtok_jax.evaluation.options import PositionsConfig
    from memtok_jax.memory.neural.config import NeuralMemoryConfig
    from memtok_jax.training import cli
    from memtok_jax.training.memories import retrofit_model

    chosen = config.load(f"retrofit:{ARMS[run.model]}")
    inside = retrofit_model(ARMS[run.model].partition("_")[0], args.window)
    if ARMS[run.model].startswith("mag"):
        own = NeuralMemoryConfig(head_dim=args.width // 4, chunk=min(64, args.window))
        beside = inside.pattern[0]
        inside = replace(inside, pattern=(replace(beside, mixers=(beside.mixers[0], replace(beside.mixers[1], memory=own))),))
    model = replace(chosen.model, model=inside) if ARMS[run.model].endswith("_lora") else inside
    source, training = text(args, run.seed, start_from=str(folder), retrofit=True,
                            retrofit_layers="upper" if run.model == "mag_upper" else "all")
    how = replace(chosen.optimizer, learning_rate=run.rate, steps=args.steps, warmup_steps=args.steps // 20)
    judged = replace(chosen.evaluation, positions=PositionsConfig(tokens=args.tokens, reset=args.window))
    return cli.on_base(replace(chosen, model=model, data=source, training=training, optimizer=how, evaluation=judged))


def run_all(args: argparse.Namespace) -> list[dict]:
    """The base, the rates of the arms, then fresh seeds; one record for each arm."""
    start = args.folder / "base" / "run"
    before = sweep.run_all({"base": base(args)}, args.folder)["base"]

    def results(runs: list[Run], split: str) -> dict[Run, dict]:
        experiments = {run.folder: arm(run, args, start) for run in runs}
        found = sweep.run_all(experiments, args.folder, (f"data.eval_split={split}",), suite="positions")
        return {run: found[run.folder] for run in runs}

    chosen = protocol.choose_rates(args.arms, tuple(args.rates), lambda runs: {
        run: found[SCORE] for run, found in results(runs, "valid").items()}, lower_is_better=True)
    tested = results(protocol.final_runs(chosen, args.seeds), args.test_split)
    out = [{"arm": "base", "bits": [before[SCORE]], **sweep.software()}]
    for name, one in chosen.items():
        own = [found for run, found in tested.items() if run.model == name]
        bins = own[0]["by_position"]["lines"]
        ends = [line["tokens"] for line in bins if "first" in line][-1]
        late = [next(line["own"] for line in found["by_position"]["lines"] if line["tokens"] == ends) for found in own]
        out.append({"arm": name, "rate": one.rate, "tried": one.tried, "bits": [found[SCORE] for found in own], "late": late,
                    "last_bin": ends, "reset": [found["eval/reset_minus_own"] for found in own],
                    "tokens_per_second": own[0]["tokens_per_second"]})
    return out


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The whole result as Markdown."""
    plain = next((r for r in records if r["arm"] == "plain"), None)
    mean = lambda values: sum(values) / len(values)
    rows = []
    for r in records:
        gain = f"{mean(r['bits']) - mean(plain['bits']):+.4f}" if plain else ""
        own = [r["arm"], protocol.spread(r["bits"], 4), gain]
        rows.append(own + ([""] * 4 if r["arm"] == "base" else [
            protocol.spread(r["late"], 4), f"{mean(r['reset']):+.4f}", f"{r['rate']:g}", f"{r['tokens_per_second']:,.0f}"]))
    last = next((r["last_bin"] for r in records if "last_bin" in r), "")
    header = ["arm", "bits per byte", "less plain", f"at tokens {last}", "reset less own", "rate", "tokens/s"]
    return "\n".join(["# A memory for a trained decoder", "", f"    {command}", "", report.machine(records, load), "",
                      f"Base: width {args.width}, {args.layers} layers, window {args.window}, {args.base_steps} updates; arms: "
                      f"{args.steps} updates, {args.seeds} seeds. What the arms are and when a gain counts: "
                      "`benchmarks/retrofit.py`.", "", report.table(header, rows)])


if __name__ == "__main__":
    report.main("benchmarks.retrofit", sys.argv[1:], parse, run_all, summary)
