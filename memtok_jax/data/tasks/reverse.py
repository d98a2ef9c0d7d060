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

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.copy import FIRST, draw, join
from memtok_jax.data.tasks.scoring import Sample, expected, places


@dataclass(frozen=True)
class ReverseConfig:
    """Settings.

    length: n, symbols to remember; 0: as many as fill the row.
    symbols: size of their alphabet.
    """

    length: int = 0
    symbols: int = 8

    def __post_init__(self):
        check_numbers("reverse", self, at_least=dict(length=0, symbols=1))


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


def length(cfg: ReverseConfig, sequence: int) -> int:
    """n, symbols to remember in a row of `sequence` tokens."""
    return cfg.length or sequence // 2


def sample(cfg: ReverseConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    source = draw(length(cfg, sequence), cfg.symbols, batch, seed)
    return join(source, source[:, ::-1], sequence)


def answers(cfg: ReverseConfig, sequence: int) -> np.ndarray:
    """bool[T]: all symbols after the start sign."""
    n = length(cfg, sequence)
    return places(sequence, slice(n + 1, 2 * n))


def chance(cfg: ReverseConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a symbol."""
    return {"chance": 1 / cfg.symbols}


def reader(cfg: ReverseConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on: a symbol is known if its source is visible."""
    n = length(cfg, sequence)
    t = np.arange(n, 2 * n)
    return expected(2 * n - 1 - t >= first[t], 1 / cfg.symbols)
