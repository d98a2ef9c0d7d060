"""Time, processor use and peak memory of one piece of work in its own process. Nothing but the standard library is imported.

Every case of every side runs in a fresh process that prints one line of JSON, so that peak memory is that of the case
alone. The sides take turns, round after round, because the machine may be shared; the median over rounds is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from memtok_jax.training.pages import wished

ROOT = Path(__file__).resolve().parent.parent


def core_numbers() -> list[int]:
    """The processor cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cores() -> int:
    """How many they are."""
    return len(core_numbers())


def peak_mb() -> float:
    """Peak resident memory of this process so far, in megabytes (1e6 bytes).

    Linux's VmHWM starts anew with each program; `getrusage` may carry over the size of the process that started this
    one, and is used only where there is no /proc.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(work: Callable[[], object], seconds: float, at_least: int = 3, at_most: int = 200) -> dict:
    """Run `work` once to warm up, then repeatedly for about `seconds` (between `at_least` and `at_most` times).

    work: returns when its result is ready. Returns first_s (the warm-up), seconds (median), best_s, cores_used
    (processor time over wall time of the timed runs), repeats.
    """
    start = time.perf_counter()
    work()
    first = time.perf_counter() - start
    times: list[float] = []
    begin, cpu = time.perf_counter(), time.process_time()
    while len(times) < at_least or (time.perf_counter() - begin < seconds and len(times) < at_most):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    used = (time.process_time() - cpu) / (time.perf_counter() - begin)
    return {
        "first_s": first,
        "seconds": statistics.median(times),
        "best_s": min(times),
        "cores_used": used,
        "repeats": len(times),
    }


def run_case(python: str, module: str, case: dict, timeout_s: float, variables: Mapping[str, str] = MappingProxyType({})) -> dict:
    """Run one case in a fresh process, which asks for large pages whatever its side is.

    variables: of its environment, beside those of this process.
    Returns its JSON, or {"failed": one line} if it died or took too long.
    """
    command, environment = [python, "-m", module, f"--case={json.dumps(case)}"], wished(os.environ | variables)
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {timeout_s:g} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"failed": f"exit status {done.returncode}: {lines[-1] if lines else 'no message'}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def median_of(results: list[dict]) -> dict:
    """One result from the same case run in several rounds: the median of every number, the first of everything else."""
    failed = [r for r in results if "failed" in r]
    if failed:
        return failed[0]
    out = dict(results[0])
    for name, value in results[0].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            out[name] = statistics.median(r[name] for r in results)
    return out


def read_case(doc: str) -> dict:
    """The case that `run_case` gave to this process."""
    one = parser(doc)
    one.add_argument("--case", required=True, type=json.loads, help="the case as JSON")
    return one.parse_args().case


def parser(doc: str) -> argparse.ArgumentParser:
    """A command-line parser that shows the module's own text and takes no abbreviated flags."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
