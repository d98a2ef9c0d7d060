"""Which parts of Hymba pay on recall: the rows of the paper's table 10 (arXiv 2411.13676) at the size of a laptop.

    python -m benchmarks.hymba --output=docs/results/hymba        7 models x 2 seeds

Four pairs, 48 tokens of noise, the four keys again (`configs/recall.py`); a window holds 8 tokens, so only layers that see
everything, and states, can carry a pair. Four layers of width 64, 8 numbers of state a channel, the same training for all.
From "windows" on, each row changes one thing of the row before it:

    mamba        scans alone
    attention    attention to everything, alone
    parallel     both side by side in each layer, attention to everything
    windows      the same, attention to windows only
    global       two layers that see everything, the first and the last
    sharing      the two windows between them share keys and values
    meta         16 meta tokens: all of Hymba

The paper's recall: mamba 19.2, parallel 49.9, windows 29.8, global 48.8, sharing 48.0, meta 51.8 (and Llama 40.0).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import report, sweep

LAYERS, WIDTH, HEADS, WINDOW, SEQUENCE, PAIRS, META, STATE = 4, 64, 4, 8, 64, 4, 16, 8
MODELS = ("mamba", "attention", "parallel", "windows", "global", "sharing", "meta")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=600, help="updates of 32 samples")
    parser.add_argument("--folder", type=Path, default=Path("runs/hymba"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def layers_of(name: str) -> tuple:
    """The pattern of a model."""
    from memtok_jax.memory.ssm import MambaConfig
    from memtok_jax.models.mixers.hymba import HymbaConfig
    from memtok_jax.models.mixers.ssm import SsmConfig
    from memtok_jax.models.mixers.window import WindowConfig

    memory = MambaConfig(norms=True, state=STATE)
    whole, window = HymbaConfig(SEQUENCE, memory=memory), HymbaConfig(WINDOW, memory=memory)
    shared = replace(window, keys="before")
    return {"mamba": (SsmConfig(memory),), "attention": (WindowConfig(SEQUENCE),), "parallel": (whole,), "windows": (window,),
            "global": (whole, window, window, whole)}.get(name, (whole, window, shared, whole))


def experiment(name: str, seed: int, args: argparse.Namespace):
    """The training of one model, on one device."""
    from memtok_jax.models.language_model import LanguageModelConfig
    from memtok_jax.training.recipes import recall

    wide = {} if name in ("mamba", "attention") else {"value_dim": 2 * WIDTH // HEADS}
    model = LanguageModelConfig(width=WIDTH, layers=LAYERS, pattern=layers_of(name), head_dim=WIDTH // HEADS, hidden=128,
                                kv_heads=0 if name == "mamba" else HEADS // 2, prefix=META if name == "meta" else 0, **wide)
    base = recall(model, PAIRS, SEQUENCE, args.steps)
    return replace(base, data=replace(base.data, seed=seed), evaluation=replace(base.evaluation, lengths=(1,)),
                   training=replace(base.training, seed=seed, data=1))


def run_all(args: argparse.Namespace) -> list[dict]:
    """Train what is missing."""
    from memtok_jax import params as P
    from memtok_jax.models.protocol import bind

    jobs = {f"{name}-{seed}": (name, seed) for name in args.models for seed in args.seeds}
    planned = {job: experiment(*key, args) for job, key in jobs.items()}
    found = sweep.run_all(planned, args.folder)
    sizes = {job: P.count(bind(one.model).specs()) for job, one in planned.items()}
    return [{"model": name, "seed": seed, "seconds": found[job]["seconds"], "accuracy": found[job]["eval/accuracy"],
             "chance": found[job]["baseline/chance"], "parameters": sizes[job], **sweep.software()}
            for job, (name, seed) in jobs.items()]


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """One line a model."""
    rows = []
    for name in args.models:
        mine = [r for r in records if r["model"] == name]
        rows.append([name, *(f"{r['accuracy']:.3f}" for r in mine), f"{mine[0]['parameters']:,}", f"{mine[0]['seconds']:.0f}"])
    header = ["model", *(f"seed {seed}" for seed in args.seeds), "parameters", "seconds of the first seed"]
    about = f"{args.steps} updates of 32 samples; accuracy on 256 held-out samples, chance {records[0]['chance']:.3f}."
    return "\n\n".join(["# Parts of Hymba on recall", f"`{command}`", about, report.machine(records, load),
                        report.table(header, rows)])


if __name__ == "__main__":
    report.main("benchmarks.hymba", sys.argv[1:], parse, run_all, summary)
