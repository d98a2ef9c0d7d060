"""Reverse: n symbols, a start sign, then the symbols backwards (RMT, arXiv 2207.06881, section 4.1).

    s1 ... sn 1 sn ... s1        the last n tokens are predicted

The model reads all but the last token, 2n tokens, and predicts the next one. n is a number, or half of the row; a row longer
than 2n is filled up with 0, unscored.
Unlike `copy`, the distance back to a symbol grows through the answer.

Tokens: 0 filler, 1 start, 2 .. symbols + 1 the symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.copy import FIRST, join, readers
from memtok_jax.data.tasks.scoring import Sample


@dataclass(frozen=True)
class ReverseConfig:
    """length: n, symbols to remember; 0 takes as many as fill the row. symbols: size of their alphabet."""

    length: int = 0
    symbols: int = 8

    def __post_init__(self):
        if self.length < 0 or self.symbols < 1:
            raise DataError(f"reverse: length must not be negative, symbols at least 1, got {self}")


def vocabulary(cfg: ReverseConfig) -> int:
    """Number of tokens."""
    return FIRST + cfg.symbols


def symbols(cfg: ReverseConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return ("-", ">", *(f"s{i}" for i in range(cfg.symbols)))


def check(cfg: ReverseConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold a sample."""
    tokens = 2 * max(cfg.length, 1)
    if sequence < tokens:
        raise DataError(f"reverse: {tokens // 2} symbols twice need a sequence of at least {tokens}, got {sequence}")


def segment(cfg: ReverseConfig, sequence: int) -> int:
    """The symbols fill the first segment."""
    return cfg.length or sequence // 2


def sample(cfg: ReverseConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    n = segment(cfg, sequence)
    source = np.random.default_rng(seed).integers(cfg.symbols, size=(batch, n), dtype=np.int32) + np.int32(FIRST)
    return join(source, source[:, ::-1], sequence, 2 * np.arange(n) + 1)


def baselines(cfg: ReverseConfig, sequence: int, window: int) -> dict[str, float]:
    """Accuracy of guessing; of a perfect reader of the last `window` tokens; of one who reads its own segment of `window` only."""
    return readers(sample(cfg, sequence, 1, 0), cfg.symbols, window)
