"""Nested key-value tables that are told and then asked for, without a search: what a memory alone knows of a table, as bytes.

    USER Key-value pair: key = k1, value = v1 END
    SYSTEM END USER Key-value pair: key = k2, value = v2 END   ...
    USER what is the value of k2 END CALL s STR v2 STR_END CALL_END END
    USER what is the value of k1 END CALL s STR v1 STR_END CALL_END END   ...

The neighbour of `nested`, with its rows, questions and words, held-out ones too. A conversation whose main context is smaller than
the table evicts the oldest rows into the summary; the context behind it begins with the empty system text (SYSTEM END) and holds
the rest of the rows. So that is what a model without segments reads, byte for byte, and the system text stands between any two
rows, in front of all or behind all: each row's place is drawn.

A row of the batch tells `pairs` pairs and asks until it is full, each time for any of them: were each asked once, what was said
already would tell what is left. Only digits of answers are scored. Values are no keys: one lookup answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.marks import END, SYSTEM, USER
from memtok_jax.data.tasks import nested
from memtok_jax.data.tasks.scoring import Sample, expected, places


@dataclass(frozen=True)
class NestedToldConfig:
    """Settings.

    digits: hexadecimal digits of a word.
    pairs: rows of a table.
    """

    digits: int = 8
    pairs: int = 4

    def __post_init__(self):
        check_numbers("nested_told", self, at_least=dict(digits=3, pairs=1))


def vocabulary(cfg: NestedToldConfig) -> int:
    """Bytes."""
    return 256


def symbols(cfg: NestedToldConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return nested.symbols(_nested(cfg))


def _nested(cfg: NestedToldConfig) -> nested.NestedConfig:
    """The settings of the table."""
    return nested.NestedConfig(digits=cfg.digits, pairs=cfg.pairs, lookups=(1, 1))


def check(cfg: NestedToldConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold the table and one question."""
    need = 2 + cfg.pairs * len(told("0" * cfg.digits, "0" * cfg.digits)) + len(question("0" * cfg.digits)) + cfg.digits
    if sequence < need:
        raise DataError(f"nested_told: {cfg.pairs} pairs of {cfg.digits} digits need a sequence of at least {need}, got {sequence}")


def told(key: str, value: str) -> bytes:
    """A row of the table as a message."""
    return bytes((USER,)) + nested.row_text(key, value).encode() + bytes((END,))


def question(key: str) -> bytes:
    """A question, and the beginning of the reply up to its first digit."""
    return nested.asked(key).removeprefix(bytes((SYSTEM, END))) + nested.said("")[:3]


def sample(cfg: NestedToldConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    return nested.rows_of(partial(_row, cfg), sequence, batch, seed)


def _row(cfg: NestedToldConfig, length: int, rng: np.random.Generator, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, what of them is scored), both [length]."""
    rows, _, _ = nested.table(rng, _nested(cfg), held_out)
    table = [told(*row) for row in rows]
    table.insert(int(rng.integers(len(rows) + 1)), bytes((SYSTEM, END)))
    tokens, scored = bytearray(b"".join(table)), np.zeros(length, bool)
    while len(tokens) < length:
        key, value = rows[rng.integers(len(rows))]
        tokens += question(key)
        scored[len(tokens):len(tokens) + len(value)] = True
        tokens += nested.said(value)[3:]
    return np.frombuffer(bytes(tokens), np.uint8)[:length].astype(np.int32), scored


# ----------------------------------------------------------------------------------------------------------- free baselines

def answers(cfg: NestedToldConfig, sequence: int) -> np.ndarray:
    """bool[T]: every digit of an answer that is an input."""
    stands = _answers(cfg, sequence)
    return places(sequence, stands[stands < sequence])


def _answers(cfg: NestedToldConfig, sequence: int) -> np.ndarray:
    """int[N, digits]: where the digits of the answers stand; those behind the last label count up from there."""
    first = 2 + cfg.pairs * len(told("0" * cfg.digits, "0" * cfg.digits)) + len(question("0" * cfg.digits))
    each = len(question("0" * cfg.digits)) + len(nested.said("0" * cfg.digits)) - 3
    return np.arange(first, sequence + 1, each)[:, None] + np.arange(cfg.digits)


def chance(cfg: NestedToldConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing digits."""
    return {"chance": 1 / 16}


def reader(cfg: NestedToldConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on, who knows a digit if it sees it in its row of the table or in an earlier answer. A mean over 200
    orders of the questions and places of the system text.
    """
    rng, row = np.random.default_rng(0), len(told("0" * cfg.digits, "0" * cfg.digits))
    stands = _answers(cfg, sequence)
    digit, asked, right = np.arange(cfg.digits), len(stands), []
    for _ in range(200):
        order = rng.integers(cfg.pairs, size=asked)
        value = 2 * (rng.integers(cfg.pairs + 1) <= order) + (order + 1) * row - 1 - cfg.digits
        again = np.array([max((stands[i, 0] for i in range(n) if order[i] == pair), default=0) for n, pair in enumerate(order)])
        seen = np.maximum(value, again)[:, None] + digit
        scored = stands <= sequence
        right.append(expected(seen[scored] >= first[stands[scored] - 1], 1 / 16))
    return float(np.mean(right))
