"""Does a memory help a decoder that is trained already, more than training on as long without one?

    python -m benchmarks.retrofit --data=gutenberg_books --test_split=test --output=docs/results/retrofit       hours
    python -m benchmarks.retrofit --tiny                                                    minutes; nothing to conclude from

The base is a Llama-style decoder of bytes with a window, trained on whole books until its curve is flat (--base_steps). Every arm
begins with its parameters and reads the same tokens in the same order, a part of the base's budget, with the same learning rates to
choose from (`benchmarks/protocol.py`), judged on validation text; then fresh seeds are tested (--test_split).

    plain        trained on without memory: what a memory must beat
    plain_lora   the same, low-rank changes alone
    window2      plain with twice the window: what a perfect memory of as much would give
    mag          a neural memory beside attention; everything learns
    mag_memory   the memory alone learns
    mag_lora     the memory and low-rank changes
    mag_upper    mag in the upper half of the layers
    armt, rmt, xl    the other memories; everything learns

Each tested run is compared with the run of plain of the same seed, token by token, and with itself without the content of its
memory (`evaluation/suites/content.py`). A gain counts if the arm is better than plain in every seed, beyond the interval over
streams; if it is larger late in a stream than in the first window; and if the content is what helps: forgetting it, or another
stream's in its place, costs bits. "short" is the loss with everything reset at every window, where no memory can help; what lies
above that of plain was paid for the memory. Finished runs are not done again, and a run that was killed goes on from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import measure, protocol, report, sweep
from benchmarks.protocol import Run

ARMS = {"plain": "plain", "plain_lora": "plain_lora", "window2": "plain", "mag": "mag", "mag_memory": "mag_memory",
        "mag_lora": "mag_lora", "mag_upper": "mag", "armt": "armt", "rmt": "rmt", "xl": "xl"}
PLAIN, SCORE, GAIN, CONTROLS = "plain", "eval/bits_per_byte", "against", ("forgotten", "swapped", "frozen")
TINY = dict(base_steps=30, steps=10, rates=[1e-3], seeds=1, width=32, layers=2, window=32, sequence=64, tokens=256, streams=8,
            valid_bytes=4096)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--data", default="stdlib", help="as `train.py --data`")
    parser.add_argument("--data_dir", default="", help="folder of the data sets (default: $MEMTOK_DATA_DIR)")
    parser.add_argument("--train_bytes", type=int, default=0, help="train on at most this many bytes; 0: all")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--base_steps", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=6000, help="updates of every arm")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--seeds", type=int, default=3, help="fresh runs; 0: the runs by which rates were chosen are tested")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--sequence", type=int, default=1024, help="tokens of a row of an update, through which gradients flow")
    parser.add_argument("--tokens", type=int, default=8192, help="length of a stream that is tested")
    parser.add_argument("--streams", type=int, default=64, help="streams that are tested, spread over all texts of the split")
    parser.add_argument("--valid_bytes", type=int, default=262_144, help="bytes of the validation split on which rates are chosen")
    parser.add_argument("--test_split", default="valid", help="split of the last scores; test, where the data has one")
    parser.add_argument("--tiny", action="store_true", help="a run that shows that the program runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/retrofit"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    args = parser.parse_args(arguments)
    vars(args).update(TINY if args.tiny else {})
    if PLAIN not in args.arms:
        parser.error(f"--arms must hold {PLAIN}, with which the others are compared")
    return args


# ------------------------------------------------------------------------------------------------------------------- experiments

def text(args: argparse.Namespace, order: int, **training: Any) -> tuple:
    """(data, training) that the base and all arms have in common; rows go through whole documents with the carry kept.

    order: seed of the order of the texts.
    """
    from memtok_jax.data.text import TextConfig
    from memtok_jax.training.experiment import TrainingConfig

    source = TextConfig(source=args.data, data_dir=args.data_dir, sequence=args.sequence, seed=order, max_bytes=args.train_bytes,
                        eval_bytes=min(args.valid_bytes, 65_536))
    return source, TrainingConfig(batch=4, call_tokens=args.window, log_every=10, checkpoint_every=50, sample_tokens=0, data=1,
                                  **training)


def base(args: argparse.Namespace) -> Any:
    """The training of the base."""
    from memtok_jax.models.language_model import LanguageModelConfig
    from memtok_jax.models.mixers.window import WindowConfig
    from memtok_jax.models.style import TITANS
    from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig

    model = LanguageModelConfig(width=args.width, layers=args.layers, head_dim=args.width // 4,
                                pattern=(WindowConfig(args.window),), style=replace(TITANS, scale_embedding=False))
    source, training = text(args, 0, eval_every=max(args.base_steps // 10, 1))
    return Experiment(model, source, OptimizerConfig(2e-3, args.base_steps, args.base_steps // 20), training,
                      EvaluationConfig(batch=4))


def arm(run: Run, args: argparse.Namespace, folder: Path) -> Any:
    """The training of one arm, with the base's sizes and parameters. Its texts come in another order than the base's."""
    from memtok_jax import config
    from memtok_jax.memory.neural.config import NeuralMemoryConfig
    from memtok_jax.training import cli
    from memtok_jax.training.memories import retrofit_model

    chosen = config.load(f"retrofit:{ARMS[run.model]}")
    inside = retrofit_model(ARMS[run.model].partition("_")[0], args.window)
    if ARMS[run.model].startswith("mag"):
        own = NeuralMemoryConfig(head_dim=args.width // 4, chunk=min(64, args.window))
        beside = inside.pattern[0]
        mixers = (beside.mixers[0], replace(beside.mixers[1], memory=own))
        inside = replace(inside, pattern=(replace(beside, mixers=mixers),), width=args.width, head_dim=args.width // 4)
    model = replace(chosen.model, model=inside) if ARMS[run.model].endswith("_lora") else inside
    source, training = text(args, run.seed + 1, seed=run.seed, start_from=str(folder), retrofit=True,
                            retrofit_layers="upper" if run.model == "mag_upper" else "all")
    how = replace(chosen.optimizer, learning_rate=run.rate, steps=args.steps, warmup_steps=args.steps // 20)
    out = cli.on_base(replace(chosen, model=model, data=source, training=training, optimizer=how))
    return _wider(out, 2 * args.window) if run.model == "window2" else out


def _wider(plain: Any, window: int) -> Any:
    """The same parameters with another window, so that they are taken as they are and no memory is put into them."""
    model = replace(plain.model, pattern=tuple(replace(layer, window=window) for layer in plain.model.pattern))
    return replace(plain, model=model, training=replace(plain.training, retrofit=False))


# -------------------------------------------------------------------------------------------------------------------------- runs

def run_all(args: argparse.Namespace) -> list[dict]:
    """The base, the rates of the arms, then fresh seeds; one record for each arm."""
    start = args.folder / "base" / "run"
    valid = ("data.eval_split=valid", f"data.eval_bytes={args.valid_bytes}", "evaluation.streams=4")
    positions = "evaluation.positions.{}={}".format
    test = (f"data.eval_split={args.test_split}", "data.eval_bytes=0", positions("tokens", args.tokens),
            positions("streams", args.streams), positions("reset", args.window))
    sweep.run_all({"base": base(args)}, args.folder, valid)

    def results(runs: list[Run], overrides: dict[Run, tuple[str, ...]], suite: str) -> dict[Run, dict]:
        found = sweep.run_all({run.folder: arm(run, args, start) for run in runs}, args.folder,
                              {run.folder: overrides[run] for run in runs}, suite=suite)
        return {run: found[run.folder] for run in runs}

    chosen = protocol.choose_rates(args.arms, tuple(args.rates), lambda runs: {
        run: found[SCORE] for run, found in results(runs, dict.fromkeys(runs, valid), "").items()}, lower_is_better=True)
    final = protocol.final_runs(chosen, args.seeds) or [Run(name, one.rate, protocol.SELECTION_SEED)
                                                         for name, one in chosen.items()]
    plain = {run.seed: run for run in final if run.model == PLAIN}
    beside = lambda run: () if run.model == PLAIN else (positions("against", args.folder / plain[run.seed].folder / "run"),)
    tested = results([*plain.values()], dict.fromkeys(plain.values(), test), "content")
    others = [run for run in final if run.model != PLAIN]
    tested |= results(others, {run: (*test, *beside(run)) for run in others}, "content")
    before = sweep.run_all({"base": base(args)}, args.folder, test, suite="content")["base"]
    out = [record("base", [before], start)]
    for name, one in chosen.items():
        own = [run for run in final if run.model == name]
        out.append({"rate": one.rate, "tried": one.tried} | record(name, [tested[run] for run in own],
                                                                   args.folder / own[0].folder / "run"))
    return out


def record(name: str, seeds: list[dict], folder: Path) -> dict[str, Any]:
    """What the tested runs of an arm have found, of every seed. folder: of the first."""
    from memtok_jax import params
    from memtok_jax.models.protocol import bind
    from memtok_jax.training import metrics
    from memtok_jax.training.run_folder import read_config

    lines = [{line["tokens"]: line for line in one["by_position"]["lines"]} for one in seeds]
    bins = [tokens for tokens, line in lines[0].items() if "first" in line]
    known = [key for key in (GAIN, *CONTROLS) if key in lines[0]["all"]]
    curve = metrics.read(folder)
    gates = [metrics.column(curve, key)[1][-1] for key in sorted({key for one in curve for key in one if key.endswith("gate_1")})]
    return {"arm": name, "parameters": params.count(bind(read_config(folder).model).specs()),
            "bits": [one["all"]["own"] for one in lines], "short": [one["all"]["own"] + one["all"]["reset"][0] for one in lines],
            "bins": bins, "by_position": {key: [[one[tokens][key] for tokens in bins] for one in lines] for key in known},
            **{key: [one["all"][key] for one in lines] for key in known},
            "gate": statistics.mean(gates) if gates else None,
            "tokens_per_second": seeds[0]["tokens_per_second"], "baselines": seeds[0]["by_position"]["baselines"],
            **{key: seeds[0][key] for key in ("jax", "device")}}


# ------------------------------------------------------------------------------------------------------------------------- table

def shown(seeds: list) -> str:
    """Mean over the seeds of (mean, low, high), and the widest interval."""
    means, lows, highs = zip(*seeds, strict=True)
    return f"{statistics.mean(means):+.4f} [{min(lows):+.4f}, {max(highs):+.4f}]"


def counts(r: dict[str, Any]) -> str:
    """Whether the gain of an arm counts, or why it does not."""
    if GAIN not in r:
        return ""
    first, last = (statistics.mean(seed[place][0] for seed in r["by_position"][GAIN]) for place in (0, -1))
    if min(low for _, low, _ in r[GAIN]) <= 0:
        return "no: not better than plain"
    if last <= first:
        return "no: does not grow"
    if "swapped" not in r:
        return "no memory"
    used = all(low > 0 for key in ("forgotten", "swapped") for _, low, _ in r[key])
    return "yes" if used else "no: not by its content"


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The whole result as Markdown."""
    free = ", ".join(f"{name} {value:.3f}" for name, value in records[0]["baselines"].items())
    rows = [[r["arm"], f"{r['parameters']:,}", protocol.spread(r["bits"], 4), shown(r[GAIN]) if GAIN in r else "",
             protocol.spread(r["short"], 4), counts(r)] for r in records]
    used = [[r["arm"], *(shown(r[key]) if key in r else "" for key in CONTROLS), "" if r["gate"] is None else f"{r['gate']:.4f}"]
            for r in records if "swapped" in r]
    arms = [r for r in records if GAIN in r]
    mean = lambda r, n: f"{statistics.mean(seed[n][0] for seed in r['by_position'][GAIN]):+.4f}"
    places = [[tokens, *(mean(r, n) for r in arms)] for n, tokens in enumerate(records[0]["bins"])]
    cost = [[r["arm"], f"{r['tokens_per_second']:,.0f}", f"{r['rate']:g}", ", ".join(
        f"{rate:g}: {value:.4f}" for rate, value in r["tried"].items())] for r in records if "rate" in r]
    seeds = f"{args.seeds} fresh seed(s)" if args.seeds else "the one seed by which rates are chosen"
    rates = "learning rates chosen on validation text" if len(args.rates) > 1 else "one learning rate, given"
    return "\n\n".join([
        "# A memory for a trained decoder", f"`{command}`", report.machine(records, load),
        f"Base: width {args.width}, {args.layers} layers, window {args.window}, {args.base_steps} updates of 4 x {args.sequence} "
        f"tokens; arms: {args.steps} updates, {rates}, {seeds}. {args.streams} streams of "
        f"{args.tokens:,} tokens ({args.test_split}). Bits per byte without training, on the "
        f"whole split: {free}. What the arms are and when a gain counts: `benchmarks/retrofit.py`.",
        report.table(["arm", "parameters", "bits per byte", "plain less arm", "short", "counts"], rows),
        "Intervals hold 95 % of the means over drawn streams, the widest over the seeds. Loss without the content of the memory, "
        "less the arm's own, and the mean size of its gates:",
        report.table(["arm", *CONTROLS, "gate"], used), "Plain less arm, by position in the stream:",
        report.table(["tokens", *(r["arm"] for r in arms)], places), "Cost, and validation bits per byte of the rates tried:",
        report.table(["arm", "tokens/s in training", "rate", "tried"], cost)])


if __name__ == "__main__":
    report.main("benchmarks.retrofit", sys.argv[1:], parse, run_all, summary)
