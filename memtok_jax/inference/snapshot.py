"""Save a stream in mid-flight and go on later, bit for bit, in another process or in another slot.

A snapshot is one file: a NumPy archive with the bytes of every array and a header (format version, the model's config,
shapes and dtypes). The parameters are not in it. It is written aside and renamed, so a reader sees the old file or the
new one, never half of one.

Going on with the same program (same block lengths, same machine) is bit-identical; other block lengths agree up to
rounding.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.config import UserError, to_dict
from memtok_jax.inference.stream import Model, Stream, stream_specs
from memtok_jax.params import abstract

FORMAT = 1
_HEADER = "header"


def save(path: str | os.PathLike, stream: Stream, cfg: Any) -> None:
    """Write the whole stream. It stays usable.

    path: the file to write or to replace. cfg: the config of the model the stream belongs to.
    Raises UserError where the file cannot be written (no folder, disk full); an older file there stays as it was.
    """
    leaves = {name: np.asarray(jax.device_get(leaf)) for name, leaf in _named(stream)}
    header = {"format": FORMAT, "batch": int(stream.t.shape[0]), "config": to_dict(cfg),
              "arrays": {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()}}
    # Bytes, because NumPy archives forget the name of bfloat16 and its kin.
    payload = {name: np.frombuffer(leaf.tobytes(), np.uint8) for name, leaf in leaves.items()}
    payload[_HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path = Path(path)
    try:
        _write_aside(path, payload)
    except OSError as error:
        raise UserError(f"cannot write the stream to {path}: {error.strerror or error}") from error


def restore(path: str | os.PathLike, model: Model, cfg: Any) -> Stream:
    """The stream that `save` wrote, on the default device, ready for a `Session` of the same batch size.

    model: module with the four functions. cfg: its config, which must equal the one at saving time.
    Raises UserError with one line for: no such file, a damaged or foreign file, another format version, another config
    (naming the first entry that differs), other arrays than this version of the model has.
    """
    header, payload = _read(Path(path))
    _check_config(Path(path), header["config"], to_dict(cfg))
    expected = abstract(stream_specs(model, cfg, header["batch"]))
    names = dict(_named(expected))
    found = {name: (dtype, tuple(shape)) for name, (dtype, shape) in header["arrays"].items()}
    wanted = {name: (str(spec.dtype), spec.shape) for name, spec in names.items()}
    if found != wanted:
        name = next(n for n in sorted({*found, *wanted}) if found.get(n) != wanted.get(n))
        raise UserError(f"{path} holds {name} as {found.get(name, 'nothing')}, this model needs "
                         f"{wanted.get(name, 'nothing')} there")
    arrays = [jnp.array(np.frombuffer(payload[name], spec.dtype).reshape(spec.shape)) for name, spec in names.items()]
    return jax.tree.unflatten(jax.tree.structure(expected), arrays)


def _named(stream: Stream) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(stream)]


def _write_aside(path: Path, payload: dict[str, np.ndarray]) -> None:
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **{str(i): a for i, a in enumerate(payload.values())}, names=np.array(list(payload)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def _read(path: Path) -> tuple[dict, dict[str, bytes]]:
    """Header and bytes by name. Archives carry a checksum for each member, so damage is found here."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            payload = {str(name): archive[str(i)].tobytes() for i, name in enumerate(archive["names"])}
        header = json.loads(payload.pop(_HEADER))
    except FileNotFoundError:
        raise UserError(f"there is no stream at {path}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a saved stream, or it is damaged ({error})") from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} has stream format {header.get('format')}, this version reads format {FORMAT}")
    return header, payload


def _check_config(path: Path, saved: dict[str, Any], here: dict[str, Any]) -> None:
    old, new = _flat(saved), _flat(json.loads(json.dumps(here)))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise UserError(f"{path} was saved by a model with {name}={old.get(name, '(absent)')}, this one has "
                            f"{name}={new.get(name, '(absent)')}")


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value}
    return flat
