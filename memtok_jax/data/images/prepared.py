"""Images of a data set that TensorFlow Datasets has prepared on this machine (cifar10, imagenet2012, ...), without TensorFlow."""

from __future__ import annotations

import numpy as np

from memtok_jax.data import prepared
from memtok_jax.data.errors import DataError
from memtok_jax.data.images.pictures import NO_BOXES, Picture, Pictures, to_bytes


def load(name: str, data_dir: str, held_out: float) -> dict[str, Pictures]:
    """The splits of `tfds:NAME`, which must have an image and a label.

    If it has only "train", the last `held_out` of its images (a fraction) are "valid". If it has "test" but no validation split,
    "test" is "valid" too. Raises DataNotFoundError if it is not prepared, and DataError if it cannot be used.
    """
    builder = prepared.open_builder(name, data_dir, _keys)
    found = {ours: next((s for s in theirs if s in builder.info.splits), "") for ours, theirs in
             {"train": ("train",), **prepared.HELD_OUT_NAMES}.items()}
    if not found["train"]:
        raise DataError(f"tfds:{name} has no split 'train', only {', '.join(builder.info.splits)}")
    splits = {ours: _split(builder, name, theirs) for ours, theirs in found.items() if theirs}
    if len(splits) == 1:
        keep = splits["train"].count - max(int(held_out * splits["train"].count), 1)
        splits = {"train": _part(splits["train"], 0, keep), "valid": _part(splits["train"], keep, splits["train"].count)}
    return {"valid": splits.get("valid", splits.get("test")), **splits}


def _keys(builder) -> tuple[str, str]:
    """Keys of the image and of the label. Raises DataError if one of them is missing."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    names = list(features) if hasattr(features, "keys") else []
    images = [k for k in names if isinstance(features[k], tfds.features.Image)]
    labels = [k for k in names if isinstance(features[k], tfds.features.ClassLabel)]
    if not images or not labels:
        raise DataError(f"data set '{builder.info.name}' has no image with a class label, only {', '.join(names)}")
    return ("image" if "image" in images else images[0]), ("label" if "label" in labels else labels[0])


def _split(builder, name: str, split: str) -> Pictures:
    image, label = _keys(builder)
    source = prepared.open_split(builder, name, split)

    def read(number: int) -> Picture:
        record = source[number]
        return Picture(to_bytes(np.asarray(record[image]), f"image {number} of tfds:{name}"), int(record[label]), NO_BOXES)

    return Pictures(len(source), tuple(builder.info.features[label].names), read, str(builder.data_path))


def _part(whole: Pictures, begin: int, end: int) -> Pictures:
    return Pictures(end - begin, whole.classes, lambda i: whole.read(begin + i), whole.origin)
