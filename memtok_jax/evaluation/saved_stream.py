"""The folder of a stream that `stream.py` saves: a snapshot, and a file for each row with what it has said.

    stream        snapshot of all rows, with notes: how far rows have read and written, and the command that made it
    said_0, ...   the bytes that each row has said; bytes beyond the length in the notes were written after the snapshot

The files are written first and the snapshot last, in one move, so a kill at any moment leaves the old snapshot or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from pathlib import Path
from typing import Any

from memtok_jax.config import UserError
from memtok_jax.inference import snapshot
from memtok_jax.inference.streams import Streams

SNAPSHOT, LOCK = "stream", "stream.lock"


def fingerprint(arrays: dict[str, Any]) -> int:
    """A number for parameters, made of the checksums of their arrays."""
    return zlib.crc32(json.dumps(arrays, sort_keys=True).encode())


class SavedStream:
    """A folder to save to. Entering creates it and locks it against other commands.

    notes: of the snapshot in it, {} if there is none. Entering raises UserError if the folder cannot be used or is locked.
    """

    def __init__(self, folder: Path):
        self.folder, self.notes, self._lock = folder, {}, None

    def __enter__(self) -> SavedStream:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / LOCK).open("w")
        except OSError as error:
            raise UserError(f"--save={self.folder} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command saves to {self.folder}; wait for it, or give another --save") from None
        except OSError:
            pass  # a file system without locks
        if (self.folder / SNAPSHOT).exists():
            self.notes = notes(self.folder)
        return self

    def __exit__(self, *_) -> None:
        self._lock.close()

    def said(self) -> list[bytes]:
        """What each row had said at the snapshot. Raises UserError if a file is missing or was changed."""
        try:
            texts = [(self.folder / f"said_{row}").read_bytes()[:size] for row, size in enumerate(self.notes["said"])]
        except OSError as error:
            raise UserError(f"{self.folder} is damaged: {error}") from None
        if [zlib.crc32(text) for text in texts] != self.notes["said_checksums"]:
            raise UserError(f"{self.folder} is damaged: a file said_ROW does not hold what was written; give a new --save")
        return texts

    def save(self, streams: Streams, said: list[bytearray], noted: dict[str, Any]) -> None:
        """Write files and snapshot. Raises UserError if that is not possible; the snapshot before stays valid then."""
        old = self.notes.get("said", [0] * len(said))
        try:
            for row, (text, size) in enumerate(zip(said, old, strict=True)):
                with (self.folder / f"said_{row}").open("r+b" if size else "wb") as file:
                    file.truncate(size)
                    file.seek(size)
                    file.write(text[size:])
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write the stream to {self.folder}: {error.strerror or error}") from None
        noted = {**noted, "said": [len(text) for text in said], "said_checksums": [zlib.crc32(text) for text in said]}
        streams.save(self.folder / SNAPSHOT, noted)
        self.notes = noted


def notes(folder: Path) -> dict[str, Any]:
    """The notes of the snapshot in a folder. Raises UserError if there is none, or one that stream.py did not save."""
    found = snapshot.notes(folder / SNAPSHOT).get("notes", {})
    if not {"arguments", "parameters", "inputs", "said"} <= found.keys():
        raise UserError(f"{folder / SNAPSHOT} was not saved by stream.py")
    if any(len(one) != 3 for one in found["inputs"]):
        raise UserError(f"{folder / SNAPSHOT} was saved by an older version of memtok_jax; read the text again")
    return found


def refuse_other(folder: Path, found: dict[str, Any], arguments: dict[str, Any], parameters: int) -> None:
    """Raise UserError if a saved stream belongs to another command, naming the first argument that differs."""
    refuse_other_parameters(folder, found, parameters)
    for name, value in arguments.items():
        if found["arguments"].get(name) != value:
            raise UserError(f"{folder} holds a stream with --{name}={_brief(found['arguments'].get(name))}, now it is "
                            f"{_brief(value)}; give a new --save, or --load={folder} to go on from there with something else")


def refuse_other_parameters(folder: Path, found: dict[str, Any], parameters: int) -> None:
    """Raise UserError if a saved stream was made by other parameters."""
    if found["parameters"] != parameters:
        raise UserError(f"the stream in {folder} was made by another model, or by this one after {found['step']} steps; "
                        "a stream and its model belong together")


def _brief(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
