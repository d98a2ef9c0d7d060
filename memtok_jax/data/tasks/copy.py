"""Copy twice: n symbols, a start sign, then the same symbols two times (RMT, arXiv 2207.06881, section 4.1).

    s1 ... sn 1 s1 ... sn s1 ... sn        the last 2n tokens are predicted

The model reads all but the last token, 3n tokens, and predicts the next one. n is a number, or a third of the row; a row
longer than 3n is filled up with 0, unscored.

Tokens: 0 filler, 1 start, 2 .. symbols + 1 the symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import IGNORED, Sample, unscored

START, FIRST = 1, 2


@dataclass(frozen=True)
class CopyConfig:
    """length: n, symbols to remember; 0 takes as many as fill the row. symbols: size of their alphabet. repeats: how often they
    are written again."""

    length: int = 0
    symbols: int = 8
    repeats: int = 2

    def __post_init__(self):
        if self.length < 0 or min(self.symbols, self.repeats) < 1:
            raise DataError(f"copy: length must not be negative, symbols and repeats at least 1, got {self}")


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


def segment(cfg: CopyConfig, sequence: int) -> int:
    """The symbols fill the first segment."""
    return cfg.length or sequence // (1 + cfg.repeats)


def sample(cfg: CopyConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    n = segment(cfg, sequence)
    source = np.random.default_rng(seed).integers(cfg.symbols, size=(batch, n), dtype=np.int32) + np.int32(FIRST)
    # The nearest place where a symbol stands: its source, then the answer before.
    first, later = n, n - 1
    return join(source, np.tile(source, (1, cfg.repeats)), sequence,
                np.repeat([first] + [later] * (cfg.repeats - 1), n))


def join(source: np.ndarray, answer: np.ndarray, sequence: int, distance: np.ndarray) -> Sample:
    """[source, start, answer] as input and target shifted by one, scored at the answer, filled up to `sequence`.

    distance: int[length of the answer], tokens from the position that predicts a symbol back to where it stands.
    """
    whole = np.concatenate([source, np.full((len(source), 1), START, np.int32), answer], axis=1)
    ids = np.zeros((len(source), sequence), np.int32)
    labels, far = unscored(len(source), sequence)
    begin, end = source.shape[1], whole.shape[1] - 1
    ids[:, :end], labels[:, begin:end], far[:, begin:end] = whole[:, :-1], answer, distance
    return Sample(ids, labels, far)


def baselines(cfg: CopyConfig, sequence: int, window: int) -> dict[str, float]:
    """Accuracy of guessing; of a perfect reader of the last `window` tokens; of one who reads its own segment of `window` only."""
    return readers(sample(cfg, sequence, 1, 0), cfg.symbols, window)


def readers(drawn: Sample, symbols: int, window: int) -> dict[str, float]:
    """The three baselines of a task in which every sample has its evidence at the same places."""
    t = np.flatnonzero(drawn.labels[0] != IGNORED)
    evidence = t - drawn.distance[0, t]
    expect = lambda seen: float(np.mean(np.where(seen, 1.0, 1 / symbols)))
    return {"chance": 1 / symbols, "no_memory": expect(t - evidence < window),
            "own_segment": expect(t // window == evidence // window)}
