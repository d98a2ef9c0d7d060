"""What a run needs beside what the machine has: a run that cannot fit is refused, a run that would crawl is announced."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

import jax

from memtok_jax import params as pr
from memtok_jax.config import UserError
from memtok_jax.training.optimizer import rates_of
from memtok_jax.training.step import Update

# The state alone may be this many times the memory before a run is refused: swap and estimates are given the benefit of the doubt.
TOO_LARGE = 2
# Multiplications of a core of a CPU in a second, generously, and the seconds of a step that deserve a word.
CORE_FLOPS, SLOW_STEP = 50e9, 60


def memory() -> int:
    """Bytes of memory of all devices, or of this machine if they are its CPU; 0 if unknown."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    else:
        here = sum((device.memory_stats() or {}).get("bytes_limit", 0) for device in devices)
    return here * jax.process_count()


def begin_peak() -> None:
    """Count the peak of this process from here on, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """Peak memory so far in megabytes (1e6 bytes): of the first device, or resident memory of this process if it is a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def state_bytes(update: Update) -> int:
    """Bytes of parameters and the average if there is one, of gradient and two moments of what learns, and of the carry, over all
    devices."""
    specs, copies = update.model.specs(), 2 if update.optimizer.ema else 1
    leaves = jax.tree.leaves(specs, is_leaf=pr.is_spec)
    learns = [spec for spec, rate in zip(leaves, rates_of(update.optimizer, specs), strict=True) if rate]
    return copies * pr.size_bytes(specs) + 3 * pr.size_bytes(learns) + pr.size_bytes(update.model.state_specs(update.batch))


def refuse_what_cannot_fit(update: Update) -> None:
    """Raise UserError if the state of the run is far larger than the memory. Nothing is allocated."""
    need, have = state_bytes(update), memory()
    if have and need > TOO_LARGE * have:
        raise UserError(f"a run of {pr.count(update.model.specs()):,} parameters and {update.batch:,} rows needs "
                        f"{need / 1e9:,.0f} GB for parameters, gradient, optimizer and carry; there are {have / 1e9:,.0f} GB here")


def warnings(update: Update, tokens: int) -> list[str]:
    """Lines for a run that this machine can start but hardly finish. tokens: of one update."""
    lines, need, have = [], state_bytes(update), memory()
    if have and need > have / 2:
        lines.append(f"parameters, gradient, optimizer and carry need {need / 1e9:,.1f} GB, this machine has {have / 1e9:,.1f} GB; "
                     "what a step computes comes on top")
    if jax.default_backend() == "cpu":
        seconds = 6 * pr.count(update.model.specs()) * tokens / (CORE_FLOPS * (os.cpu_count() or 1))
        if seconds > SLOW_STEP:
            lines.append(f"one step of this model takes a CPU about {seconds / 60:,.0f} minutes or more; this size is meant for "
                         "accelerators (--compile_only shows what they need)")
    return lines
