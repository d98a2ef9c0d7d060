"""Where attention goes: to registers, or to a few patches that serve as sinks.

Letters: A[B, H, T, T] attention of one layer after the softmax, queries before keys; counts: how many tokens of each kind there
are (`models/vision/output.py`). The rate of sinks follows Gu et al. (arXiv 2410.10781), who fix the
key to the first token of a text (`sink_rate`); in an image its place varies, so the largest over all patches is taken.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax.models.vision.output import Counts, split

SINK_SHARE = 0.3          # epsilon of Gu et al.
SINK_RATIO = 10.0         # the other epsilon: so many times the uniform share


def received(attention_BHTT: jax.Array, counts: Counts, queries: str = "all") -> jax.Array:
    """Attention that each key receives, as a mean over queries: [B, H, T]; its sum over keys is 1.

    queries: "all", or the name of the tokens that ask ("patches", "cls", ...).
    """
    known = {"all": attention_BHTT, **{name: rows for name, rows in split(attention_BHTT, counts, 2).items() if rows.shape[2]}}
    if queries not in known:
        raise ValueError(f"queries={queries!r}: the model has no such tokens, only {', '.join(known)}")
    return known[queries].astype(jnp.float32).mean(2)


def mass(attention_BHTT: jax.Array, counts: Counts, keys: str = "registers", queries: str = "all") -> jax.Array:
    """Attention on each token called `keys`, as a mean over heads and queries: [B, M]. Its sum is the mass on all of them."""
    return split(received(attention_BHTT, counts, queries).mean(1), counts)[keys]


def uniform_share(counts: Counts, keys: str = "registers") -> float:
    """The mass on all tokens called `keys` if attention were uniform: M / T."""
    return getattr(counts, keys) / sum(counts)


def largest_patch_share(attention_BHTT: jax.Array, counts: Counts) -> jax.Array:
    """Attention received by the patch that receives most: [B, H]."""
    return split(received(attention_BHTT, counts), counts, 2)["patches"].max(-1)


def sink_rates(largest_BH: jax.Array, tokens: int) -> dict[str, float]:
    """Share of images and heads with a sink, for both thresholds, and how many times its uniform share the top patch gets.

    largest: from `largest_patch_share`. tokens: T.
    """
    return {"sink_rate_0.3": float((largest_BH > SINK_SHARE).mean()),
            "sink_rate_10_over_T": float((largest_BH > SINK_RATIO / tokens).mean()),
            "most_attended_over_uniform": float(tokens * largest_BH.mean())}


def sink_rate(attention_LHTT: jax.Array, eps: float = SINK_SHARE, key: int = 0) -> float:
    """Share of layers and heads in which a text's token `key` is a sink, from 0 to 1 (Gu et al., section 3).

    attention: after the softmax, queries before keys, of one text of T tokens (they take T = 64). A head has a sink at a token that
    receives more than eps, as a mean over all queries that see it: alpha_k = mean over i >= k of A[i, k].
    """
    received_LH = jnp.asarray(attention_LHTT)[..., key:, key].astype(jnp.float32).mean(-1)
    return float((received_LH > eps).mean())
