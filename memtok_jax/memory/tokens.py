"""Learned tokens in front of every sequence: the plainest memory, and the same code under many names.

| name in the literature               | paper                         |
|--------------------------------------|-------------------------------|
| persistent memory                    | Titans, equations 19, 22, 26, 29 |
| meta tokens                          | Hymba, arXiv 2411.13676       |
| memory tokens (read only)            | Memory Transformer, arXiv 2006.11527 |
| registers                            | Vision Transformers Need Registers, arXiv 2309.16588 |

They carry no state between segments. Zero tokens give the plain model exactly. A causal model whose tokens come first
can compute their keys and values once (`models/language_model.py` does); a vision model runs them as ordinary rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from memtok_jax.params import ParamSpec, normal


@dataclass(frozen=True)
class TokensConfig:
    """width: D. tokens: M. std: standard deviation of their initial values."""

    width: int
    tokens: int
    std: float = 0.02

    def __post_init__(self):
        if self.tokens < 0:
            raise ValueError(f"tokens={self.tokens} must not be negative")


def specs(cfg: TokensConfig) -> dict[str, ParamSpec]:
    """The tokens themselves, [M, D]; not decayed."""
    return {"tokens": ParamSpec((cfg.tokens, cfg.width), ("tokens", "embed"), normal(cfg.std), decayed=False)}


def state_specs(cfg: TokensConfig, batch: int) -> tuple:
    """Nothing is carried."""
    return ()


def init_state(params, cfg: TokensConfig, batch: int) -> tuple:
    """Nothing is carried."""
    return ()


def apply(params, state: tuple, x: jax.Array, cfg: TokensConfig, length=None):
    """Prepend the tokens: x[B, T, D] -> ([B, M+T, D], state). `split` takes them off again."""
    tokens = jnp.broadcast_to(params["tokens"].astype(x.dtype), (x.shape[0], cfg.tokens, cfg.width))
    return jnp.concatenate([tokens, x], axis=1), state


def split(y: jax.Array, cfg: TokensConfig) -> tuple[jax.Array, jax.Array]:
    """The inverse of `apply`: y[B, M+T, D] -> (tokens [B, M, D], x [B, T, D])."""
    return y[:, :cfg.tokens], y[:, cfg.tokens:]
