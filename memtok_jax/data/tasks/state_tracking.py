"""State tracking: the product of a sequence of group elements after each of them (Merrill et al., arXiv 2404.08819).

    x1 x2 ... xT        y_t = x1 x2 ... xt, the first applied first

Parity is the group Z2. Elements are iid, so that a reader who misses a single one knows nothing (with "all" moves), and accuracy by
position is a step at what a model can see. Groups: Zm (sums modulo m), S3, S4, S5 (permutations), A4, A5 (even ones), A4xZ5.
Element 0 is the identity. Easier rows take few of the elements, which still reach the whole group (Grazzi et al., arXiv
2411.12537): "swaps" the identity and all exchanges of two, "cycles" cycles of three as well. With `spread` above 1 each element is
followed by fillers, and the product is asked for at the last of them. Position 1 is a copy, and a short prefix is easy: judge whole
prefixes beyond the trained length (`--suite=state_tracking`).

Tokens: elements, then the filler if there is one.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, places, unscored

PERMUTATIONS = {"S3": 3, "S4": 4, "S5": 5, "A4": 4, "A5": 5}
MOVES = {"all": None, "swaps": 2, "cycles": 3}   # most places that an element may move


@dataclass(frozen=True)
class StateTrackingConfig:
    """Settings.

    group: "Zm" for any m from 2 to 1000, S3, S4, S5, A4, A5 or A4xZ5.
    moves: elements that occur: "all", or of S3, S4, S5 "swaps" or "cycles".
    spread: tokens for an element.
    scored: "every" product, or the "last" one.
    """

    group: str = "Z2"
    moves: str = "all"
    spread: int = 1
    scored: str = "every"

    def __post_init__(self):
        check_numbers("state_tracking", self, at_least=dict(spread=1))
        choose("state_tracking.moves", self.moves, MOVES)
        choose("state_tracking.scored", self.scored, ("every", "last"))
        cyclic = re.fullmatch(r"Z([1-9]\d{0,3})", self.group)
        if not (cyclic and 2 <= int(cyclic[1]) <= 1000):
            choose("state_tracking.group", self.group, ("Z2", "Z60", *PERMUTATIONS, "A4xZ5"))
        if self.moves != "all" and self.group[0] != "S":
            raise DataError(f"state_tracking.moves is {self.moves!r}, which {self.group} does not have; only S3, S4 and S5 do")

    @property
    def title(self) -> str:
        """For reports."""
        return self.group


@lru_cache(maxsize=8)
def elements(group: str) -> np.ndarray:
    """int[G, n]: permutations of a group of PERMUTATIONS; element p moves what is at i to p[i]. The identity comes first."""
    found = list(itertools.permutations(range(PERMUTATIONS[group])))
    odd = lambda p: sum(a > b for a, b in itertools.combinations(p, 2)) % 2   # noqa: E731
    return np.array([p for p in found if group[0] == "S" or not odd(p)])


@lru_cache(maxsize=8)
def table(group: str) -> np.ndarray:
    """int[G, G]: [a, b] is a, then b."""
    if group == "A4xZ5":
        first, second = table("A4"), table("Z5")
        return (first[:, None, :, None] * 5 + second[None, :, None, :]).reshape(60, 60)
    if group[0] == "Z":
        m = int(group[1:])
        return np.add.outer(np.arange(m), np.arange(m)) % m
    p = elements(group)
    number = {tuple(one): n for n, one in enumerate(p.tolist())}
    return np.array([[number[tuple(b[a])] for b in p] for a in p])


@lru_cache(maxsize=8)
def moves(group: str, kind: str) -> np.ndarray:
    """Elements that occur."""
    if kind == "all":
        return np.arange(len(table(group)))
    p = elements(group)
    moved = (p != np.arange(p.shape[1])).sum(1)
    return np.flatnonzero(moved <= MOVES[kind])


def vocabulary(cfg: StateTrackingConfig) -> int:
    """Number of tokens."""
    return len(table(cfg.group)) + (cfg.spread > 1)


def symbols(cfg: StateTrackingConfig) -> tuple[str, ...]:
    """A readable name for each token: permutations as the places that 0, 1, ... move to."""
    permuted = cfg.group in PERMUTATIONS
    names = ["".join(map(str, p)) for p in elements(cfg.group)] if permuted else map(str, range(len(table(cfg.group))))
    return (*names, *("." * (cfg.spread > 1)))


def check(cfg: StateTrackingConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens are not whole elements."""
    if sequence < 2 * cfg.spread or sequence % cfg.spread:
        raise DataError(f"state_tracking: elements of {cfg.spread} tokens need a sequence of at least {2 * cfg.spread} that is a "
                        f"multiple of {cfg.spread}, got {sequence}")


def products(group: str, elements_BN: np.ndarray) -> np.ndarray:
    """int[B, N]: the product up to each element."""
    known, out = table(group), elements_BN.copy()
    for n in range(1, out.shape[1]):
        out[:, n] = known[out[:, n - 1], elements_BN[:, n]]
    return out


def sample(cfg: StateTrackingConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` rows of `sequence` tokens; equal seeds give equal rows."""
    check(cfg, sequence)
    drawn = np.random.default_rng(seed).choice(moves(cfg.group, cfg.moves), size=(batch, sequence // cfg.spread))
    ids, labels = np.full((batch, sequence), len(table(cfg.group)), np.int32), unscored(batch, sequence)
    ids[:, ::cfg.spread] = drawn
    labels[:, cfg.spread - 1::cfg.spread] = products(cfg.group, drawn)
    if cfg.scored == "last":
        labels[:, :-1] = unscored(batch, sequence - 1)
    return Sample(ids, labels)


def answers(cfg: StateTrackingConfig, sequence: int) -> np.ndarray:
    """bool[T]: none; products are not inputs."""
    return places(sequence, slice(0))


def chance(cfg: StateTrackingConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing an element."""
    return {"chance": 1 / len(table(cfg.group))}


def reader(cfg: StateTrackingConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on: what it missed is a walk of that many steps, of which it takes the likeliest end."""
    at = np.arange(cfg.spread - 1, sequence, cfg.spread) if cfg.scored == "every" else np.array([sequence - 1])
    missed = -(-first[at] // cfg.spread)
    best = _likeliest(cfg.group, cfg.moves, int(missed.max()))
    return float(best[missed].mean())


def _likeliest(group: str, kind: str, steps: int) -> np.ndarray:
    """float[steps + 1]: probability of the likeliest product of 0, 1, ... elements."""
    known, allowed = table(group), moves(group, kind)
    chances, out = np.eye(len(known))[0], [1.0]
    for _ in range(steps):
        after = np.zeros(len(known))
        for b in allowed:
            np.add.at(after, known[:, b], chances / len(allowed))
        chances = after
        out.append(float(chances.max()))
    return np.array(out)
