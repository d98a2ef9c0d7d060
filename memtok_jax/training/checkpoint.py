"""Checkpoints of a run: written in the background, restored onto any mesh. The only file that knows Orbax.

A checkpoint has these items: `params`; `average`, that of the parameters, if the run keeps one; `rest`, the other arrays of the
train state; `meta`, the config, the position in the data, counters, and shape and checksum of every array as JSON. One of the first
two is all that evaluation reads.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import logging
import os
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

from memtok_jax import config, sharding
from memtok_jax.config import UserError
from memtok_jax.training import average
from memtok_jax.training.step import TrainState

FOLDER, BEST_FOLDER, STABLE_FOLDER = "checkpoints", "best", "stable"
CONFIG_FILE, LOCK_FILE = "config.json", "run.lock"

# Fields that may change between a run and its continuation; all others of these groups must stay. The saved position in the data is
# refused if the text or its tokens have changed, so these may lie elsewhere.
FREE = ("config.data.data_dir", "config.data.tokenizer", "config.data.folder", "config.data.cache_dir", "config.data.eval_split",
        "config.data.eval_bytes", "config.data.eval_samples")
FIXED_GROUPS = ("config.model", "config.data", "config.training.batch", "config.training.seed")


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
        self._writing = step
        try:
            self._open().save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta | {"checksum": _checksum(meta)}), **items))
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
            if difference := _first_misfit(meta["arrays"].get(name, {}), tree):
                raise UserError(f"checkpoint {self.folder / str(step)} is of another model: {name}{difference}")
        filled = {name: _filled(tree) for name, tree in trees.items()}
        items = {name: ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
                 for name, tree in filled.items()}
        try:
            found = self._open().restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
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
            raise self._damaged(step, _first_line(error)) from error
        if "checksum" not in meta:
            raise UserError(f"checkpoint {self.folder / str(step)} was written by an older version of memtok_jax (it has no "
                            "checksums); train it again")
        if meta.pop("checksum") != _checksum(meta):
            raise self._damaged(step, "its meta is not what was written")
        if (self.workdir / CONFIG_FILE).exists():
            here, then = read_config(self.workdir).model, config.from_dict(meta["config"]).model
            for path, now, was in config.differences(here, then, "config.model"):
                raise UserError(f"{self.workdir / CONFIG_FILE} says {path} = {_brief(now)}, but the checkpoint of step {step} was "
                                f"written with {_brief(was)}; put that value back into the file")
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
        return UserError(f"the checkpoint of step {self._writing} could not be written to {self.folder} ({_first_line(error)}); "
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


# -------------------------------------------------------------------------------------------------------- checksums

def describe(tree: Any) -> dict[str, list]:
    """Path of each array -> [shape, dtype, checksum]: JSON-able, the same on any mesh and in any process."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = [x for _, x in leaves]
    mesh = next((x.sharding.mesh for x in arrays if isinstance(getattr(x, "sharding", None), NamedSharding)), None)
    sums = _checksums(mesh)(arrays)
    return {jax.tree_util.keystr(path): [list(x.shape), str(x.dtype), int(s)]
            for (path, x), s in zip(leaves, jax.device_get(sums), strict=True)}


@functools.cache
def _checksums(mesh: Mesh | None) -> Callable:
    """Jitted: list of arrays -> u32[n]. The result is copied to every device of the mesh, so that every process can read it."""
    return jax.jit(lambda arrays: jnp.stack([array_checksum(x) for x in arrays]),
                   out_shardings=None if mesh is None else sharding.replicated(mesh))


def array_checksum(x: jax.Array) -> jax.Array:
    """u32[]: the sum of the words of x, each times an odd number made from its place, modulo 2^32.

    A single flipped bit always changes it. It is a sum of integers, so it does not depend on how x is divided over devices.
    """
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}").astype(jnp.uint32)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    place = place * jnp.uint32(0x9E3779B1)
    return (words * ((place ^ (place >> 15)) | 1)).sum(dtype=jnp.uint32)


