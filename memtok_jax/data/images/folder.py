"""A folder of image files with one sub-folder for each class, read by pillow when they are needed.

    FOLDER/CLASS/*.png                    held out: a fraction, chosen by the hash of the names
    FOLDER/train/CLASS/*.png              valid/ (or val/, validation/) and test/ beside it, if they exist

A file `boxes.json` in the folder may give the objects of its images: {"CLASS/name.png": [[x_min, y_min, x_max, y_max], ...]}, in
pixels of the image after it is turned by its EXIF orientation. Grey of 16 bits is scaled to 8 bits. Pixels of 32 bits, integer or
float, are refused, because nothing tells which numbers are black and white.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from memtok_jax.data.errors import DataError
from memtok_jax.data.images.pictures import NO_BOXES, Picture, Pictures, pillow, to_bytes

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")     # pillow's modes of 16-bit grey
WIDE = ("PNG", "PPM")                          # formats in which its mode "I" holds 16 bits too
JPEG_END, TAIL = b"\xff\xd9", 65_536
BITS, PHOTOMETRIC, BLACK_IS_ZERO = 258, 262, 1    # tags of TIFF, and a value
SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}


def load(root: Path, held_out: float, on_bad_file: str = "stop") -> dict[str, Pictures]:
    """The splits of a folder. on_bad_file: see `ImagesConfig`.

    Raises DataError if there is no image in it, if its images are not in folders of at least two classes, if another split has a
    class that the training images do not have, and for a file that is no image, unless such files are skipped.
    """
    listed = _splits(root)
    bad = _unreadable_files([path for files in listed.values() for path, _ in files])
    if bad and on_bad_file == "stop":
        raise DataError(f"{next(iter(bad.values()))}; {len(bad)} of {sum(map(len, listed.values()))} files are like that; remove "
                        "them, or set data.on_bad_file=skip")
    found = {split: [file for file in files if file[0] not in bad] for split, files in listed.items()}
    for split, files in found.items():
        _check_classes(root, split, files)
    if len(found) == 1:
        found = dict(zip(("train", "valid"), _divide(found["train"], held_out), strict=True))
    names = tuple(sorted({name for _, name in found["train"]}))
    for split, files in found.items():
        unknown = sorted({name for _, name in files} - set(names))
        if unknown:
            raise DataError(f"{root}: split '{split}' has the class '{unknown[0]}', which the training images do not have")
    boxes, note = _boxes(root), f"{len(bad)} files left out, the first: {next(iter(bad.values()))}" if bad else ""
    return {split: _pictures(root, files, names, boxes, note) for split, files in found.items()}


def _splits(root: Path) -> dict[str, list[tuple[Path, str]]]:
    """Files of "train", and of "valid" and "test" if the folder has them."""
    parts = {ours: root / name for ours, names in SPLITS.items() for name in names if (root / name).is_dir()}
    if parts and "train" not in parts:
        raise DataError(f"{root} has a folder {next(iter(parts.values())).name}, but no folder train")
    return {split: _list(folder) for split, folder in parts.items()} or {"train": _list(root)}


def _check_classes(root: Path, split: str, files: list[tuple[Path, str]]) -> None:
    """Raise DataError unless every image is in the folder of a class, and the training images have at least two classes."""
    if not files:
        raise DataError(f"{root}: no image of the split '{split}' can be read")
    if loose := [path for path, name in files if name == "."]:
        raise DataError(f"{loose[0]} is in no class folder, as {len(loose)} of {len(files)} images; put the images of each class "
                        "into a folder named like it")
    names = sorted({name for _, name in files})
    if split == "train" and len(names) < 2:
        raise DataError(f"{root} has training images of one class only, '{names[0]}'; a classifier needs at least two")


def everything(root: Path) -> Pictures:
    """All images below a folder as one set; those directly in it have the class ".". Raises DataError if there is none."""
    files = _list(root)
    return _pictures(root, files, tuple(sorted({name for _, name in files})), _boxes(root))


def decode(path: Path) -> np.ndarray:
    """uint8[rows, columns, 1 or 3] of an image file. Raises DataError naming a file that cannot be read."""
    return decode_bytes(path, path)


def decode_bytes(source, name) -> np.ndarray:
    """Like `decode`, from a path or an open file. name: of the image, for the message."""
    image = pillow(f"reading {name}")
    try:
        with image.open(source) as opened:
            return _array(opened, name)
    except _errors(image) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(_unreadable(name, error)) from None


def _errors(image) -> tuple[type[Exception], ...]:
    """What pillow raises for a file that it cannot read."""
    return OSError, SyntaxError, ValueError, EOFError, image.DecompressionBombError


def _unreadable(name, error: Exception) -> str:
    return f"{name} is not an image that can be read ({type(error).__name__}: {_first_line(error)})"


def _unreadable_files(paths: list[Path]) -> dict[Path, str]:
    """Files with a fault that `_fault` finds -> the fault."""
    with ThreadPoolExecutor() as pool:    # most of the time is spent waiting for files
        return {path: fault for path, fault in zip(paths, pool.map(_fault, paths), strict=True) if fault}


def _fault(path: Path) -> str:
    """What is wrong with the header of an image file, or with the checksums that its format has; empty if nothing is.

    JPEG has no checksums: a file without its end mark near the end is decoded, to see whether it was cut off.
    """
    image = pillow(f"reading {path}")
    try:
        with image.open(path) as opened:
            cut_off = opened.format == "JPEG" and JPEG_END not in _tail(path)
            opened.verify()
        if cut_off:
            decode(path)
    except DataError as error:
        return str(error)
    except _errors(image) as error:
        return _unreadable(path, error)
    return ""


def _tail(path: Path) -> bytes:
    """The last bytes of a file. Not only the very last, because cameras append bytes of their own behind the end mark."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read()


