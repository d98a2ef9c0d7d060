"""Speed, memory and compile time of one neural-memory layer, beside other ways to compute it and other programs.

    python -m benchmarks.neural_memory --quick
    python -m benchmarks.neural_memory --peer_python=PATH --output=docs/results/neural_memory_speed

PATH is a Python that has torch and titans-pytorch (`pip install torch==2.13.0`, then `pip install
titans-pytorch==0.5.5 numpy`); without it those sides are left out. The sides:

    chunked           ours: the default
    literal           ours: token by token, one `jax.grad` each
    associative scan  ours in mathematics, written the obvious way (`benchmarks/associative_scan.py`)
    peer default      titans-pytorch as it comes: one gate per chunk, all gradients at the call's first weights
    peer exact        titans-pytorch with chunk_size=1, batch_size=CHUNK: the paper's rule

Every case runs in its own process and the sides take turns, so a busy machine hurts all alike. Writes OUTPUT.md and
OUTPUT.json where --output is given.
"""

from __future__ import annotations

import argparse
import itertools
import sys

from benchmarks import flops, measure, report

CEILING_SIZES = (1024, 2048, 3072)
FLAT_LENGTHS = (1024, 4096, 16384, 65536)
FAST = ("chunked", "peer default")
SLOW = ("literal", "associative scan", "peer exact")
PASSES = {False: "forward", True: "forward+backward"}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--peer_python", default="", help="a Python with torch and titans-pytorch; left out: no peer")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 384])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument(
        "--slow_tokens", type=int, default=1024, help="slow sides run only up to so many tokens (batch times length)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that every case is run; the median counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to repeat the work in a case")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a case is given up")
    parser.add_argument("--dtype", default="float32", help="operands of our matrix products: float32 or bfloat16")
    parser.add_argument("--no_flat", action="store_true", help="leave out the run up to 65,536 tokens")
    parser.add_argument(
        "--quick", action="store_true", help="one width, batch, length and chunk, one round, no long run"
    )
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    args = parser.parse_args(arguments)
    if args.quick:
        args.widths, args.batches, args.lengths, args.chunks, args.rounds, args.no_flat = (
            [256],
            [1],
            [1024],
            [64],
            1,
            True,
        )
    return args


# --------------------------------------------------------------------------------------------------- running cases


def sides_for(tokens: int, args: argparse.Namespace) -> list[str]:
    """The sides that run at a grid point."""
    sides = FAST + (SLOW if tokens <= args.slow_tokens else ())
    return [side for side in sides if args.peer_python or not side.startswith("peer")]


def run_side(side: str, point: dict, backward: bool, args: argparse.Namespace) -> dict:
    """One case of one side, in its own process."""
    case = {
        **point,
        "what": "memory",
        "heads": args.heads,
        "backward": backward,
        "seconds": args.seconds,
        "repeats": 1 if side in SLOW else 3,
    }
    if side.startswith("peer"):
        case["mode"] = side.removeprefix("peer ")
        return measure.run_case(args.peer_python, "benchmarks.titans_pytorch_cases", case, args.timeout)
    case |= {"view": side.replace(" ", "_"), "dtype": args.dtype}
    return measure.run_case(sys.executable, "benchmarks.our_cases", case, args.timeout)


def run_ceiling(args: argparse.Namespace) -> dict:
    """This machine's fastest large float32 matrix product now."""
    case = {"what": "ceiling", "sizes": CEILING_SIZES, "seconds": max(args.seconds, 2.0)}
    return measure.run_case(sys.executable, "benchmarks.our_cases", case, args.timeout)


