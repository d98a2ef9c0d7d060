"""Associative retrieval: P pairs, one key again, a sign, and its value is predicted (RMT, arXiv 2207.06881, section 4.1).

    k1 v1 ... kP vP q 10        scored at the last token

Keys of a sample are distinct, values too, and the query is one of the keys. Unlike `recall` there is no noise and one question,
unless `questions` asks for more (q 10 again, each scored at its 10): rows to learn from. Each question draws its key anew, so that
no answer can be found by exclusion. With `ordered` the keys of a row ascend: a key then tells about where its pair stands, and
what was written can be asked for before it can be compared. Without this beginning RMT learns neither (docs/log.md, 2026-11-26).
Cut into segments of 4, four pairs make 4 + 4 + 2 tokens: the query sees no pair. (The public code's segments of "5" and "4" are
both 5 + 5, where a reader of the last segment is right half of the time.) A longer row is filled up with 0, unscored.

Tokens: 0 .. values - 1 values, then the sign, then the keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, places, unscored


@dataclass(frozen=True)
class RetrievalConfig:
    """Settings.

    pairs: P.
    questions: how often one of the keys is asked for.
    ordered: keys ascend.
    keys, values: number of symbols of each kind.
    """

    pairs: int = 4
    questions: int = 1
    ordered: bool = False
    keys: int = 26
    values: int = 10

    def __post_init__(self):
        check_numbers("retrieval", self, at_least=dict(pairs=1, questions=1, keys=1, values=1))
        if self.pairs > min(self.keys, self.values):
            raise DataError(f"retrieval: {self.pairs} pairs need as many distinct keys and values, "
                            f"there are {self.keys} and {self.values}")


def vocabulary(cfg: RetrievalConfig) -> int:
    """Number of tokens."""
    return cfg.values + 1 + cfg.keys


def symbols(cfg: RetrievalConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return (*(f"v{i}" for i in range(cfg.values)), ">", *(f"k{i}" for i in range(cfg.keys)))


def check(cfg: RetrievalConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold a sample."""
    least = 2 * (cfg.pairs + cfg.questions)
    if sequence < least:
        raise DataError(f"retrieval: {cfg.pairs} pairs and {cfg.questions} questions need a sequence of at least {least}, "
                        f"got {sequence}")


def sample(cfg: RetrievalConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    rng, P, Q = np.random.default_rng(seed), cfg.pairs, cfg.questions
    distinct = lambda n: rng.permuted(np.tile(np.arange(n, dtype=np.int32), (batch, 1)), axis=1)
    keys, values = distinct(cfg.keys)[:, :P] + np.int32(cfg.values + 1), distinct(cfg.values)[:, :P]
    keys = np.sort(keys, axis=1) if cfg.ordered else keys
    chosen, asked = rng.integers(P, size=(batch, Q)), 2 * (P + np.arange(Q)) + 1
    ids = np.zeros((batch, sequence), np.int32)
    ids[:, 0:2 * P:2], ids[:, 1:2 * P:2] = keys, values
    ids[:, asked - 1], ids[:, asked] = np.take_along_axis(keys, chosen, 1), cfg.values
    labels = unscored(batch, sequence)
    labels[:, asked] = np.take_along_axis(values, chosen, 1)
    return Sample(ids, labels)


def answers(cfg: RetrievalConfig, sequence: int) -> np.ndarray:
    """bool[T]: none, a question or filler follows each answer."""
    return places(sequence, slice(0))


def chance(cfg: RetrievalConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a value."""
    return {"chance": 1 / cfg.values}


def reader(cfg: RetrievalConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on, a mean over the questions."""
    asked = [2 * (cfg.pairs + n) + 1 for n in range(cfg.questions)]
    return sum(best_reader(cfg, int(first[t]), n) for n, t in enumerate(asked)) / cfg.questions


def best_reader(cfg: RetrievalConfig, first: int, number: int = 0) -> float:
    """Expected accuracy at question `number` of the best reader who sees everything from position `first` on.

    Exact for keys in any order; for ascending keys a mean over 2,000 samples of a fixed seed. A visible pair answers its query.
    Else the query belongs to an unseen key: the reader takes the value whose key is just out of sight, or one of the values that
    are not visible, whichever is likelier.
    """
    if first > 2 * cfg.pairs:
        return 1 / cfg.values
    whole, lone = cfg.pairs - (first + 1) // 2, first % 2
    unseen = cfg.pairs - whole
    if not unseen:
        return 1.0
    likely = np.array([lone / unseen])
    if lone and cfg.ordered:
        likely = _lone_is_asked(replace(cfg, questions=number + 1), unseen)
    hidden = (1 - likely) / max(cfg.values - whole - lone, 1)
    return float(whole / cfg.pairs + unseen / cfg.pairs * np.maximum(likely, hidden).mean())


def _lone_is_asked(cfg: RetrievalConfig, unseen: int) -> np.ndarray:
    """Probability that the last question asks for the last of the `unseen` keys, for samples in which it asks for one of them.

    Keys ascend, so the unseen ones are any of the numbers below the first visible key; those asked for before are known among them.
    """
    ids = sample(cfg, 2 * (cfg.pairs + cfg.questions), 2000, 0).ids - (cfg.values + 1)
    out = []
    for row in ids:
        below = row[2 * unseen] if unseen < cfg.pairs else cfg.keys
        known = {int(key) for key in row[2 * cfg.pairs::2] if key < below}
        asked, rest = int(row[-2]), unseen - len(known)
        if asked < below and asked < max(known):
            out.append(0.0)
        elif asked < below:
            out.append(math.comb(asked - len(known) + 1, rest) / math.comb(int(below) - len(known), rest))
    return np.array(out)
