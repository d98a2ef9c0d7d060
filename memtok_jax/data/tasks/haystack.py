"""Text in which tasks hide what they ask for: parts of a corpus for training, test and validation that never meet."""

from __future__ import annotations

import functools

import numpy as np

from memtok_jax.data.errors import DataError


@functools.lru_cache(maxsize=8)
def text(source: str, split: str) -> bytes:
    """One long text.

    source: "stdlib", "gutenberg_books" (and other local data sets), or the path of a text file or of a folder of them. split:
    "train", "valid" or "test". A source without a test part gives the second half of what it holds out. Raises DataError for a
    source that is not there or too small.
    """
    splits = _splits(source)
    if split in splits and "test" in splits:
        return splits[split]
    if split == "train":
        return splits["train"]
    held, middle = splits["valid"], len(splits["valid"]) // 2
    return held[:middle] if split == "valid" else held[middle:]


@functools.lru_cache(maxsize=2)
def _splits(source: str) -> dict[str, bytes]:
    from memtok_jax.data import corpus
    from memtok_jax.data.text import TextConfig

    loaded = corpus.load(TextConfig(source=source))
    return {name: b"\n".join(one.data.tobytes() for one in documents) for name, documents in loaded.splits.items()}


def excerpt(source: bytes, count: int, rng: np.random.Generator, what: str) -> bytes:
    """`count` bytes from a random place of a text. what: of the setting that names the text, for messages."""
    if len(source) <= count:
        raise DataError(f"{what}: the text has {len(source):,} bytes, and a sample needs {count:,}; name a larger text")
    begin = int(rng.integers(len(source) - count))
    return source[begin:begin + count]
