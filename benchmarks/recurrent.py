"""Training steps of RMT and Transformer-XL beside their peers, the memory of long backpropagation, and diagonals.

    python -m benchmarks.recurrent --peer_python=PATH --output=docs/results/recurrent_speed

PATH is a Python with torch, recurrent-memory-transformer-pytorch==0.7.0 and transformers==4.35.2. Three questions in one run:

    speed      one update (gradient through all segments, clipping, AdamW) of RMT beside recurrent-memory-transformer-pytorch,
               of Transformer-XL beside Hugging Face's, at equal width, depth, heads, segment and memory
    memory     temporaries of RMT's compiled update over 32 segments, with and without recomputing segments
    diagonals  Transformer-XL, layer after layer or along diagonals (models/wavefront.py), batch 1, short segments
"""

from __future__ import annotations

import argparse
import itertools
import sys

from benchmarks import measure, report

SIZES = {"width": 256, "heads": 4, "layers": 4, "memory": 16, "remat": "nothing"}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--peer_python", default="", help="a Python with the peers; left out: no peers")
    parser.add_argument("--segment", type=int, default=64)
    parser.add_argument("--segments", type=int, default=4, help="of one update, for speed")
    parser.add_argument("--long", type=int, default=32, help="segments of one update, for memory")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="times that every case is run; the median counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to repeat the work in a case")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a case is given up")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def points(args: argparse.Namespace) -> list[dict]:
    """One dict for each line of the tables."""
    base = {**SIZES, "segment": args.segment, "batch": args.batch, "seconds": args.seconds, "repeats": 2}
    sides = ["ours", *(["peer"] if args.peer_python else [])]
    speed = [{"table": "speed", "side": side, "what": "segments", "model": model, "length": args.segments * args.segment}
             for model, side in itertools.product(("rmt", "transformer_xl"), sides)]
    memory = [{"table": "memory", "side": "ours", "what": "segments", "model": "rmt", "length": args.long * args.segment,
               "remat": remat} for remat in ("nothing", "call")]
    diagonal = [{"table": "diagonals", "side": "ours", "what": "diagonal", "model": "transformer_xl", "order": order, "batch": 1,
                 "segment": 16, "length": 16 * 16, "layers": 8, "width": 128} for order in ("sequential", "diagonal")]
    return [{**base, **p} for p in speed + memory + diagonal]


def run_all(args: argparse.Namespace) -> list[dict]:
    """A record for each point: the median over rounds in which all points take turns."""
    cases = points(args)
    runs: list[list[dict]] = [[] for _ in cases]
    for turn in range(args.rounds):
        for found, case in zip(runs, cases, strict=True):
            report.progress(f"round {turn + 1}/{args.rounds}: {case['table']}, {case['model']}, {case['side']}")
            peer = case["side"] == "peer"
            python, module = (args.peer_python, "recurrent_peer_cases") if peer else (sys.executable, "our_cases")
            found.append(measure.run_case(python, f"benchmarks.{module}", case, args.timeout))
    report.progress("")
    return [{**case, **measure.median_of(found)} for case, found in zip(cases, runs, strict=True)]


def ratio(records: list[dict], record: dict, number: str, over: dict) -> str:
    """What the number of `record` is of that of the record with the fields `over`, or nothing."""
    other = next((r for r in records if all(r.get(k) == v for k, v in over.items())), record)
    if other is record or number not in record or number not in other:
        return ""
    return f"{record[number] / other[number]:.2f}x"


def row(records: list[dict], r: dict) -> list[str]:
    """One line: what, speed and its ratio to the first of its kind, temporaries and their ratio."""
    if "failed" in r:
        return [r["model"], r["side"], r["failed"], "", "", "", ""]
    kind = {"speed": r["side"], "memory": f"remat {r['remat']}", "diagonals": r.get("order", "")}[r["table"]]
    first = next(o for o in records if (o["table"], o["model"]) == (r["table"], r["model"]))
    over = {} if first is r else {k: first.get(k) for k in ("table", "model", "side", "remat", "order")}
    temporaries = f"{r['temporaries_mb']:,.0f}" if "temporaries_mb" in r else ""
    return [r["model"], kind, f"{r['tokens_per_second']:,.0f}", ratio(records, r, "tokens_per_second", over) if over else "",
            f"{r['peak_mb']:,.0f}", temporaries, ratio(records, r, "temporaries_mb", over) if over else ""]


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The whole result as Markdown."""
    header = ["model", "side", "tokens/s", "of the first", "peak MB", "temporaries MB", "of the first"]
    titles = {"speed": f"One update of {args.batch} x {args.segments} segments of {args.segment}",
              "memory": f"One update over {args.long} segments, stored or recomputed",
              "diagonals": "Forward and backward of 8 layers, 16 segments of 16 tokens, one row"}
    parts = ["# Speed of recurrent and cached memories", "", f"    {command}", "", report.machine(records, load), "",
             "Width 256, 4 layers, 4 heads, 16 memory tokens, a cache of one segment; see `benchmarks/recurrent.py`."]
    for name, title in titles.items():
        parts += ["", f"## {title}", "", report.table(header, [row(records, r) for r in records if r["table"] == name])]
    return "\n".join(parts)


if __name__ == "__main__":
    report.main("benchmarks.recurrent", sys.argv[1:], parse, run_all, summary)