def _checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _first_misfit(written: dict[str, list], tree: Any) -> str:
    """The first array that has another shape than was written, in one line; "" if all fit."""
    wanted = {jax.tree_util.keystr(path): list(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    for path in sorted(written.keys() | wanted.keys()):
        there, here = written[path][0] if path in written else "missing", wanted.get(path, "missing")
        if there != here:
            return f"{path} is {there} there and {here} here"
    return ""


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


def _first_line(error: BaseException) -> str:
    """The reason in one line, at most 200 characters: the innermost message that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return os.strerror(errno.ENOSPC) if os.strerror(errno.ENOSPC) in text else " ".join(text.split())[:200]


# --------------------------------------------------------------------------------------------------- run directory

class RunFolder:
    """A run directory that belongs to this experiment and, while it is entered, to this command alone.

    Entering makes the directory, or checks that the one that is there belongs to the experiment, and writes the config.
    Raises UserError for a directory of something else, if a field that must not change has changed, and if another process
    trains in it.
    """

    def __init__(self, workdir: Path, experiment: Any):
        self._workdir, self._experiment = Path(workdir), experiment
        self._lock: Any = None

    def __enter__(self) -> RunFolder:
        if jax.process_index() == 0:
            try:
                self._take()
            except BaseException as error:
                self.__exit__()
                if isinstance(error, OSError):
                    raise UserError(f"--workdir={self._workdir} cannot be used: {error.strerror}") from None
                raise
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("run directory")
        return self

    def _take(self) -> None:
        refuse_foreign(self._workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._workdir)
        if (self._workdir / CONFIG_FILE).exists():
            refuse_other(read_config(self._workdir), self._experiment, self._workdir)
        _write(self._workdir / CONFIG_FILE, config.to_json(self._experiment) + "\n")

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.close()


def refuse_foreign(workdir: Path) -> None:
    """Raise UserError if a run cannot begin or go on here: below a file, or in a folder of something else. Nothing is created."""
    there = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not there.is_dir():
        raise UserError(f"--workdir={workdir}: {there} is a file; give a directory")
    known = {CONFIG_FILE, _scratch(workdir / CONFIG_FILE).name, LOCK_FILE}
    names = {p.name for p in workdir.iterdir()} if there == workdir else set()
    if names - known and CONFIG_FILE not in names:
        raise UserError(f"{workdir} is not a run directory: it holds {', '.join(sorted(names - known)[:3])} but no {CONFIG_FILE}; "
                        "give an empty or new --workdir")


def _locked(workdir: Path) -> Any:
    """An open file that holds the lock of the directory; the lock ends with the process. Raises UserError if another has it."""
    file = (workdir / LOCK_FILE).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process trains in this folder ({workdir}); wait for it, or give another --workdir") from None
    except OSError:
        pass  # a file system without locks
    return file


def read_config(workdir: Path) -> Any:
    """The experiment of a run directory. Raises UserError if there is none, or if it cannot be read."""
    file = Path(workdir) / CONFIG_FILE
    if not file.exists():
        raise UserError(f"{workdir} is not a run directory: there is no {CONFIG_FILE} in it")
    try:
        return config.from_json(file.read_text())
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({_first_line(error)}); give a new --workdir") from None


def refuse_other(old: Any, new: Any, workdir: Path) -> None:
    """Raise UserError naming the first field that a continuation must not change but this one does."""
    for path, was, now in config.differences(old, new):
        if path.startswith(FIXED_GROUPS) and path not in FREE:
            raise UserError(f"{workdir} holds a run with {path} = {_brief(was)}, now it is {_brief(now)}; "
                            "continue with the old value or give a new --workdir")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__


def _scratch(file: Path) -> Path:
    """Where the new version of a file is written first; a kill may leave it behind."""
    return file.with_name(file.name + ".new")


def _write(file: Path, text: str) -> None:
    """Replace a file in one move, so that a kill leaves the old or the new one whole."""
    scratch = _scratch(file)
    scratch.write_text(text)
    scratch.replace(file)
