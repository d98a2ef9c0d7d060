"""A folder of image files with one sub-folder for each class, read by pillow when they are needed.

    FOLDER/CLASS/*.png                    held out: a fraction, chosen by the hash of the names
    FOLDER/train/CLASS/*.png              and valid/ (or val/) and test/ beside it, as many as there are

A file `boxes.json` in the folder may give the objects of its images: {"CLASS/name.png": [[x_min, y_min, x_max, y_max], ...]}.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from memtok_jax.data.errors import DataError
from memtok_jax.data.images.pictures import NO_BOXES, Picture, Pictures, pillow

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}


def load(root: Path, held_out: float) -> dict[str, Pictures]:
    """The splits of a folder. Raises DataError where there is no image in it, or classes differ between splits."""
    parts = {ours: root / name for ours, names in SPLITS.items() for name in names if (root / name).is_dir()}
    if "train" in parts and len(parts) > 1:
        found = {split: _list(folder) for split, folder in parts.items()}
    else:
        train, held = _divide(_list(parts.get("train", root)), held_out)
        found = {"train": train, "valid": held}
    names = tuple(sorted({name for _, name in found["train"]}))
    for split, files in found.items():
        unknown = sorted({name for _, name in files} - set(names))
        if unknown:
            raise DataError(f"{root}: split '{split}' has the class '{unknown[0]}', which the training images do not have")
    boxes = _boxes(root)
    return {split: _pictures(root, files, names, boxes) for split, files in found.items()}


def everything(root: Path) -> Pictures:
    """All images below a folder as one set; those directly in it are of the class ".". """
    files = _list(root)
    return _pictures(root, files, tuple(sorted({name for _, name in files})), _boxes(root))


def decode(path: Path) -> np.ndarray:
    """uint8[rows, columns, 1 or 3] of an image file. Raises DataError naming a file that cannot be read."""
    return decode_bytes(path, path)


def decode_bytes(source, name) -> np.ndarray:
    """The same from a path or an open file. name: for the message."""
    image = pillow(f"reading {name}")
    try:
        with image.open(source) as opened:
            return _array(opened)
    except (OSError, SyntaxError, ValueError, EOFError, image.DecompressionBombError) as error:
        raise DataError(f"{name} is not an image that can be read ({type(error).__name__}: {_first_line(error)})") from None


def _array(opened) -> np.ndarray:
    # Palettes, transparency and CMYK become red, green, blue; one channel stays one.
    grey = opened.mode in ("1", "L")
    pixels = np.asarray(opened.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _list(folder: Path) -> list[tuple[Path, str]]:
    """(file, class) of every image below the folder, sorted."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return [(path, path.relative_to(folder).parts[0] if path.parent != folder else ".") for path in files]


def _divide(files: list[tuple[Path, str]], held_out: float) -> tuple[list, list]:
    """Training and held-out files, in an order that depends on the names alone."""
    ordered = sorted(files, key=lambda one: hashlib.sha256(f"{one[1]}/{one[0].name}".encode()).digest())
    count = min(max(round(held_out * len(ordered)), 1), len(ordered) - 1)
    if count < 1:
        raise DataError(f"one image ({ordered[0][0]}) cannot be divided into training and held-out images")
    return ordered[count:], ordered[:count]


def _boxes(root: Path) -> dict[str, np.ndarray]:
    path = root / "boxes.json"
    if not path.is_file():
        return {}
    try:
        return {name: np.asarray(boxes, np.float32).reshape(-1, 4) for name, boxes in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as error:
        form = '{"CLASS/name.png": [[x_min, y_min, x_max, y_max], ...]}'
        raise DataError(f"{path} must be {form} ({_first_line(error)})") from None


def _pictures(root: Path, files: list[tuple[Path, str]], names: tuple[str, ...], boxes: dict[str, np.ndarray]) -> Pictures:
    def read(number: int) -> Picture:
        path, name = files[number]
        return Picture(decode(path), names.index(name), boxes.get(path.relative_to(root).as_posix(), NO_BOXES))

    return Pictures(len(files), names, read, str(root))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
