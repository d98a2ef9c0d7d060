"""A run directory: its config, its lock, and what must not change when a run goes on."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import jax

from memtok_jax import config
from memtok_jax.config import UserError

CONFIG_FILE, LOCK_FILE = "config.json", "run.lock"

# Fields that may change between a run and its continuation; all others of these groups must stay. The saved position in the data is
# refused if the text or its tokens have changed, so these may lie elsewhere.
FREE = ("config.data.data_dir", "config.data.tokenizer", "config.data.folder", "config.data.cache_dir", "config.data.eval_split",
        "config.data.eval_bytes", "config.data.eval_samples")
FIXED_GROUPS = ("config.model", "config.data", "config.training.batch", "config.training.seed")


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
        raise UserError(f"{file} is damaged ({first_line(error)}); give a new --workdir") from None


def refuse_other(old: Any, new: Any, workdir: Path) -> None:
    """Raise UserError naming the first field that a continuation must not change but this one does."""
    for path, was, now in config.differences(old, new):
        if path.startswith(FIXED_GROUPS) and path not in FREE:
            raise UserError(f"{workdir} holds a run with {path} = {brief(was)}, now it is {brief(now)}; "
                            "continue with the old value or give a new --workdir")


def brief(value: Any) -> str:
    """The value in a message: as code if that is short, else its kind."""
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


def first_line(error: BaseException) -> str:
    """The reason in one line, at most 200 characters: the innermost message that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return os.strerror(errno.ENOSPC) if os.strerror(errno.ENOSPC) in text else " ".join(text.split())[:200]
