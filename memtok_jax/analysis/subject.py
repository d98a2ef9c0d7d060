"""What is analysed: a vision transformer and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from memtok_jax.config import UserError
from memtok_jax.convert.vit import IMAGENET, load_vit
from memtok_jax.data import images
from memtok_jax.data.images import folder
from memtok_jax.data.images.config import ImagesConfig
from memtok_jax.data.images.pictures import Pictures
from memtok_jax.models.vision.classifier import ClassifierConfig
from memtok_jax.models.vision.config import VitConfig

MOST_WEIGHTS = 2**27     # attention weights of one batch: half a gigabyte


class Model(NamedTuple):
    """Parameters of `vit.py`, their config, and the images that they were trained on.

    mean, std: of each channel, for pixels in 0 .. 1. head: parameters of the linear head. classifier: None if there is no head.
    """

    params: Any
    cfg: VitConfig
    data: ImagesConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    head: Any = None
    classifier: ClassifierConfig | None = None


class Shown(NamedTuple):
    """N images of one size. boxes: of each image, f32[K, 4] in pixels. pictures: the same images at their original sizes."""

    pixels: np.ndarray       # u8[N, rows, columns, C]
    labels: np.ndarray       # i32[N]
    boxes: list[np.ndarray]
    classes: tuple[str, ...]
    origin: str
    pictures: Pictures | None = None


class Told(NamedTuple):
    """What the caller says of a checkpoint file; what is None or left out must come from the file. options: of `load_vit`."""

    options: Mapping[str, Any] = MappingProxyType({})
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def from_file(path: Path, told: Told = Told()) -> Model:  # noqa: B008
    """A model from a checkpoint that `convert.load_vit` knows.

    Raises UserError for another file, and if a mean or deviation is missing or does not fit the channels.
    """
    params, cfg, head, _, mean, std = load_vit(path, **told.options)
    size = (cfg.grid[0] * cfg.patch, cfg.grid[1] * cfg.patch)
    mean, std, classes = told.mean or mean, told.std or std, head["w"].shape[1] if head else 0
    if mean is None or std is None:
        usual = f"--mean={_listed(IMAGENET.mean)} --std={_listed(IMAGENET.std)}"
        raise UserError(f"{path}: no preprocessor_config.json or config.json beside the weights tells mean and deviation of the "
                        f"images; give --mean and --std (ImageNet's: {usual})")
    if not len(mean) == len(std) == cfg.channels or min(std) <= 0:
        raise UserError(f"--mean={_listed(mean)} and --std={_listed(std)} must have one number for each of {cfg.channels} "
                        "channels, those of --std above 0")
    return Model(params, cfg, ImagesConfig(size=size, channels=cfg.channels), mean, std, path.name, head,
                 ClassifierConfig(cfg, classes, _pool(head, cfg), mean, std) if classes > 1 else None)


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{x:g}" for x in numbers)


def _pool(head: Any, cfg: VitConfig) -> str:
    """What the head of a published checkpoint reads: class token and patches by its size, else what the norms say (timm)."""
    if len(head["w"]) == 2 * cfg.width:
        return "cls_patch"
    return "cls" if cfg.class_token and cfg.final_norm == "tokens" else "patch_mean"


def pictures(model: Model, source: str, size: tuple[int, int], count: int, data_dir: str) -> Shown:
    """At most `count` images in a fixed random order.

    source: a folder, another source whose held-out split is taken, or "" for the images held out from the run.
    size: (rows, columns) in pixels, whole patches; (0, 0) takes the size of training. Raises UserError if the size does not fit.
    """
    size = tuple(n or own for n, own in zip(size, model.data.size, strict=True))
    check_size(model, size, model.cfg.channels)
    cfg = replace(model.data, size=size, data_dir=data_dir or model.data.data_dir, **({"source": source} if source else {}))
    path = Path(source).expanduser()
    found = folder.everything(path) if source and path.is_dir() else images.held_out(cfg)
    order = np.random.default_rng(0).permutation(found.count)[:count]
    mixed = Pictures(len(order), found.classes, lambda n: found.read(int(order[n])), found.origin)
    seen = images.fitted(cfg, mixed, len(order))
    return Shown(np.stack([p.pixels for p in seen]), np.array([p.label for p in seen], np.int32), [p.boxes for p in seen],
                 found.classes, found.origin, mixed)


def check_size(model: Model, size: tuple[int, int], channels: int) -> None:
    """Raise UserError if the model cannot take images of (rows, columns) pixels with this many channels."""
    patch = model.cfg.patch
    if min(size) < patch or any(n % patch for n in size):
        raise UserError(f"{model.name}: images of {size[0]} x {size[1]} pixels are not whole patches of {patch} x {patch}; "
                        "give --size=ROWSxCOLUMNS")
    if channels != model.cfg.channels:
        raise UserError(f"{model.name}: the images have {channels} channels, the model takes {model.cfg.channels}")


def batches(model: Model, shown: Shown) -> Iterator[np.ndarray]:
    """Normalised f32[B, rows, columns, C]. B is at most 50, and less if the attention of all layers exceeds MOST_WEIGHTS."""
    n = shown.pixels.shape[1] // model.cfg.patch * (shown.pixels.shape[2] // model.cfg.patch)
    weights = model.cfg.layers * model.cfg.heads * (n + model.cfg.prefix + 1) ** 2
    rows = int(np.clip(MOST_WEIGHTS // weights, 1, 50))
    for begin in range(0, len(shown.pixels), rows):
        yield normalised(model, shown.pixels[begin:begin + rows])


def normalised(model: Model, pixels: np.ndarray) -> np.ndarray:
    """Pixels u8[..., C] scaled to 0 .. 1, minus the model's mean, over its deviation: f32 of the same shape."""
    mean, std = np.asarray(model.mean, np.float32), np.asarray(model.std, np.float32)
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def patch_pixels(model: Model, shown: Shown) -> np.ndarray:
    """f32[N, n, P P C]: the normalised pixels of each patch."""
    n, rows, columns, channels = shown.pixels.shape
    p = model.cfg.patch
    blocks = normalised(model, shown.pixels).reshape(n, rows // p, p, columns // p, p, channels)
    return blocks.swapaxes(2, 3).reshape(n, -1, p * p * channels)
