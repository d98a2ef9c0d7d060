"""Copy twice: n symbols, a start sign, then the same symbols two times (RMT, arXiv 2207.06881, section 4.1).

    s1 ... sn 1 s1 ... sn s1 ... sn        the last 2n tokens are predicted

The model reads all but the last token, 3n tokens, and predicts the next one. n is a number, or a third of the row; a row
longer than 3n is filled up with 0, unscored.

Tokens: 0 filler, 1 start, 2 .. symbols + 1 the symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, expected, places, unscored

START, FIRST = 1, 2


@dataclass(frozen=True)
class CopyConfig:
    """Settings.

    length: n, symbols to remember; 0: as many as fill the row.
    symbols: size of their alphabet.
    repeats: how often they are written again.
    """

    length: int = 0
    symbols: int = 8
    repeats: int = 2

    def __post_init__(self):
        check_numbers("copy", self, at_least=dict(length=0, symbols=1, repeats=1))


def vocabulary(cfg: CopyConfig) -> int:
    """Number of tokens."""
    return FIRST + cfg.symbols


def symbols(cfg: CopyConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return ("-", ">", *(f"s{i}" for i in range(cfg.symbols)))


def check(cfg: CopyConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold a sample."""
    tokens = max(cfg.length, 1) * (1 + cfg.repeats)
    if sequence < tokens:
        raise DataError(f"copy: {max(cfg.length, 1)} symbols {1 + cfg.repeats} times need a sequence of at least {tokens}, "
                        f"got {sequence}")


def length(cfg: CopyConfig, sequence: int) -> int:
    """n, symbols to remember in a row of `sequence` tokens."""
    return cfg.length or sequence // (1 + cfg.repeats)


def sample(cfg: CopyConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    source = draw(length(cfg, sequence), cfg.symbols, batch, seed)
    return join(source, np.tile(source, (1, cfg.repeats)), sequence)


def draw(n: int, symbols: int, batch: int, seed: int) -> np.ndarray:
    """Symbols to remember: int32[B, n]."""
    return np.random.default_rng(seed).integers(symbols, size=(batch, n), dtype=np.int32) + np.int32(FIRST)


def join(source: np.ndarray, answer: np.ndarray, sequence: int) -> Sample:
    """[source, start, answer] as input and target shifted by one, scored at the answer, filled up to `sequence`."""
    whole = np.concatenate([source, np.full((len(source), 1), START, np.int32), answer], axis=1)
    ids, labels = np.zeros((len(source), sequence), np.int32), unscored(len(source), sequence)
    begin, end = source.shape[1], whole.shape[1] - 1
    ids[:, :end], labels[:, begin:end] = whole[:, :-1], answer
    return Sample(ids, labels)


def answers(cfg: CopyConfig, sequence: int) -> np.ndarray:
    """bool[T]: all symbols after the start sign."""
    n = length(cfg, sequence)
    return places(sequence, slice(n + 1, n * (1 + cfg.repeats)))


def chance(cfg: CopyConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a symbol."""
    return {"chance": 1 / cfg.symbols}


def reader(cfg: CopyConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on: a symbol is known if the one written last, or at first its source, is visible."""
    n = length(cfg, sequence)
    t = np.arange(n, n * (1 + cfg.repeats))
    evidence = np.where(t < 2 * n, t - n, t - n + 1)
    return expected(evidence >= first[t], 1 / cfg.symbols)
