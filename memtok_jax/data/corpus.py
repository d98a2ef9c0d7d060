"""From the name of a text source to its documents."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from memtok_jax.data import files, prepared, records, stdlib
from memtok_jax.data.documents import SEPARATOR, Corpus, Document, document, first_bytes
from memtok_jax.data.errors import DataError, nearest
from memtok_jax.data.tasks import names as task_names

if TYPE_CHECKING:
    from memtok_jax.data.text import TextConfig

TFDS = "tfds:"


def load(cfg: TextConfig) -> Corpus:
    """The documents of a text source by split, uncut.

    The last two sources stay in memory. Raises DataError (one line) for an unknown name, missing or unusable data,
    or a held-out split that the source does not have.
    """
    corpus = _load(cfg.source, folder(cfg), cfg.cache_dir, cfg.held_out, cfg.column)
    if cfg.eval_split not in corpus.splits or cfg.eval_split == "train":
        names = [s for s in corpus.splits if s != "train"]
        raise DataError(f"{cfg.source} has no held-out split '{cfg.eval_split}', only {', '.join(names)}"
                        f"{nearest(cfg.eval_split, names)}")
    return corpus


def folder(cfg: TextConfig) -> str:
    """Where local data sets lie: the setting, or for one of them the environment variable."""
    return cfg.data_dir or (os.environ.get("MEMTOK_DATA_DIR", "") if cfg.source in files.REAL else "")


@functools.lru_cache(maxsize=2)
def _load(source: str, data_dir: str, cache_dir: str, held_out: float, column: str) -> Corpus:
    if column:
        return records.load(source, column, held_out)
    if source == "stdlib":
        return stdlib.load(cache_dir, held_out)
    if source in files.REAL:
        return files.load_real(source, data_dir)
    if source.startswith(TFDS):
        return prepared.load(source.removeprefix(TFDS), data_dir, held_out)
    path = Path(source).expanduser()
    if path.exists():
        return files.load_path(path, held_out)
    raise _unknown(source)


def _unknown(source: str) -> DataError:
    names = ("stdlib", *sorted(files.REAL), *(f"task:{name}" for name in task_names()))
    return DataError(f"unknown data source '{source}': no such file or folder, and not one of {', '.join(names)}, "
                     f"{TFDS}NAME{nearest(source, names)}")


def training(cfg: TextConfig, corpus: Corpus) -> tuple[Document, ...]:
    """Documents of the training split, at most `cfg.max_bytes`."""
    return first_bytes(corpus.splits["train"], cfg.max_bytes)


def held_out(cfg: TextConfig, corpus: Corpus) -> tuple[Document, ...]:
    """The texts to score, at most `cfg.eval_bytes`: the documents of a set of books, else one joined text."""
    documents = first_bytes(corpus.splits[cfg.eval_split], cfg.eval_bytes)
    if corpus.separate or len(documents) == 1:
        return documents
    joined = document(cfg.eval_split, SEPARATOR.join(d.data.tobytes() for d in documents))
    return first_bytes((joined,), cfg.eval_bytes)
