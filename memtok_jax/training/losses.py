"""Losses over the positions that are scored, as sums, so that parts of a batch can be added exactly.

The loss says what the targets are (kinds of targets: `memtok_jax/data/__init__.py`):

    softmax   - sum_c target_c log softmax(outputs)_c                  classes i32[B, T], or shares of classes f32[B, T, n]
    binary    - mean_c (t_c log sigmoid(y_c) + (1 - t_c) log sigmoid(-y_c)), t_c = 1 if target_c > 0 else 0: each class of a mixed
              image is there, not a part of it (DeiT III, arXiv 2204.07118, and its code); targets as for softmax
    squared   mean_c (y_c - target_c)^2                                numbers f32[B, T, n]

With n below V the last outputs have no target. A class of IGNORE, or a NaN among shares or numbers, is not scored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.numerics import target_nats

IGNORE = -100
LOSSES = {"softmax": ("tokens", "classes", "shares"), "binary": ("classes", "shares"), "squared": ("values",)}


class Sums(NamedTuple):
    """Totals of a batch or of a part of it, each a float32 scalar; the first three over scored positions."""

    nats: jax.Array       # the loss: negative log-likelihood in nats, or that of LOSSES
    correct: jax.Array    # positions where the target has the highest output, of equal ones the first; 0 for numbers
    count: jax.Array      # scored positions
    auxiliary: jax.Array  # the model's own loss, a mean over all rows and segments of the batch; see `auxiliary_loss`


def token_scores(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Score every position in float32.

    targets_BT: int32, IGNORE where nothing is scored.
    Returns nats[B, T] (0 where not scored), correct[B, T] and scored[B, T] (bool).
    """
    scored = targets_BT != IGNORE
    logits = logits_BTV.astype(jnp.float32)
    place, target = jnp.arange(logits.shape[-1])[None, None], targets_BT[..., None]
    nats, picked = target_nats(logits, targets_BT)
    nats = jnp.where(scored, nats, 0.0)
    # The same as logits.argmax(-1) == target, which needs a second pass over the vocabulary, with indices.
    first = (logits < picked[..., None]) | ((logits == picked[..., None]) & (place >= target))
    return nats, scored & first.all(-1), scored


def is_scored(targets: jax.Array) -> jax.Array:
    """bool[B, T]."""
    return ~jnp.isnan(targets).any(-1) if jnp.issubdtype(targets.dtype, jnp.floating) else targets != IGNORE


def keep(targets: jax.Array, kept: jax.Array) -> jax.Array:
    """The targets where `kept` (bool, of the leading axes) is True, not scored elsewhere."""
    kept = kept.reshape(kept.shape + (1,) * (targets.ndim - kept.ndim))
    return jnp.where(kept, targets, jnp.nan if jnp.issubdtype(targets.dtype, jnp.floating) else IGNORE)


def _filled(targets: jax.Array, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(targets f32[B, T, V], 0 where nothing is scored and for outputs without a target; scored bool[B, T])."""
    scored = is_scored(targets)
    targets = jnp.where(scored[..., None], targets, 0.0).astype(jnp.float32)
    return jnp.pad(targets, [(0, 0)] * (targets.ndim - 1) + [(0, outputs.shape[-1] - targets.shape[-1])]), scored


def _one_hot(targets: jax.Array, outputs: jax.Array) -> jax.Array:
    """Classes as shares."""
    shares = jax.nn.one_hot(targets, outputs.shape[-1])
    return jnp.where(is_scored(targets)[..., None], shares, jnp.nan)


def share_scores(logits_BTV: jax.Array, shares_BTn: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`token_scores` for shares; correct is where the class of largest share has the highest logit."""
    logits, (shares, scored) = logits_BTV.astype(jnp.float32), _filled(shares_BTn, logits_BTV)
    nats = -(shares * jax.nn.log_softmax(logits, axis=-1)).sum(-1)
    return nats, scored & (logits.argmax(-1) == shares.argmax(-1)), scored


def binary_scores(logits_BTV: jax.Array, shares_BTn: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The binary loss of every position f32[B, T] (0 where not scored), then as `share_scores`."""
    logits, (shares, scored) = logits_BTV.astype(jnp.float32), _filled(shares_BTn, logits_BTV)
    there = jnp.where(shares > 0, logits, -logits)
    correct = logits.argmax(-1) == shares.argmax(-1)
    return jnp.where(scored, -jax.nn.log_sigmoid(there).mean(-1), 0.0), scored & correct, scored


def squared_scores(outputs_BTV: jax.Array, numbers_BTn: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean squared error of every position f32[B, T] over the n numbers (0 where not scored); correct is False everywhere."""
    scored, outputs = is_scored(numbers_BTn), outputs_BTV[..., :numbers_BTn.shape[-1]].astype(jnp.float32)
    numbers = jnp.where(scored[..., None], numbers_BTn, outputs)
    return jnp.square(outputs - numbers).mean(-1), jnp.zeros_like(scored), scored


def scores(outputs_BTV: jax.Array, targets: jax.Array, loss: str = "softmax") -> tuple[jax.Array, jax.Array, jax.Array]:
    """(loss f32[B, T], correct bool[B, T], scored bool[B, T]) of every position, by one of LOSSES."""
    classes = not jnp.issubdtype(targets.dtype, jnp.floating)
    if loss == "squared":
        return squared_scores(outputs_BTV, targets)
    if loss == "binary":
        return binary_scores(outputs_BTV, _one_hot(targets, outputs_BTV) if classes else targets)
    return token_scores(outputs_BTV, targets) if classes else share_scores(outputs_BTV, targets)


def totals(outputs_BTV: jax.Array, targets: jax.Array, loss: str = "softmax") -> Sums:
    """Totals over the batch of one of LOSSES, without a loss of the model's own."""
    nats, correct, scored = scores(outputs_BTV, targets, loss)
    return Sums(nats.sum(), correct.sum(dtype=jnp.float32), scored.sum(dtype=jnp.float32), jnp.float32(0))


def auxiliary_loss(statistics: Any) -> jax.Array:
    """What a model wants to be trained for besides its predictions: the sum of all entries of that name.

    statistics: a tree of dicts, as `run` of a model returns it; an entry whose name ends in "auxiliary_loss" is a mean over the
    rows of the segment, and may be stacked over layers. Returns f32[]; 0 where there is none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(statistics)
    mine = [x.sum() for path, x in leaves if jax.tree_util.keystr(path[-1:], simple=True).endswith("auxiliary_loss")]
    return sum(mine, jnp.float32(0))
