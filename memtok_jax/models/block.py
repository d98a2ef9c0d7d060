"""One layer: mixers on residual branches, then a feed-forward network.

    x <- x + mixer(rms(x))      for each branch of the layer's kind (MAL has two)
    x <- x + SwiGLU(rms(x))
"""

from __future__ import annotations

from functools import partial

import jax

from memtok_jax import params as P
from memtok_jax.models.config import BRANCHES, BlockConfig
from memtok_jax.models.mixers import MIXERS
from memtok_jax.numerics import matmul, recompute, rms_norm
from memtok_jax.sharding import constrain


def _names(cfg: BlockConfig) -> list[list[str]]:
    """A name for each mixer of each branch, e.g. [["0_lmm"], ["1_attention"]]."""
    numbered, number = [], 0
    for branch in BRANCHES[cfg.kind]:
        numbered.append([f"{number + i}_{kind}" for i, kind in enumerate(branch)])
        number += len(branch)
    return numbered


def _mixer(name: str):
    return MIXERS[name.split("_", 1)[1]]


def _all(cfg: BlockConfig) -> list[str]:
    return [name for branch in _names(cfg) for name in branch]


def specs(cfg: BlockConfig) -> dict:
    """Mixers with the norm before each branch, and the feed-forward network."""
    d, f = cfg.width, cfg.hidden
    norm = lambda: P.ParamSpec((d,), (None,), P.ones, decayed=False)
    return {
        "mixers": {name: _mixer(name).specs(cfg) for name in _all(cfg)},
        "norms": [norm() for _ in _names(cfg)],
        "mlp": {
            "norm": norm(),
            "gate": P.ParamSpec((d, f), ("embed", "mlp"), P.fan_in(0)),
            "up": P.ParamSpec((d, f), ("embed", "mlp"), P.fan_in(0)),
            "down": P.ParamSpec((f, d), ("mlp", "embed"), P.fan_in(0, cfg.residual_scale)),
        },
    }


def state_specs(cfg: BlockConfig, batch: int) -> dict:
    """Carry of each mixer, by name."""
    return {name: _mixer(name).state_specs(cfg, batch) for name in _all(cfg)}


def init_state(params, cfg: BlockConfig, batch: int) -> dict:
    """Carry of each mixer before the first token, without prefix."""
    return {name: _mixer(name).init_state(params["mixers"][name], cfg, batch) for name in _all(cfg)}


def feed_forward(params, x: jax.Array, cfg: BlockConfig) -> jax.Array:
    """SwiGLU of the normalised input (arXiv 2002.05202)."""
    u = rms_norm(x, params["norm"])
    hidden = jax.nn.silu(matmul(u, params["gate"], cfg.dtype)) * matmul(u, params["up"], cfg.dtype)
    return matmul(hidden.astype(x.dtype), params["down"], cfg.dtype).astype(x.dtype)


def prefix(params, x_MD: jax.Array, cfg: BlockConfig) -> tuple[jax.Array, dict]:
    """The prefix tokens [M, D] through the layer: (x, what each mixer keeps of them)."""
    kept = {}
    for norm, names in zip(params["norms"], _names(cfg), strict=True):
        y = rms_norm(x_MD, norm)
        for name in names:
            y, kept[name] = _mixer(name).prefix(params["mixers"][name], y, cfg)
        x_MD = x_MD + y.astype(x_MD.dtype)
    return x_MD + feed_forward(params["mlp"], x_MD, cfg), kept


def run(params, state: dict, x: jax.Array, cfg: BlockConfig, length=None) -> tuple[jax.Array, dict, dict]:
    """`apply` with the statistics of the layer's memories."""
    after, seen = {}, {}
    for norm, names in zip(params["norms"], _names(cfg), strict=True):
        y = rms_norm(x, norm)
        for name in names:
            y, after[name], statistics = _mixer(name).run(params["mixers"][name], state[name], y, cfg, length)
            seen |= statistics
        x = constrain(x + y.astype(x.dtype), "batch", "length", "embed")
    x = x + recompute(partial(feed_forward, cfg=cfg))(params["mlp"], x)
    return constrain(x, "batch", "length", "embed"), after, seen


def apply(params, state: dict, x: jax.Array, cfg: BlockConfig, length=None) -> tuple[jax.Array, dict]:
    """x[B, T, D] -> (x[B, T, D], state)."""
    return run(params, state, x, cfg, length)[:2]
