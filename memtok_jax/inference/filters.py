"""How the next token is chosen from logits: options for each row, and the logits that they leave.

The steps, in this order; z are the logits of a row, r its repetition penalty:

| step | rule | source |
|---|---|---|
| repetition penalty | z_i / r where z_i > 0, else z_i r, for every id i seen in the row | CTRL, arXiv 1909.05858, section 4.1 |
| temperature | z_i / temperature; at 0 the largest z_i is taken and the steps below have no effect | |
| top-k | the k largest z_i stay; of equal ones the lower ids | arXiv 1805.04833, section 5.4 |
| top-p | of these the fewest, largest first, whose probability together is at least p | arXiv 1904.09751, section 3.1 |
| min-p | those stay whose probability is at least min_p times the largest one | arXiv 2407.01082, section 3 |

CTRL divides all logits of seen ids; a negative one would grow by it, so it is multiplied here, as in the public code of CTRL's
successors. What does not stay gets the logit -inf; what stays keeps its logit, so a softmax gives the probabilities of the rest.
The largest logit always stays. With every option off the logits come back bit for bit, whatever the neighbouring rows ask for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """How tokens are chosen. Each field is one number for all rows, or one for each row.

    temperature: at least 0; 0 takes the most likely token.
    top_k: at least 0; 0 is off.
    top_p: above 0 and at most 1; 1 is off.
    min_p: from 0 to 1; 0 is off.
    repetition_penalty: above 0; 1 is off, above 1 makes repetitions less likely.
    repetition_window: ids among the row's last tokens, this many, count as seen; 0: all tokens of the stream.

    In compiled functions every field is an array [B]: i32 for top_k and repetition_window, f32 for the others.
    """

    temperature: Any = 1.0
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    repetition_penalty: Any = 1.0
    repetition_window: Any = 0


DTYPES = Sampling(jnp.float32, jnp.int32, jnp.float32, jnp.float32, jnp.float32, jnp.int32)
COLDEST = 1e-6   # a smaller temperature counts as this one: logits over it stay finite


def of_temperature(temperature_B: jax.Array) -> Sampling:
    """Options with nothing but a temperature, f32[B]."""
    off = (jnp.full(temperature_B.shape, value, dtype) for value, dtype in zip(Sampling()[1:], DTYPES[1:], strict=True))
    return Sampling(temperature_B, *off)


def final_logits(logits_BV: jax.Array, seen_BV: jax.Array, t: jax.Array, options: Sampling) -> jax.Array:
    """The logits whose softmax a token is drawn from; at temperature 0 those whose largest is taken.

    seen_BV: i32[B, V], the number of tokens up to and including the last place of each id in its stream, 0 for an id that is not
    there. t: i32[B], tokens of the stream.
    """
    asks = options.repetition_penalty != 1
    logits = jax.lax.cond(asks.any(), penalize, lambda z, *_: z, logits_BV, seen_BV, t, options)
    warm = options.temperature > 0
    divisor = jnp.where(warm, jnp.maximum(options.temperature, COLDEST), 1.0)
    scaled = logits / divisor.astype(logits.dtype)[:, None]
    cuts = warm & ((options.top_k > 0) | (options.top_p < 1) | (options.min_p > 0))
    return jax.lax.cond(cuts.any(), cut, lambda z, _: z, scaled, options)


def penalize(logits_BV: jax.Array, seen_BV: jax.Array, t: jax.Array, options: Sampling) -> jax.Array:
    """The repetition penalty."""
    r, window = options.repetition_penalty.astype(logits_BV.dtype)[:, None], options.repetition_window[:, None]
    oldest = jnp.where(window > 0, jnp.maximum(t[:, None] - window, 0), 0)
    return jnp.where(seen_BV > oldest, jnp.where(logits_BV > 0, logits_BV / r, logits_BV * r), logits_BV)


def cut(logits_BV: jax.Array, options: Sampling) -> jax.Array:
    """Top-k, top-p and min-p."""
    order = jnp.argsort(logits_BV, axis=-1, descending=True, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order, axis=-1)
    rank = jnp.arange(logits_BV.shape[-1])[None]
    stays = (rank < options.top_k[:, None]) | (options.top_k[:, None] <= 0)
    # Weights relative to the largest, so that none overflows; only their ratios matter.
    weight = jnp.where(stays, jnp.exp(sorted_BV - sorted_BV[:, :1]), 0.0)
    before = weight.cumsum(-1) - weight
    p = options.top_p[:, None].astype(weight.dtype)
    stays &= (before < p * weight.sum(-1, keepdims=True)) | (p >= 1) | (rank == 0)
    stays &= (weight >= options.min_p[:, None].astype(weight.dtype)) | (rank == 0)
    back = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(stays, back, axis=-1), logits_BV, -jnp.inf)
