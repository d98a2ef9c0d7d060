"""One layer of Mamba, of Mamba-2 and of Falcon-H1 beside those of transformers: training, and decoding token by token.

    python -m benchmarks.ssm_speed --peer_python=PATH --output=docs/results/ssm_speed

PATH is a Python with torch and transformers==5.23.0. A scan is measured alone, projections included. A layer of Falcon-H1 is
attention and Mamba-2 side by side, and a feed-forward network of four times the width. All at equal sizes and in float32:

    train   forward and backward of a call from an empty state, gradients of parameters and tokens
    decode  one token of each row at a time through the state, each call from Python; up to SLOTS tokens of a hybrid layer, whose
            cache grows in the peer, and has SLOTS slots from the start here

The peer runs its own PyTorch code, which is what it has on a processor without the kernels for graphics cards.
"""

from __future__ import annotations

import argparse
import itertools
import sys

from benchmarks import measure, report

MODELS, SLOTS = ("mamba", "mamba2", "falcon_h1"), 512


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--peer_python", default="", help="a Python with the peer; left out: no peer")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="rows in training; decoding has one")
    parser.add_argument("--length", type=int, default=512, help="tokens of a training call")
    parser.add_argument("--rounds", type=int, default=3, help="times that every case is run; the median counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to repeat the work in a case")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which a case is given up")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def points(args: argparse.Namespace) -> list[dict]:
    """One dict for each line of the table. Mamba has 16 numbers of state a channel, Mamba-2 has 64 and heads of 64."""
    sides = ["ours", *(["peer"] if args.peer_python else [])]
    sizes = {"train": {"batch": args.batch, "length": args.length}, "decode": {"batch": 1, "length": 1}}
    return [{"what": what, "model": model, "side": side, "width": args.width, "seconds": args.seconds, **sizes[what],
             "state": 16 if model == "mamba" else 64, "slots": SLOTS, "at_most": SLOTS if model == "falcon_h1" else 20_000}
            for what, model, side in itertools.product(sizes, MODELS, sides)]


def run_all(args: argparse.Namespace) -> list[dict]:
    """A record for each point: the median over rounds in which all points take turns."""
    cases = points(args)
    runs: list[list[dict]] = [[] for _ in cases]
    for turn in range(args.rounds):
        for found, case in zip(runs, cases, strict=True):
            report.progress(f"round {turn + 1}/{args.rounds}: {case['what']}, {case['model']}, {case['side']}")
            peer = case["side"] == "peer"
            python, module = (args.peer_python, "ssm_peer_cases") if peer else (sys.executable, "ssm_our_cases")
            found.append(measure.run_case(python, f"benchmarks.{module}", case, args.timeout))
    report.progress("")
    return [{**case, **measure.median_of(found)} for case, found in zip(cases, runs, strict=True)]


def row(records: list[dict], r: dict) -> list[str]:
    """One line: what, its median and its best time, each with how often it fits into the peer's, and tokens a second."""
    kind = [r["what"], r["model"], r["side"]]
    if "failed" in r:
        return [*kind, r["failed"], "", "", "", "", "", ""]
    peer = next((o for o in records if (o["what"], o["model"], o["side"]) == (r["what"], r["model"], "peer")), r)
    ratio = lambda name: "" if peer is r or "failed" in peer else f"{peer[name] / r[name]:.2f}x"
    return [*kind, f"{1e3 * r['seconds']:,.2f}", ratio("seconds"), f"{1e3 * r['best_s']:,.2f}", ratio("best_s"),
            f"{r['tokens_per_second']:,.0f}", f"{r['cores_used']:.2f}", f"{r['peak_mb']:,.0f}"]


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The whole result as Markdown."""
    header = ["what", "model", "side", "ms a call", "faster", "best ms", "faster", "tokens/s", "cores used", "peak MB"]
    return "\n".join(["# Speed of the selective scans and of a hybrid layer", "", f"    {command}", "",
                      report.machine(records, load), "",
                      f"Width {args.width}; training: {args.batch} rows of {args.length} tokens; decoding: one row. "
                      "See `benchmarks/ssm_speed.py`.", "", report.table(header, [row(records, r) for r in records])])


if __name__ == "__main__":
    report.main("benchmarks.ssm_speed", sys.argv[1:], parse, run_all, summary)
