"""Learned tokens beside every sequence: the plainest memory, which has many names.

| name in the literature               | paper                         |
|--------------------------------------|-------------------------------|
| persistent memory                    | Titans, equations 19, 22, 26, 29 |
| meta tokens                          | Hymba, arXiv 2411.13676       |
| memory tokens (read only)            | Memory Transformer, arXiv 2006.11527 |
| registers                            | Vision Transformers Need Registers, arXiv 2309.16588 |

They carry no state between segments. Zero tokens give the plain model exactly. They stand in front of the sequence, or behind
its first tokens: registers come after the class token. A causal model whose learned tokens come first can compute their keys
and values once (`models/language_model.py` does). A vision model runs them like all other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax.config import check_numbers
from memtok_jax.params import ParamSpec, normal


@dataclass(frozen=True)
class TokensConfig:
    """Options of the learned tokens.

    width: D, features of a token.
    tokens: M, learned tokens; 0 is none.
    std: standard deviation of their initial values.
    after: tokens of x that stay in front of them.
    """

    width: int
    tokens: int
    std: float = 0.02
    after: int = 0

    def __post_init__(self):
        check_numbers("", self, at_least={"width": 0, "tokens": 0, "std": 0, "after": 0})


def specs(cfg: TokensConfig) -> dict[str, ParamSpec]:
    """The tokens, [M, D]; not decayed."""
    checks.check_width(cfg.width)
    return {"tokens": ParamSpec((cfg.tokens, cfg.width), ("tokens", "embed"), normal(cfg.std), decayed=False)}


def state_specs(cfg: TokensConfig, batch: int) -> tuple:
    """Nothing is carried."""
    return ()


def init_state(params, cfg: TokensConfig, batch: int) -> tuple:
    """Nothing is carried."""
    return ()


def run(params, state: tuple, x: jax.Array, cfg: TokensConfig, length=None, *, whole: bool = False):
    """`apply` with statistics, of which there are none: (y, state, {})."""
    x, _ = checks.checked(x, length, cfg.width, whole=whole)
    checks.check_params(params, specs(cfg))
    tokens = jnp.broadcast_to(params["tokens"].astype(x.dtype), (x.shape[0], cfg.tokens, cfg.width))
    return jnp.concatenate([x[:, :cfg.after], tokens, x[:, cfg.after:]], axis=1), state, {}


def apply(params, state: tuple, x: jax.Array, cfg: TokensConfig, length=None, *, whole: bool = False):
    """Insert the tokens: x[B, T, D] -> ([B, T+M, D], state). `split` takes them out again."""
    return run(params, state, x, cfg, length, whole=whole)[:2]


def split(y: jax.Array, cfg: TokensConfig) -> tuple[jax.Array, jax.Array]:
    """The inverse of `apply`: y[B, T+M, D] -> (tokens [B, M, D], x [B, T, D])."""
    end = cfg.after + cfg.tokens
    return y[:, cfg.after:end], jnp.concatenate([y[:, :cfg.after], y[:, end:]], axis=1)
