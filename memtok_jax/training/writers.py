"""Services that a run's numbers go to beside `metrics.jsonl`: each by its name in `training.writers`, if its package is there.

A writer is opened by a function (run directory, first step to come) and has `write(step, values)` and `close()`.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from memtok_jax.config import UserError, choose


class TensorBoard:
    """Event files in the folder `tensorboard` of the run, by tensorboardX; points of updates that are done again are dropped."""

    PACKAGE = "tensorboardX"

    def __init__(self, workdir: Path, step: int):
        package = importlib.import_module(self.PACKAGE)
        self._writer = package.SummaryWriter(str(workdir / "tensorboard"), purge_step=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a point to the curve of each name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases with the name of the directory; started again, it goes on in the same one. Project and mode come
    from its own environment variables, WANDB_PROJECT and WANDB_MODE."""

    PACKAGE = "wandb"

    def __init__(self, workdir: Path, step: int):
        package = importlib.import_module(self.PACKAGE)
        name = workdir.absolute().name
        self._run = package.init(name=name, id=name, resume="allow", dir=str(workdir))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Send the numbers of one step."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


WRITERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check(names: tuple[str, ...]) -> None:
    """Raise UserError for a name that is no writer."""
    for name in names:
        choose("training.writers", name, WRITERS)


def refuse_missing(names: tuple[str, ...]) -> None:
    """Raise UserError, saying what to install, where the package of a writer is missing."""
    for name in names:
        package = WRITERS[name].PACKAGE
        if importlib.util.find_spec(package) is None:
            raise UserError(f"training.writers has {name!r}, which needs the package {package}: pip install {package}, or leave it "
                            "out (metrics.jsonl is always written)")


def open_all(names: tuple[str, ...], workdir: Path, step: int) -> list[Any]:
    """The writers of a run. step: the first one to come."""
    return [WRITERS[name](workdir, step) for name in names]
