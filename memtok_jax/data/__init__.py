"""Text, generated tasks and images as host arrays.

Sources: `DataConfig` and `ImagesConfig`; what a batch is: docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from memtok_jax.data import corpus as _corpus
from memtok_jax.data import images
from memtok_jax.data.config import DataConfig, is_task, task_config, task_module
from memtok_jax.data.documents import total
from memtok_jax.data.errors import DataError, DataNotFoundError
from memtok_jax.data.images.config import ImagesConfig
from memtok_jax.data.iterators import NumpyIterator, open_iterator
from memtok_jax.data.streams import Batch, ContiguousBatches, EvalBatches, WindowBatches, identity, rows_of
from memtok_jax.data.task_batches import TaskBatches, TaskEvalBatches
from memtok_jax.data.tasks.scoring import majority

__all__ = ["Batch", "DataConfig", "DataError", "DataNotFoundError", "ImagesConfig", "answer_right", "decode", "describe",
           "eval_text", "images", "input_shape", "is_images", "is_task", "is_text", "open_eval", "open_train", "reference_words",
           "task_baselines", "train_text", "unit", "vocabulary"]

AnyConfig = DataConfig | ImagesConfig


def is_images(cfg: AnyConfig) -> bool:
    """True where the data are images."""
    return isinstance(cfg, ImagesConfig)


def is_text(cfg: AnyConfig) -> bool:
    """True where the data is text, judged by bits per byte; all other data is judged by accuracy."""
    return not (is_images(cfg) or is_task(cfg))


def unit(cfg: AnyConfig) -> str:
    """What a sequence is made of."""
    return "images" if is_images(cfg) else "tokens"


def input_shape(cfg: AnyConfig) -> tuple[tuple[int, ...], type]:
    """Shape and dtype of one row's `inputs`: int32[T] or uint8[1, rows, columns, C]."""
    return ((1, *cfg.shape), np.uint8) if is_images(cfg) else ((cfg.sequence,), np.int32)


def open_train(cfg: AnyConfig, batch: int, process_index: int = 0, process_count: int = 1) -> NumpyIterator:
    """Endless training batches: `inputs` int32[b, T] (of images uint8[b, 1, rows, columns, C]), `targets` int32[b, T] (of
    mixed images float32[b, 1, classes]), `start` bool[b].

    batch: B, rows of all processes together; a process reads b = B / process_count of them, so that the processes'
    batches one below the other are the batch of a single process. The iterator has `get_state`, `set_state` and
    `close`; its state is the same for every process count. Raises DataError for data that cannot be used.
    """
    if is_images(cfg):
        return images.open_train(cfg, batch, process_index, process_count)
    rows = rows_of(process_index, process_count, batch)
    if is_task(cfg):
        for tokens in (cfg.sequence, *cfg.lengths):
            task_module(cfg).check(task_config(cfg), tokens)
        settings = (cfg.source, task_config(cfg), batch, cfg.sequence, *cfg.lengths, cfg.seed)
        return open_iterator(TaskBatches(cfg, batch, rows), identity((), *settings))
    documents = _corpus.training(cfg, _corpus.load(cfg))
    if cfg.contiguous:
        source = ContiguousBatches(documents, batch, cfg.sequence, cfg.seed, rows)
    else:
        source = WindowBatches(documents, batch, cfg.sequence, cfg.seed, rows, cfg.visit)
    return open_iterator(source, identity(documents, cfg.contiguous, cfg.visit, batch, cfg.sequence, cfg.seed))


def open_eval(cfg: AnyConfig, batch: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
    """Held-out batches, a finite sequence: every held-out byte, sample or image exactly once, for any batch size.

    Beside the arrays of training: `length` int32[b], real tokens at the front of each row, and `document` int32[b].
    See `streams.EvalBatches` and `task_batches.TaskEvalBatches`.
    """
    if is_images(cfg):
        return images.open_eval(cfg, batch, process_index, process_count)
    rows = rows_of(process_index, process_count, batch)
    if is_task(cfg):
        task_module(cfg).check(task_config(cfg), cfg.sequence)
        return TaskEvalBatches(cfg, batch, rows)
    return EvalBatches(_corpus.held_out(cfg, _corpus.load(cfg)), batch, cfg.sequence, rows)


def eval_text(cfg: DataConfig) -> bytes:
    """The held-out bytes that `open_eval` scores. Raises DataError for a task."""
    return b"".join(d.data.tobytes() for d in _corpus.held_out(cfg, _text(cfg)))


def train_text(cfg: DataConfig) -> bytes:
    """The training bytes, joined, for baselines. Raises DataError for a task."""
    return _corpus.SEPARATOR.join(d.data.tobytes() for d in _corpus.training(cfg, _text(cfg)))


def reference_words(cfg: DataConfig) -> int:
    """Words of the held-out text for word perplexity: separated by white space, and each line end where the data
    set counts it as a word (WikiText)."""
    text = eval_text(cfg)
    return len(text.split()) + (text.count(b"\n") if _text(cfg).words == "lines" else 0)


def _text(cfg: DataConfig) -> _corpus.Corpus:
    if is_task(cfg):
        raise DataError(f"{cfg.source} generates its samples; there is no text")
    return _corpus.load(cfg)


def task_baselines(cfg: DataConfig, window: int) -> dict[str, float]:
    """Accuracies that cost nothing, only for a task: chance, always the most frequent held-out answer ("majority"),
    and a perfect reader of the last `window` tokens ("no_memory")."""
    (held_out,) = open_eval(cfg, cfg.eval_samples)
    free = task_module(cfg).baselines(task_config(cfg), cfg.sequence, window)
    return {**free, "majority": majority(held_out["targets"])}


def answer_right(cfg: DataConfig) -> Callable | None:
    """Of a task whose answer is a part of what it predicts: (predicted [B, T], labels [B, T]) -> bool[B]; else None."""
    return getattr(task_module(cfg), "answer_right", None)


def vocabulary(cfg: AnyConfig) -> int:
    """Number of tokens, 256 for text; of images the number of classes."""
    if is_images(cfg):
        return len(images.classes(cfg))
    return task_module(cfg).vocabulary(task_config(cfg)) if is_task(cfg) else 256


def decode(cfg: DataConfig, ids) -> str:
    """Readable text of token ids [T]; bytes that are not UTF-8 show as a replacement sign."""
    if is_task(cfg):
        symbols = task_module(cfg).symbols(task_config(cfg))
        return " ".join(symbols[int(i)] for i in ids)
    return bytes(int(i) for i in ids).decode(errors="replace")


def describe(cfg: AnyConfig) -> str:
    """One line: data set, sizes of its splits, where it lies."""
    if is_images(cfg):
        return images.describe(cfg)
    if is_task(cfg):
        return (f"{cfg.source}: {task_config(cfg)}, {cfg.sequence} tokens, fresh samples for training, "
                f"{cfg.eval_samples} held-out samples")
    corpus = _corpus.load(cfg)
    train, scored = _corpus.training(cfg, corpus), _corpus.held_out(cfg, corpus)
    held = corpus.splits[cfg.eval_split]
    return (f"{cfg.source}: {total(train):,} bytes in {len(train)} files to train on, {total(held):,} bytes in "
            f"{len(held)} files held out ({cfg.eval_split}), {total(scored):,} of them scored; from {corpus.origin}")
