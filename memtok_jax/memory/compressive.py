"""A cache whose oldest vectors are not dropped but compressed: the memory of one layer of the Compressive Transformer.

Compressive Transformers for Long-Range Sequence Modelling (Rae et al., arXiv 1911.05507), section 3, algorithms 1 and 2:

    old  = the oldest vectors that leave m                       n_s vectors in the paper
    new  = f_c(old)                                              one slot for c vectors
    m    = the last n_m vectors of [m ; h]
    cm   = the last n_cm slots of [cm ; new]                     attention sees [cm ; m ; h]
    loss = | attn(h, old) - attn(h, new) |^2                     attention reconstruction, algorithm 2
    loss = | old - g(new) |^2                                    auto-encoding

| symbol | name here | where in the paper |
|---|---|---|
| h, m, cm   | x, `recent`, `compressed` | section 3.1 |
| n_m, n_cm  | `length`, `compressed` | section 3.1 |
| c, f_c     | `rate`, `compression` | section 3.1, the five functions of section 3.1.1 and table 5 |
| attn       | `attend`, a function that the layer passes | algorithm 2 |
| n_s        | `block`, vectors that are compressed together | section 3.1 |

Vectors are layer inputs, one for each token, as in `xl.py`.

Gradients: the loss of the language model enters neither m nor cm nor f_c, except f_c under `objective="bptt"`. The two losses
above reach f_c (and g) alone, because the vectors are stopped here and `attend` comes with stopped weights.

This memory differs from the Transformer-XL cache in what happens to the vectors that leave; without compressed slots it is that
cache. It differs from the paper in two points. Memories start empty and hidden instead of zero. And the result does not depend on
how a stream is cut into calls, because vectors leave m in whole blocks: up to a block less one vector waits beside m, uncompressed
and visible. If each call is a multiple of the block, as in the paper, no vector ever waits; a call promises this with `whole`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.memory import xl
from memtok_jax.memory.xl import XlState
from memtok_jax.numerics import DTYPES, matmul, spread, wide

COMPRESSIONS = ("mean", "max", "conv", "most_used", "dilated")
OBJECTIVES = ("attention", "autoencoding", "bptt", "none")
DILATIONS = (1, 2)  # of the two convolutions before the strided one; the paper does not name any


@dataclass(frozen=True)
class CompressiveConfig:
    """Options of the compressive memory.

    length: n_m, vectors that are kept without compression.
    compressed: n_cm, slots of compressed vectors; 0 is the Transformer-XL cache.
    rate: c, vectors in one slot.
    compression: "mean", "max", "conv" (kernel and stride c), "most_used" (the vectors with most attention) or "dilated" (two
        dilated convolutions before the strided one).
    objective: what teaches the compression: "attention" (reconstruction), "autoencoding", "bptt" (the loss of the model) or
        "none".
    block: vectors that are compressed together, a multiple of the rate; 0 takes the rate. Only "most_used" and "dilated" look
        beyond c vectors. The paper's block is the segment.
    width: D, features of a token; 0 inside a model, which fills it in.
    dtype: of the vectors, that of the model's activations.
    """

    length: int = field(metadata={"evaluation": True})
    compressed: int
    rate: int
    compression: str = "conv"
    objective: str = "attention"
    block: int = 0
    width: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers("memory", self, at_least={"length": 0, "compressed": 0, "rate": 1, "block": 0, "width": 0})
        choose("memory.compression", self.compression, COMPRESSIONS)
        choose("memory.objective", self.objective, OBJECTIVES)
        choose("memory.dtype", self.dtype, DTYPES)
        if self.block % self.rate:
            raise UserError(f"memory.block={self.block} is not a multiple of memory.rate={self.rate}")
        if self.length % self.together:
            raise UserError(f"memory.length={self.length} is not a multiple of the {self.together} vectors compressed together")

    @property
    def together(self) -> int:
        """Vectors that leave m together."""
        return self.block or self.rate

    @property
    def unit(self) -> int:
        """A whole call has a multiple of this many tokens: the vectors compressed together, 1 without compression."""
        return self.together if self.compressed else 1

    @property
    def waiting(self) -> int:
        """The most vectors that may wait for their block to fill."""
        return self.unit - 1

    @property
    def slots(self) -> int:
        """Vectors that a full memory shows if none waits."""
        return self.compressed + self.length


class CompressiveState(NamedTuple):
    """Two queues of vectors."""

    recent: XlState      # [B, n_m + waiting, D] the newest vectors, not compressed
    compressed: XlState  # [B, n_cm, D]


def specs(cfg: CompressiveConfig) -> dict:
    """Weights of the compression and, for auto-encoding, of the decoder g: one linear map from a slot to c vectors."""
    checks.check_width(cfg.width)
    d, c = cfg.width, cfg.rate
    auxiliary = cfg.objective in ("attention", "autoencoding")
    kernel = lambda size, out: P.ParamSpec((size * d, out), ("embed", None), P.fan_in(0), auxiliary=auxiliary)
    bias = lambda size: P.ParamSpec((size,), (None,), P.zeros, decayed=False, auxiliary=auxiliary)
    out = {}
    if cfg.compressed and cfg.compression in ("conv", "dilated"):
        out |= {"kernel": kernel(c, d), "bias": bias(d)}
    if cfg.compressed and cfg.compression == "dilated":
        out["dilated"] = [{"kernel": kernel(3, d), "bias": bias(d)} for _ in DILATIONS]
    if cfg.compressed and cfg.objective == "autoencoding":
        out["decoder"] = {"kernel": kernel(1, c * d), "bias": bias(c * d)}
    return out


def state_specs(cfg: CompressiveConfig, batch: int) -> CompressiveState:
    """For each stream: n_m vectors with room for those that wait, and n_cm slots."""
    queue = lambda n: xl.state_specs(xl.XlConfig(n, cfg.width, cfg.dtype), batch)
    return CompressiveState(queue(cfg.length + cfg.waiting), queue(cfg.compressed))


def init_state(params, cfg: CompressiveConfig, batch: int) -> CompressiveState:
    """Two empty queues."""
    return P.zero_state(state_specs(cfg, batch))


# ------------------------------------------------------------------------------------------------------------------ read

def read(params, state: CompressiveState, cfg: CompressiveConfig, *, whole: bool = False) -> tuple[jax.Array, jax.Array]:
    """[cm ; m] with the real vectors side by side at the end: (vectors [B, S, D], bool[B, S] which of them are real).

    A compressed slot counts as one position, so no empty column may stand between the two queues.
    whole: promise that no vector waits, because every call so far was `whole`; the columns for waiting vectors are then left out.
    """
    checks.check_state(state, state_specs(cfg, checks.batch_of(state)))
    recent, compressed = state
    if whole:  # compressed slots exist only once m is full, so nothing has to be moved
        recent = XlState(recent.vectors[:, cfg.waiting:], recent.count)
        return (jnp.concatenate([compressed.vectors, recent.vectors], axis=1),
                jnp.concatenate([xl.real(compressed), xl.real(recent)], axis=1))
    n, size = cfg.compressed, recent.vectors.shape[1]
    column, gap = jnp.arange(n + size)[None], (size - recent.count)[:, None]
    source = jnp.where(column >= n + gap, column, column - gap)
    vectors = P.take_rows(jnp.concatenate([compressed.vectors, recent.vectors], axis=1), jnp.maximum(source, 0))
    return vectors, column >= n + size - (compressed.count + recent.count)[:, None]


# ----------------------------------------------------------------------------------------------------------------- write

class Evicted(NamedTuple):
    """Vectors that leave m in one call; whole blocks, the first of them real."""

    vectors: jax.Array  # [B, E, D] oldest first, no gradient
    usage: jax.Array    # [B, E] attention that each vector received
    count: jax.Array    # i32[B] vectors that really leave, a multiple of the block


def evict(state: XlState, x: jax.Array, usage: jax.Array, cfg: CompressiveConfig, length: jax.Array) -> Evicted:
    """The vectors that leave m when x[B, T, D] comes in. usage: [B, vectors of m + T], for each vector of [m ; x]."""
    size, tokens = state.vectors.shape[1], x.shape[1]
    most = (tokens + cfg.waiting) // cfg.together * cfg.together
    stream = jnp.concatenate([state.vectors, x.astype(state.vectors.dtype)], axis=1)
    place = (size - state.count)[:, None] + jnp.arange(most)[None]
    place = jnp.minimum(place, size + tokens - 1)
    count = jnp.maximum(state.count + length - cfg.length, 0) // cfg.together * cfg.together
    return Evicted(jax.lax.stop_gradient(P.take_rows(stream, place)), P.take_rows(usage, place), count)


def compress(params, old: Evicted, cfg: CompressiveConfig) -> jax.Array:
    """f_c: vectors [B, E, D] -> slots [B, E/c, D], block by block."""
    batch, total, width = old.vectors.shape
    n = total // cfg.together
    blocks = old.vectors.reshape(batch, n, cfg.together, width)
    groups = old.vectors.reshape(batch, total // cfg.rate, cfg.rate, width)
    if cfg.compression == "mean":
        new = groups.astype(wide(groups)).mean(2)
    elif cfg.compression == "max":
        new = groups.max(2)
    elif cfg.compression == "most_used":
        new = _most_used(blocks, old.usage.reshape(batch, n, cfg.together), cfg.together // cfg.rate)
    else:
        if cfg.compression == "dilated":
            blocks = _dilated(params["dilated"], blocks, cfg)
        flat = blocks.reshape(batch, total // cfg.rate, cfg.rate * width)
        new = _linear(params, flat, cfg)
    return new.reshape(batch, total // cfg.rate, width).astype(old.vectors.dtype)


def _linear(params, x: jax.Array, cfg: CompressiveConfig) -> jax.Array:
    y = matmul(x, params["kernel"], cfg.dtype)
    return y + spread(params["bias"], y)


def _most_used(blocks: jax.Array, usage: jax.Array, keep: int) -> jax.Array:
    """The `keep` vectors of each block [B, N, U, D] that received most attention, in the order of time; ties: the oldest."""
    chosen = jnp.sort(jnp.argsort(-usage, axis=-1, stable=True)[..., :keep], axis=-1)
    return jnp.take_along_axis(blocks, chosen[..., None], axis=2)


def _dilated(layers: list, blocks: jax.Array, cfg: CompressiveConfig) -> jax.Array:
    """x + relu(convolution of three vectors at distance d), for each dilation d; zeros outside the block [B, N, U, D]."""
    for layer, d in zip(layers, DILATIONS, strict=True):
        padded = jnp.pad(blocks, ((0, 0), (0, 0), (d, d), (0, 0)))
        near = [padded[:, :, i * d:i * d + blocks.shape[2]] for i in range(3)]
        blocks = blocks + jax.nn.relu(_linear(layer, jnp.concatenate(near, axis=-1), cfg)).astype(blocks.dtype)
    return blocks


def update(params, state: CompressiveState, x: jax.Array, cfg: CompressiveConfig, length: jax.Array | None = None,
           usage: jax.Array | None = None, attend: Callable | None = None, *,
           whole: bool = False) -> tuple[CompressiveState, dict[str, jax.Array]]:
    """`write` with its loss.

    usage: [B, S+T], attention that each column of [`read` ; x] received, for "most_used"; None: the same everywhere.
    attend: (x [B, T, D], vectors [B, E, D], bool[B, E]) -> [B, T, D'], the layer's attention by content with stopped weights, for
        the objective "attention"; None: there is no such loss.
    Returns the state and {"auxiliary_loss": f32[]}, or {} if nothing is to be learnt.
    """
    x, length = checks.checked(x, length, cfg.width, cfg.unit, whole)
    checks.check_state(state, state_specs(cfg, x.shape[0]))
    checks.check_params(params, specs(cfg))
    x = jax.lax.stop_gradient(x)
    recent = xl.push(state.recent, x, length)
    if not cfg.compressed:
        return state._replace(recent=recent), {}
    old = evict(state.recent, x, _usage(state, x, usage), cfg, length)
    new = compress(params, old, cfg)
    stored = new if cfg.objective == "bptt" else jax.lax.stop_gradient(new)
    after = CompressiveState(XlState(recent.vectors, state.recent.count + length - old.count),
                             xl.push(state.compressed, stored, old.count // cfg.rate))
    return after, auxiliary_loss(params, old, new, x, length, attend, cfg)


def _usage(state: CompressiveState, x: jax.Array, usage: jax.Array | None) -> jax.Array:
    """Attention that each vector of [m ; x] received, those included that wait; a read of a whole call leaves their columns out."""
    columns = state.recent.vectors.shape[1] + x.shape[1]
    if usage is None:
        return jnp.zeros((x.shape[0], columns), jnp.float32)
    return jax.lax.stop_gradient(jnp.pad(usage, ((0, 0), (columns, 0)))[:, -columns:])


def auxiliary_loss(params, old: Evicted, new: jax.Array, x: jax.Array, length: jax.Array, attend: Callable | None,
                   cfg: CompressiveConfig) -> dict[str, jax.Array]:
    """What the compression loses, as a mean over batch rows, real tokens and features.

    A batch row from which nothing leaves counts as zero.
    """
    left = jnp.arange(old.vectors.shape[1])[None] < old.count[:, None]
    slots = left[:, ::cfg.rate]
    if cfg.objective == "autoencoding":
        decoded = _linear(params["decoder"], new, cfg).reshape(old.vectors.shape)
        return {"auxiliary_loss": _mean_square(old.vectors.astype(decoded.dtype) - decoded, left)}
    if cfg.objective == "attention" and attend is not None:
        tokens = P.real_tokens(x, length) & (old.count > 0)[:, None]
        return {"auxiliary_loss": _mean_square(attend(x, old.vectors, left) - attend(x, new, slots), tokens)}
    return {}


def _mean_square(error: jax.Array, real_BT: jax.Array) -> jax.Array:
    """Mean over the batch of the mean over real vectors and features, in float32; 0 for an empty batch."""
    square = jnp.square(error.astype(wide(error))).mean(-1)
    each = jnp.where(real_BT, square, 0).sum(1) / jnp.maximum(real_BT.sum(1), 1).astype(square.dtype)
    return each.sum() / max(each.shape[0], 1)


def write(params, state: CompressiveState, x: jax.Array, cfg: CompressiveConfig, length: jax.Array | None = None, *,
          whole: bool = False) -> CompressiveState:
    """Remember x[B, T, D], of which the first length[b] vectors are real. What leaves m is compressed into cm."""
    return update(params, state, x, cfg, length, whole=whole)[0]


def run(params, state: CompressiveState, x: jax.Array, cfg: CompressiveConfig, length: jax.Array | None = None, *,
        whole: bool = False):
    """`apply` with the loss of the compression, if x alone defines it: ([cm ; m ; x], state, stats)."""
    vectors, visible = read(params, state, cfg, whole=whole)
    state, stats = update(params, state, x, cfg, length, whole=whole)
    x, _ = checks.checked(x, length, cfg.width)
    vectors = jnp.where(visible[..., None], vectors, jnp.zeros((), vectors.dtype)).astype(x.dtype)
    return jnp.concatenate([vectors, x], axis=1), state, stats


def apply(params, state: CompressiveState, x: jax.Array, cfg: CompressiveConfig, length: jax.Array | None = None, *,
          whole: bool = False):
    """Read, then write: x[B, T, D] -> ([cm ; m ; x] [B, S+T, D], state); vectors that are not real are zero."""
    return run(params, state, x, cfg, length, whole=whole)[:2]
