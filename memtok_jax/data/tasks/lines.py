"""Lines of a stream, and questions about a line at a given distance (after StreamEval, arXiv 2309.17453, section 4.4).

    k3 v9 n n   k7 v2 n n   ? k3 v9 n     k1 v9 n n   k5 v4 n n   ? k7 v2 n ...

A line is a key, its value and noise; after every `every` lines comes a question of the same length: a mark, the key of a line
before, and its value, which is predicted at the key. Distances count lines, not questions: 1 is the line right before the question.
Keys come in a random order that repeats, so each names one line among the last `keys`. Values are independent, so that nothing but
the line tells its value. Questions begin behind `farthest` lines. The paper's lines have 23 tokens, every 10 lines
a question, 20 lines back; its data was not released.

Tokens: keys 0 .. keys - 1, then the values, then the noise symbols, then the mark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, places, unscored


@dataclass(frozen=True)
class LinesConfig:
    """Settings.

    tokens: of a line, and of a question.
    every: lines between two questions.
    nearest, farthest: the distances of a question, drawn evenly.
    keys, values, noise: number of symbols of each kind.
    """

    tokens: int = 4
    every: int = 2
    nearest: int = 1
    farthest: int = 12
    keys: int = 32
    values: int = 32
    noise: int = 16

    def __post_init__(self):
        check_numbers("lines", self, at_least=dict(tokens=3, every=1, nearest=1, farthest=1, keys=1, values=1, noise=1))
        if not self.nearest <= self.farthest <= self.keys:
            raise DataError(f"lines: distances from nearest={self.nearest} to farthest={self.farthest} must ascend and not exceed "
                            f"keys={self.keys}, which name one line each")


def vocabulary(cfg: LinesConfig) -> int:
    """Number of tokens."""
    return cfg.keys + cfg.values + cfg.noise + 1


def symbols(cfg: LinesConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    kinds = (("k", cfg.keys), ("v", cfg.values), ("n", cfg.noise))
    return (*(f"{letter}{i}" for letter, count in kinds for i in range(count)), "?")


def _layout(cfg: LinesConfig, sequence: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each line begins, and where each question behind `farthest` lines begins, among whole ones."""
    place = np.arange(sequence // cfg.tokens)
    asks = place % (cfg.every + 1) == cfg.every
    begins = place * cfg.tokens
    return begins[~asks], begins[asks & (np.cumsum(~asks) >= cfg.farthest)]


def check(cfg: LinesConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens hold no question."""
    fewest = -(-cfg.farthest // cfg.every) * (cfg.every + 1) * cfg.tokens
    if sequence < fewest:
        raise DataError(f"lines: a question {cfg.farthest} lines back needs a sequence of at least {fewest}, got {sequence}")


def sample(cfg: LinesConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    rng, first_noise = np.random.default_rng(seed), cfg.keys + cfg.values
    lines, questions = _layout(cfg, sequence)
    order = rng.permuted(np.tile(np.arange(cfg.keys), (batch, 1)), axis=1)
    key = order[:, np.arange(len(lines)) % cfg.keys]
    value = cfg.keys + rng.integers(cfg.values, size=key.shape)
    distance = rng.integers(cfg.nearest, cfg.farthest + 1, size=(batch, len(questions)))
    asked = np.searchsorted(lines, questions)[None] - distance
    ids = rng.integers(cfg.noise, size=(batch, sequence), dtype=np.int32) + np.int32(first_noise)
    ids[:, lines], ids[:, lines + 1] = key, value
    other = np.setdiff1d(np.arange(sequence // cfg.tokens) * cfg.tokens, lines)
    ids[:, other] = vocabulary(cfg) - 1
    early = np.setdiff1d(other, questions)   # before there are enough lines, a question asks for the line before it
    ids[:, early + 1], ids[:, early + 2] = (x[:, np.searchsorted(lines, early) - 1] for x in (key, value))
    ids[:, questions + 1] = np.take_along_axis(key, asked, 1)
    ids[:, questions + 2] = np.take_along_axis(value, asked, 1)
    labels = unscored(batch, sequence)
    labels[:, questions + 1] = ids[:, questions + 2]
    return Sample(ids, labels)


def answers(cfg: LinesConfig, sequence: int) -> np.ndarray:
    """bool[T]: the value behind each key that is asked for."""
    return places(sequence, _layout(cfg, sequence)[1] + 2)


def chance(cfg: LinesConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a value."""
    return {"chance": 1 / cfg.values}


def reader(cfg: LinesConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on, expected over samples: right where it sees the value, in the line or in a question before."""
    lines, questions = _layout(cfg, sequence)
    every_question = np.setdiff1d(np.arange(sequence // cfg.tokens) * cfg.tokens, lines)
    right = []
    for begin in questions:
        since = first[begin + 1]
        seen = [q for q in every_question if q < begin and q + 1 >= since]
        for distance in range(cfg.nearest, cfg.farthest + 1):
            line = np.searchsorted(lines, begin) - distance
            unseen = np.prod([1 - _chance_asked(cfg, np.searchsorted(lines, q) - line, q in questions) for q in seen])
            right.append(1.0 if lines[line] >= since else 1 - unseen * (1 - 1 / cfg.values))
    return float(np.mean(right))


def _chance_asked(cfg: LinesConfig, distance: int, scored: bool) -> float:
    """Probability that a question asks for the line so far back."""
    if not scored:
        return float(distance == 1)
    return float(cfg.nearest <= distance <= cfg.farthest) / (cfg.farthest - cfg.nearest + 1)
