"""What the benchmarks print alike: tables, the command that made a result, files. Standard library only."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import measure

VERSIONS = ("jax", "device", "torch", "titans-pytorch", "transformers", "timm")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, padded so that it reads well as text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def command_line(module: str, arguments: list[str]) -> str:
    """The command that made a result, with the paths of the peer and of the data taken out."""
    hidden = {"--peer_python": "PATH", "--data_dir": "DATA"}
    shown = [f"{name}={hidden[name]}" if (name := a.partition("=")[0]) in hidden and "=" in a else a for a in arguments]
    return f"python -m {module} {shlex.join(shown)}".rstrip()


def machine(records: list[dict], load: float) -> str:
    """One line about where it was measured. load: the load average before the first case."""
    versions = {name: r[name] for r in records for name in VERSIONS if name in r}
    shared = "" if load < 0.5 else " (others were using the machine: compare sides with each other only)"
    return (
        f"{measure.cores()} cores; load average before the start {load:.1f}{shared}; "
        + ", ".join(f"{name} {value}" for name, value in versions.items())
        + "."
    )


def progress(text: str) -> None:
    """Show what is being measured, in place of the line before; an empty text clears it."""
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def load_average() -> float:
    """Programs that wanted to run in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def write(path: str, text: str, numbers: dict) -> None:
    """PATH.md and PATH.json; nothing where the path is empty."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path + ".md").write_text(text.rstrip() + "\n")
        Path(path + ".json").write_text(json.dumps(numbers, indent=1) + "\n")


def main(module: str, arguments: list[str], parse: Callable, run_all: Callable, summary: Callable) -> None:
    """Measure, print and write: what all benchmarks with one list of records do.

    parse: arguments -> flags. run_all: flags -> records. summary: (records, flags, command, load average) -> Markdown.
    """
    args, load = parse(arguments), load_average()
    command = command_line(module, arguments)
    records = run_all(args)
    text = summary(records, args, command, load)
    print(text)
    write(args.output, text, {"command": command, "load_average": load, "cases": records})
