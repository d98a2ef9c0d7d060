"""Forward and training step of a vision transformer with registers beside transformers and timm, and what registers cost.

    python -m benchmarks.vit --peer_python=PATH --output=docs/results/vit_speed

PATH is a Python that has torch, transformers and timm (see `tests/peers_export/export_vit.py`). ViT-S/14 on 224 x 224 pixels,
float32. The position table is that of 518 x 518 pixels, so all resize it in each call. A training step is the cross entropy of
1,000 classes, the gradient of everything, and AdamW. The sides:

    ours            four registers; rows of the batch divided over the cores, each of which is a device
    ours, plain     no registers
    transformers    Dinov2WithRegistersForImageClassification, attention "sdpa" (its fastest)
    timm            VisionTransformer with four registers, fused attention (its default)

Every case runs in a fresh process, the sides taking turns. On a machine that others use, wall time is what is left over by them;
processor seconds (all threads) say what a side asks of the machine. Both ratios are printed.
"""

from __future__ import annotations

import argparse
import itertools
import sys

from benchmarks import measure, report

SIZES = {"width": 384, "layers": 12, "heads": 6, "patch": 14, "table": 37, "classes": 1000}
SIDES = {"ours": {"registers": 4}, "ours, plain": {"registers": 0}, "transformers": {"registers": 4}, "timm": {"registers": 4}}
WORK = ("forward", "training")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--peer_python", default="", help="a Python with torch, transformers and timm; left out: no peers")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=224, help="side of the square images")
    parser.add_argument("--rounds", type=int, default=2, help="times that every case is run; the median counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to repeat the work in a case")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a case is given up")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def run_side(side: str, args: argparse.Namespace) -> dict:
    """Forward and training step of one side, in its own process: work -> numbers."""
    case = {**SIZES, **SIDES[side], "side": side, "batch": args.batch, "pixels": args.pixels, "seconds": args.seconds}
    if side.startswith("ours"):
        return measure.run_case(sys.executable, "benchmarks.vit_our_cases", case, args.timeout)
    return measure.run_case(args.peer_python, "benchmarks.vit_peer_cases", case, args.timeout)


def run_all(args: argparse.Namespace) -> list[dict]:
    """One record for each work and side."""
    sides = [side for side in SIDES if side.startswith("ours") or args.peer_python]
    runs: dict[str, list] = {side: [] for side in sides}
    for turn, side in itertools.product(range(args.rounds), sides):
        report.progress(f"round {turn + 1}/{args.rounds}: {side}")
        runs[side].append(run_side(side, args))
    report.progress("")
    return [{"work": work, "side": side, **measure.median_of([r if "failed" in r else with_cost(r, work) for r in results])}
            for work in WORK for side, results in runs.items()]


def with_cost(result: dict, work: str) -> dict:
    """The numbers of one kind of work, with the processor seconds of one repetition."""
    own = result[work]
    return {**own, "processor_s": own["seconds"] * own["cores_used"], **result["about"]}


def forward_operations(registers: int, pixels: int, width: int, layers: int, patch: int, **_) -> float:
    """Multiplications and additions of one image: four projections, two products of attention, a network of hidden size 4 D."""
    patches = (pixels // patch) ** 2
    tokens = 1 + registers + patches
    return layers * (2 * tokens * 12 * width ** 2 + 4 * tokens ** 2 * width) + 2 * patches * 3 * patch ** 2 * width


def row_of(record: dict, ours: dict, args: argparse.Namespace) -> list[str]:
    """One line of a table."""
    if "failed" in record:
        return [record["side"], record["failed"], *[""] * 5]
    ratio = lambda name: "" if record is ours or "failed" in ours else f"{record[name] / ours[name]:.2f}x"
    return [record["side"], f"{record['seconds']:.2f}", ratio("seconds"), f"{record['processor_s']:.2f}", ratio("processor_s"),
            f"{record['cores_used']:.2f}", f"{args.batch / record['seconds']:.1f}"]


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The whole result as Markdown."""
    header = ["side", "seconds", "ours is faster", "processor s", "ours takes less", "cores used", "images/s"]
    about = (f"ViT-S/14, {args.pixels} x {args.pixels} pixels, batch {args.batch}, float32, median of {args.rounds} rounds. "
             "Processor seconds count all threads, also those that wait awake. What each side is: `benchmarks/vit.py`.")
    parts = ["# Speed of the vision transformer", "", f"    {command}", "", report.machine(records, load), "", about, ""]
    for work, title in zip(WORK, ("Forward", "Training step"), strict=True):
        chosen = [r for r in records if r["work"] == work]
        ours = next(r for r in chosen if r["side"] == "ours")
        parts += [f"## {title}", "", report.table(header, [row_of(r, ours, args) for r in chosen]), ""]
    with_registers, plain = (forward_operations(m, args.pixels, **SIZES) for m in (4, 0))
    parts += [f"Operations of a forward pass: {with_registers / 1e9:.2f} G an image with four registers, {plain / 1e9:.2f} G "
              f"without, {100 * (with_registers / plain - 1):.2f} % more (the paper says under 2 %).", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    report.main("benchmarks.vit", sys.argv[1:], parse, run_all, summary)
