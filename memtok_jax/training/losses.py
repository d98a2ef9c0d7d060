"""Losses over the positions that are scored, as sums, so that parts of a batch can be added exactly.

A target is a class, i32[B, T], or, of a mixed image, shares of all classes, f32[B, T, n], which sum to one; with n below V the
last outputs have none. IGNORE, or shares that are all zero, are not scored.

    softmax   - sum_c target_c log softmax(logits)_c
    binary    - mean_c (t_c log sigmoid(logits_c) + (1 - t_c) log sigmoid(-logits_c)), t_c = 1 where target_c > 0 else 0: each class
              of a mixed image is there, not a part of it (DeiT III, arXiv 2204.07118, and its code)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

IGNORE = -100
LOSSES = ("softmax", "binary")


class Sums(NamedTuple):
    """Totals of a batch or of a part of it, each a float32 scalar; the first three over scored positions."""

    nats: jax.Array       # the loss: negative log-likelihood, or the binary loss
    correct: jax.Array    # positions where the target has the highest logit, of equal ones the first
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
    place, target = jnp.arange(logits.shape[-1])[None, None], targets_BT[..., None]
    picked = jnp.where(place == target, logits, 0.0).sum(-1)
    nats = jnp.where(scored, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0)
    # The same as logits.argmax(-1) == target, which needs a second pass over the vocabulary, with indices.
    first = (logits < picked[..., None]) | ((logits == picked[..., None]) & (place >= target))
    return nats, scored & first.all(-1), scored


def are_shares(targets: jax.Array) -> bool:
    """Whether targets are shares of classes rather than classes."""
    return jnp.issubdtype(targets.dtype, jnp.floating)


def is_scored(targets: jax.Array) -> jax.Array:
    """bool[B, T]."""
    return targets.sum(-1) > 0 if are_shares(targets) else targets != IGNORE


def keep(targets: jax.Array, kept: jax.Array) -> jax.Array:
    """The targets where `kept` (bool, of the leading axes) is True, not scored elsewhere."""
    kept = kept.reshape(kept.shape + (1,) * (targets.ndim - kept.ndim))
    return jnp.where(kept, targets, 0.0 if are_shares(targets) else IGNORE)


def share_scores(logits_BTV: jax.Array, shares_BTn: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`token_scores` for shares; correct is where the class of largest share has the highest logit."""
    logits, shares = logits_BTV.astype(jnp.float32), _padded(shares_BTn, logits_BTV)
    nats = -(shares * jax.nn.log_softmax(logits, axis=-1)).sum(-1)
    return nats, is_scored(shares) & (logits.argmax(-1) == shares.argmax(-1)), is_scored(shares)


def binary_scores(logits_BTV: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The binary loss of every position f32[B, T] (0 where not scored), then as `token_scores`."""
    logits, scored = logits_BTV.astype(jnp.float32), is_scored(targets)
    shares = targets if are_shares(targets) else jax.nn.one_hot(targets, logits.shape[-1])
    shares = _padded(shares, logits)
    there = jnp.where(shares > 0, logits, -logits)
    correct = logits.argmax(-1) == shares.argmax(-1)
    return jnp.where(scored, -jax.nn.log_sigmoid(there).mean(-1), 0.0), scored & correct, scored


def _padded(shares: jax.Array, logits: jax.Array) -> jax.Array:
    return jnp.pad(shares, [(0, 0)] * (shares.ndim - 1) + [(0, logits.shape[-1] - shares.shape[-1])])


def totals(logits_BTV: jax.Array, targets: jax.Array, loss: str = "softmax") -> Sums:
    """Totals over the batch of one of LOSSES, without a loss of the model's own."""
    of_classes = share_scores if are_shares(targets) else token_scores
    nats, correct, scored = (binary_scores if loss == "binary" else of_classes)(logits_BTV, targets)
    return Sums(nats.sum(), correct.sum(dtype=jnp.float32), scored.sum(dtype=jnp.float32), jnp.float32(0))


def auxiliary_loss(statistics: Any) -> jax.Array:
    """What a model wants to be trained for besides its predictions: the sum of all entries of that name.

    statistics: a tree of dicts, as `run` of a model returns it; an entry whose name ends in "auxiliary_loss" is a mean over the
    rows of the segment, and may be stacked over layers. Returns f32[]; 0 where there is none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(statistics)
    mine = [x.sum() for path, x in leaves if jax.tree_util.keystr(path[-1:], simple=True).endswith("auxiliary_loss")]
    return sum(mine, jnp.float32(0))
