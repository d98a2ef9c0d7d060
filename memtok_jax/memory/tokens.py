"""Learned tokens beside every sequence: the plainest memory, and the same code under many names.

| name in the literature               | paper                         |
|--------------------------------------|-------------------------------|
| persistent memory                    | Titans, equations 19, 22, 26, 29 |
| meta tokens                          | Hymba, arXiv 2411.13676       |
| memory tokens (read only)            | Memory Transformer, arXiv 2006.11527 |
| registers                            | Vision Transformers Need Registers, arXiv 2309.16588 |

They carry no state between segments. Zero tokens give the plain model exactly. They stand in front, or behind the first rows
of the sequence: registers come after the class token. A causal model whose tokens come first
can compute their keys and values once (`models/language_model.py` does); a vision model runs them as ordinary rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from memtok_jax.params import ParamSpec, normal


@dataclass(frozen=True)
class TokensConfig:
    """width: D. tokens: M. std: standard deviation of their initial values. after: rows of x that stay before them."""

    width: int
    tokens: int
    std: float = 0.02
    after: int = 0

    def __post_init__(self):
        for name in ("tokens", "after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


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
    """Insert the tokens: x[B, T, D] -> ([B, T+M, D], state). `split` takes them out again."""
    tokens = jnp.broadcast_to(params["tokens"].astype(x.dtype), (x.shape[0], cfg.tokens, cfg.width))
    return jnp.concatenate([x[:, :cfg.after], tokens, x[:, cfg.after:]], axis=1), state


def split(y: jax.Array, cfg: TokensConfig) -> tuple[jax.Array, jax.Array]:
    """The inverse of `apply`: y[B, T+M, D] -> (tokens [B, M, D], x [B, T, D])."""
    end = cfg.after + cfg.tokens
    return y[:, cfg.after:end], jnp.concatenate([y[:, :cfg.after], y[:, end:]], axis=1)
