"""The files of a pretrained model in a folder, as the Hugging Face library leaves them: which ones they are, and what is wrong.

The weights are those that `model.safetensors.index.json` names, or `model.safetensors`; never all `*.safetensors`, because a folder
may hold the same weights twice under other names. Arrays are mapped, not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memtok_jax.config import UserError
from memtok_jax.convert import tensor_files

CONFIG, ONE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs"


def is_pretrained(folder: Path) -> bool:
    """Whether a folder looks like a pretrained model: its config.json says of which type."""
    file = folder / CONFIG
    return file.is_file() and "model_type" in tensor_files.read_json(file)


def config(folder: Path) -> dict[str, Any]:
    """The fields of config.json. Raises UserError if it is not there, is no config, or tells of quantised weights."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder that holds a model's {CONFIG} and its weights")
    if not (folder / CONFIG).is_file():
        if (folder / "params.json").is_file():
            raise UserError(f"{folder} has the layout of the model's makers (params.json), whose rotary features lie in another "
                            f"order; give the version with a {CONFIG}")
        raise UserError(f"{folder} has no {CONFIG}; give the folder that holds a model's {CONFIG} and its weights")
    _refuse_pointer(folder / CONFIG)
    found = tensor_files.read_json(folder / CONFIG)
    if not isinstance(found.get("model_type"), str):
        raise UserError(f"{folder / CONFIG} names no model_type, so it is no config of a pretrained model")
    if found.get("quantization_config"):
        raise UserError(f"{folder / CONFIG} tells of quantised weights; only those in floating point are read")
    return found


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Name -> array, mapped from the files of one model. Raises UserError that names the file that is missing or damaged."""
    if (folder / INDEX).is_file():
        _refuse_pointer(folder / INDEX)
        index = tensor_files.read_index(folder / INDEX)
        files = sorted(set(index.values()))
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise UserError(f"{folder / INDEX} names {missing[0]}, which is not there ({len(missing)} of {len(files)} files are "
                            "missing): the download is incomplete")
        found = {name: _read(folder / name) for name in files}
        for name, file in index.items():
            if name not in found[file]:
                raise UserError(f"{folder / INDEX} says that {name!r} is in {file}; it is not")
        return {name: found[file][name] for name, file in index.items()}
    if (folder / ONE).is_file():
        return _read(folder / ONE)
    if pickles := sorted(folder.glob("*.bin")):
        raise UserError(f"{folder} holds its weights as pickles only ({pickles[0].name}), which are not opened; save it once with "
                        "save_pretrained of the transformers library")
    if (folder / "consolidated.safetensors").is_file():
        raise UserError(f"{folder} has only consolidated.safetensors, the layout of the model's makers, whose rotary features lie "
                        f"in another order; give the version with {ONE}")
    raise UserError(f"{folder} has neither {ONE} nor {INDEX}")


def _read(file: Path) -> Mapping[str, np.ndarray]:
    _refuse_pointer(file)
    return tensor_files.read_safetensors(file)


def _refuse_pointer(file: Path) -> None:
    """Raise UserError if a file holds what a download leaves in its place."""
    with file.open("rb") as opened:
        begin = opened.read(200)
    if begin.startswith(POINTER):
        raise UserError(f"{file} is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html")) or begin.startswith((b"Access to model", b"Invalid username")):
        raise UserError(f"{file} is a web page, not a model: a gated model must be asked for, and downloaded after logging in")


# ----------------------------------------------------------------------------------------------------------------- writing

def write(folder: Path, arrays: Mapping[str, np.ndarray], most: int) -> None:
    """Write name -> array as one file, or as numbered files of at most `most` bytes (if an array fits) with an index."""
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in arrays.items():
        if parts[-1] and size + array.nbytes > most:
            parts, size = [*parts, {}], 0
        parts[-1][name] = array
        size += array.nbytes
    names = [ONE] if len(parts) == 1 else [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        tensor_files.write_safetensors(folder / name, part, {"format": "pt"})
    if len(parts) > 1:
        where = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        total = sum(array.nbytes for array in arrays.values())
        tensor_files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