def _array(opened, name) -> np.ndarray:
    """uint8[rows, columns, 1 or 3]: palettes, transparency and CMYK become red, green, blue; grey stays one channel."""
    from PIL import ImageOps

    if opened.mode in DEEP or (opened.mode == "I" and opened.format in WIDE):
        # pillow reads grey of 16 bits into numbers of 16 or of 32 bits; its own conversion to 8 bits makes all of it white.
        _check_range(opened, name)
        pixels = np.asarray(ImageOps.exif_transpose(opened))
        return to_bytes(pixels.astype(np.uint16), name)[..., None]
    if opened.mode in ("I", "F"):
        return to_bytes(np.asarray(opened), name)
    grey = opened.mode in ("1", "L")
    pixels = np.asarray(ImageOps.exif_transpose(opened).convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _check_range(opened, name) -> None:
    """Raise DataError for a TIFF whose 16-bit numbers do not go from black, 0, to white, 65535."""
    tags = getattr(opened, "tag_v2", {})
    bits, kind = tags.get(BITS, (16,)), tags.get(PHOTOMETRIC, BLACK_IS_ZERO)
    if bits != (16,) or kind != BLACK_IS_ZERO:
        raise DataError(f"{name} is a TIFF with {bits[0]} bits and photometric interpretation {kind}; of grey above 8 bits only 16 "
                        "bits with black at 0 are read")


def _list(folder: Path) -> list[tuple[Path, str]]:
    """(file, class) of every image below the folder, sorted; the folder of a class may be a symbolic link."""
    below = [path for place in folder.iterdir() for path in (place.rglob("*") if place.is_dir() else (place,))]
    files = sorted(p for p in below if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return [(path, path.relative_to(folder).parts[0] if path.parent != folder else ".") for path in files]


def _divide(files: list[tuple[Path, str]], held_out: float) -> tuple[list, list]:
    """Training and held-out files, divided by a hash of class and file name alone."""
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


def _pictures(root: Path, files: list[tuple[Path, str]], names: tuple[str, ...], boxes: dict[str, np.ndarray],
              note: str = "") -> Pictures:
    def read(number: int) -> Picture:
        path, name = files[number]
        return Picture(decode(path), names.index(name), boxes.get(path.relative_to(root).as_posix(), NO_BOXES))

    return Pictures(len(files), names, read, str(root), note)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
