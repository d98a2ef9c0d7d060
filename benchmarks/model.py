"""The whole MAC model beside titans-pytorch's MemoryAsContextTransformer: training step, peak memory, cached sampling.

    python -m benchmarks.model --peer_python=PATH --output=docs/results/model_speed

PATH is a Python that has torch and titans-pytorch (see `benchmarks/neural_memory.py`). Both models: bytes, width 256,
4 heads of 64, 4 layers, memory of two matrices in layers 2 and 4, 16 persistent tokens, float32. A training step is the
gradient through the whole sequence, clipping to norm 1, and AdamW. The sides:

    ours          one chunk of the memory for each segment of attention at most (--chunk)
    ours, small   training with least memory: all of a block is computed again in the backward pass, and the program comes from
                  JAX's compilation cache, as in the second run of a command (the compiler alone takes two gigabytes)
    peer          the library's defaults: four residual streams (hyper-connections), one memory gate per segment,
                  gradients at the call's first weights
    peer, lean    the same with one residual stream: its fastest form

Theirs is the smaller computation: its long-term tokens are constants, so attention sees nothing that was retrieved.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile

from benchmarks import measure, report

SIZES = {"width": 256, "heads": 4, "layers": 4, "memory_layers": [2, 4], "prefix": 16}
PEERS = {"peer": 4, "peer, lean": 1}
OURS = {"ours": "pointwise", "ours, small": "block"}  # what is computed again


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--peer_python", default="", help="a Python with torch and titans-pytorch; left out: no peer")
    parser.add_argument("--segments", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument("--chunk", type=int, default=64, help="of our memory")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128, help="tokens before sampling")
    parser.add_argument("--new", type=int, default=128, help="tokens sampled for each row")
    parser.add_argument("--rounds", type=int, default=3, help="times that every case is run; the median counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to repeat the work in a case")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a case is given up")
    parser.add_argument(
        "--dtype", default="float32", help="of our activations and matrix products: float32 or bfloat16"
    )
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def points(args: argparse.Namespace) -> list[dict]:
    """What is measured: training at every segment and length, sampling at every segment."""
    training = [
        {"what": "training", "segment": s, "length": n} for s, n in itertools.product(args.segments, args.lengths)
    ]
    return training + [
        {"what": "sampling", "segment": s, "length": args.prompt, "new": args.new} for s in args.segments
    ]


def run_side(side: str, point: dict, args: argparse.Namespace) -> dict:
    """One case of one side, in its own process."""
    case = {**SIZES, **point, "chunk": args.chunk, "batch": args.batch, "seconds": args.seconds, "repeats": 2}
    if side in PEERS:
        case |= {"mode": "default", "streams": PEERS[side]}
        return measure.run_case(args.peer_python, "benchmarks.titans_pytorch_cases", case, args.timeout)
    case |= {"dtype": args.dtype, "remat": OURS[side]}
    if side == "ours":
        return measure.run_case(sys.executable, "benchmarks.our_cases", case, args.timeout)
    with tempfile.TemporaryDirectory() as folder:
        cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        first, second = (measure.run_case(sys.executable, "benchmarks.our_cases", case, args.timeout, cache) for _ in range(2))
        return first if "failed" in first else second


def run_all(args: argparse.Namespace) -> list[dict]:
    """One record for each point and side, the sides taking turns."""
    records = []
    for point in points(args):
        sides = [*(OURS if point["what"] == "training" else ("ours",)), *(PEERS if args.peer_python else ())]
        runs: dict[str, list] = {side: [] for side in sides}
        for turn, side in itertools.product(range(args.rounds), sides):
            report.progress(f"{point}, round {turn + 1}/{args.rounds}: {side}")
            runs[side].append(run_side(side, point, args))
        records += [{**point, "side": side, **measure.median_of(results)} for side, results in runs.items()]
    report.progress("")
    return records


def row_of(record: dict, ours: dict[str, dict]) -> list[str]:
    """One line of a table: speed and memory, and how ours compares. ours: records of our sides at the same point."""
    head = [str(record["segment"]), f"{record['length']:,}", record["side"]]
    if "failed" in record:
        return [*head, record["failed"], *[""] * 6]
    fast, small = ours.get("ours", {}), ours.get("ours, small", {})
    measured = lambda side: side and side is not record and "failed" not in side
    return [
        *head,
        f"{record['tokens_per_second']:,.0f}",
        f"{fast['tokens_per_second'] / record['tokens_per_second']:.1f}x" if measured(fast) else "",
        f"{record['peak_mb']:,.0f}",
        *(f"1/{record['peak_mb'] / side['peak_mb']:.1f}" if measured(side) else "" for side in (fast, small)),
        f"{record['compile_s']:.1f}",
        f"{record['cores_used']:.2f}",
    ]


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The whole result as Markdown."""
    header = [
        "segment",
        "length",
        "side",
        "tokens/s",
        "ours is faster",
        "peak MB",
        "ours' memory",
        "ours, small's",
        "compile s",
        "cores used",
    ]
    place = lambda r: (r["what"], r["segment"], r["length"])
    ours = {place(r): {side["side"]: side for side in records if side["side"] in OURS and place(side) == place(r)} for r in records}
    parts = ["# Speed of the whole model", "", f"    {command}", "", report.machine(records, load), ""]
    counts = {r["side"]: r["parameters"] for r in records if "parameters" in r}
    parts += [
        "Parameters: " + ", ".join(f"{side} {int(n):,}" for side, n in counts.items()) + ". Batch "
        f"{args.batch}; peak memory is that of the whole process. What each side is: `benchmarks/model.py`.",
        "",
    ]
    titles = {
        "training": "Training step",
        "sampling": f"Sampling {args.new} tokens in each row after a prompt (its own pass not counted)",
    }
    for what, title in titles.items():
        rows = [row_of(r, ours[place(r)]) for r in records if r["what"] == what]
        parts += [f"## {title}", "", report.table(header, rows), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    report.main("benchmarks.model", sys.argv[1:], parse, run_all, summary)
