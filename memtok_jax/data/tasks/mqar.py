"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs, then queries at power-law gaps.

    k1 v1 ... kP vP  0 0 k3 0 0 0 k1 0 ...

P distinct keys and P distinct values; query key i stands at 2P + 2 gap_i with p(gap) proportional to
a (gap + 1)^(a - 1), and its value is the label at that position. Unlike `recall`, queries are spread over the rest of
the sequence and the answers are not shown.

Tokens: 0 is filler, 1 .. V/2 - 1 keys, V/2 .. V - 1 values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import IGNORED, Sample, expected, places, unscored


@dataclass(frozen=True)
class MqarConfig:
    """Settings.

    tokens: V, the vocabulary.
    pairs: P.
    power: a.
    random_fill: filler is drawn from all tokens instead of 0.
    """

    tokens: int = 8192
    pairs: int = 4
    power: float = 0.01
    random_fill: bool = False

    def __post_init__(self):
        check_numbers("mqar", self, at_least=dict(pairs=1), above=dict(power=0))
        if self.tokens // 2 - 1 < self.pairs:
            raise DataError(f"mqar: {self.pairs} pairs need at least {2 * self.pairs + 2} tokens, got {self.tokens}")


def vocabulary(cfg: MqarConfig) -> int:
    """Number of tokens."""
    return cfg.tokens


def symbols(cfg: MqarConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    half = cfg.tokens // 2
    return ("-", *(f"k{i}" for i in range(1, half)), *(f"v{i}" for i in range(half, cfg.tokens)))


def check(cfg: MqarConfig, sequence: int) -> None:
    """Raise DataError where the length is odd, too short for the pairs, or not below the vocabulary."""
    if sequence % 2:
        raise DataError(f"mqar: the sequence must be even, got {sequence}")
    if sequence < 4 * cfg.pairs:
        raise DataError(f"mqar: {cfg.pairs} pairs need a sequence of at least {4 * cfg.pairs}, got {sequence}")
    if sequence >= cfg.tokens:
        raise DataError(f"mqar: the sequence must be below the number of tokens, got {sequence} and {cfg.tokens}")


def sample(cfg: MqarConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    return draw(cfg, sequence, batch, np.random.default_rng(seed))


def draw(cfg: MqarConfig, sequence: int, batch: int, rng: np.random.Generator | np.random.RandomState) -> Sample:
    """Draw samples with a given generator.

    With `np.random.RandomState(seed)` and `random_fill=False` the samples are those of the public zoology code: all
    keys are drawn first, row by row, then all values, then all gaps.
    """
    check(cfg, sequence)
    P, half, places = cfg.pairs, cfg.tokens // 2, sequence // 2 - cfg.pairs
    weight = cfg.power * np.arange(1, places + 1) ** (cfg.power - 1.0)
    keys_BP = _distinct(rng, batch, np.arange(1, half), P, None)
    values_BP = _distinct(rng, batch, np.arange(half, cfg.tokens), P, None)
    query_BP = 2 * P + 2 * _distinct(rng, batch, places, P, weight / weight.sum())
    ids = np.zeros((batch, sequence), np.int32)
    if cfg.random_fill:
        ids = np.floor(rng.random(size=ids.shape) * cfg.tokens).astype(np.int32)
    ids[:, 0:2 * P:2], ids[:, 1:2 * P:2] = keys_BP, values_BP
    np.put_along_axis(ids, query_BP, keys_BP.astype(np.int32), axis=1)
    labels = unscored(batch, sequence)
    np.put_along_axis(labels, query_BP, values_BP.astype(np.int32), axis=1)
    return Sample(ids, labels)


def _distinct(rng, batch: int, pool, size: int, weight) -> np.ndarray:
    """int[B, size]: for each row `size` different members of the pool."""
    return np.stack([rng.choice(pool, size=size, replace=False, p=weight) for _ in range(batch)])


def answers(cfg: MqarConfig, sequence: int) -> np.ndarray:
    """bool[T]: none, what follows a query is not its answer."""
    return places(sequence, slice(0))


def chance(cfg: MqarConfig, sequence: int) -> dict[str, float]:
    """Expected accuracy of guessing any value, and one of the P values of the sample."""
    return {"chance": 1 / (cfg.tokens - cfg.tokens // 2), "knows_values": 1 / cfg.pairs}


def reader(cfg: MqarConfig, sequence: int, first: np.ndarray) -> float:
    """Better of two readers from `first` on, measured on 1,000 samples of a fixed seed.

    Both know the value of a key that is visible. For another key one takes the value whose key is just out of sight, if there is
    one; the other guesses among the values that are not visible.
    """
    ids, labels = sample(cfg, sequence, 1000, 0)
    b, t = np.nonzero(labels != IGNORED)
    key = 2 * np.argmax(ids[b, :2 * cfg.pairs:2] == ids[b, t][:, None], axis=1)
    values, whole = cfg.tokens - cfg.tokens // 2, np.maximum(cfg.pairs - (first[t] + 1) // 2, 0)
    lone = (first[t] % 2 == 1) & (first[t] < 2 * cfg.pairs)
    hidden, is_lone = 1 / np.maximum(values - whole - lone, 1), key + 1 == first[t]
    takes, guesses = np.where(lone, 0.0, hidden), np.where(is_lone, 0.0, hidden)
    return max(expected(key + 1 >= first[t], takes), expected(key >= first[t], guesses))
