"""Embeddings and output layer of a large vocabulary, sorted by frequency and cut into clusters: rare words cost less.

Adaptive softmax (Grave et al., arXiv 1609.04309, section 3) and adaptive input representations (Baevski and Auli, 1809.10853), as
Transformer-XL has both (1901.02860). `cutoffs` are the first words of all clusters but the first; for a word w of cluster i

    x    = P_i E_i[w]                                                     P_i is the identity where shrink = 1
    p(w) = softmax([E_0 ; C] Q h + [b_0 ; c])[w]                          i = 0; C and c have a row for each later cluster
    p(w) = softmax([E_0 ; C] Q h + [b_0 ; c])[cluster i]  softmax(E_i P_i^T h + b_i)[w]       i > 0

| symbol | name here | shape |
|---|---|---|
| E_i     | `embedding`: one table in order, or with shrink > 1 a list | [V_i, D_i], D_i = D / shrink^i |
| P_i     | `projections` | [D_i, D] |
| Q       | `output_projection`, the one projection that is not tied | [D, D] |
| C, c    | `clusters` w, b | [clusters - 1, D], [clusters - 1] |
| b       | `output_bias` | [V] |

Without cutoffs this is the tied softmax. The result is a distribution over all words, so losses, samplers and scores need not know
of clusters. An output layer that computes only the clusters of the targets would give the same numbers in less time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.numerics import matmul, spread
from memtok_jax.sharding import look_up


@dataclass(frozen=True)
class AdaptiveConfig:
    """Options of embeddings and output layer.

    vocabulary: V.
    width: D.
    cutoffs: the first words of all clusters but the first, rising; none: one cluster.
    shrink: the embeddings of a cluster are so many times narrower than those of the cluster before.
    std: of the initial embeddings.
    dtype: of the operands of matrix products.
    """

    vocabulary: int
    width: int
    cutoffs: tuple[int, ...] = ()
    shrink: int = 1
    std: float = 0.02
    dtype: str = "float32"

    def __post_init__(self):
        borders = (0, *self.cutoffs, self.vocabulary)
        if any(a >= b for a, b in pairwise(borders)):
            raise UserError(f"cutoffs={self.cutoffs} must rise between 0 and vocabulary={self.vocabulary}")
        if self.shrink < 1:
            raise UserError(f"shrink={self.shrink} must be at least 1")
        if self.shrink > 1 and not self.cutoffs:
            raise UserError(f"shrink={self.shrink} needs clusters: set cutoffs, or shrink=1")
        if self.width % self.shrink ** len(self.cutoffs):
            raise UserError(f"width={self.width} is not a multiple of {self.shrink ** len(self.cutoffs)}, by which shrink="
                            f"{self.shrink} narrows the last of {len(self.cutoffs) + 1} clusters")

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First word of each cluster, and of the one behind it."""
        return list(pairwise((0, *self.cutoffs, self.vocabulary)))

    @property
    def widths(self) -> list[int]:
        """D_i."""
        return [self.width // self.shrink ** i for i in range(len(self.cutoffs) + 1)]


def specs(cfg: AdaptiveConfig) -> dict:
    """See the table above; without cutoffs, `embedding` and `output_bias` alone."""
    d, more = cfg.width, len(cfg.cutoffs)
    table = lambda rows, width: P.ParamSpec((rows, width), ("vocab", "embed"), P.normal(cfg.std), decayed=False)
    project = lambda width: P.ParamSpec((width, d), (None, "embed"), P.normal(cfg.std / 2))
    out = {"embedding": table(cfg.vocabulary, d),
           "output_bias": P.ParamSpec((cfg.vocabulary,), ("vocab",), P.zeros, decayed=False)}
    if cfg.cutoffs:
        out["clusters"] = {"w": P.ParamSpec((more, d), (None, "embed"), P.normal(cfg.std), decayed=False),
                           "b": P.ParamSpec((more,), (None,), P.zeros, decayed=False)}
    if cfg.shrink > 1:
        out |= {"embedding": [table(b - a, width) for (a, b), width in zip(cfg.ranges, cfg.widths, strict=True)],
                "projections": [project(width) for width in cfg.widths], "output_projection": project(d)}
    return out


def embed(params, ids: jax.Array, cfg: AdaptiveConfig) -> jax.Array:
    """ids[B, T] -> f32[B, T, D], not scaled."""
    if cfg.shrink == 1:
        return look_up(params["embedding"], ids)
    x = 0.0
    for (begin, end), table, projection in zip(cfg.ranges, params["embedding"], params["projections"], strict=True):
        rows = matmul(look_up(table, jnp.clip(ids, begin, end - 1) - begin), projection, cfg.dtype)
        x = x + jnp.where(((ids >= begin) & (ids < end))[..., None], rows, 0)
    return x


def logits(params, h: jax.Array, cfg: AdaptiveConfig) -> jax.Array:
    """h[B, T, D] -> f32[B, T, V], of which softmax is p; with cutoffs, log p itself."""
    bias = params["output_bias"]
    if not cfg.cutoffs:
        return _scores(h, params["embedding"], bias, cfg)
    narrow = cfg.shrink > 1
    tables = params["embedding"] if narrow else [params["embedding"][a:b] for a, b in cfg.ranges]
    projections = [params["output_projection"].T, *(p.T for p in params["projections"][1:])] if narrow else []
    inputs = [matmul(h, w, cfg.dtype).astype(h.dtype) for w in projections] if narrow else [h] * len(tables)
    first, clusters = cfg.cutoffs[0], params["clusters"]
    head = jax.nn.log_softmax(_scores(inputs[0], jnp.concatenate([tables[0], clusters["w"]]),
                                      jnp.concatenate([bias[:first], clusters["b"]]), cfg))
    parts = [head[..., :first]]
    for i, (begin, end) in enumerate(cfg.ranges[1:]):
        inside = jax.nn.log_softmax(_scores(inputs[i + 1], tables[i + 1], bias[begin:end], cfg))
        parts.append(head[..., first + i, None] + inside)
    return jnp.concatenate(parts, axis=-1)


def _scores(h: jax.Array, table: jax.Array, bias: jax.Array, cfg: AdaptiveConfig) -> jax.Array:
    y = matmul(h, table.T, cfg.dtype)
    return y + spread(bias, y)