def run_points(points: list[dict], args: argparse.Namespace, sides=None) -> tuple[list[dict], list[dict]]:
    """All cases of all points: (one record per point, pass and side; every ceiling measured on the way)."""
    records, ceilings = [], []
    for number, point in enumerate(points):
        cases = list(itertools.product(sides or sides_for(point["batch"] * point["length"], args), PASSES))
        runs: dict = {case: [] for case in cases}
        for turn in range(args.rounds):
            ceilings.append(run_ceiling(args))
            for side, backward in cases:
                where = f"point {number + 1}/{len(points)} {point}, round {turn + 1}/{args.rounds}"
                report.progress(f"{where}: {side}, {PASSES[backward]}")
                runs[side, backward].append(run_side(side, point, backward, args))
        records += [
            {**point, "side": side, "pass": PASSES[backward], **measure.median_of(results)}
            for (side, backward), results in runs.items()
        ]
    report.progress("")
    return records, ceilings


# -------------------------------------------------------------------------------------------------------- reporting


def add_fractions(records: list[dict], ceiling: float, heads: int) -> None:
    """Fraction of the machine's ceiling for the chunked form, by the operations of `flops.py`."""
    for record in records:
        if record["side"] == "chunked" and "failed" not in record:
            factor = flops.FORWARD_AND_BACKWARD if record["pass"] == "forward+backward" else 1
            work = factor * flops.layer_per_token(record["width"], heads, record["chunk"])
            record["fraction"] = work * record["tokens_per_second"] / ceiling


def key_of(record: dict) -> tuple:
    return record["width"], record["batch"], record["length"], record["chunk"], record["pass"]


def row_of(record: dict, ours: dict) -> list[str]:
    """One line of the big table."""
    head = [record["side"]]
    if "failed" in record:
        return head + [record["failed"]] + [""] * 7
    fraction = f"{100 * record['fraction']:.0f} %" if "fraction" in record else ""
    ratio = memory = ""
    if record is not ours and "failed" not in ours:
        ratio = f"{ours['tokens_per_second'] / record['tokens_per_second']:.2f}x"
        memory = f"1/{record['peak_mb'] / ours['peak_mb']:.1f}"
    return head + [
        f"{record['tokens_per_second']:,.0f}",
        ratio,
        f"{record['peak_mb']:,.0f}",
        memory,
        f"{record['compile_s']:.1f}",
        f"{record['cores_used']:.2f}",
        fraction,
        f"{record['tokens_per_second'] / max(record['cores_used'], 1e-9):,.0f}",
    ]


def big_table(records: list[dict]) -> str:
    """All sides at all points, with the ratio chunked / side."""
    ours = {key_of(r): r for r in records if r["side"] == "chunked"}
    header = [
        "side",
        "tokens/s",
        "chunked is faster",
        "peak MB",
        "chunked's memory",
        "compile s",
        "cores used",
        "of ceiling",
        "tokens per processor-second",
    ]
    parts = []
    for key, group in itertools.groupby(records_in_order(records), key=key_of):
        width, batch, length, chunk, name = key
        parts += [
            f"### {name}: width {width}, batch {batch}, length {length:,}, chunk {chunk}",
            "",
            report.table(header, [row_of(r, ours[key]) for r in group]),
            "",
        ]
    return "\n".join(parts)


def records_in_order(records: list[dict]) -> list[dict]:
    order = {side: i for i, side in enumerate(("chunked", "literal", "associative scan", "peer default", "peer exact"))}
    return sorted(records, key=lambda r: (*key_of(r), order[r["side"]]))


def flat_table(records: list[dict]) -> str:
    """Cost per token against length."""
    rows = [
        [r["pass"], f"{r['length']:,}", f"{1e6 * r['seconds'] / r['tokens']:.1f}", f"{r['peak_mb']:,.0f}"]
        for r in sorted(records, key=lambda r: (r["pass"], r["length"]))
        if "failed" not in r
    ]
    return report.table(["pass", "length", "microseconds per token", "peak MB"], rows)


def ratios(records: list[dict], side: str, field: str, where) -> list[float]:
    """chunked against `side` at all points where both ran: speed ratio, or the side's memory over ours."""
    ours = {key_of(r): r for r in records if r["side"] == "chunked" and "failed" not in r}
    pairs = [
        (ours[key_of(r)], r)
        for r in records
        if r["side"] == side
        and "failed" not in r
        and key_of(r) in ours
        and r["pass"] == "forward+backward"
        and where(r)
    ]
    return [a[field] / b[field] if field == "tokens_per_second" else b[field] / a[field] for a, b in pairs]


