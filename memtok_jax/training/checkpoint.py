"""Checkpoints of a run: written in the background, restored onto any mesh. The only file that knows Orbax.

A checkpoint has three items: `params`; `rest`, the other arrays of the train state; `meta`, the config, the position
in the data and counters as JSON. Reading `params` alone is all that evaluation needs.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.training.step import TrainState

FOLDER, CONFIG_FILE = "checkpoints", "config.json"

# Fields that may change between a run and its continuation; all others of these groups must stay.
FREE = ("config.data.data_dir", "config.data.cache_dir", "config.data.eval_split", "config.data.eval_bytes",
        "config.data.eval_samples")
FIXED_GROUPS = ("config.model", "config.data", "config.training.batch", "config.training.seed")


class Checkpoints:
    """The checkpoints of one run directory. Use it as a context manager: leaving waits until all are written.

    keep: how many stay when a new one is written; None, all.
    """

    def __init__(self, workdir: Path, keep: int | None):
        # Orbax reports each stage of a save as a warning or info line; a run prints its own.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = (Path(workdir) / FOLDER).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(f"cannot create the checkpoint folder {self.folder}: {error.strerror}") from None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Start to write the state after `meta["step"]` updates; the arrays may be donated as soon as this returns.

        Raises UserError, in this call or the next, where the disk refuses; complete checkpoints stay as they are.
        """
        step = meta["step"]
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(params=ocp.args.PyTreeSave(_filled(state.params)), meta=ocp.args.JsonSave(meta),
                                   rest=ocp.args.PyTreeSave(_filled(_rest(state))))
        try:
            self._manager.save(step, args=items)
        except Exception as error:
            raise self._not_written(step, error) from error

    def wait(self) -> None:
        """Return when everything is on disk. Raises UserError as `save` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(None, error) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state and its meta. abstract: shapes, dtypes and shardings it shall have; any mesh will do.

        Raises UserError where the files cannot be read.
        """
        out = self._read(params=abstract.params, rest=_rest(abstract))
        rest = out["rest"]
        return TrainState(rest["step"], rest["skipped"], out["params"], rest["optimizer"], rest["carry"]), out["meta"]

    def restore_params(self, abstract_params: Any) -> tuple[Any, dict[str, Any]]:
        """The newest parameters and their meta. Raises UserError where the files cannot be read."""
        out = self._read(params=abstract_params)
        return out["params"], out["meta"]

    def _read(self, **trees: Any) -> Any:
        step = self.latest()
        if step is None:
            raise UserError(f"no complete checkpoint in {self.folder}")
        filled = {name: _filled(tree) for name, tree in trees.items()}
        items = {name: ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
                 for name, tree in filled.items()}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **items))
            return {"meta": found["meta"]} | {name: _like(tree, found[name]) for name, tree in trees.items()}
        except Exception as error:
            older = [s for s in self._manager.all_steps() if s < step]
            advice = f"remove that folder to go on from step {max(older)}" if older else "start in a new --workdir"
            raise UserError(f"checkpoint {self.folder / str(step)} cannot be read ({_first_line(error)}); {advice}"
                            ) from error

    def _not_written(self, step: int | None, error: Exception) -> UserError:
        saved = [s for s in self._manager.all_steps() if s != step and (self.folder / str(s)).is_dir()]
        kept = f"step {max(saved)} is complete and stays" if saved else "none was complete before"
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        return UserError(f"{what} could not be written to {self.folder} ({_first_line(error)}); {kept}")


def _rest(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "skipped": state.skipped, "optimizer": state.optimizer, "carry": state.carry}


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
    return " ".join(text.split())[:200]


# --------------------------------------------------------------------------------------------------- run directory

def open_workdir(workdir: Path, experiment: Any) -> None:
    """Make the run directory, or check that the one that is there belongs to this experiment, and write its config.

    Raises UserError for a directory of something else, and where a field that must not change has changed.
    """
    workdir = Path(workdir)
    if jax.process_index() == 0:
        _claim(workdir, experiment)
        _write(workdir / CONFIG_FILE, config.to_json(experiment) + "\n")
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("run directory")


def _claim(workdir: Path, experiment: Any) -> None:
    if (workdir / CONFIG_FILE).exists():
        refuse_other(read_config(workdir), experiment, workdir)
    elif workdir.is_dir() and (others := {p.name for p in workdir.iterdir()} - {_scratch(workdir / CONFIG_FILE).name}):
        names = ", ".join(sorted(others)[:3])
        raise UserError(f"{workdir} is not a run directory: it holds {names} but no {CONFIG_FILE}; "
                        "give an empty or new --workdir")
    elif workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; give a directory")
    workdir.mkdir(parents=True, exist_ok=True)


def read_config(workdir: Path) -> Any:
    """The experiment of a run directory. Raises UserError where there is none, or it cannot be read."""
    file = Path(workdir) / CONFIG_FILE
    if not file.exists():
        raise UserError(f"{workdir} is not a run directory: there is no {CONFIG_FILE} in it")
    try:
        return config.from_json(file.read_text())
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (ValueError, TypeError, KeyError) as error:
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
