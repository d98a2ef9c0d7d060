"""Named arrays in files, without torch: `.safetensors` both ways, `.pth` read only.

A `.safetensors` file is eight bytes (the header's length, little-endian), a JSON header {name: {dtype, shape, data_offsets}}, and
the arrays' bytes. A `.pth` file is a zip archive with a pickle that says how tensors are made of the archive's other entries. A
pickle can run any code, so only the few names that build tensors are allowed; anything else ends in an error.
"""

from __future__ import annotations

import collections
import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from memtok_jax.config import UserError

DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}
STORAGES = {  # names that a pickle of torch has for the types of its storages
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
}
WRAPPERS = ("model", "state_dict", "teacher")  # where training scripts put the weights inside a .pth


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> array. path: a `.safetensors`, `.pth`, `.pt` or `.bin` file, or a folder of `.safetensors` files.

    Raises UserError naming what is wrong with the file.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise UserError(f"the folder {path} has no .safetensors file")
        return {name: array for file in files for name, array in read_safetensors(file).items()}
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return read_pth(path)
    raise UserError(f"{path} is neither .safetensors nor .pth, .pt or .bin")


# ------------------------------------------------------------------------------------------------------------ safetensors

def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Name -> array, mapped from the file rather than copied."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise UserError(f"{path} is no .safetensors file, or is cut off inside its header (it has {size:,} bytes)")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise UserError(f"{path} is no .safetensors file: its header is not JSON") from None
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > size:
        raise UserError(f"{path} is cut off: its header tells of {end:,} bytes, it has {size:,}; fetch it again")
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if end > 8 + length else np.zeros(0, np.uint8)
    return {name: _from_bytes(path, name, data, entry) for name, entry in header.items()}


def _from_bytes(path: Path, name: str, data: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{path}: {name} has the dtype {entry['dtype']}; known are {', '.join(DTYPES)}")
    dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    if end - start != math.prod(entry["shape"]) * dtype.itemsize:
        raise UserError(f"{path}: {name} of shape {tuple(entry['shape'])} and {entry['dtype']} cannot have {end - start} bytes")
    return data[start:end].view(dtype).reshape(entry["shape"])


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write name -> array, in the order of the names."""
    names, header, start = sorted(arrays), {}, 0
    known = {dtype: name for name, dtype in DTYPES.items()}
    for name in names:
        array = np.asarray(arrays[name])
        if array.dtype not in known:
            raise UserError(f"{name} has the dtype {array.dtype}, which a .safetensors file cannot hold")
        end = start + array.nbytes
        header[name] = {"dtype": known[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays start at a multiple of eight bytes
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name]).tobytes())


# -------------------------------------------------------------------------------------------------------------------- pth

def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of a state dict that `torch.save` wrote, alone or as "model", "state_dict" or "teacher" of a dict."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut off, or written by a torch before 1.6, whose format is not read")
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive, but not one that torch.save writes (it has {len(pickles)} entries data.pkl)")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise UserError(f"{path} was written by a big-endian machine, which is not supported")
        with archive.open(pickles[0]) as file:
            try:
                content = _TensorUnpickler(file, path, archive, folder).load()
            except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{path} cannot be read: {error}") from None
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, np.ndarray]:
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not (isinstance(content, Mapping) and content and all(isinstance(value, np.ndarray) for value in content.values())):
        raise UserError(f"{path} holds no state dict: expected names with tensors, alone or under {', '.join(WRAPPERS)}")
    return dict(content)


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that knows how to make tensors, and nothing else."""

    def __init__(self, file, path: Path, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self.path, self.archive, self.folder = path, archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return DTYPES[STORAGES[name]]
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda array, *_: array,
        }
        if (module, name) not in allowed:
            raise UserError(f"{self.path} wants to call {module}.{name}; only files that hold nothing but tensors are read")
        return allowed[module, name]

    def persistent_load(self, record: tuple) -> np.ndarray:
        """All numbers of one storage, as ("storage", type, key, device, count) asks for."""
        _, dtype, key, _, count = record
        raw = self.archive.read(f"{self.folder}data/{key}")
        if len(raw) < count * dtype.itemsize:
            raise UserError(f"{self.path} is cut off: storage {key} has {len(raw):,} of {count * dtype.itemsize:,} bytes")
        return np.frombuffer(raw, dtype, count)


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A tensor that looks into a storage with the given strides, as an array of its own."""
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) and not 0 <= offset <= last < len(storage):
        raise ValueError(f"a tensor of shape {tuple(shape)} reaches beyond its storage of {len(storage)} numbers")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()
