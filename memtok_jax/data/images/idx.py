"""Fashion-MNIST as its four official idx files (big-endian: magic number, sizes, bytes), plain or gzip-compressed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from memtok_jax.data import files
from memtok_jax.data.errors import DataError
from memtok_jax.data.images.pictures import NO_BOXES, Picture, Pictures

IMAGES, LABELS = 2051, 2049        # magic numbers
VALIDATION = 5000                  # number of images at the end of the training files
NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def load(name: str, data_dir: str) -> dict[str, Pictures]:
    """The splits "train", "valid" (the last 5,000 training images) and "test".

    Raises DataNotFoundError if a file is absent, and DataError if one is damaged.
    """
    folder = files.real_folder(name, data_dir)
    train, test = (tuple(read(_file(folder, f"{part}-{kind}-ubyte"), magic) for kind, magic in
                         (("images-idx3", IMAGES), ("labels-idx1", LABELS))) for part in ("train", "t10k"))
    for images, labels in (train, test):
        if len(images) != len(labels):
            raise DataError(f"{folder} has {len(images)} images and {len(labels)} labels in one split")
    keep = max(len(train[0]) - VALIDATION, 1)
    parts = {"train": [a[:keep] for a in train], "valid": [a[keep:] for a in train], "test": test}
    return {split: _pictures(*arrays, str(folder)) for split, arrays in parts.items()}


def read(path: Path, magic: int) -> np.ndarray:
    """The numbers of one idx file: uint8[n, rows, columns] of images, uint8[n] of labels.

    Raises DataError (one line) for another magic number and for a file that is shorter or longer than it says.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    header = np.frombuffer(raw[:16], ">i4")
    if len(header) < 2 or header[0] != magic:
        raise DataError(f"{path} begins with {header[0] if len(header) else 'nothing'}, an idx file of this kind with {magic}")
    dims = [int(n) for n in header[1:1 + magic % 256]]
    begin = 4 + 4 * len(dims)
    if len(raw) - begin != np.prod(dims):
        raise DataError(f"{path} says {' x '.join(map(str, dims))} numbers, it holds {len(raw) - begin}")
    return np.frombuffer(raw, np.uint8, offset=begin).reshape(dims)


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise files.absent(folder / f"{name}.gz", folder.name)


def _pictures(images: np.ndarray, labels: np.ndarray, origin: str) -> Pictures:
    return Pictures(len(images), NAMES, lambda i: Picture(images[i][..., None], int(labels[i]), NO_BOXES), origin)
