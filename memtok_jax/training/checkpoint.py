"""Checkpoints of a run: written in the background, restored onto any mesh. The only file that knows Orbax.

A checkpoint has these items: `params`; `average`, that of the parameters, if the run keeps one; `rest`, the other arrays of the
train state; `meta`, the config, the position in the data, counters, and shape and checksum of every array as JSON. One of the first
two is all that evaluation reads.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.training import average
from memtok_jax.training.checksums import describe, first_misfit, of_meta
from memtok_jax.training.run_folder import CONFIG_FILE, brief, first_line, read_config
from memtok_jax.training.step import TrainState

FOLDER, BEST_FOLDER, STABLE_FOLDER = "checkpoints", "best", "stable"


class Checkpoints:
    """The checkpoints of one run directory. Use it as a context manager: leaving waits until all are written.

    Nothing is created before the first save.
    keep: how many stay when a new one is written. None: all. name: of the folder in the run directory.
    """

    def __init__(self, workdir: Path, keep: int | None, name: str = FOLDER):
        # Orbax reports each stage of a save as a warning or info line; a run prints its own.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.workdir, self.folder, self._keep = Path(workdir), (Path(workdir) / name).absolute(), keep
        self._writing: int | None = None
        self._manager: ocp.CheckpointManager | None = None
        self._threads = _QuietThreads()
        if self.folder.is_dir():
            self._open()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, enable_async_checkpointing=True, create=True)
            try:
                self._manager = ocp.CheckpointManager(self.folder, options=options)
            except OSError as error:
                raise UserError(f"cannot create the checkpoint folder {self.folder}: {error.strerror}") from None
        return self._manager

    def __enter__(self) -> Checkpoints:
        self._threads.__enter__()
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self._manager is not None:
                self._manager.close()
        except Exception as error:
            if kind is None:
                raise self._not_written(error) from error
        finally:
            self._threads.__exit__()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints."""
        return [] if self._manager is None else sorted(self._manager.all_steps())

    def meta(self) -> dict[str, Any]:
        """The meta of the newest checkpoint. Raises UserError as `restore` does."""
        return self._read_meta(self._newest())

    def save(self, state: TrainState, meta: dict[str, Any], number: int | None = None) -> None:
        """Start to write the state after `meta["step"]` updates; the arrays may be donated as soon as this returns.

        number: the name of the checkpoint, above those of all others; if left out, the number of updates.
        Raises UserError, in this call or the next, if the disk refuses; complete checkpoints stay as they are.
        """
        step = meta["step"] if number is None else number
        if step in self.steps():
            return
        self.wait()
        trees = {"params": state.params, "rest": _rest(state)} | _average(state)
        meta = meta | {"arrays": {name: describe(tree) for name, tree in trees.items()}}
        items = {name: ocp.args.PyTreeSave(_filled(tree)) for name, tree in trees.items()}
        items["meta"] = ocp.args.JsonSave(meta | {"checksum": of_meta(meta)})
        self._writing = step
        try:
            self._open().save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._not_written(error) from error

    def set_aside(self, name: str) -> Path:
        """Move the folder with all its checkpoints to another name beside it; returns the new path. The next save begins anew."""
        self.wait()
        self._manager.close()
        self._manager, aside = None, self.folder.with_name(name)
        if jax.process_index() == 0:
            number = 1
            while aside.exists():
                number, aside = number + 1, self.folder.with_name(f"{name}-{number}")
            self.folder.rename(aside)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("set aside")
        return aside

    def wait(self) -> None:
        """Return when everything is on disk. Raises UserError as `save` does."""
        if self._manager is not None:
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                raise self._not_written(error) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state and its meta. abstract: shapes, dtypes and shardings it shall have; any mesh will do.

        Raises UserError if the files cannot be read, hold something else than was written, or belong to another model.
        """
        wanted = _average(abstract)
        kept = {name: tree for name, tree in wanted.items() if self.holds(name)}
        out = self._read(params=abstract.params, rest=_rest(abstract), **kept)
        rest, params = out["rest"], out["params"]
        # A run that goes on with an average it did not have begins it with the parameters.
        mean = out["average"] if kept else average.begin(bool(wanted), params)
        return TrainState(rest["step"], rest["skipped"], params, rest["optimizer"], rest["carry"], mean), out["meta"]

    def holds(self, item: str) -> bool:
        """Whether the newest checkpoint has this item."""
        return item in self.meta()["arrays"]

    def restore_params(self, abstract_params: Any, item: str = "params") -> tuple[Any, dict[str, Any]]:
        """The newest parameters, or their "average", and their meta. Raises UserError as `restore` does."""
        out = self._read(**{item: abstract_params})
        return out[item], out["meta"]

    def _newest(self) -> int:
        if (step := self.latest()) is None:
            raise UserError(f"no complete checkpoint in {self.folder}")
        return step

    def _read(self, **trees: Any) -> Any:
        step = self._newest()
        meta = self._read_meta(step)
        for name, tree in trees.items():
            if difference := first_misfit(meta["arrays"].get(name, {}), tree):
                raise UserError(f"checkpoint {self.folder / str(step)} is of another model: {name}{difference}")
        filled = {name: _filled(tree) for name, tree in trees.items()}
        items = {name: ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
                 for name, tree in filled.items()}
        try:
            found = self._open().restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._damaged(step, first_line(error)) from error
        out = {name: _like(tree, found[name]) for name, tree in trees.items()}
        for name, tree in out.items():
            written, read = meta["arrays"][name], describe(tree)
            if wrong := [path for path in read if read[path] != written[path]]:
                raise self._damaged(step, f"{name}{wrong[0]} is not what was written")
        return out | {"meta": meta}

    def _read_meta(self, step: int) -> dict[str, Any]:
        """The meta of a step. Raises UserError if it is damaged, or if the config beside it is of another model."""
        try:
            meta = dict(self._open().restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
        except Exception as error:
            raise self._damaged(step, first_line(error)) from error
        if "checksum" not in meta:
            raise UserError(f"checkpoint {self.folder / str(step)} was written by an older version of memtok_jax (it has no "
                            "checksums); train it again")
        if meta.pop("checksum") != of_meta(meta):
            raise self._damaged(step, "its meta is not what was written")
        if (self.workdir / CONFIG_FILE).exists():
            here, then = read_config(self.workdir).model, config.from_dict(meta["config"]).model
            for path, now, was in config.differences(here, then, "config.model"):
                raise UserError(f"{self.workdir / CONFIG_FILE} says {path} = {brief(now)}, but the checkpoint of step {step} was "
                                f"written with {brief(was)}; put that value back into the file")
        return meta

    def _damaged(self, step: int, reason: str) -> UserError:
        older = [s for s in self.steps() if s < step]
        advice = (f"remove that folder to go on from step {max(older)}" if older else
                  "start in a new --workdir" if self.folder.name == FOLDER else f"remove {self.folder}")
        return UserError(f"checkpoint {self.folder / str(step)} cannot be read ({reason}); {advice}")

    def _not_written(self, error: Exception) -> UserError:
        saved = [s for s in self.steps() if s != self._writing and (self.folder / str(s)).is_dir()]
        kept = (f"step {max(saved)} is complete and stays, and the same command goes on from there" if saved else
                "there is no other checkpoint")
        return UserError(f"the checkpoint of step {self._writing} could not be written to {self.folder} ({first_line(error)}); "
                         f"{kept}")


class _QuietThreads:
    """While it is entered, errors in background threads are not printed: Orbax raises them again in `wait` and `save`."""

    def __enter__(self) -> None:
        self._before = threading.excepthook, sys.unraisablehook
        threading.excepthook, sys.unraisablehook = lambda _: None, self._of_main_thread

    def __exit__(self, *_) -> None:
        threading.excepthook, sys.unraisablehook = self._before

    def _of_main_thread(self, error: Any) -> None:
        # Callbacks of TensorStore, in threads of its own, come here.
        if threading.current_thread() is threading.main_thread():
            self._before[1](error)


def _rest(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "skipped": state.skipped, "optimizer": state.optimizer, "carry": state.carry}


def _average(state: TrainState) -> dict[str, Any]:
    return {"average": state.average} if jax.tree.leaves(state.average) else {}


def _filled(tree: Any) -> Any:
    """The tree without its arrays of no elements (a prefix of no tokens), which Orbax refuses."""
    return jax.tree.map(lambda x: x if x.size else None, tree)


def _like(abstract: Any, filled: Any) -> Any:
    """The inverse of `_filled`: the arrays of no elements in their places again."""
    leaves = iter(jax.tree.leaves(filled))
    return jax.tree.map(lambda s: next(leaves) if s.size else jnp.zeros(s.shape, s.dtype, device=s.sharding), abstract)
