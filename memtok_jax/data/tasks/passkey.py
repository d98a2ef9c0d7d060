"""Pass-key: a marked number at a random depth of a long noise text, asked for at the end.

    noise ... noise  MARK d1 d2 ... dD  noise ... noise  QUERY d1 d2 ... d(D-1)

The model predicts d1 at QUERY and the next digit at each digit after it. At least `tail` noise tokens lie between
the number and the query: with a tail longer than the attention window the last tokens alone say nothing.
Any length works, so a model trained at length n can be asked at 4n or 16n.

Tokens: digits 0 .. 9, MARK, QUERY, then the noise symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, expected, places, unscored

MARK, QUERY, NOISE = 10, 11, 12


@dataclass(frozen=True)
class PasskeyConfig:
    """Settings.

    digits: D, length of the number.
    noise: number of noise symbols.
    tail: least number of noise tokens after the number.
    """

    digits: int = 5
    noise: int = 16
    tail: int = 0

    def __post_init__(self):
        check_numbers("passkey", self, at_least=dict(digits=1, noise=1, tail=0))


def vocabulary(cfg: PasskeyConfig) -> int:
    """Number of tokens."""
    return NOISE + cfg.noise


def symbols(cfg: PasskeyConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return (*map(str, range(10)), "MARK", "QUERY", *(f"n{i}" for i in range(cfg.noise)))


def check(cfg: PasskeyConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold number, tail and answer."""
    least = 2 * cfg.digits + 1 + cfg.tail
    if sequence < least:
        raise DataError(f"passkey: {cfg.digits} digits and a tail of {cfg.tail} need a sequence of at least {least}, "
                        f"got {sequence}")


def sample(cfg: PasskeyConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; the place of the number is uniform over all that are allowed."""
    check(cfg, sequence)
    rng, D = np.random.default_rng(seed), cfg.digits
    ids = rng.integers(cfg.noise, size=(batch, sequence), dtype=np.int32) + np.int32(NOISE)
    digits_BD = rng.integers(10, size=(batch, D), dtype=np.int32)
    place_B1 = rng.integers(_places(cfg, sequence), size=(batch, 1))
    needle = np.concatenate([np.full((batch, 1), MARK, np.int32), digits_BD], axis=1)
    np.put_along_axis(ids, place_B1 + np.arange(D + 1), needle, axis=1)
    ids[:, sequence - D], ids[:, sequence - D + 1:] = QUERY, digits_BD[:, :-1]
    labels = unscored(batch, sequence)
    labels[:, sequence - D:] = digits_BD
    return Sample(ids, labels)


def answers(cfg: PasskeyConfig, sequence: int) -> np.ndarray:
    """bool[T]: the digits after the query."""
    return places(sequence, slice(sequence - cfg.digits + 1, sequence))


def chance(cfg: PasskeyConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a digit."""
    return {"chance": 0.1}


def reader(cfg: PasskeyConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on: a digit is known if it is visible, with or without its marker, as noise has no digits."""
    digit = np.arange(cfg.digits)
    stands = np.arange(_places(cfg, sequence))[:, None] + 1 + digit[None]
    return expected(stands >= first[sequence - cfg.digits + digit][None], 0.1)


def _places(cfg: PasskeyConfig, sequence: int) -> int:
    """Number of positions that the marker can take."""
    return sequence - 2 * cfg.digits - cfg.tail
