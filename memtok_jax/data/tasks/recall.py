"""Associative recall: pairs first, a long stretch of noise, then the same keys in another order.

    k1 v1 k2 v2 ... kP vP   noise ... noise   k5 v5 k2 v2 ... (all P pairs again)

At each key of the second half the model predicts the value. Keys of a sample are distinct, values are drawn
independently, so answers already given say nothing about those to come. Only the noise grows with the length:
a model trained at length n can be asked at 4n or 16n. Unlike `mqar`, every query stands at the end.

Tokens: keys 0 .. keys - 1, then the values, then the noise symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, expected, places, unscored


@dataclass(frozen=True)
class RecallConfig:
    """Settings.

    keys, values, noise: number of symbols of each kind.
    pairs: P, key-value pairs in a sample.
    """

    keys: int = 32
    values: int = 32
    noise: int = 16
    pairs: int = 8

    def __post_init__(self):
        check_numbers("recall", self, at_least=dict(keys=1, values=1, noise=1, pairs=1))
        if self.pairs > self.keys:
            raise DataError(f"recall: {self.pairs} pairs need as many distinct keys, there are {self.keys}")


def vocabulary(cfg: RecallConfig) -> int:
    """Number of tokens."""
    return cfg.keys + cfg.values + cfg.noise


def symbols(cfg: RecallConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    kinds = (("k", cfg.keys), ("v", cfg.values), ("n", cfg.noise))
    return tuple(f"{letter}{i}" for letter, count in kinds for i in range(count))


def check(cfg: RecallConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold the pairs twice."""
    if sequence < 4 * cfg.pairs:
        raise DataError(f"recall: {cfg.pairs} pairs need a sequence of at least {4 * cfg.pairs}, got {sequence}")


def sample(cfg: RecallConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    rng, P = np.random.default_rng(seed), cfg.pairs
    keys_BP = rng.permuted(np.tile(np.arange(cfg.keys), (batch, 1)), axis=1)[:, :P]
    values_BP = rng.integers(cfg.values, size=(batch, P)) + cfg.keys
    order_BP = rng.permuted(np.tile(np.arange(P), (batch, 1)), axis=1)
    ids = rng.integers(cfg.noise, size=(batch, sequence), dtype=np.int32) + np.int32(cfg.keys + cfg.values)
    start = sequence - 2 * P
    ids[:, 0:2 * P:2], ids[:, 1:2 * P:2] = keys_BP, values_BP
    ids[:, start::2] = np.take_along_axis(keys_BP, order_BP, 1)
    ids[:, start + 1::2] = np.take_along_axis(values_BP, order_BP, 1)
    labels = unscored(batch, sequence)
    labels[:, start::2] = ids[:, start + 1::2]
    return Sample(ids, labels)


def answers(cfg: RecallConfig, sequence: int) -> np.ndarray:
    """bool[T]: the value after each key that is asked for."""
    return places(sequence, slice(sequence - 2 * cfg.pairs + 1, sequence, 2))


def chance(cfg: RecallConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a value."""
    return {"chance": 1 / cfg.values}


def reader(cfg: RecallConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on, expected over samples.

    A visible pair answers its query. For another key, the reader takes the value whose key is just out of sight, if there is one:
    values are independent, so that no other value is likelier. Right is then whoever sees the value of the pair.
    """
    t = np.arange(sequence - 2 * cfg.pairs, sequence, 2)
    return expected(2 * np.arange(cfg.pairs)[None] + 1 >= first[t][:, None], 1 / cfg.values)
