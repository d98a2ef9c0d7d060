"""Save a stream in mid-flight and go on later, bit for bit, in another process or in another slot.

A snapshot is one file: a ZIP archive with the bytes of every array and a header (format version, the model's config, and shape,
dtype and checksum of each array). It is written aside and renamed, so a reader sees the old file or the new one, never half of one.

The parameters are not in it. Leaves of the carry that are computed from parameters (`lives="derived"`) are: after a change of the
parameters, `params.renew` brings a restored carry up to date.

Going on with the same program (same block lengths, same neighbours, same machine) is bit-identical. Otherwise the results agree up
to rounding: other blocks, and neighbours that keep a block off the faster path, order the same sums differently.
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

from memtok_jax import checks
from memtok_jax.config import UserError, to_dict
from memtok_jax.inference.stream import Stream, stream_specs
from memtok_jax.models.protocol import Model
from memtok_jax.params import abstract

FORMAT = 2
_HEADER = "header.json"


def save(path: str | os.PathLike, stream: Stream, model: Model, notes: dict[str, Any] | None = None) -> None:
    """Write the whole stream. It stays usable.

    path: the file to write or to replace. model: the one that the stream belongs to. notes: plain values to write beside it.
    Raises UserError if the stream does not fit the model, or if the file cannot be written (no folder, disk full); an older file
    there stays as it was.
    """
    batch = len(stream.t)
    checks.check_state(stream, stream_specs(model, batch), "stream")
    leaves = {name: np.asarray(jax.device_get(leaf)) for name, leaf in _named(stream)}
    arrays = {name: [leaf.dtype.name, list(leaf.shape), zlib.crc32(leaf.tobytes())] for name, leaf in leaves.items()}
    header = {"format": FORMAT, "batch": batch, "config": to_dict(model.cfg), "arrays": arrays,
              "notes": notes or {}}
    try:
        _write_aside(Path(path), header, list(leaves.values()))
    except OSError as error:
        raise UserError(f"cannot write the stream to {path}: {error.strerror or error}") from error


def restore(path: str | os.PathLike, model: Model) -> Stream:
    """The stream that `save` wrote, on the default device, ready for a `Session` of the same batch size.

    model: must equal the one at saving time.
    Raises UserError with one line for: no such file, a damaged or foreign file, another format version, another config
    (naming the first entry that differs), other arrays than this version of the model has.
    """
    path = Path(path)
    header, arrays = _read(path)
    _check_config(path, header["config"], to_dict(model.cfg))
    expected = abstract(stream_specs(model, header["batch"]))
    wanted = {name: (spec.dtype.name, spec.shape) for name, spec in _named(expected)}
    found = {name: (leaf.dtype.name, leaf.shape) for name, leaf in arrays.items()}
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise UserError(f"{path} holds {name} as {found.get(name, 'nothing')}, this model needs "
                            f"{wanted.get(name, 'nothing')} there")
    return jax.tree.unflatten(jax.tree.structure(expected), [jnp.array(arrays[name]) for name in wanted])


def notes(path: str | os.PathLike) -> dict[str, Any]:
    """The notes that `save` was given. Raises UserError as `restore` does."""
    return _read(Path(path))[0].get("notes", {})


def _named(stream: Stream) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(stream)]


def _write_aside(path: Path, header: dict, leaves: list[np.ndarray]) -> None:
    """Write header and arrays to a new file beside `path`, then rename it."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(_HEADER, json.dumps(header))
                for i, leaf in enumerate(leaves):
                    archive.writestr(str(i), leaf.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def _read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Header, and arrays by name. The archive and the header have a checksum for each array, so damage is found here."""
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(_HEADER))
            arrays = _arrays(archive, header) if header["format"] == FORMAT else {}
    except FileNotFoundError:
        raise UserError(f"there is no stream at {path}") from None
    except Exception as error:   # a damaged archive fails in more ways than can be listed
        raise UserError(f"{path} is not a saved stream, or it is damaged ({error})") from error
    if header["format"] != FORMAT:
        raise UserError(f"{path} has stream format {header['format']}, this version reads format {FORMAT}")
    return header, arrays


def _arrays(archive: zipfile.ZipFile, header: dict) -> dict[str, np.ndarray]:
    """Arrays by name. Raises ValueError if one is not what was written."""
    out = {}
    for i, (name, (dtype, shape, checksum)) in enumerate(header["arrays"].items()):
        content = archive.read(str(i))
        if zlib.crc32(content) != checksum:
            raise ValueError(f"{name} is not what was written")
        out[name] = np.frombuffer(content, jnp.dtype(dtype)).reshape(shape)
    if not isinstance(header["config"], dict) or [len(leaf) for name, leaf in out.items() if name == ".t"] != [header["batch"]]:
        raise ValueError("its header is not what was written")
    return out


def _check_config(path: Path, saved: dict[str, Any], here: dict[str, Any]) -> None:
    old, new = _flat(saved), _flat(json.loads(json.dumps(here)))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise UserError(f"{path} was saved by a model with {name}={old.get(name, '(absent)')}, this one has "
                            f"{name}={new.get(name, '(absent)')}")


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """{"a": {"b": [1, 2]}} as {"a.b.0": 1, "a.b.1": 2}."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {path: tree}
    return {name: value for key, part in items for name, value in _flat(part, f"{path}.{key}" if path else str(key)).items()}
