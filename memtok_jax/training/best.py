"""The best checkpoint of a run: that of the evaluation with the best value of one metric, beside the newest ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from memtok_jax.training.checkpoint import BEST_FOLDER, Checkpoints
from memtok_jax.training.step import TrainState


def better(metric: str, value: float, than: float | None) -> bool:
    """Whether a value is better than another, None for none: larger for an accuracy, smaller for anything else; never NaN."""
    if not math.isfinite(value):
        return False
    return than is None or (value > than if metric.endswith("accuracy") else value < than)


class Best:
    """Keeps one checkpoint in `best/`. Use it as a context manager, as `Checkpoints`.

    value: the best so far, None if there is none. It stands in the checkpoint, so a run goes on with it after a kill. Another
    metric begins anew.
    """

    def __init__(self, workdir: Path, metric: str):
        self._metric, self._checkpoints, self.value = metric, Checkpoints(workdir, 1, BEST_FOLDER), None

    def __enter__(self) -> Best:
        self._checkpoints.__enter__()
        if self._checkpoints.latest() is not None:
            found = self._checkpoints.meta()["best"]
            self.value = found["value"] if found["metric"] == self._metric else None
        return self

    def __exit__(self, *error) -> None:
        self._checkpoints.__exit__(*error)

    def offer(self, state: TrainState, values: dict[str, float], meta: dict[str, Any]) -> str:
        """Keep the state if it is the best so far; returns what to say about it. values, meta: of the evaluation and checkpoint."""
        value = values[self._metric]
        if not better(self._metric, value, self.value):
            return ""
        self.value = value
        # Numbered, not by step: a run that went back to an older checkpoint may find a better one at an earlier step.
        number = 1 + (self._checkpoints.latest() or 0)
        self._checkpoints.save(state, meta | {"best": {"metric": self._metric, "value": value}}, number)
        return f"best {self._metric} so far, kept in {BEST_FOLDER}"


class NoBest:
    """Of a run without `training.keep_best`: nothing is kept."""

    def __enter__(self) -> NoBest:
        return self

    def __exit__(self, *error) -> None:
        """Nothing."""

    def offer(self, state: TrainState, values: dict[str, float], meta: dict[str, Any]) -> str:
        """Nothing."""
        return ""
