"""Cross-entropy over the positions that are scored, as sums, so that parts of a batch can be added exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

IGNORE = -100


class Sums(NamedTuple):
    """Totals of a batch or of a part of it, each a float32 scalar; the first three over scored positions."""

    nats: jax.Array       # negative log-likelihood
    correct: jax.Array    # positions where the target has the highest logit
    count: jax.Array      # scored positions
    auxiliary: jax.Array  # the model's own loss, a mean over all rows and segments of the batch; see `auxiliary_loss`


def token_scores(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Score every position in float32.

    targets_BT: int32, IGNORE where nothing is scored.
    Returns nats[B, T] (0 where not scored), correct[B, T] and scored[B, T] (bool).
    """
    scored = targets_BT != IGNORE
    logits = logits_BTV.astype(jnp.float32)
    # A sum over a comparison, not an index: it stays local where the vocabulary is divided over devices.
    is_target = targets_BT[..., None] == jnp.arange(logits.shape[-1])[None, None]
    picked = jnp.where(is_target, logits, 0.0).sum(-1)
    nats = jnp.where(scored, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0)
    # Compared with the largest logit rather than by argmax: no second pass over the vocabulary with indices.
    return nats, scored & (picked >= logits.max(-1)), scored


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> Sums:
    """Totals of `token_scores` over the batch, without a loss of the model's own."""
    nats, correct, scored = token_scores(logits_BTV, targets_BT)
    return Sums(nats.sum(), correct.sum(dtype=jnp.float32), scored.sum(dtype=jnp.float32), jnp.float32(0))


def auxiliary_loss(statistics: Any) -> jax.Array:
    """What a model wants to be trained for besides its predictions: the sum of all entries of that name.

    statistics: a tree of dicts, as `run` of a model returns it; an entry "auxiliary_loss" is a mean over the rows of the
    segment, and may be stacked over layers. Returns f32[]; 0 where there is none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(statistics)
    mine = [x.sum() for path, x in leaves if path[-1:] == (jax.tree_util.DictKey("auxiliary_loss"),)]
    return sum(mine, jnp.float32(0))
