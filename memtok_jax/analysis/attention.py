"""Where attention goes: to registers, or to a few patches that serve as sinks.

Letters: A[B, H, T, T] attention of one layer after the softmax, queries before keys; counts: number of tokens of each kind
(`models/vision/output.py`). The rate of sinks follows Gu et al. (arXiv 2410.10781). They fix the key to the first token of a text
(`sink_rate`); in an image the place of a sink varies, so `sink_rates` takes the patch that receives most.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from memtok_jax.models.vision.output import Counts, split

SINK_SHARE = 0.3          # epsilon of Gu et al.
SINK_RATIO = 10.0         # the second threshold: this many times the uniform share


def received(attention_BHTT: jax.Array, counts: Counts, queries: str = "all") -> jax.Array:
    """Attention that each key receives, as a mean over queries: f32[B, H, T].

    Its sum over keys is 1, or less with an alternative that has an extra column (`models/vision/attention.py`).
    queries: "all", or the name of the tokens that ask ("patches", "cls", ...). Raises ValueError if the model has no such tokens.
    """
    known = {"all": attention_BHTT, **{name: rows for name, rows in split(attention_BHTT, counts, 2).items() if rows.shape[2]}}
    if queries not in known:
        raise ValueError(f"queries={queries!r}: the model has no such tokens, only {', '.join(known)}")
    return known[queries].astype(jnp.float32).mean(2)


def mass(attention_BHTT: jax.Array, counts: Counts, keys: str = "registers", queries: str = "all") -> jax.Array:
    """Attention on each token of the kind `keys`, as a mean over heads and queries: f32[B, M]. Its sum is the mass on the kind."""
    return split(received(attention_BHTT, counts, queries).mean(1), counts)[keys]


def uniform_share(counts: Counts, keys: str = "registers") -> float:
    """The mass on all tokens of the kind `keys` if attention were uniform: M / T."""
    return getattr(counts, keys) / sum(counts)


def largest_patch_share(attention_BHTT: jax.Array, counts: Counts) -> jax.Array:
    """Attention received by the patch that receives most: f32[B, H]."""
    return split(received(attention_BHTT, counts), counts, 2)["patches"].max(-1)


def sink_rates(largest_BH: jax.Array, tokens: int) -> dict[str, float]:
    """Share of (image, head) pairs with a sink, for both thresholds, and attention on the top patch over its uniform share.

    largest: f32[B, H], from `largest_patch_share`. tokens: T.
    """
    return {"sink_rate_0.3": float((largest_BH > SINK_SHARE).mean()),
            "sink_rate_10_over_T": float((largest_BH > SINK_RATIO / tokens).mean()),
            "most_attended_over_uniform": float(tokens * largest_BH.mean())}


def sink_rate(attention_LHTT: jax.Array, eps: float = SINK_SHARE, key: int = 0) -> float:
    """Share of layers and heads in which a text's token `key` is a sink, from 0 to 1 (Gu et al., section 3).

    attention: f[L, H, T, T] after the softmax, queries before keys, of one text of T tokens (they take T = 64). Token k is a sink
    of a head if it receives more than eps, as a mean over all queries that see it: alpha_k = mean over i >= k of A[i, k].
    """
    received_LH = jnp.asarray(attention_LHTT)[..., key:, key].astype(jnp.float32).mean(-1)
    return float((received_LH > eps).mean())
