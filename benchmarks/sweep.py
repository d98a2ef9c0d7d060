"""Train and evaluate many experiments, each in a process and on a core of its own; finished ones are not done again.

Used by the benchmarks that compare models; the experiments stand there.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any

from benchmarks import measure, report
from memtok_jax.training.pages import wished

EXPERIMENT, TRAINED, RESULT, LOG = "experiment.json", "trained.json", "result.json", "log.txt"
OVERRIDES = "overrides"   # in the file of a result: of its evaluation
Overrides = tuple[str, ...]


def run_all(experiments: dict[str, Any], folder: Path, overrides: Overrides | Mapping[str, Overrides] = (), at_once: int = 0,
            suite: str = "", until: float = math.inf, finished: Callable[[str, dict], None] = lambda name, result: None,
            ) -> dict[str, dict]:
    """Train and evaluate each experiment in `folder/NAME`, `at_once` at a time (0: as many as there are cores).

    overrides: changes of the config for the evaluation, as `eval.py` takes them; the same for all, or by name. suite: how to judge,
    as `eval.py --suite`; a run that was trained for another suite is not trained again. until: `time.monotonic()` after which no
    run begins. finished: told of each result as it comes, one at a time.
    Returns what evaluation wrote by name, with "seconds" of training and evaluation, "tokens_per_second" of training, and the
    software; nothing of a run that did not begin in time. A run that fails stops the sweep with the last line of its log, and so
    does a folder that holds another experiment of that name.
    """
    cores: Queue[int] = Queue()
    for core in measure.core_numbers()[:at_once or measure.cores()]:
        cores.put(core)
    done, alone = [], Lock()

    def one(name: str) -> dict:
        place, result = folder / name, folder / name / result_file(suite)
        refuse_other(place, experiments[name])
        how = overrides[name] if isinstance(overrides, Mapping) else overrides
        if not is_of(result, how):
            core = cores.get()
            try:
                if time.monotonic() > until:
                    return {}
                _process(place, core, suite, how)
            finally:
                cores.put(core)
        found = json.loads(result.read_text())
        found.pop(OVERRIDES, None)
        with alone:
            done.append(name)
            report.progress(f"{len(done)} of {len(experiments)} runs done, last {name}")
            finished(name, found)
        return found

    with ThreadPoolExecutor(cores.qsize()) as pool:
        found = dict(zip(experiments, pool.map(one, experiments), strict=True))
    report.progress("")
    return {name: result for name, result in found.items() if result}


def is_of(result: Path, overrides: Overrides) -> bool:
    """Whether this file holds a result of an evaluation with these overrides; if not, the run is evaluated again, not trained."""
    return result.exists() and json.loads(result.read_text()).get(OVERRIDES, [*overrides]) == [*overrides]


def result_file(suite: str) -> str:
    """Name of what a suite has found."""
    return f"result_{suite}.json" if suite else RESULT


def refuse_other(place: Path, experiment: Any) -> None:
    """Write the experiment into its folder. Leaves with one line if another one stands there."""
    from memtok_jax import config

    file = place / EXPERIMENT
    if file.exists() and config.from_json(file.read_text()) != experiment:
        changes = config.differences(config.from_json(file.read_text()), experiment)
        raise SystemExit(f"error: {place} holds another experiment ({changes[0][0]} is {changes[0][1]!r} there, {changes[0][2]!r} "
                         "now); give another --folder")
    place.mkdir(parents=True, exist_ok=True)
    file.write_text(config.to_json(experiment))


def _process(place: Path, core: int, suite: str, overrides: Overrides) -> None:
    """One experiment in a process that uses one core."""
    with (place / LOG).open("a") as log:
        code = subprocess.run([sys.executable, "-m", "benchmarks.sweep", str(place), str(core), suite, *overrides], stdout=log,
                              stderr=subprocess.STDOUT, env=wished(os.environ)).returncode
    if code:
        lines = (place / LOG).read_text().strip().splitlines() or ["no output"]
        raise SystemExit(f"error: {place.name} failed ({lines[-1]}); see {place / LOG}")


def software() -> dict[str, str]:
    """Version and device, for the line about the machine."""
    import jax

    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


def main(place: Path, core: int, suite: str, overrides: Overrides) -> None:
    """Train the experiment of this folder if that is not done, evaluate it, and write the result: the child of `_process`."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    from memtok_jax import config
    from memtok_jax.compiler import keep_programs
    from memtok_jax.evaluation.report import evaluate_run

    keep_programs(place.parent)
    experiment, begun = config.from_json((place / EXPERIMENT).read_text()), time.monotonic()
    if not (place / TRAINED).exists():
        _train(experiment, place)
    trained = json.loads((place / TRAINED).read_text())
    result = evaluate_run(place / "run", overrides, print, suite)
    result |= trained | software() | {"seconds": trained["seconds"] + time.monotonic() - begun, OVERRIDES: overrides}
    (place / result_file(suite)).write_text(json.dumps(result, indent=1) + "\n")


def _train(experiment: Any, place: Path) -> None:
    """Train, and write how long it took and how fast it was."""
    from memtok_jax.training import metrics
    from memtok_jax.training.curriculum import train_stages
    from memtok_jax.training.run import train

    begun = time.monotonic()
    status = train_stages(train, experiment, place / "run")
    if status:
        raise SystemExit(status)
    rates = metrics.column(metrics.read(place / "run"), "train/tokens_per_second")[1]
    numbers = {"seconds": time.monotonic() - begun, "tokens_per_second": statistics.median(rates) if rates else 0.0}
    (place / TRAINED).write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], tuple(sys.argv[4:]))
