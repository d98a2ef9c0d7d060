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

from memtok_jax.config import check_numbers, choose
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, expected, places, unscored

SYMBOLS, SEPARATOR, QUESTION, POINT = 16, 16, 17, 18
RULES = ("remember", "rewrite")


@dataclass(frozen=True)
class AssociativeConfig:
    """Settings. For 1 to P pairs, drawn for each batch, give `TaskConfig.lengths`.

    rule: "remember" or "rewrite".
    key, value: symbols in each.
    """

    rule: str = "remember"
    key: int = 1
    value: int = 1

    def __post_init__(self):
        check_numbers("associative", self, at_least=dict(key=1, value=1))
        choose("associative.rule", self.rule, RULES)


def vocabulary(cfg: AssociativeConfig) -> int:
    """Number of tokens."""
    return SYMBOLS + 3


def symbols(cfg: AssociativeConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return (*(f"{i:x}" for i in range(SYMBOLS)), "|", ">", ".")


def unit(cfg: AssociativeConfig) -> int:
    """Tokens of one pair."""
    return cfg.key + cfg.value + 2


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
    place_B = _query(rng, keys_BP)
    ids = np.full((batch, sequence), POINT, np.int32)
    body = ids.reshape(batch, -1, u)
    body[:, :pairs, :cfg.key], body[:, :pairs, cfg.key] = spell(keys_BP, cfg.key), SEPARATOR
    body[:, :pairs, cfg.key + 1:-1] = values_BPv
    rows = np.arange(batch)
    body[:, pairs, :cfg.key], body[:, pairs, cfg.key] = spell(keys_BP[rows, place_B], cfg.key), QUESTION
    body[:, pairs, cfg.key + 1:-1] = values_BPv[rows, place_B]
    labels, (first, last) = unscored(batch, sequence), _asked(cfg, sequence)
    labels[:, first:last] = ids[:, first + 1:last + 1]
    return Sample(ids, labels)


def _asked(cfg: AssociativeConfig, sequence: int) -> tuple[int, int]:
    """(first, last + 1) of the positions that predict value and point."""
    return sequence - unit(cfg) + cfg.key, sequence - 1


def _keys(cfg: AssociativeConfig, rng: np.random.Generator, batch: int, pairs: int) -> np.ndarray:
    """Numbers of keys int[B, P]: distinct in a row for "remember", independent for "rewrite"."""
    count = SYMBOLS ** cfg.key
    if cfg.rule == "rewrite":
        return rng.integers(count, size=(batch, pairs))
    return np.stack([rng.permutation(count)[:pairs] for _ in range(batch)])


def _query(rng: np.random.Generator, keys_BP: np.ndarray) -> np.ndarray:
    """int[B]: the pair whose value is asked for, drawn evenly among keys; a key's last pair counts."""
    last = np.array([[key not in row[i + 1:] for i, key in enumerate(row)] for row in keys_BP])
    return np.array([rng.choice(np.flatnonzero(row)) for row in last])


def spell(keys: np.ndarray, length: int) -> np.ndarray:
    """Symbols of key numbers, lowest first: int[...] -> int[..., length]."""
    return keys[..., None] // SYMBOLS ** np.arange(length) % SYMBOLS


def answers(cfg: AssociativeConfig, sequence: int) -> np.ndarray:
    """bool[T]: value and point after the question sign."""
    first, last = _asked(cfg, sequence)
    return places(sequence, slice(first + 1, last + 1))


def chance(cfg: AssociativeConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing all symbols, and of guessing values while knowing where the point stands."""
    return {"chance": 1 / vocabulary(cfg), "knows_point": (1 + cfg.value / SYMBOLS) / (1 + cfg.value)}


def reader(cfg: AssociativeConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on, who knows where the point stands; for "rewrite" a mean over 1,000 samples of a fixed seed.

    A visible pair answers its query. For another key the reader takes what is visible of the pair that is cut: values are
    independent, so that no other value is likelier. Right is then whoever sees the symbol in the pair of the answer.
    """
    pairs, symbol = sequence // unit(cfg) - 1, np.arange(cfg.value)
    place = np.arange(pairs)
    if cfg.rule == "rewrite":
        rng = np.random.default_rng(0)
        place = _query(rng, _keys(cfg, rng, 1000, pairs))
    stands = place[:, None] * unit(cfg) + cfg.key + 1 + symbol[None]
    known = expected(stands >= first[_asked(cfg, sequence)[0] + symbol][None], 1 / SYMBOLS)
    return (1 + cfg.value * known) / (1 + cfg.value)
