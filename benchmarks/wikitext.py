"""All memories of this package as small language models on WikiText-2: equal parameters, data and updates.

    python -m benchmarks.wikitext --data_dir=DATA --folder=runs/wikitext --output=docs/results/wikitext2

Every model reads bytes, in segments or windows of 64, four segments to a row, and carries its memory over eight rows of
a batch that follow each other. The feed-forward is as wide as makes all models equally large (within 1 %). Word perplexity is
2^(bits of the text / words), over the first --eval_bytes bytes of the test split, in eight streams.
Runs go on side by side, one to a core; the command given again does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report, sweep

SEGMENT, SEGMENTS, WIDTH, LAYERS, HEAD, TOKENS = 64, 4, 128, 2, 32, 8
PARAMETERS = 500_000


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=[], help="names of the table's rows (default: all)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each model")
    parser.add_argument("--steps", type=int, default=700, help="updates of 8 x 256 bytes")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--eval_bytes", type=int, default=262_144, help="bytes of the test split that are scored")
    parser.add_argument("--data_dir", default="", help="folder that holds wikitext2 (default: $MEMTOK_DATA_DIR)")
    parser.add_argument("--folder", type=Path, default=Path("runs/wikitext"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def models() -> dict[str, Any]:
    """Name in the table -> config, before its feed-forward is fitted."""
    from memtok_jax.memory.armt import ArmtConfig
    from memtok_jax.memory.compressive import CompressiveConfig
    from memtok_jax.memory.neural import NeuralMemoryConfig
    from memtok_jax.memory.xl import XlConfig
    from memtok_jax.models.language_model import LanguageModelConfig
    from memtok_jax.models.mixers.armt import ArmtLayerConfig
    from memtok_jax.models.mixers.cached import CachedConfig
    from memtok_jax.models.mixers.segment import SegmentConfig
    from memtok_jax.models.mixers.window import WindowConfig
    from memtok_jax.models.rmt import RmtConfig
    from memtok_jax.training.recipes import segment_of, titans_layer

    shape = dict(vocabulary=256, width=WIDTH, layers=LAYERS, head_dim=HEAD)
    segmented = lambda layer: LanguageModelConfig(**shape, segment=SEGMENT, pattern=(layer,))
    memory = NeuralMemoryConfig(head_dim=HEAD, expansion=2, chunk=SEGMENT)
    titans = lambda kind, *more, prefix=TOKENS: LanguageModelConfig(
        **shape, pattern=(titans_layer(kind, SEGMENT, memory), *more), segment=segment_of(kind, SEGMENT), prefix=prefix)
    window = WindowConfig(SEGMENT)
    return {
        "no memory": segmented(SegmentConfig()),
        "Memory Transformer": RmtConfig(segmented(SegmentConfig()), TOKENS, "prefix"),
        "RMT": RmtConfig(segmented(SegmentConfig()), TOKENS),
        "ARMT": RmtConfig(segmented(ArmtLayerConfig(ArmtConfig(key_dim=HEAD))), TOKENS, "suffix"),
        "Transformer-XL": segmented(CachedConfig(XlConfig(SEGMENT))),
        "Compressive": segmented(CachedConfig(CompressiveConfig(SEGMENT // 2, SEGMENT // 2, 4))),
        "window attention": titans("window", prefix=0),
        "Titans LMM": titans("lmm", prefix=0),
        "Titans MAC": titans("mac", window),
        "Titans MAG": titans("mag", window),
        "Titans MAL": titans("mal", window),
    }


def with_hidden(model: Any, hidden: int) -> Any:
    """The model with this width of its feed-forward."""
    return replace(model, model=with_hidden(model.model, hidden)) if hasattr(model, "model") else replace(model, hidden=hidden)


def fitted(model: Any) -> Any:
    """The model with the width of its feed-forward that brings it nearest to PARAMETERS."""
    from memtok_jax import params
    from memtok_jax.models.protocol import bind

    size = lambda hidden: params.count(bind(with_hidden(model, hidden)).specs())
    low, high = size(8), size(16)
    hidden = 8 + 8 * round((PARAMETERS - low) / (high - low))
    if hidden < 8:
        raise ValueError(f"{type(model).__name__} has {low:,} parameters with the smallest feed-forward, more than {PARAMETERS:,}")
    return with_hidden(model, hidden)


def experiment(model: Any, seed: int, args: argparse.Namespace) -> Any:
    """One run: the same data, budget and recipe for every model."""
    from memtok_jax.data.text import TextConfig
    from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

    return Experiment(
        model=model,
        data=TextConfig("wikitext2", sequence=SEGMENTS * SEGMENT, contiguous=False, visit=8, seed=seed, data_dir=args.data_dir,
                        eval_bytes=16_384),
        optimizer=OptimizerConfig(learning_rate=args.learning_rate, steps=args.steps, warmup_steps=args.steps // 20,
                                  final_fraction=0.02),
        training=TrainingConfig(batch=8, call_tokens=SEGMENT, seed=seed, log_every=50, sample_tokens=0, data=1),
        evaluation=EvaluationConfig(batch=8, streams=8),
    )


def table(results: dict[str, list[dict]], sizes: dict[str, int]) -> str:
    """Mean and spread over the seeds, best first."""
    rows = []
    for name, runs in sorted(results.items(), key=lambda item: statistics.mean(r["eval/bits_per_byte"] for r in item[1])):
        column = lambda key: [r[key] for r in runs]  # noqa: B023
        rows.append([name, f"{sizes[name]:,}", spread(column("eval/bits_per_byte"), 3),
                     spread(column("eval/word_perplexity"), 0), f"{statistics.mean(column('seconds')):.0f}"])
    return report.table(["model", "parameters", "bits per byte", "word perplexity", "seconds"], rows)


def spread(values: list[float], digits: int) -> str:
    """Mean, and smallest and largest value."""
    mean = statistics.mean(values)
    return f"{mean:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    from memtok_jax import params
    from memtok_jax.models.protocol import bind

    load, known = report.load_average(), models()
    unknown = [name for name in args.models if name not in known]
    if unknown:
        raise SystemExit(f"error: no model {unknown[0]!r}; there are {', '.join(known)}")
    chosen = {name: fitted(known[name]) for name in args.models or known}
    sizes = {name: params.count(bind(m).specs()) for name, m in chosen.items()}
    jobs = {f"{name.replace(' ', '_')}-{seed}": (name, experiment(model, seed, args))
            for seed in range(args.seeds) for name, model in chosen.items()}
    found = sweep.run_all({job: e for job, (_, e) in jobs.items()}, args.folder,
                          ("data.eval_split=test", f"data.eval_bytes={args.eval_bytes}"))
    results: dict[str, list[dict]] = {name: [] for name in chosen}
    for job, (name, _) in jobs.items():
        results[name].append({k: v for k, v in found[job].items() if k not in ("positions", "workdir")})
    first = next(iter(results.values()))[0]
    free = ", ".join(f"{k.removeprefix('baseline/')} {v:.3f}" for k, v in first.items() if k.startswith("baseline/"))
    text = "\n\n".join([
        "# WikiText-2, equal parameters and budget", f"`{report.command_line('benchmarks.wikitext', arguments)}`",
        f"{args.steps} updates of 8 x {SEGMENTS * SEGMENT} bytes at {args.learning_rate:g}, {args.seeds} seeds (mean, least to "
        f"most); first {first['eval/bytes']:,} bytes of the test split, {first['eval/words']:,} words. Bits per byte of baselines "
        f"without training, on the same bytes: {free}. {report.machine([sweep.software()], load)}", table(results, sizes)])
    print(text)
    report.write(args.output, text, {"arguments": arguments, "parameters": sizes, "results": results})
    print(json.dumps({name: statistics.mean(r["eval/bits_per_byte"] for r in runs) for name, runs in results.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
