"""Modular arithmetic: the value of an expression modulo m (Grazzi et al., arXiv 2411.12537, after Deletang et al., 2207.02098).

    3 + 2 * 4 - 1           y = 3, -, 0, -, 1, -, 0     ("every": the value up to each number, products first)
    3 + 2 * 4 - 1 =         y = 0 at the last token     ("last")
    ( 3 - ( - 2 ) ) =       with brackets: a random tree of sums and differences, always "last"

Numbers and operators are iid. What a reader must keep while it reads is a sum and the product that is still open, two numbers
modulo m; with brackets it is a stack. Products make 0 frequent in short rows, so the share of the most frequent answer (`majority`)
lies above 1 / m there.

With brackets an expression of one to four tokens is d, - d, ( d ), ( - d ), and of n more is ( left operator right ), where the
left part has any length from 1 to n - 4, evenly.

Tokens: numbers 0 .. m - 1, then + - * = and, with brackets, ( ).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import Sample, places, unscored

SIGNS = "+-*=()"


@dataclass(frozen=True)
class ModularArithmeticConfig:
    """Settings.

    modulus: m.
    brackets: a tree of + and - instead of a chain of + - *.
    scored: the value up to "every" number, or the "last" one, behind =.
    """

    modulus: int = 5
    brackets: bool = False
    scored: str = "every"

    def __post_init__(self):
        check_numbers("modular_arithmetic", self, at_least=dict(modulus=2))
        choose("modular_arithmetic.scored", self.scored, ("every", "last"))
        if self.brackets and self.scored == "every":
            raise DataError("modular_arithmetic.scored is 'every', but an open bracket has no value yet; with brackets set it to "
                            "'last'")

    @property
    def title(self) -> str:
        """For reports."""
        return f"arithmetic modulo {self.modulus}" + (" with brackets" if self.brackets else "")


def vocabulary(cfg: ModularArithmeticConfig) -> int:
    """Number of tokens."""
    return cfg.modulus + (6 if cfg.brackets else 4)


def symbols(cfg: ModularArithmeticConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return (*map(str, range(cfg.modulus)), *SIGNS[:vocabulary(cfg) - cfg.modulus])


def check(cfg: ModularArithmeticConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens hold no expression."""
    if sequence < 2 or (cfg.scored == "last" and not cfg.brackets and sequence % 2):
        raise DataError(f"modular_arithmetic: an expression needs a sequence of at least 2 tokens, and an even one where the last "
                        f"value is scored (numbers, operators between them, =), got {sequence}")


def sample(cfg: ModularArithmeticConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` rows of `sequence` tokens; equal seeds give equal rows."""
    check(cfg, sequence)
    rng, labels = np.random.default_rng(seed), unscored(batch, sequence)
    if cfg.brackets:
        rows = [tree(sequence - 1, cfg.modulus, rng) for _ in range(batch)]
        labels[:, -1] = [tree_value(row, cfg.modulus) for row in rows]
        return Sample(_closed(np.array(rows), cfg.modulus), labels)
    tokens = sequence - (cfg.scored == "last")
    ids = np.empty((batch, tokens), np.int32)
    ids[:, ::2] = rng.integers(cfg.modulus, size=ids[:, ::2].shape)
    ids[:, 1::2] = cfg.modulus + rng.integers(3, size=ids[:, 1::2].shape)
    values = chain_values(ids, cfg.modulus)
    if cfg.scored == "every":
        labels[:, ::2] = values
        return Sample(ids, labels)
    labels[:, -1] = values[:, -1]
    return Sample(_closed(ids, cfg.modulus), labels)


def _closed(ids_BT: np.ndarray, modulus: int) -> np.ndarray:
    """Rows with = behind them: int32[B, T + 1]."""
    return np.pad(ids_BT, [(0, 0), (0, 1)], constant_values=modulus + SIGNS.index("=")).astype(np.int32)


def chain_values(ids_BT: np.ndarray, modulus: int) -> np.ndarray:
    """int32[B, N]: the value of numbers and operators + - * up to each of the N numbers, products first."""
    numbers, signs = ids_BT[:, ::2], ids_BT[:, 1::2] - modulus
    done, product = np.zeros_like(numbers[:, 0]), numbers[:, 0]
    out = [product]
    for number, sign in zip(numbers.T[1:], signs.T, strict=False):
        times = sign == SIGNS.index("*")
        done = np.where(times, done, (done + product) % modulus)
        product = np.where(times, product * number, np.where(sign == SIGNS.index("-"), -number, number)) % modulus
        out.append((done + product) % modulus)
    return np.stack(out, axis=1)


def tree(tokens: int, modulus: int, rng: np.random.Generator) -> list[int]:
    """A random expression with brackets of exactly this many tokens."""
    plus, minus, _, _, opening, closing = (modulus + n for n in range(len(SIGNS)))
    out, todo = [], [("tree", tokens)]
    while todo:
        kind, value = todo.pop()
        if kind == "token":
            out.append(value)
        elif value <= 4:
            number = int(rng.integers(modulus))
            out += [[number], [minus, number], [opening, number, closing], [opening, minus, number, closing]][value - 1]
        else:
            left = int(rng.integers(1, value - 3))
            todo += [("token", closing), ("tree", value - 3 - left), ("token", (plus, minus)[rng.integers(2)]), ("tree", left),
                     ("token", opening)]
    return out


def tree_value(tokens: list[int], modulus: int) -> int:
    """Value of an expression of + - ( ): each number counts with the signs in front of it, times that of its brackets."""
    total, sign, outer, behind_value = 0, 1, [1], False
    for token in tokens:
        kind = "number" if token < modulus else SIGNS[token - modulus]
        if kind == "number":
            total += sign * token
        elif kind == "(":
            outer.append(sign)
        elif kind == ")":
            outer.pop()
        else:  # behind a value it joins two, else it stands in front of one
            sign = (outer[-1] if behind_value else sign) * (-1 if kind == "-" else 1)
        behind_value = kind in ("number", ")")
    return total % modulus


def answers(cfg: ModularArithmeticConfig, sequence: int) -> np.ndarray:
    """bool[T]: none; values are not inputs."""
    return places(sequence, slice(0))


def chance(cfg: ModularArithmeticConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a number."""
    return {"chance": 1 / cfg.modulus}
