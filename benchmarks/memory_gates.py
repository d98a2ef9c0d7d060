"""Cost of gates for each layer and of forgetting by channel: a neural-memory layer against itself with the default gates.

    python -m benchmarks.memory_gates --output=docs/results/memory_gates

    default            one step size, momentum and forgetting of a token and head
    per layer          `gates="per_layer"`: three for each dense layer of the memory network
    channel            `forget_by="channel"`: a forgetting for each input channel of each dense layer
    per layer, channel both, as in Titans (NeurIPS 2025 version)

All are compiled first, in one process; then they take turns, round after round, and a round's ratio is the time of an option over
that of the default in the same round. So work of others on the machine hurts all alike. A layer is what
`benchmarks/our_cases.py` measures elsewhere: norm, memory, gate and projection; parameters and tokens are random.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys

import jax
import jax.numpy as jnp

from benchmarks import measure, report, sweep
from benchmarks.our_cases import layer, layer_specs
from memtok_jax import params as P
from memtok_jax.compiler import options
from memtok_jax.memory import neural
from memtok_jax.memory.neural import scan

GATES = {"default": {}, "per layer": dict(gates="per_layer"), "channel": dict(forget_by="channel"),
         "per layer, channel": dict(gates="per_layer", forget_by="channel")}
PASSES = ("forward", "forward+backward")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=7, help="times that every case is run; the median counts")
    parser.add_argument("--seconds", type=float, default=0.5, help="time to repeat a case in a round")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def work_of(cfg: neural.NeuralMemoryConfig, which: str, args: argparse.Namespace):
    """(a function without arguments that runs one pass to its end, megabytes of temporaries, number of parameters)."""
    params = P.init_params(layer_specs(cfg), jax.random.key(0))
    state, x = neural.init_state(params["memory"], cfg, args.batch), jax.random.normal(
        jax.random.key(1), (args.batch, args.length, args.width))

    def forward(params, x):
        return layer(params, state, x, cfg, scan)[0]

    backward = jax.grad(lambda params, x: jnp.square(forward(params, x)).sum(), argnums=(0, 1))
    function = forward if which == "forward" else backward
    compiled = jax.jit(function, compiler_options=options(jax.default_backend())).lower(params, x).compile()
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return lambda: jax.block_until_ready(compiled(params, x)), compiled.memory_analysis().temp_size_in_bytes / 1e6, size


def run_all(args: argparse.Namespace) -> list[dict]:
    """A record for each chunk, pass and option; rounds in which all take turns."""
    cases = {}
    for chunk, which, gates in itertools.product(args.chunks, PASSES, GATES):
        report.progress(f"compiling chunk {chunk}, {which}, {gates}")
        cfg = neural.NeuralMemoryConfig(args.width, args.head_dim, chunk, **GATES[gates])
        cases[chunk, which, gates] = work_of(cfg, which, args)
    times: dict[tuple, list[float]] = {key: [] for key in cases}
    for turn in range(args.rounds):
        for key, (work, *_) in cases.items():
            report.progress(f"round {turn + 1}/{args.rounds}: {key}")
            times[key].append(measure.measure(work, args.seconds)["seconds"])
    report.progress("")
    return [record(key, times, cases[key][1:], args) for key in cases]


def record(key: tuple, times: dict[tuple, list[float]], sizes: tuple, args: argparse.Namespace) -> dict:
    """What was found of one case; its ratios are by round."""
    chunk, which, gates = key
    base = times[chunk, which, "default"]
    ratios = [own / default for own, default in zip(times[key], base, strict=True)]
    return {"chunk": chunk, "pass": which, "gates": gates, "seconds": statistics.median(times[key]), "rounds": times[key],
            "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "temporaries_mb": sizes[0],
            "parameters": sizes[1], "tokens": args.batch * args.length, **sweep.software()}


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The table: one line for each case."""
    header = ["chunk", "pass", "gates", "time over default", "least to most", "tokens/s", "temporaries, MB", "parameters"]
    rows = [[str(r["chunk"]), r["pass"], r["gates"], f"{r['ratio']:.2f}", f"{r['least']:.2f} to {r['most']:.2f}",
             f"{r['tokens'] / r['seconds']:,.0f}", f"{r['temporaries_mb']:.0f}", f"{r['parameters']:,}"] for r in records]
    about = (f"One layer of width {args.width} with heads of {args.head_dim}, float32, {args.batch} x {args.length:,} tokens, "
             f"{args.rounds} rounds.")
    return "\n\n".join(["# Cost of the gates of the neural memory", f"`{command}`", report.machine(records, load), about,
                        report.table(header, rows)])


if __name__ == "__main__":
    report.main("benchmarks.memory_gates", sys.argv[1:], parse, run_all, summary)
