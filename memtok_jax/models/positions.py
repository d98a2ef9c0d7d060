"""Positions of attention: rotary, relative with one score by content and one by distance, and linear biases (ALiBi).

Rotary (RoFormer, arXiv 2104.09864): pairs of features are turned by position times frequency. Positions count in a local frame,
from the oldest key at hand, so that angles stay exact after millions of tokens.

Relative (Transformer-XL, arXiv 1901.02860, section 3.3):

    score_ij = (q_i + u) . k_j + (q_i + v) . r_(i - j)
    r_p = R_p W_r,  R_p = [sin(p f) ; cos(p f)],  f_n = 10000^(-2n/D)       sines first, then cosines

| symbol | name here |
|---|---|
| W_{k,R} | `w` [D, H, K] |
| u, v    | `content`, `distance` [H, K] |
| R       | `sinusoids` |

Sines are odd and cosines even in p, so distances are signed: a key behind its query is told from one in front of it.

ALiBi (Press et al., arXiv 2108.12409): each head h takes m_h times the distance from its scores.

Far from the start of a stream a float32 angle is wrong: at token 4,000,000 its cosine is off by 0.15. `looked_up` therefore
composes a rotation from those of the digits of the position, which are computed on the host in float64: it is as exact at two
thousand million tokens as at two.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P
from memtok_jax.models import layers
from memtok_jax.models.rotary import PLAIN, RotaryConfig, frequencies
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import dense, lift, spread, wide

RELATIVE_BASE = 10000.0


class Places(NamedTuple):
    """Where queries and keys stand, counted in one frame; leaves broadcast against the leading axes of q and k."""

    query: jax.Array  # i32[..., T]
    key: jax.Array    # i32[..., S]


def last(tokens: int, columns: int) -> Places:
    """The queries are the last T of S columns."""
    return Places(columns - tokens + jnp.arange(tokens), jnp.arange(columns))


# ----------------------------------------------------------------------------------------------------------------- rotary

def rotate(x: jax.Array, position: jax.Array, base: float, rotary: RotaryConfig = PLAIN) -> jax.Array:
    """x[..., S, H, K] turned by position[..., S] (broadcast); computed in float32, returned in x's dtype."""
    half = x.shape[-1] // 2
    angle = position[..., None].astype(wide(x))
    if rotary == PLAIN:
        frequency = jnp.asarray(base, angle.dtype) ** (-jnp.arange(half, dtype=angle.dtype) / half)
    else:
        frequency = jnp.asarray(frequencies(rotary, base, x.shape[-1]), angle.dtype)
    angle = angle * lift(frequency, angle)
    cos, sin = (lift(f(angle)[..., None, :], x) for f in (jnp.cos, jnp.sin))
    return turn(x, *_magnified(cos, sin, rotary))


def _magnified(cos: jax.Array, sin: jax.Array, rotary: RotaryConfig) -> tuple[jax.Array, jax.Array]:
    return (cos, sin) if rotary.magnitude == 1 else (cos * rotary.magnitude, sin * rotary.magnitude)


FAR = 2 ** 31  # positions are i32, from 0


def looked_up(position: jax.Array, frequency: np.ndarray, dtype, below: int = FAR) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [..., F] of position i32[...] times frequency f64[F], right to the last digits of dtype.

    below: a bound of the positions, which are at least 0. Up to 2,048 there is one table, looked up once; beyond, one for each
    digit to the base 256, whose rotations are multiplied.
    """
    base = below if below <= 2048 else 256
    cos = sin = None
    unit = 1
    while unit < below:
        angle = np.arange(min(base, -(-below // unit)))[:, None] * float(unit) * frequency
        c, s = (jnp.asarray(f(angle), dtype)[position // unit % base] for f in (np.cos, np.sin))
        cos, sin = (c, s) if cos is None else (cos * c - sin * s, sin * c + cos * s)
        unit *= base
    return cos, sin


def rotate_at(x: jax.Array, position: jax.Array, base: float, rotary: RotaryConfig = PLAIN, below: int = FAR) -> jax.Array:
    """`rotate` for positions of rows of their own, from 0 and below a bound: by tables, without a cosine to compute, and exact at
    millions of tokens."""
    half = x.shape[-1] // 2
    frequency = base ** (-np.arange(half) / half) if rotary == PLAIN else frequencies(rotary, base, x.shape[-1])
    cos, sin = _magnified(*looked_up(position, frequency, wide(x), max(below, 2)), rotary)
    return turn(x, cos[..., None, :], sin[..., None, :])


def turn(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The pairs (x[n], x[n + d/2]) of x[..., K] turned by angles with these cosines and sines [..., d/2]; features
    from d on stay."""
    half = cos.shape[-1]
    a, c = x[..., :half].astype(cos.dtype), x[..., half:2 * half].astype(cos.dtype)
    turned = jnp.concatenate([a * cos - c * sin, c * cos + a * sin], axis=-1).astype(x.dtype)
    return turned if 2 * half == x.shape[-1] else jnp.concatenate([turned, x[..., 2 * half:]], axis=-1)


# --------------------------------------------------------------------------------------------------------------- relative

def specs(b: Backbone) -> dict:
    """`w`, and the two biases unless all layers share them."""
    w = {"w": P.ParamSpec((b.width, b.heads, b.head_dim), ("embed", "heads", None), layers.weight_init(b))}
    return w if b.style.shared_position else w | bias_specs(b)


