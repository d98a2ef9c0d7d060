"""Remember and Rewrite: one pair in each segment, then a key whose value is asked for (ARMT, arXiv 2407.04841, section 4.1).

    key | value .   key | value .   ...   key > value .

Rule "remember": keys are distinct, and the query is any of them. Rule "rewrite": keys repeat, the query is any key that has
occurred, and the answer is the value it had last. The number of pairs follows from the length of the row, so a model trained on
P pairs can be asked after many more. Value and final point are predicted, as published: a model that has only learnt the point
scores 1 / (values of a key + 1); `scoring.exact_match` counts samples with both right.

Tokens: 0 .. 15 symbols, 16 the separator, 17 the question sign, 18 the point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.data.errors import DataError, nearest
from memtok_jax.data.tasks.scoring import Sample, unscored

SYMBOLS, SEPARATOR, QUESTION, POINT = 16, 16, 17, 18
RULES = ("remember", "rewrite")


@dataclass(frozen=True)
class AssociativeConfig:
    """rule: "remember" or "rewrite". key, value: symbols in each. For 1 to P pairs, drawn for each batch,
    give `DataConfig.lengths`."""

    rule: str = "remember"
    key: int = 1
    value: int = 1

    def __post_init__(self):
        if self.rule not in RULES:
            raise DataError(f"associative: rule is '{self.rule}', known: {', '.join(RULES)}{nearest(self.rule, RULES)}")
        if min(self.key, self.value) < 1:
            raise DataError(f"associative: key and value must have at least 1 symbol, got {self}")


def vocabulary(cfg: AssociativeConfig) -> int:
    """Number of tokens."""
    return SYMBOLS + 3


def symbols(cfg: AssociativeConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return (*(f"{i:x}" for i in range(SYMBOLS)), "|", ">", ".")


def unit(cfg: AssociativeConfig) -> int:
    """Tokens of one pair."""
    return cfg.key + cfg.value + 2


def segment(cfg: AssociativeConfig, sequence: int) -> int:
    """One pair."""
    return unit(cfg)


def check(cfg: AssociativeConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens are not pairs and a question, or there are not so many distinct keys."""
    if sequence % unit(cfg) or sequence < 2 * unit(cfg):
        raise DataError(f"associative: the sequence must be a multiple of {unit(cfg)}, at least {2 * unit(cfg)}, got {sequence}")
    pairs = sequence // unit(cfg) - 1
    if cfg.rule == "remember" and pairs > SYMBOLS ** cfg.key:
        raise DataError(f"associative: {pairs} pairs need as many distinct keys, {cfg.key} symbols make {SYMBOLS ** cfg.key}")


def sample(cfg: AssociativeConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    rng, pairs, u = np.random.default_rng(seed), sequence // unit(cfg) - 1, unit(cfg)
    keys_BP = _keys(cfg, rng, batch, pairs)
    values_BPv = rng.integers(SYMBOLS, size=(batch, pairs, cfg.value), dtype=np.int32)
    place_B = _query(cfg, rng, keys_BP)
    ids = np.full((batch, sequence), POINT, np.int32)
    body = ids.reshape(batch, -1, u)
    body[:, :pairs, :cfg.key], body[:, :pairs, cfg.key] = spell(keys_BP, cfg.key), SEPARATOR
    body[:, :pairs, cfg.key + 1:-1] = values_BPv
    rows = np.arange(batch)
    body[:, pairs, :cfg.key], body[:, pairs, cfg.key] = spell(keys_BP[rows, place_B], cfg.key), QUESTION
    body[:, pairs, cfg.key + 1:-1] = values_BPv[rows, place_B]
    labels, distance = unscored(batch, sequence)
    # Each position predicts the next token; what it predicts stands one place later in the segment of the pair, too.
    first, last = pairs * u + cfg.key, (pairs + 1) * u - 1
    labels[:, first:last], distance[:, first:last] = ids[:, first + 1:last + 1], ((pairs - place_B) * u)[:, None]
    return Sample(ids, labels, distance)


def _keys(cfg: AssociativeConfig, rng: np.random.Generator, batch: int, pairs: int) -> np.ndarray:
    """Numbers of keys int[B, P]: distinct in a row for "remember", independent for "rewrite"."""
    count = SYMBOLS ** cfg.key
    if cfg.rule == "rewrite":
        return rng.integers(count, size=(batch, pairs))
    return np.stack([rng.permutation(count)[:pairs] for _ in range(batch)])


def _query(cfg: AssociativeConfig, rng: np.random.Generator, keys_BP: np.ndarray) -> np.ndarray:
    """int[B]: the pair whose value is asked for, drawn evenly among keys; a key's last pair counts."""
    last = np.array([[key not in row[i + 1:] for i, key in enumerate(row)] for row in keys_BP])
    return np.array([rng.choice(np.flatnonzero(row)) for row in last])


def spell(keys: np.ndarray, length: int) -> np.ndarray:
    """Symbols of key numbers, lowest first: int[...] -> int[..., length]."""
    return keys[..., None] // SYMBOLS ** np.arange(length) % SYMBOLS


def baselines(cfg: AssociativeConfig, sequence: int, window: int) -> dict[str, float]:
    """Accuracy of guessing all symbols; of guessing values while knowing where the point stands; and of a perfect reader of the
    last `window` tokens, measured on 1,000 samples of a fixed seed."""
    _, labels, distance = sample(cfg, sequence, 1000, 0)
    knows = lambda seen: (1 + cfg.value * (seen + (1 - seen) / SYMBOLS)) / (1 + cfg.value)
    return {"chance": 1 / vocabulary(cfg), "knows_point": knows(0.0),
            "no_memory": float(knows(np.mean(distance[labels >= 0] < window)))}
