"""Frequencies of rotary positions, as published checkpoints scale them for texts longer than those they were trained on.

Pair n of d turned features turns by f_n = base^(-2n/d) for each token (RoFormer, arXiv 2104.09864). With a factor s, and P0 tokens
of the original training:

| kind     | frequencies                                                                    | source |
|----------|--------------------------------------------------------------------------------|--------|
| plain    | f                                                                              | arXiv 2104.09864 |
| linear   | f / s                                                                          | arXiv 2306.15595 |
| llama3   | f (u + (1-u) / s), u = (P0 f / 2 pi - low) / (high - low) inside 0 .. 1          | released code of Llama 3.1 |
| yarn     | f (1-r_n) + f r_n / s, r a ramp over n from `fast` to `slow` turns in P0 tokens  | arXiv 2309.00071, 3.2 |
| longrope | f / divisor_n                                                                  | arXiv 2402.13753 |
| dynamic  | those of the base (s t/P0 - (s-1))^(d / (d-2)) base, for a text of t > P0 tokens | released code of transformers |

YaRN and LongRoPE also multiply cosines and sines by `magnitude`, so scores by its square. "dynamic" and LongRoPE choose by the
length of the text; here the choice is made once, by `tokens` and by `divisors`, because keys and queries of one stream must turn
alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memtok_jax.config import UserError, check_numbers, choose

KINDS = ("plain", "linear", "llama3", "yarn", "longrope", "dynamic")


@dataclass(frozen=True)
class RotaryConfig:
    """How rotary positions differ from the plain ones.

    kind: one of the table above.
    share: of a head's features that turn, the first ones; the others have no position (GPT-NeoX).
    factor: s.
    trained: P0, tokens of a text in the original training.
    low, high: of "llama3", turns in P0 tokens below which a frequency is divided by s, and above which it stays.
    fast, slow: of "yarn", turns in P0 tokens at the two ends of the ramp.
    whole: the ends of the ramp are rounded to whole pairs.
    magnitude: factor of cosines and sines.
    divisors: of "longrope", one for each pair.
    tokens: of "dynamic", t.
    """

    kind: str = "plain"
    share: float = 1.0
    factor: float = 1.0
    trained: int = 0
    low: float = 1.0
    high: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    whole: bool = True
    magnitude: float = 1.0
    divisors: tuple[float, ...] = ()
    tokens: int = 0

    def __post_init__(self):
        check_numbers("rotary", self, at_least=dict(trained=0, tokens=0), above=dict(share=0, factor=0, fast=0, slow=0, magnitude=0,
                                                                                 divisors=0))
        choose("rotary.kind", self.kind, KINDS)
        if self.share > 1:
            raise UserError(f"rotary.share is {self.share!r}; it must be at most 1")
        if self.kind in ("llama3", "yarn", "dynamic") and not self.trained:
            raise UserError(f"rotary.kind is {self.kind!r}, which needs rotary.trained, the tokens of the original training")
        if self.kind == "llama3" and not self.low < self.high:
            raise UserError(f"rotary.low is {self.low} and rotary.high {self.high}; low must be less than high")


PLAIN = RotaryConfig()


def turned(cfg: RotaryConfig, head_dim: int) -> int:
    """d, features of a head that turn. Raises UserError for an odd number, and for another number of divisors."""
    d = int(head_dim * cfg.share)
    if d % 2 or d < 2:
        raise UserError(f"{d} of {head_dim} features of a head would turn; rotary positions turn pairs, so the number must be even")
    if cfg.kind == "longrope" and len(cfg.divisors) != d // 2:
        raise UserError(f"rotary.divisors has {len(cfg.divisors)} numbers; {d} features that turn need {d // 2}")
    return d


def frequencies(cfg: RotaryConfig, base: float, head_dim: int) -> np.ndarray:
    """f64[d / 2]: radians that each pair turns by for each token."""
    d = turned(cfg, head_dim)
    if cfg.kind == "dynamic":
        base *= max(cfg.factor * max(cfg.tokens, cfg.trained) / cfg.trained - (cfg.factor - 1), 1.0) ** (d / (d - 2))
    f = base ** (-np.arange(0, d, 2) / d)
    if cfg.kind == "linear":
        return f / cfg.factor
    if cfg.kind == "llama3":
        u = np.clip((cfg.trained * f / (2 * math.pi) - cfg.low) / (cfg.high - cfg.low), 0, 1)
        return f * (u + (1 - u) / cfg.factor)
    if cfg.kind == "yarn":
        ramp = _ramp(cfg, base, d)
        return f * (1 - ramp) + f / cfg.factor * ramp
    return f / np.array(cfg.divisors) if cfg.kind == "longrope" else f


def _ramp(cfg: RotaryConfig, base: float, d: int) -> np.ndarray:
    """f64[d / 2] from 0 to 1: how far each pair is divided by s."""
    pair = lambda turns: d * math.log(cfg.trained / (turns * 2 * math.pi)) / (2 * math.log(base))
    first, last = pair(cfg.fast), pair(cfg.slow)
    if cfg.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, d - 1)
    return np.clip((np.arange(d // 2) - first) / (last - first if last != first else 0.001), 0, 1)
