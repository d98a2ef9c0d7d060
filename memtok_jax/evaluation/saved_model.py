"""The parameters of a run directory: which checkpoint, and the average or the parameters themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from memtok_jax import params as P
from memtok_jax import sharding
from memtok_jax.config import UserError, choose, to_dict
from memtok_jax.evaluation import saved_stream
from memtok_jax.models.protocol import Model
from memtok_jax.training.checkpoint import BEST_FOLDER, FOLDER, Checkpoints
from memtok_jax.training.experiment import Experiment

CHECKPOINTS = {"latest": FOLDER, "best": BEST_FOLDER}
UNNAMED = ("LanguageModel", "Style", "Rotary", "Styled")  # configs that `named` leaves out


class Saved(NamedTuple):
    """params: on the mesh. step: updates done. origin: the checkpoint, in words. fingerprint: of the arrays."""

    params: P.Tree
    step: int
    origin: str
    fingerprint: int


def load(workdir: Path, experiment: Experiment, model: Model, mesh: Mesh, which: str = "latest") -> Saved:
    """Read the parameters of a run; their average, if the run keeps one and `optimizer.ema` of `experiment` is not 0.

    which: "latest", or "best" of a run with `training.keep_best`.
    Raises UserError for another word, and for a checkpoint that is not there or cannot be read.
    """
    choose("--checkpoint", which, CHECKPOINTS)
    with jax.set_mesh(mesh), Checkpoints(workdir, None, CHECKPOINTS[which]) as checkpoints:
        if which == "best" and checkpoints.latest() is None:
            raise UserError(f"{workdir} has no best checkpoint: train with --config.training.keep_best=eval/loss, or leave "
                            "--checkpoint=best out")
        averaged = experiment.optimizer.ema > 0 and checkpoints.holds("average")
        item = "average" if averaged else "params"
        params, meta = checkpoints.restore_params(abstract_params(model, mesh), item)
        origin = str(checkpoints.folder / str(checkpoints.latest()))
    if averaged:
        origin += ", averaged over updates"
    return Saved(params, meta["step"], origin, saved_stream.fingerprint(meta["arrays"][item]))


def abstract_params(model: Model, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the parameters."""
    specs = model.specs()
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), P.abstract(specs),
                        sharding.shardings(mesh, specs))


def named(model: Model) -> str:
    """The kinds of configs in a model, in a few words."""
    kinds: list[str] = []

    def walk(value: Any) -> None:
        for name, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            if name == "_type":
                kinds.append(part.rpartition(":")[2].removesuffix("Config"))
            walk(part)

    walk(to_dict(model.cfg))
    return " ".join(kind for kind in dict.fromkeys(kinds) if kind not in UNNAMED) or type(model.cfg).__name__
