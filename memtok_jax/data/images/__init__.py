"""Images as host arrays, from the sources of `ImagesConfig`. A batch is like one of text; an image is a sequence of one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from memtok_jax.data.errors import DataError, nearest
from memtok_jax.data.images import coco, composites, folder, idx, prepared
from memtok_jax.data.images.batches import EvalImages, TrainImages, scored
from memtok_jax.data.images.config import ImagesConfig
from memtok_jax.data.images.pictures import Picture, Pictures, fit
from memtok_jax.data.iterators import NumpyIterator, open_iterator
from memtok_jax.data.streams import Batch, identity, rows_of

SUITE, UNIT = "images", "images"
TFDS = "tfds:"
LOCAL = {"fashion_mnist": idx.load, "coco_permissive": coco.load}
HELD_OUT = 1000                       # held-out composites
TRAIN, VALID, TEST = 0, 2**62, 2**61  # where the numbers of composites of each split begin


def open_train(cfg: ImagesConfig, batch: int, process_index: int, process_count: int) -> NumpyIterator:
    """Endless training batches; see `data.open_train`."""
    source = TrainImages(cfg, training(cfg), batch, rows_of(process_index, process_count, batch))
    settings = (cfg.source, cfg.size, cfg.channels, cfg.composites, cfg.augment, batch, cfg.seed)
    return open_iterator(source, identity((), *settings, source.count, classes(cfg)))


def open_eval(cfg: ImagesConfig, batch: int, process_index: int, process_count: int) -> Sequence[Batch]:
    """Held-out batches; see `data.open_eval`."""
    return EvalImages(cfg, held_out(cfg), batch, rows_of(process_index, process_count, batch))


def named(old: Any, name: str) -> ImagesConfig:
    """The config for the images `name`: `old` with this source, or a new config with the seed of `old`."""
    return replace(old, source=name) if isinstance(old, ImagesConfig) else ImagesConfig(source=name, seed=old.seed)


def input_shape(cfg: ImagesConfig) -> tuple[tuple[int, ...], type]:
    """One image, a sequence of one: uint8[1, rows, columns, C]."""
    return (1, *cfg.shape), np.uint8


def targets(cfg: ImagesConfig) -> str:
    """"classes", or "shares" of the classes if training images are mixed."""
    return "shares" if cfg.augment.mixes else "classes"


def vocabulary(cfg: ImagesConfig) -> int:
    """Number of classes."""
    return len(classes(cfg))


def baselines(cfg: ImagesConfig, reach: int, segment: int) -> dict[str, float]:
    """Accuracies without a trained model, by name; see `images/ridge.py`. They do not depend on reach and segment."""
    from memtok_jax.data.images.ridge import image_baselines

    return image_baselines(cfg)


def training(cfg: ImagesConfig) -> Pictures:
    """The training split. Raises DataError if the source has none."""
    splits = _splits(cfg)
    if "train" not in splits:
        raise DataError(f"{cfg.source} has no images to train on, only {', '.join(splits)} to look at")
    return splits["train"]


def held_out(cfg: ImagesConfig) -> Pictures:
    """The split `cfg.eval_split`. Raises DataError, with the names of the held-out splits, if the source does not have it."""
    splits = _splits(cfg)
    if cfg.eval_split not in splits or cfg.eval_split == "train":
        names = [s for s in splits if s != "train"]
        raise DataError(f"{cfg.source} has no held-out split '{cfg.eval_split}', only {', '.join(names)}"
                        f"{nearest(cfg.eval_split, names)}")
    return splits[cfg.eval_split]


def classes(cfg: ImagesConfig) -> tuple[str, ...]:
    """Names of the labels, in order."""
    return training(cfg).classes


def fitted(cfg: ImagesConfig, source: Pictures, count: int) -> list[Picture]:
    """The first `count` pictures of a split, or all if there are fewer, brought to the size of the config."""
    return [fit(source.read(n), cfg.size, cfg.channels) for n in range(min(count, source.count))]


def arrays(cfg: ImagesConfig, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels uint8[N, rows, columns, C], labels int32[N]) of "train", or else of the held-out split, without augmentation."""
    found = fitted(cfg, training(cfg) if split == "train" else held_out(cfg), count)
    return np.stack([one.pixels for one in found]), np.array([one.label for one in found], np.int32)


def held_out_count(cfg: ImagesConfig) -> int:
    """How many images are scored."""
    return scored(cfg, held_out(cfg))


def describe(cfg: ImagesConfig) -> str:
    """One line about the data: source, sizes of the splits, size of the images, and where the files are."""
    train, rest = training(cfg), held_out(cfg)
    return (f"{cfg.source}: {train.count:,} images of {len(train.classes)} classes to train on, {held_out_count(cfg):,} of "
            f"{rest.count:,} held out ({cfg.eval_split}), {cfg.size[0]} x {cfg.size[1]} x {cfg.channels}; from {train.origin}"
            + (f"; {train.note}" if train.note else ""))


def _splits(cfg: ImagesConfig) -> dict[str, Pictures]:
    if cfg.source == "composites":
        return _composites(cfg)
    return _load(cfg.source, cfg.data_dir, cfg.held_out, cfg.on_bad_file)


def _composites(cfg: ImagesConfig) -> dict[str, Pictures]:
    def split(begin: int, count: int) -> Pictures:
        return Pictures(count, composites.class_names(cfg.composites), lambda n: composites.picture(
            cfg.composites, cfg.size, cfg.channels, begin + n), "memtok_jax/data/images/composites.py")

    return {"train": split(TRAIN, cfg.composites.images), "valid": split(VALID, HELD_OUT), "test": split(TEST, HELD_OUT)}


@functools.lru_cache(maxsize=2)
def _load(source: str, data_dir: str, held_out: float, on_bad_file: str) -> dict[str, Pictures]:
    if source in LOCAL:
        return LOCAL[source](source, data_dir)
    if source.startswith(TFDS):
        return prepared.load(source.removeprefix(TFDS), data_dir, held_out)
    path = Path(source).expanduser()
    if path.is_dir():
        return folder.load(path, held_out, on_bad_file)
    names = ("composites", *LOCAL)
    raise DataError(f"unknown image source '{source}': no such folder, and not one of {', '.join(names)}, {TFDS}NAME"
                    f"{nearest(source, names)}")