def bias_specs(b: Backbone) -> dict:
    """`content` and `distance` [H, K], which every query adds to itself."""
    bias = lambda std: P.ParamSpec((b.heads, b.head_dim), ("heads", None), P.normal(std), decayed=False)
    return {"content": bias(b.style.std), "distance": bias(b.style.distance_std or b.style.std)}


def sinusoids(distance: jax.Array, width: int, clamp: int, dtype) -> jax.Array:
    """R at any distances [...] -> [..., D]. clamp: farther distances count as this one; 0 clamps nothing."""
    distance = jnp.clip(distance, -clamp, clamp) if clamp else distance
    angle = distance[..., None].astype(dtype)
    angle = angle * lift(jnp.asarray(RELATIVE_BASE, dtype) ** (-jnp.arange(0, width, 2, dtype=dtype) / width), angle)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def with_bias(q: jax.Array, bias: jax.Array) -> jax.Array:
    """q[..., H, K] + bias[H, K] in q's dtype."""
    return q + spread(bias, q).astype(q.dtype)


def _by_distance(params, q: jax.Array, distance: jax.Array, b: Backbone) -> jax.Array:
    """(q_i + v) . r_p for the distances p[P] of a table: q[..., T, H, K] -> [..., H, T, P], in float32.

    q has its distance bias already.
    """
    r = dense(sinusoids(distance, b.width, b.style.clamp, wide(q)).astype(q.dtype), {"w": params["w"]}, b.dtype)
    return jnp.einsum("...thk,phk->...htp", q, r, preferred_element_type=wide(q))


def scores_of_last(params, q: jax.Array, columns: int, ahead: bool, b: Backbone) -> jax.Array:
    """Scores by distance of queries that are the last T of S columns: [..., H, T, S].

    ahead: whether keys behind a query count too; without, their scores have no meaning and must be hidden.
    """
    tokens = q.shape[-3]
    nearest = 1 - tokens if ahead else 0
    by_distance = _by_distance(params, q, jnp.arange(columns - 1, nearest - 1, -1), b)
    return shift_ahead(by_distance, columns) if ahead else shift(by_distance)


def scores_at(params, q: jax.Array, places: Places, b: Backbone) -> jax.Array:
    """Scores by distance for any places [B, T] and [B, S], less than S + T apart: [B, H, T, S]."""
    reach = places.query.shape[-1] + places.key.shape[-1]
    by_distance = _by_distance(params, q, jnp.arange(1 - reach, reach), b)
    index = places.query[..., :, None] - places.key[..., None, :] + reach - 1
    index = jnp.broadcast_to(index[:, None], (*by_distance.shape[:-1], index.shape[-1]))
    return jnp.take_along_axis(by_distance, index, axis=-1)


def scores_far(params, q: jax.Array, distance: jax.Array, b: Backbone) -> jax.Array:
    """Scores by distance for any distances i32[..., T, S] from 0, however large: [..., H, T, S]. For a few columns: every pair gets
    a vector of D sinusoids.

    q[..., T, H, K] has its distance bias already.
    """
    distance = jnp.minimum(distance, b.style.clamp) if b.style.clamp else distance
    cos, sin = looked_up(distance, RELATIVE_BASE ** (-np.arange(0, b.width, 2) / b.width), wide(q))
    turned = jnp.einsum("...thk,dhk->...htd", q, params["w"].astype(q.dtype), preferred_element_type=wide(q))
    return jnp.einsum("...htd,...tsd->...hts", turned, jnp.concatenate([sin, cos], axis=-1))


def shift(scores: jax.Array) -> jax.Array:
    """Row i of [..., T, S], ordered by distance S-1 ... 0, shifted left by T-1-i: entry (i, j) then holds the distance of query i
    to column j (appendix B of the paper). Entries of columns behind the query have no meaning."""
    *lead, t, s = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(lead) + 1) + [(1, 0)])
    return padded.reshape(*lead, s + 1, t)[..., 1:, :].reshape(scores.shape)


def shift_ahead(scores: jax.Array, columns: int) -> jax.Array:
    """The same for a table [..., T, S+T-1] ordered by distance S-1 ... 1-T: every entry (i, j) of [..., T, S] has its distance."""
    *lead, t, _ = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(lead) + 1) + [(0, 1)])
    flat = padded.reshape(*lead, t * (columns + t))[..., t - 1:t - 1 + t * (columns + t - 1)]
    return flat.reshape(*lead, t, columns + t - 1)[..., :columns]


# ------------------------------------------------------------------------------------------------------------------ ALiBi

def slopes(heads: int) -> np.ndarray:
    """m_h for n heads: 2^(-8/n), 2^(-16/n), ...; if n is no power of two, those of the power p below it, then every other of 2p."""
    power = 1 << (heads.bit_length() - 1)
    ladder = lambda n: 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
    return np.concatenate([ladder(power), ladder(2 * power)[::2]])[:heads]


def linear_bias(places: Places, b: Backbone, dtype) -> jax.Array:
    """-m_h |i - j| for all pairs, times sqrt(K), because `attend` scales its bias together with the scores: [..., H, T, S]."""
    distance = jnp.abs(places.query[..., :, None] - places.key[..., None, :]).astype(dtype)
    chosen = np.array(b.style.slopes) if b.style.slopes else slopes(b.heads)
    slope = jnp.asarray(-chosen * b.head_dim ** 0.5, dtype)
    return distance[..., None, :, :] * slope.reshape((1,) * (distance.ndim - 2) + (-1, 1, 1))
