"""Named arrays in files, without torch: `.safetensors` both ways, `.pth` read only.

A `.safetensors` file is eight bytes (the header's length, little-endian), a JSON header {name: {dtype, shape, data_offsets}}, and
the arrays' bytes. A `.pth` file is a zip archive with a pickle that says how tensors are made of the archive's other entries. A
pickle can name any code, but none of it runs here: the few names that build tensors become descriptions of tensors, and all other
names (an optimizer, the arguments of a script) become an empty object that does nothing.
"""

from __future__ import annotations

import collections
import json
import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from memtok_jax.config import UserError
from memtok_jax.convert.names import PARTS

DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}
STORAGES = {  # names that a pickle of torch has for the types of its storages
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
}
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> array. path: a `.safetensors`, `.pth`, `.pt` or `.bin` file, or a folder with the `.safetensors` files of one model.

    Raises UserError naming what is wrong with the file.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return read_pth(path)
    raise UserError(f"{path} is neither .safetensors nor .pth, .pt or .bin")


# ----------------------------------------------------------------------------------------------------------------- folders

def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Name -> array of one model in one file, or in numbered parts, with or without an index.

    Raises UserError if a part is missing, if files are left over, if two hold the same name, or if the index says something else.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"the folder {folder} has no .safetensors file")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise UserError(f"the folder {folder} holds several models: {indices[0].name} and {indices[1].name}; give the file of one")
    index = read_index(indices[0]) if indices else {}
    wanted = sorted(set(index.values())) if indices else _parts(folder, files)
    if stray := [file.name for file in files if file.name not in wanted]:
        raise UserError(f"the folder {folder} holds several models: {stray[0]} is no part of {wanted[0]}; give the file of one")
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise UserError(f"the folder {folder} lacks {missing[0]}, a part of the model")
    where: dict[str, Path] = {}
    out = {}
    for file in files:
        for name, array in read_safetensors(file).items():
            if name in where:
                raise UserError(f"{where[name]} and {file.name} both hold {name!r}")
            out[name], where[name] = array, file
    if indices:
        _compare(indices[0], index, {name: file.name for name, file in where.items()})
    return out


def _parts(folder: Path, files: list[Path]) -> list[str]:
    """Names of all files of the model that the first file is part of."""
    found = SHARD.fullmatch(files[0].name)
    if not found or int(found[3]) < 1:
        return [files[0].name]
    return [f"{found[1]}-{n:05d}-of-{found[3]}.safetensors" for n in range(1, int(found[3]) + 1)]


def read_index(path: Path) -> dict[str, str]:
    """Name of an array -> name of its file, from an index beside it. Raises UserError if it holds something else."""
    content = read_json(path).get("weight_map")
    names = content.values() if isinstance(content, dict) else [None]
    if not content or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f'{path} must have a "weight_map" from names of arrays to names of files beside it')
    return content


def _compare(path: Path, index: Mapping[str, str], where: Mapping[str, str]) -> None:
    for name in sorted(index.keys() | where.keys()):
        if index.get(name) != where.get(name):
            told, found = index.get(name, "no file"), where.get(name, "none of them")
            raise UserError(f"{path} says that {name!r} is in {told}; it is in {found}")


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError if it is damaged or holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no object)")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ------------------------------------------------------------------------------------------------------------- safetensors

def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Name -> array, mapped from the file rather than copied. Raises UserError if the file is damaged or of another kind."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise UserError(f"{path} is no .safetensors file, or is cut off inside its header (it has {size:,} bytes)")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            said = "has a name twice" if isinstance(error, _TwiceError) else "is not JSON"
            raise UserError(f"{path} is no .safetensors file: its header {said}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path} is no .safetensors file: its header is no object")
    entries = {name: _entry(path, name, value) for name, value in header.items() if name != "__metadata__"}
    _check_extents(path, entries, size - 8 - length)
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    return {name: data[e.start:e.end].view(e.dtype).reshape(e.shape) for name, e in entries.items()}


