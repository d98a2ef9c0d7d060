"""53 photographs of COCO 2017 with boxes, as a smoke set for object discovery: an archive of JPEGs and one file of annotations.

52 of them have an object that is not a crowd. At that number the standard error of CorLoc is about seven points, so no claim may
rest on it. Whoever publishes one of the pictures must show its address and licence (`flickr_url` in the annotations).
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib

import numpy as np

from memtok_jax.data import files
from memtok_jax.data.errors import DataError
from memtok_jax.data.images.folder import decode_bytes
from memtok_jax.data.images.pictures import Picture, Pictures


def load(name: str, data_dir: str) -> dict[str, Pictures]:
    """The split "valid", and no split to train on, because the photographs have no class.

    Raises DataNotFoundError if a file is absent, and DataError if one is damaged.
    """
    folder = files.real_folder(name, data_dir)
    for file in ("images.tar", "annotations.json.gz"):
        if not (folder / file).is_file():
            raise files.absent(folder / file, name)
    try:
        records = json.loads(gzip.decompress((folder / "annotations.json.gz").read_bytes()))["images"]
        with tarfile.open(folder / "images.tar") as archive:
            found = [archive.extractfile(r["file"]).read() for r in records]
    except (OSError, EOFError, ValueError, KeyError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{folder} cannot be read ({type(error).__name__}: {error})") from None

    def read(number: int) -> Picture:
        return Picture(decode_bytes(io.BytesIO(found[number]), records[number]["file"]), 0, boxes(records[number]["objects"]))

    return {"valid": Pictures(len(records), ("photograph",), read, str(folder))}


def boxes(objects: list[dict]) -> np.ndarray:
    """float32[K, 4] x_min, y_min, x_max, y_max of the objects that are no crowds, from x, y, width, height."""
    found = np.array([one["bbox_xywh"] for one in objects if not one["iscrowd"]], np.float32).reshape(-1, 4)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)
