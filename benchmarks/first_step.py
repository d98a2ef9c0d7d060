"""How long a user waits for the first step: of every config, with no compiled program at hand and with those of the start before.

    python -m benchmarks.first_step --output=docs/results/first_step
    python -m benchmarks.first_step --configs titans_mac --rounds=3

A start is `python train.py --config=CONFIG` in an empty folder, from the call of the command until "first step after" is printed;
then it is killed. The second start has another folder for its run beside the first, where the compiled programs are kept
(`memtok_jax/compiler.py`). What each says itself, "compilation included", counts from when it begins to compile.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report

CONFIGS = ("titans_mac", "titans_mag", "titans_mal", "titans_lmm", "transformer", "transformer_xl", "compressive", "rmt", "armt",
           "streaming_llm", "hymba", "mamba", "recall", "needles", "state_tracking", "mad", "stream_eval", "memgpt",
           "vit_registers")
SAID = re.compile(r"first step after (?:(\d+)m)?(\d+)s")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), help="as train.py takes them (default: all without data)")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of starts; the median counts")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def start(config: str, workdir: Path) -> dict[str, float]:
    """Seconds until the first step of a run, on the clock and as it says. Leaves with its last line if it has none."""
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}"]
    begun, lines = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            lines.append(line)
            if found := SAID.search(line):
                process.kill()
                return {"seconds": time.monotonic() - begun, "said": 60 * int(found[1] or 0) + int(found[2])}
    raise SystemExit(f"error: {config} ended before its first step: {lines[-1].strip() if lines else 'no output'}")


def run_all(args: argparse.Namespace) -> list[dict]:
    """Two starts of each config and round."""
    records = []
    for config in args.configs:
        for turn in range(args.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for name in ("first", "second"):
                    report.progress(f"{config}, round {turn + 1} of {args.rounds}: {name} start")
                    records.append({"config": config, "start": name, **start(config, Path(folder) / name)})
    report.progress("")
    return records


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """One line a config."""
    rows = []
    for config in args.configs:
        mean = lambda name, key, config=config: statistics.median(
            record[key] for record in records if (record["config"], record["start"]) == (config, name))
        rows.append([config, *(f"{mean(name, key):.0f}" for name in ("first", "second") for key in ("seconds", "said"))])
    header = ["config", "first start, s", "of it as it says", "second start, s", "of it as it says"]
    return "\n\n".join(["# Time to the first step", f"`{command}`", report.machine(records, load), report.table(header, rows)])


if __name__ == "__main__":
    report.main("benchmarks.first_step", sys.argv[1:], parse, run_all, summary)
