"""Quadratic equations solved step by step (RMT, arXiv 2207.06881, section 4.1): six stages of 30 characters, filled up with 0.

    2*x^2+4*x-30=0 | x^2+2*x-15=0 | D=2^2-4*1*-15=64=8^2 | x=(-2-8)/2=-5 | x=(-2+8)/2=3 | -5,3

The first stage is given, the other five are predicted, filler included: 150 targets. One equation in five has no real root: its
discriminant is negative, and the stages after it are empty. (The public generator lets zero discriminants pass as rootless; this
one does not.)

Tokens: 0 filler, then the characters 0123456789+-*/^=()xD;,
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import IGNORED, Sample, places, table_accuracy, unscored

CHARACTERS = "0123456789+-*/^=()xD;,"
FIRST, STAGES, WIDTH = 2, 6, 30


@dataclass(frozen=True)
class EquationsConfig:
    """rootless: share of equations without a real root."""

    rootless: float = 0.2

    def __post_init__(self):
        check_numbers("equations", self, between=dict(rootless=(0, 1)))


def vocabulary(cfg: EquationsConfig) -> int:
    """Number of tokens; 1 is not used, as published."""
    return FIRST + len(CHARACTERS)


def symbols(cfg: EquationsConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return ("_", "?", *CHARACTERS)


def check(cfg: EquationsConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold the stages."""
    if sequence < STAGES * WIDTH:
        raise DataError(f"equations: {STAGES} stages of {WIDTH} need a sequence of at least {STAGES * WIDTH}, got {sequence}")


def term(coefficient: int, power: str, leading: bool) -> str:
    """One term of a polynomial: "" for zero, signs as in "-x^2", "+3*x", "+1" (a constant keeps its number)."""
    if coefficient == 0:
        return ""
    sign = "-" if coefficient < 0 else "" if leading else "+"
    size = abs(coefficient)
    if not power:
        return f"{sign}{size}"
    return f"{sign}{power}" if size == 1 else f"{sign}{size}*{power}"


def polynomial(a: int, b: int, c: int) -> str:
    """a*x^2+b*x+c=0 without what is zero."""
    return f"{term(a, 'x^2', True)}{term(b, 'x', False)}{term(c, '', False)}=0"


def stages(b: int, c: int, scale: int) -> list[str]:
    """The six stages for x^2 + b x + c = 0 multiplied by `scale`; roots, where they are real, are whole numbers."""
    square = b * b - 4 * c
    front = [polynomial(scale, scale * b, scale * c), polynomial(1, b, c), f"D={abs(b)}^2-4*1*{c}={square}"]
    if square < 0:
        return [*front, "", "", ""]
    root = round(square ** 0.5)
    low, high = (-b - root) // 2, (-b + root) // 2
    return [*front[:2], f"{front[2]}={root}^2", f"x=({-b}-{root})/2={low}", f"x=({-b}+{root})/2={high}",
            f"{low}" if low == high else f"{low},{high}"]


def draw(rng: np.random.Generator, rootless: float) -> list[str]:
    """The stages of one equation."""
    scale = int(rng.choice([-1, 1])) * int(round(rng.uniform(1, 10)))
    if rng.random() < rootless:
        b = int(rng.integers(0, 200))
        return stages(b, int(rng.integers(b * b // 4 + 1, 100 ** 2 + 1)), scale)
    r1, r2 = (int(r) for r in rng.uniform(-100, 100, size=2))
    return stages(-(r1 + r2), r1 * r2, scale)


def encode(texts: list[str]) -> np.ndarray:
    """int32[180]: each stage filled up to 30."""
    out = np.zeros((STAGES, WIDTH), np.int32)
    for row, text in zip(out, texts, strict=True):
        row[:len(text)] = [FIRST + CHARACTERS.index(c) for c in text]
    return out.reshape(-1)


def sample(cfg: EquationsConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    rng = np.random.default_rng(seed)
    whole = np.stack([encode(draw(rng, cfg.rootless)) for _ in range(batch)])
    ids = np.zeros((batch, sequence), np.int32)
    ids[:, :whole.shape[1]] = whole
    labels = unscored(batch, sequence)
    labels[:, WIDTH - 1:STAGES * WIDTH - 1] = whole[:, WIDTH:]
    return Sample(ids, labels)


def answers(cfg: EquationsConfig, sequence: int) -> np.ndarray:
    """bool[T]: all stages but the first."""
    return places(sequence, slice(WIDTH, STAGES * WIDTH))


def answer_right(predicted_BT: np.ndarray, labels_BT: np.ndarray) -> np.ndarray:
    """bool[B]: the whole last stage is right, its first character and its filler included."""
    last = slice((STAGES - 1) * WIDTH - 1, STAGES * WIDTH - 1)
    return (predicted_BT[:, last] == labels_BT[:, last]).all(1)


def chance(cfg: EquationsConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing; of always filling, as filler is most of the targets; and of a table of the place and the last two
    characters.

    There is no `reader`: a part of a stage says a part of the next one.
    """
    train, test = (sample(cfg, STAGES * WIDTH, samples, seed) for samples, seed in ((2000, 1), (500, 0)))
    return {"chance": 1 / vocabulary(cfg), "filler": float(np.mean(test.labels[test.labels != IGNORED] == 0)),
            "last_two_characters": table_accuracy(train, test, 2)}
