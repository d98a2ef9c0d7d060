"""Snapshots: the state of the host and the carries of the model after one event, in a folder beside the database.

    DATABASE.snapshots/CONVERSATION-EVENT/    manifest.json, and what the device wrote

A folder is written under another name, synced and renamed; then a transaction notes it, with the digest of its manifest; then
older ones are removed. A kill at any moment leaves a folder that the database does not know, which is never read, or one more
than needed. The database alone is enough: without a snapshot a conversation is read again from its first event.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memtok_jax.config import UserError
from memtok_jax.virtual_context import schema
from memtok_jax.virtual_context.device import Device
from memtok_jax.virtual_context.main_context import MainContext
from memtok_jax.virtual_context.queue import Part, State, Turn
from memtok_jax.virtual_context.search import Cursor, Query
from memtok_jax.virtual_context.store import Store

MANIFEST, SCRATCH = "manifest.json", ".writing-"


def folder_of(store: Store) -> Path:
    """Where the snapshots of a database lie."""
    return store.path.with_name(store.path.name + ".snapshots")


def save(store: Store, conv: int, seq: int, state: State, main: MainContext, device: Device, at: Callable[[str], None]) -> None:
    """Write a snapshot after event `seq`. at: is called between the steps. Raises UserError if it cannot be written."""
    home, name = folder_of(store), f"{conv}-{seq}"
    scratch = home / f"{SCRATCH}{name}"
    at("snapshot begins")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        device.save(scratch, main.summary, main.context)
        at("carries written")
        manifest = json.dumps({"schema": schema.VERSION, "last_seq": seq, "device": device.fingerprint, "fresh": main.fresh,
                               "state": dataclasses.asdict(state), "files": _digests(scratch)})
        (scratch / MANIFEST).write_text(manifest)
        _sync(scratch)
        at("manifest written")
        shutil.rmtree(home / name, ignore_errors=True)
        os.rename(scratch, home / name)
        _sync_folder(home)
    except OSError as error:
        raise UserError(f"cannot write a snapshot to {home}: {error.strerror or error}; the conversation itself is kept") from None
    at("folder renamed")
    with store.transaction():
        store.add_snapshot(conv, seq, name, _digest(manifest.encode()))
    at("snapshot noted")
    newest = store.snapshots(conv)[0]
    with store.transaction():
        store.drop_snapshots(conv, newest[0])
    for old in home.glob(f"{conv}-*"):
        if old.name != newest[2]:
            shutil.rmtree(old, ignore_errors=True)
    at("old snapshots removed")


def restore(store: Store, conv: int, device: Device) -> tuple[int, State, MainContext] | None:
    """(number of the last event, state, carries) of the newest snapshot that is whole and of this device; None if there is none."""
    for _, seq, name, digest in store.snapshots(conv):
        folder = folder_of(store) / name
        try:
            text = (folder / MANIFEST).read_bytes()
            manifest = json.loads(text)
            if _digest(text) != digest or manifest["device"] != device.fingerprint or manifest["files"] != _digests(folder):
                continue
            summary, context = device.load(folder)
        except (OSError, ValueError, KeyError):
            continue
        return seq, _state(manifest["state"]), MainContext(summary, context, manifest["fresh"])
    return None


def _state(plain: dict[str, Any]) -> State:
    """The state that `dataclasses.asdict` and JSON made plain."""
    turn = Turn(*plain["turn"]) if plain["turn"] else None
    if turn and turn.calls is not None:
        turn = turn._replace(calls=tuple(turn.calls))
    cursors = tuple((Query(*query), Cursor(bound, tuple(ids))) for query, (bound, ids) in plain["cursors"])
    return State(**plain | {"fifo": tuple(Part(*part) for part in plain["fifo"]), "turn": turn, "cursors": cursors})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: _digest(file.read_bytes()) for file in sorted(folder.iterdir()) if file.name != MANIFEST}


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