def verdicts(records: list[dict], flat: list[dict]) -> list[str]:
    """The numbers asked for, each with its bar; forward and backward together."""

    def base(r):
        return r["width"] == 256

    mine = [r for r in records if r["side"] == "chunked" and r["pass"] == "forward+backward" and "failed" not in r]
    checks = [
        ("faster than peer exact, width 256", ratios(records, "peer exact", "tokens_per_second", base), 50),
        ("memory of peer exact over ours, width 256", ratios(records, "peer exact", "peak_mb", base), 10),
        (
            "faster than peer default, every point",
            ratios(records, "peer default", "tokens_per_second", lambda r: True),
            1,
        ),
        (
            "faster than peer default, chunk 64",
            ratios(records, "peer default", "tokens_per_second", lambda r: r["chunk"] == 64),
            1.5,
        ),
        (
            "faster than peer default, batch 4",
            ratios(records, "peer default", "tokens_per_second", lambda r: r["batch"] == 4),
            3,
        ),
        ("fraction of the ceiling, width 256", [r["fraction"] for r in mine if base(r)], 0.45),
        ("cores used", [r["cores_used"] for r in mine], 0.9 * measure.cores()),
    ]
    lines = [
        f"- {name}: least {min(found):.2f}, asked for {bar:g}: {'reached' if min(found) >= bar else 'not reached'}"
        for name, found, bar in checks
        if found
    ]
    costs = [r["seconds"] / r["tokens"] for r in flat if r["pass"] == "forward+backward" and "failed" not in r]
    return lines + (
        [f"- cost per token from 1,024 to 65,536 tokens: largest over smallest {max(costs) / min(costs):.2f}"]
        if costs
        else []
    )


def summary(records: list[dict], flat: list[dict], ceilings: list[dict], command: str, load: float) -> str:
    """The whole result as Markdown."""
    best = max(c["flops_per_second"] for c in ceilings if "failed" not in c)
    parts = [
        "# Speed of the neural memory",
        "",
        f"    {command}",
        "",
        f"{report.machine(records, load)} Ceiling: {best / 1e9:.0f} GFLOP/s, the fastest of {len(ceilings)} "
        "measurements of large float32 matrix products between the cases. Operations are counted by "
        "`benchmarks/flops.py` (forward and backward = 3 forward passes; recomputation is not counted). Peak memory is "
        "that of the whole process, interpreter and libraries included. What each side is: "
        "`benchmarks/neural_memory.py`.",
        "",
        "## Summary (forward+backward)",
        "",
        *verdicts(records, flat),
        "",
    ]
    if flat:
        parts += ["## Cost against length (chunked, width 256, batch 1, chunk 64)", "", flat_table(flat), ""]
    return "\n".join([*parts, "## All cases", "", big_table(records)])


def main(arguments: list[str]) -> None:
    args, load = parse(arguments), report.load_average()
    points = [
        dict(zip(("width", "batch", "length", "chunk"), values, strict=True))
        for values in itertools.product(args.widths, args.batches, args.lengths, args.chunks)
    ]
    records, ceilings = run_points(points, args)
    flat = []
    if not args.no_flat:
        flat, more = run_points(
            [{"width": 256, "batch": 1, "length": n, "chunk": 64} for n in FLAT_LENGTHS], args, sides=("chunked",)
        )
        ceilings += more
    measured = [c["flops_per_second"] for c in ceilings if "failed" not in c]
    if not measured:
        sys.exit(f"error: the machine's ceiling could not be measured: {ceilings[0]['failed']}")
    for group in (records, flat):
        add_fractions(group, max(measured), args.heads)
    command = report.command_line("benchmarks.neural_memory", arguments)
    text = summary(records, flat, ceilings, command, load)
    print(text)
    report.write(args.output, text, {"command": command, "cases": records, "flat": flat, "ceilings": ceilings})


if __name__ == "__main__":
    main(sys.argv[1:])
