"""A cache whose oldest rows are not dropped but compressed: the memory of one layer of the Compressive Transformer.

Compressive Transformers for Long-Range Sequence Modelling (Rae et al., arXiv 1911.05507), section 3, algorithms 1 and 2:

    old  = the oldest rows that leave m                          n_s rows in the paper
    new  = f_c(old)                                              one slot for c rows
    m    = the last n_m rows of [m ; h]
    cm   = the last n_cm slots of [cm ; new]                     attention sees [cm ; m ; h]
    loss = | attn(h, old) - attn(h, new) |^2                     attention reconstruction, algorithm 2
    loss = | old - g(new) |^2                                    auto-encoding

| symbol | name here | where in the paper |
|---|---|---|
| h, m, cm   | x, `recent`, `compressed` | section 3.1 |
| n_m, n_cm  | `length`, `compressed` | section 3.1 |
| c, f_c     | `rate`, `compression` | section 3.1, the five functions of section 3.1.1 and table 5 |
| attn       | `attend`, a function that the layer passes | algorithm 2 |
| n_s        | `block`, rows that are compressed together | section 3.1 |

Gradients: the loss of the language model enters neither m nor cm nor f_c (`objective="bptt"` opens the way to f_c); the
two losses above reach f_c (and g) alone, because the rows are stopped here and `attend` comes with stopped weights.

Differs from the Transformer-XL cache in what happens to leaving rows; with no compressed slots it is that cache. Differs from
the paper in that memories start empty and hidden instead of zero, and in that the result does not depend on how a
stream is cut into calls: rows leave m in whole blocks. Fewer than a block wait beside m, uncompressed and visible; where
each call is a multiple of the block, as in the paper, none ever waits.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import xl
from memtok_jax.memory.xl import XlState
from memtok_jax.numerics import matmul, spread, wide

COMPRESSIONS = ("mean", "max", "conv", "most_used", "dilated")
OBJECTIVES = ("attention", "autoencoding", "bptt", "none")
DILATIONS = (1, 2)  # of the two convolutions before the strided one; the paper does not name its own


@dataclass(frozen=True)
class CompressiveConfig:
    """length: n_m, rows kept as they are. compressed: n_cm, slots of compressed rows; 0 is the Transformer-XL cache.
    rate: c, rows in one slot. compression: "mean", "max", "conv" (kernel and stride c), "most_used" (the rows with most
        attention), "dilated" (two dilated convolutions before the strided one).
    objective: what teaches the compression: "attention" (reconstruction), "autoencoding", "bptt" (the model's own loss),
        "none".
    block: rows compressed together, a multiple of the rate; 0 is the rate itself. Only "most_used" and "dilated" look
        beyond c rows; the paper's block is the segment.
    width, dtype: filled in by the model. aligned: promise that every call is a multiple of the block and has no padding, so
        that no row ever waits; see `for_training`.
    """

    length: int
    compressed: int
    rate: int
    compression: str = "conv"
    objective: str = "attention"
    block: int = 0
    width: int = 0
    dtype: str = "float32"
    aligned: bool = False

    def __post_init__(self):
        for name, value, known in (("compression", self.compression, COMPRESSIONS), ("objective", self.objective, OBJECTIVES)):
            if value not in known:
                near = difflib.get_close_matches(value, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"memory.{name}={value!r} must be one of {', '.join(map(repr, known))}{hint}")
        for name, value, least in (("length", self.length, 0), ("compressed", self.compressed, 0), ("rate", self.rate, 1),
                                   ("block", self.block, 0)):
            if value < least:
                raise ValueError(f"memory.{name}={value} must be at least {least}")
        if self.block % self.rate:
            raise ValueError(f"memory.block={self.block} is not a multiple of memory.rate={self.rate}")
        if self.length % self.unit:
            raise ValueError(f"memory.length={self.length} is not a multiple of the {self.unit} rows compressed together")

    @property
    def unit(self) -> int:
        """Rows that leave together."""
        return self.block or self.rate

    @property
    def waiting(self) -> int:
        """The most rows that may wait for their block to fill."""
        return self.unit - 1 if self.compressed else 0

    @property
    def slots(self) -> int:
        """Rows that a full memory shows when none waits."""
        return self.compressed + self.length


class CompressiveState(NamedTuple):
    """Two queues; leaves as in `XlState`."""

    recent: XlState      # [B, n_m + waiting, D] the newest rows as they are
    compressed: XlState  # [B, n_cm, D]


def specs(cfg: CompressiveConfig) -> dict:
    """Weights of the compression and, for auto-encoding, of the decoder g: one linear map from a slot to c rows."""
    d, c = cfg.width, cfg.rate
    own = cfg.objective in ("attention", "autoencoding")
    kernel = lambda size, out: P.ParamSpec((size * d, out), ("embed", None), P.fan_in(0), auxiliary=own)
    bias = lambda size: P.ParamSpec((size,), (None,), P.zeros, decayed=False, auxiliary=own)
    out = {}
    if cfg.compressed and cfg.compression in ("conv", "dilated"):
        out |= {"kernel": kernel(c, d), "bias": bias(d)}
    if cfg.compressed and cfg.compression == "dilated":
        out["dilated"] = [{"kernel": kernel(3, d), "bias": bias(d)} for _ in DILATIONS]
    if cfg.compressed and cfg.objective == "autoencoding":
        out["decoder"] = {"kernel": kernel(1, c * d), "bias": bias(c * d)}
    return out


def state_specs(cfg: CompressiveConfig, batch: int) -> CompressiveState:
    """n_m rows, those that wait, and n_cm slots for each stream."""
    queue = lambda n: xl.state_specs(xl.XlConfig(n, cfg.width, cfg.dtype), batch)
    return CompressiveState(queue(cfg.length + cfg.waiting), queue(cfg.compressed))


def init_state(params, cfg: CompressiveConfig, batch: int) -> CompressiveState:
    """Two empty queues."""
    return P.zero_state(state_specs(cfg, batch))


def for_training(cfg: CompressiveConfig, tokens: int) -> CompressiveConfig:
    """The same memory with `aligned` promised, for calls of `tokens` tokens without padding.

    Raises ValueError naming both numbers where `tokens` is not a multiple of the rows compressed together.
    """
    if cfg.compressed and tokens % cfg.unit:
        raise ValueError(f"a training segment of {tokens} tokens is not a multiple of the {cfg.unit} rows that "
                         "model.memory compresses together")
    return replace(cfg, aligned=True)


# ------------------------------------------------------------------------------------------------------------------ read

def read(params, state: CompressiveState, cfg: CompressiveConfig) -> tuple[jax.Array, jax.Array]:
    """[cm ; m] with the real rows side by side at the end: (rows [B, S, D], bool[B, S] which of them are real).

    A compressed slot counts as one position, so no empty column may stand between the two queues.
    """
    recent, compressed = state
    if cfg.aligned:  # compressed slots exist only once m is full
        recent = XlState(recent.rows[:, cfg.waiting:], recent.count)
        return (jnp.concatenate([compressed.rows, recent.rows], axis=1),
                jnp.concatenate([xl.real(compressed), xl.real(recent)], axis=1))
    n, size = cfg.compressed, recent.rows.shape[1]
    column, gap = jnp.arange(n + size)[None], (size - recent.count)[:, None]
    source = jnp.where(column >= n + gap, column, column - gap)
    rows = P.take_rows(jnp.concatenate([compressed.rows, recent.rows], axis=1), jnp.maximum(source, 0))
    return rows, column >= n + size - (compressed.count + recent.count)[:, None]


# ----------------------------------------------------------------------------------------------------------------- write

class Evicted(NamedTuple):
    """Rows that leave m in one call; whole blocks, the first of them real."""

    rows: jax.Array    # [B, E, D] oldest first, no gradient
    usage: jax.Array   # [B, E] attention that each row received
    count: jax.Array   # i32[B] rows that really leave, a multiple of the block


def evict(state: XlState, x: jax.Array, usage: jax.Array, cfg: CompressiveConfig, length: jax.Array) -> Evicted:
    """The rows that leave m when x[B, T, D] comes in. usage: [B, rows of m + T], for each row of [m ; x]."""
    size, tokens = state.rows.shape[1], x.shape[1]
    most = (tokens + cfg.waiting) // cfg.unit * cfg.unit
    stream = jnp.concatenate([state.rows, x.astype(state.rows.dtype)], axis=1)
    place = (size - state.count)[:, None] + jnp.arange(most)[None]
    place = jnp.minimum(place, size + tokens - 1)
    count = jnp.maximum(state.count + length - cfg.length, 0) // cfg.unit * cfg.unit
    return Evicted(jax.lax.stop_gradient(P.take_rows(stream, place)), P.take_rows(usage, place), count)


def compress(params, old: Evicted, cfg: CompressiveConfig) -> jax.Array:
    """f_c: rows [B, E, D] -> slots [B, E/c, D], block by block."""
    batch, total, width = old.rows.shape
    blocks = old.rows.reshape(batch, -1, cfg.unit, width)
    groups = old.rows.reshape(batch, -1, cfg.rate, width)
    if cfg.compression == "mean":
        new = groups.astype(wide(groups)).mean(2)
    elif cfg.compression == "max":
        new = groups.max(2)
    elif cfg.compression == "most_used":
        new = _most_used(blocks, old.usage.reshape(batch, -1, cfg.unit), cfg.unit // cfg.rate)
    else:
        if cfg.compression == "dilated":
            blocks = _dilated(params["dilated"], blocks, cfg)
        flat = blocks.reshape(batch, total // cfg.rate, cfg.rate * width)
        new = _linear(params, flat, cfg)
    return new.reshape(batch, total // cfg.rate, width).astype(old.rows.dtype)


def _linear(params, x: jax.Array, cfg: CompressiveConfig) -> jax.Array:
    y = matmul(x, params["kernel"], cfg.dtype)
    return y + spread(params["bias"], y)


def _most_used(blocks: jax.Array, usage: jax.Array, keep: int) -> jax.Array:
    """The `keep` rows of each block [B, N, U, D] that received most attention, in the order of time; ties: the oldest."""
    chosen = jnp.sort(jnp.argsort(-usage, axis=-1, stable=True)[..., :keep], axis=-1)
    return jnp.take_along_axis(blocks, chosen[..., None], axis=2)


def _dilated(layers: list, blocks: jax.Array, cfg: CompressiveConfig) -> jax.Array:
    """x + relu(convolution of three rows at distance d), for each dilation d; zeros outside the block [B, N, U, D]."""
    for layer, d in zip(layers, DILATIONS, strict=True):
        padded = jnp.pad(blocks, ((0, 0), (0, 0), (d, d), (0, 0)))
        near = [padded[:, :, i * d:i * d + blocks.shape[2]] for i in range(3)]
        blocks = blocks + jax.nn.relu(_linear(layer, jnp.concatenate(near, axis=-1), cfg)).astype(blocks.dtype)
    return blocks


def update(params, state: CompressiveState, x: jax.Array, cfg: CompressiveConfig, length: jax.Array,
           usage: jax.Array | None = None, attend: Callable | None = None) -> tuple[CompressiveState, dict[str, jax.Array]]:
    """`write` with its loss.

    usage: [B, S+T], attention that each column of [`read` ; x] received, for "most_used"; left out, all the same.
    attend: (x [B, T, D], rows [B, E, D], bool[B, E]) -> [B, T, D'], the layer's attention by content with stopped weights, for the
    objective "attention"; left out, there is no such loss.
    Returns the state and {"auxiliary_loss": f32[]}, or {} where nothing is to be learnt.
    """
    x = jax.lax.stop_gradient(x)
    recent = xl.push(state.recent, x, length)
    if not cfg.compressed:
        return state._replace(recent=recent), {}
    columns = state.recent.rows.shape[1] + x.shape[1]
    if usage is None:
        usage = jnp.zeros((x.shape[0], columns), jnp.float32)
    else:  # aligned, `read` leaves the columns of waiting rows out
        usage = jnp.pad(usage, ((0, 0), (columns, 0)))[:, -columns:]
    old = evict(state.recent, x, jax.lax.stop_gradient(usage), cfg, length)
    new = compress(params, old, cfg)
    kept = new if cfg.objective == "bptt" else jax.lax.stop_gradient(new)
    after = CompressiveState(XlState(recent.rows, state.recent.count + length - old.count),
                             xl.push(state.compressed, kept, old.count // cfg.rate))
    return after, auxiliary_loss(params, old, new, x, length, attend, cfg)


def auxiliary_loss(params, old: Evicted, new: jax.Array, x: jax.Array, length: jax.Array, attend: Callable | None,
                   cfg: CompressiveConfig) -> dict[str, jax.Array]:
    """What the compression loses, as a mean over rows of the batch, real tokens and features; a row from which nothing
    leaves counts as zero."""
    mine = jnp.arange(old.rows.shape[1])[None] < old.count[:, None]
    slots = mine[:, ::cfg.rate]
    if cfg.objective == "autoencoding":
        decoded = _linear(params["decoder"], new, cfg).reshape(old.rows.shape)
        return {"auxiliary_loss": _mean_square(old.rows - decoded, mine)}
    if cfg.objective == "attention" and attend is not None:
        x = jax.lax.stop_gradient(x)
        tokens = (jnp.arange(x.shape[1])[None] < length[:, None]) & (old.count > 0)[:, None]
        return {"auxiliary_loss": _mean_square(attend(x, old.rows, mine) - attend(x, new, slots), tokens)}
    return {}


def _mean_square(error: jax.Array, real_BT: jax.Array) -> jax.Array:
    """Mean over the batch of the mean over real rows and features, in float32."""
    square = jnp.square(error.astype(wide(error))).mean(-1)
    return (jnp.where(real_BT, square, 0).sum(1) / jnp.maximum(real_BT.sum(1), 1)).mean()


def write(params, state: CompressiveState, x: jax.Array, cfg: CompressiveConfig, length: jax.Array | None = None):
    """Remember x[B, T, D], of which the first length[b] rows are real; what leaves m is compressed into cm."""
    return update(params, state, x, cfg, P.full_length(x) if length is None else length)[0]


def apply(params, state: CompressiveState, x: jax.Array, cfg: CompressiveConfig, length: jax.Array | None = None):
    """Read, then write: x[B, T, D] -> ([cm ; m ; x] [B, S+T, D], state); rows that are not real are zero."""
    rows, seen = read(params, state, cfg)
    rows = jnp.where(seen[..., None], rows, 0).astype(x.dtype)
    return jnp.concatenate([rows, x], axis=1), write(params, state, x, cfg, length)
