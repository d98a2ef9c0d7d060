"""Data as plug-ins: text, generated tasks and images as host arrays.

A source of data is a module of this folder: a file (`text.py`, `task.py`) or a package (`images`). It is found by name or by its
config, and nothing lists it. Its config is a frozen dataclass and states

    source     name of the data, for messages
    sequence   T, tokens per row of a batch
    lengths    other lengths that a training batch may have, () for none
    parts      equal parts of a row that may each begin a new stream, if they are more than one

The module has the constants

    SUITE      file of `evaluation/suites` that judges a model on this data
    UNIT       what a sequence is made of, in the plural: "tokens"

and the functions

    named(old, name) -> config               what --data=NAME asks for; old: the config before, of this source or of another
    open_train(cfg, batch, process_index, process_count)    an endless iterator of batches, see `open_train`
    open_eval(cfg, batch, process_index, process_count)     a finite sequence of batches, see `open_eval`
    input_shape(cfg) -> (shape, dtype)       of one row's `inputs`
    targets(cfg) -> str                      one of TARGETS
    vocabulary(cfg) -> int                   outputs that a model needs for a target: symbols, classes, or numbers
    baselines(cfg, reach, segment) -> dict   results on the held-out data without a trained model: name -> number
    describe(cfg) -> str                     one line
    decode(cfg, ids) -> str                  readable text of token ids (only if the inputs are tokens)

optionally

    facts(cfg) -> dict                       numbers of the training data for the first line of metrics, names with "data/"

and, if its suite is "text",

    tokenizer(cfg) -> Tokenizer | None       what cuts the text into tokens; None: tokens are bytes
    eval_text(cfg) -> bytes                  the held-out text that `open_eval` scores
    reference_words(cfg) -> int              words of it; 0 if it has none

What the targets of a batch are is known without looking at them:

    tokens   int32[B, T], the next token. -100: not scored
    classes  int32[B, T], the class of a row. -100: not scored
    shares   float32[B, T, n], shares of n classes that sum to one. NaN: not scored
    values   float32[B, T, n], n numbers to predict. NaN: not scored
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from memtok_jax.data.errors import DataError as DataError
from memtok_jax.data.errors import DataNotFoundError as DataNotFoundError
from memtok_jax.data.iterators import NumpyIterator
from memtok_jax.data.streams import Batch as Batch
from memtok_jax.data.tokenizers import Tokenizer as Tokenizer

TARGETS = ("tokens", "classes", "shares", "values")


def source_of(cfg: Any) -> ModuleType:
    """The module of a data config: the one that defines it, or the package around that."""
    module = sys.modules[type(cfg).__module__]
    return module if hasattr(module, "open_train") else importlib.import_module(module.__package__)


def named(old: Any, name: str) -> Any:
    """The config that --data=NAME asks for.

    "KIND:NAME" ("task:copy", "text:FILE", "images:FOLDER") takes the source in the file KIND; any other name is one of the same
    kind as before, such as a file in the place of another. What both kinds have (sequence, seed) is kept.
    """
    kind, _, rest = name.partition(":")
    module = _source(kind) if rest else None
    return module.named(old, rest) if module else source_of(old).named(old, name)


def _source(kind: str) -> ModuleType | None:
    """The source in the file or package `kind` of this folder; None if there is none."""
    path = f"{__name__}.{kind}"
    if not kind.isidentifier() or importlib.util.find_spec(path) is None:
        return None
    module = importlib.import_module(path)
    return module if hasattr(module, "open_train") else None


def open_train(cfg: Any, batch: int, process_index: int = 0, process_count: int = 1) -> NumpyIterator:
    """Endless training batches: `inputs` [b, T, ...], `targets` [b, T, ...], `start` bool[b], the row begins a new stream
    (bool[b, parts]: each part of it does).

    batch: B, rows of all processes together; a process reads b = B / process_count of them, so that the processes'
    batches one below the other are the batch of a single process. The iterator has `get_state`, `set_state` and
    `close`; its state is the same for every process count. Raises DataError for data that cannot be used.
    """
    return source_of(cfg).open_train(cfg, batch, process_index, process_count)


def open_eval(cfg: Any, batch: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
    """Held-out batches, a finite sequence: every held-out token, sample or image exactly once, for any batch size.

    Beside the arrays of training: `length` int32[b], real tokens at the front of each row, and `document` int32[b], number of the
    text, sample or image, -1 for a row that only fills the batch. Of text also `bytes` int32[b], what the targets stand for.
    """
    return source_of(cfg).open_eval(cfg, batch, process_index, process_count)


def input_shape(cfg: Any) -> tuple[tuple[int, ...], type]:
    """Shape and dtype of one row's `inputs`: int32[T] or uint8[1, rows, columns, C]."""
    return source_of(cfg).input_shape(cfg)


def targets(cfg: Any) -> str:
    """What the targets of a batch are: one of TARGETS."""
    return source_of(cfg).targets(cfg)


def vocabulary(cfg: Any) -> int:
    """Outputs that a model needs for a target: 256 for bytes, the number of classes for images."""
    return source_of(cfg).vocabulary(cfg)


def baselines(cfg: Any, reach: int, segment: int) -> dict[str, float]:
    """Results on the held-out data without a trained model: name -> number, in the unit of the data's evaluation suite.

    reach: tokens that the model can see without its memory, itself included. segment: tokens between two borders of the model,
    0 if it has none.
    """
    return source_of(cfg).baselines(cfg, reach, segment)


def tokenizer(cfg: Any) -> Tokenizer | None:
    """What cuts the text into tokens; None if tokens are bytes, or the data is no text."""
    return source_of(cfg).tokenizer(cfg) if suite(cfg) == "text" else None


def parts(cfg: Any) -> int:
    """Equal parts of a training row, each of which may begin a new stream; 1: only the row may."""
    return getattr(cfg, "parts", 1)


def facts(cfg: Any) -> dict[str, float]:
    """Numbers that a reader of the run should know of its training data, such as the share of a batch that is empty: names with
    "data/". {} if the source has none."""
    module = source_of(cfg)
    return module.facts(cfg) if hasattr(module, "facts") else {}


def suite(cfg: Any) -> str:
    """Name of the evaluation suite that judges a model on this data."""
    return source_of(cfg).SUITE


def unit(cfg: Any) -> str:
    """What a sequence is made of, in the plural."""
    return source_of(cfg).UNIT


def decode(cfg: Any, ids: Any) -> str:
    """Readable text of token ids [T] up to the end mark, a negative id. Ids that stand for nothing show as a replacement sign."""
    return source_of(cfg).decode(cfg, ids)


def describe(cfg: Any) -> str:
    """One line: data set, sizes of its splits, where it lies."""
    return source_of(cfg).describe(cfg)
