"""Text of a random table of bigrams, in which some tokens ask for the token before them (Guo et al., arXiv 2410.13835, section 2).

    < a b d T d a T a c ...        T is a trigger: what follows it is the token that stands before it

The first token is always the same and comes once. All other tokens but triggers have `successors` followers, equally likely, of
which one is a trigger; the table is fixed. A head that copies must do nothing at all other tokens, so attention may be
drawn to the first token. `docs/log.md` says for which models that happened here. Every next token is to be predicted.

Tokens: the first one, then the triggers, then the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, places

FIRST = 0


@dataclass(frozen=True)
class BackcopyConfig:
    """Settings.

    triggers, others: number of symbols of each kind.
    successors: followers of a token that is no trigger; the first of them is a trigger, the rest are others.
    table: seed of the table.
    """

    triggers: int = 8
    others: int = 56
    successors: int = 4
    table: int = 0

    def __post_init__(self):
        check_numbers("backcopy", self, at_least=dict(triggers=1, others=1, successors=2, table=0))
        if self.successors > self.others:
            raise DataError(f"backcopy: {self.successors} successors need as many other symbols, there are {self.others}")


def vocabulary(cfg: BackcopyConfig) -> int:
    """Number of tokens."""
    return 1 + cfg.triggers + cfg.others


def symbols(cfg: BackcopyConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return ("<", *(f"T{i}" for i in range(cfg.triggers)), *(f"s{i}" for i in range(cfg.others)))


def check(cfg: BackcopyConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens hold no trigger with a token before and behind it."""
    if sequence < 4:
        raise DataError(f"backcopy: a token that is copied needs a sequence of at least 4, got {sequence}")


@cache
def followers(cfg: BackcopyConfig) -> np.ndarray:
    """i64[V, successors]: what may follow each token that is no trigger."""
    rng, first_other = np.random.default_rng(cfg.table), 1 + cfg.triggers
    rest = [first_other + rng.permutation(cfg.others)[:cfg.successors - 1] for _ in range(vocabulary(cfg))]
    return np.column_stack([rng.integers(1, first_other, vocabulary(cfg)), np.stack(rest)])


def sample(cfg: BackcopyConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    rng, table = np.random.default_rng(seed), followers(cfg)
    ids = np.full((batch, sequence + 1), FIRST, np.int32)
    drawn = rng.integers(cfg.successors, size=(batch, sequence + 1))
    drawn[:, 1] = np.maximum(drawn[:, 1], 1)    # no trigger right behind the first token, which is never copied
    for t in range(1, sequence + 1):
        before = ids[:, t - 1]
        trigger = (before > FIRST) & (before <= cfg.triggers)
        ids[:, t] = np.where(trigger, ids[:, max(t - 2, 0)], table[before, drawn[:, t]])
    return Sample(ids[:, :-1].copy(), ids[:, 1:].copy())


def answers(cfg: BackcopyConfig, sequence: int) -> np.ndarray:
    """bool[T]: none, because most of what is predicted is drawn."""
    return places(sequence, slice(0, 0))


def chance(cfg: BackcopyConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing any token, and of guessing a follower of the last one with a miss at every trigger: in long samples one
    token of `successors` + 1 is a trigger."""
    return {"chance": 1 / (vocabulary(cfg) - 1), "bigrams": 1 / (cfg.successors + 1)}
