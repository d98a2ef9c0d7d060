"""Train and evaluate many experiments, each in a process and on a core of its own; finished ones are not done again.

Used by the benchmarks that compare models; the experiments stand there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks import measure, report
from memtok_jax.training.pages import wished

EXPERIMENT, RESULT, LOG = "experiment.json", "result.json", "log.txt"


def run_all(experiments: dict[str, Any], folder: Path, overrides: tuple[str, ...] = (), at_once: int = 0) -> dict[str, dict]:
    """Train and evaluate each experiment in `folder/NAME`, `at_once` at a time (0: as many as there are cores).

    overrides: changes of the config for the evaluation, as `eval.py` takes them. Returns what evaluation wrote by name, with
    "seconds" of the whole process. A run that fails stops the sweep with the last line of its log.
    """
    from memtok_jax import config

    cores: Queue[int] = Queue()
    for core in measure.core_numbers()[:at_once or measure.cores()]:
        cores.put(core)
    done: list[str] = []

    def one(name: str) -> dict:
        place = folder / name
        if not (place / RESULT).exists():
            place.mkdir(parents=True, exist_ok=True)
            (place / EXPERIMENT).write_text(config.to_json(experiments[name]))
            core = cores.get()
            try:
                _process(place, core, overrides)
            finally:
                cores.put(core)
        done.append(name)
        report.progress(f"{len(done)} of {len(experiments)} runs done, last {name}")
        return json.loads((place / RESULT).read_text())

    with ThreadPoolExecutor(cores.qsize()) as pool:
        found = dict(zip(experiments, pool.map(one, experiments), strict=True))
    report.progress("")
    return found


def _process(place: Path, core: int, overrides: tuple[str, ...]) -> None:
    """One experiment in a process that uses one core."""
    with (place / LOG).open("w") as log:
        code = subprocess.run([sys.executable, "-m", "benchmarks.sweep", str(place), str(core), *overrides], stdout=log,
                              stderr=subprocess.STDOUT, env=wished(os.environ)).returncode
    if code:
        lines = (place / LOG).read_text().strip().splitlines() or ["no output"]
        raise SystemExit(f"error: {place.name} failed ({lines[-1]}); see {place / LOG}")


def software() -> dict[str, str]:
    """Version and device, for the line about the machine."""
    import jax

    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


def main(place: Path, core: int, overrides: tuple[str, ...]) -> None:
    """Train the experiment of this folder, evaluate it, and write the result: the child of `_process`."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    from memtok_jax import config
    from memtok_jax.evaluation.report import evaluate_run
    from memtok_jax.training.curriculum import train_stages
    from memtok_jax.training.run import train

    experiment, begun = config.from_json((place / EXPERIMENT).read_text()), time.monotonic()
    status = train_stages(train, experiment, place / "run")
    if status:
        raise SystemExit(status)
    result = evaluate_run(place / "run", overrides, print) | {"seconds": time.monotonic() - begun}
    (place / RESULT).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]))