class _TwiceError(ValueError):
    """A JSON object has a key twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise _TwiceError
    return dict(pairs)


class _Entry(NamedTuple):
    """What a header says of one array. start, end: bytes behind the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def _entry(path: Path, name: str, value: Any) -> _Entry:
    """The checked entry of one array."""
    fields = [value.get(field) for field in ("dtype", "shape", "data_offsets")] if isinstance(value, dict) else [None] * 3
    kind, shape, offsets = fields
    if not (isinstance(kind, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise UserError(f"{path}: the header's entry of {name!r} must have a dtype, a shape and two data_offsets, none negative")
    if kind not in DTYPES:
        raise UserError(f"{path}: {name} has the dtype {kind}; known are {', '.join(DTYPES)}")
    dtype, (start, end) = DTYPES[kind], offsets
    if end - start != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: {name} of shape {tuple(shape)} and {kind} cannot have {end - start} bytes")
    return _Entry(dtype, tuple(shape), start, end)


def _counts(value: Any) -> bool:
    """Whether a value is a list or tuple of whole numbers of at least 0."""
    return isinstance(value, (list, tuple)) and all(type(n) is int and n >= 0 for n in value)


def _check_extents(path: Path, entries: Mapping[str, _Entry], size: int) -> None:
    """Raise UserError unless the arrays lie one behind the other and fill the file, as the format demands."""
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != reached:
            raise UserError(f"{path}: {name!r} begins at byte {entry.start:,} of the data, the array before ends at {reached:,}")
        reached = entry.end
    if reached > size:
        raise UserError(f"{path} is cut off: its header tells of {reached:,} bytes of data, it has {size:,}; fetch it again")
    if reached < size:
        raise UserError(f"{path} has {size - reached:,} bytes behind its last array; it is damaged or no .safetensors file")


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray],
                      metadata: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write name -> array, in the order of the names. metadata: words about the file. Raises UserError for a dtype that the format
    does not have."""
    names, header, start = sorted(arrays), {"__metadata__": dict(metadata)} if metadata else {}, 0
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


# --------------------------------------------------------------------------------------------------------------------- pth

def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of the state dict in a file that `torch.save` wrote, alone or in dicts whose keys `names.PARTS` lists.

    Raises UserError if the file is damaged, or holds no state dict.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut off, or written by a torch before 1.6, whose format is not read")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({_line(error)})") from None


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip archive, but not one that torch.save writes (it has {len(pickles)} entries data.pkl)")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise UserError(f"{path} was written by a big-endian machine, which is not supported")
    with archive.open(pickles[0]) as file:
        unpickler = _TensorUnpickler(file)
        try:
            content = unpickler.load()
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {_line(error)})") from None
    found = _state_dict(content)
    if not found:
        other = f"; it holds objects such as {unpickler.foreign[0]}, which are not loaded" if unpickler.foreign else ""
        raise UserError(f"{path} holds no state dict: expected names with tensors, alone or under {', '.join(PARTS)}{other}")
    return {name: _array(path, archive, folder, name, tensor) for name, tensor in found.items()}


def _state_dict(content: Any, depth: int = 4) -> dict[str, _Tensor]:
    """Names with tensors of the preferred part; empty if there is none. depth: limit of nesting, because a dict may hold itself."""
    if not (isinstance(content, dict) and depth):
        return {}
    for part in PARTS:
        if found := _state_dict(content.get(part), depth - 1):
            return found
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, _Tensor)}


class _Storage(NamedTuple):
    """An entry of the archive that holds `count` numbers."""

    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    """A view into a storage, as the pickle describes it; not checked yet."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


class _Foreign:
    """Replaces every object that is not a tensor, and its class: it accepts what a pickle gives it, and does nothing."""

    def __new__(cls, *arguments, **options):
        return super().__new__(cls)

    def __init__(self, *arguments, **options):
        pass

    def _ignore(self, *arguments, **options):
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


def _tensor(storage, offset, shape, stride, *_) -> _Tensor:
    return _Tensor(storage, offset, shape, stride)


def _first(value, *_):
    return value


def _subclass(function, kind, arguments, *_):
    """A tensor of a subclass of torch.Tensor, as a plain tensor."""
    return _tensor(*arguments) if function is _tensor else _Foreign()


BUILDERS = {
    ("collections", "OrderedDict"): collections.OrderedDict, ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first, ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
}


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that only builds descriptions of tensors. foreign: names of everything else that the pickle asked for."""

    def __init__(self, file):
        super().__init__(file)
        self.foreign: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return DTYPES[STORAGES[name]]
        if (module, name) in BUILDERS:
            return BUILDERS[module, name]
        self.foreign.append(f"{module}.{name}")
        return _Foreign

    def persistent_load(self, record: Any) -> Any:
        """The storage that ("storage", type, key, device, count) asks for; `_Foreign` if the type of its numbers is not known."""
        _, dtype, key, _, count = record
        return _Storage(key, dtype, count) if isinstance(dtype, np.dtype) else _Foreign()


def _array(path: Path, archive: zipfile.ZipFile, folder: str, name: str, tensor: _Tensor) -> np.ndarray:
    """A tensor as an array that owns its memory. Raises UserError if it is not entirely inside its storage."""
    storage, offset, shape, stride = tensor
    if not isinstance(storage, _Storage):
        raise UserError(f"{path}: {name} has numbers of a type that is not read; known are {', '.join(STORAGES)}")
    if not (_counts([offset, storage.count]) and _counts(shape) and _counts(stride) and len(shape) == len(stride)):
        raise UserError(f"{path}: {name} has the shape {shape}, the strides {stride} and the offset {offset}; all must be whole "
                        "numbers of at least 0")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    numbers = math.prod(shape)
    if numbers > storage.count or (numbers and last >= storage.count):
        raise UserError(f"{path}: {name} of shape {tuple(shape)} reaches beyond its storage of {storage.count} numbers")
    entry, size = f"{folder}data/{storage.key}", storage.count * storage.dtype.itemsize
    if entry not in archive.NameToInfo or archive.getinfo(entry).file_size < size:
        raise UserError(f"{path} is cut off: the storage of {name} must have {size:,} bytes")
    data = np.frombuffer(archive.read(entry), storage.dtype, storage.count)
    steps = tuple(step * data.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(data[offset:], shape, steps).copy() if numbers else np.zeros(shape, data.dtype)
