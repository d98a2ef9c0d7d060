"""One piece of one memory: gradients by `jax.grad` with respect to zero taps, per-token weights through coefficients.

All gradients of a chunk are taken at the weights of its start (Titans, section 3.2). A zero, the tap, is added to each dense
pre-activation. Its gradient is the vector delta_i of token i, and G_i = h_i^T delta_i. So one `jax.grad` gives every token's
gradient, and no d x d matrix per token exists. The weights of a dense layer enter linearly. So a read at the weights W_t of
each token is causal attention over (h_i, delta_i) with the mask of `coefficients.py`. This is exact for any depth.

| paper | name      | equation |
|-------|-----------|----------|
| M     | weights   | 13       |
| S     | surprise  | 10, 14   |
| theta | step      | 14       |
| eta   | momentum  | 14       |
| alpha | forget    | 13       |
| l     | loss      | 12       |
"""

from __future__ import annotations

from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.compiler import platform
from memtok_jax.memory.neural import channels
from memtok_jax.memory.neural.coefficients import Coefficients, before, coefficients
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.neural.features import Gate, gate_of
from memtok_jax.memory.neural.networks import Hooks, forward, gate_sets
from memtok_jax.numerics import lift, matmul, plain_product, product

Weights = dict[str, jax.Array]
BySet = dict[str, Coefficients]  # set of gates -> its coefficients, see `networks.gate_sets`


class Carry(NamedTuple):
    """Fast weights of one memory as deviations from the learned initial weights."""

    anchor: Weights    # at the start of the chunk: where gradients are taken
    weights: Weights   # after the last token
    surprise: Weights  # momentum of the gradients


class Inputs(NamedTuple):
    """C tokens of one memory."""

    k: jax.Array             # f32[C, K]
    v: jax.Array             # f32[C, K]
    q: jax.Array             # f32[C, K]
    step: Gate               # f32[C], or dense layer -> f32[C]
    log_momentum: Gate       # the same
    log_keep: Gate           # the same, or dense layer -> f32[C, d_in]
    real: jax.Array          # bool[C]


class Surprise(NamedTuple):
    """What the write met, for statistics; no gradient flows through it."""

    loss: jax.Array       # f32[C]  |f(k) - v|^2 at the weights of the chunk's start
    gradient: jax.Array   # f32[C]  norm of each token's gradient
    stability: jax.Array  # f32[]   sum over the tokens of written * curvature; 1 is one full correction in a piece


class Taps(NamedTuple):
    """Result of the tapped pass: inputs and gradients of every hook."""

    h: Weights      # name -> [C, d_in]
    delta: Weights  # name -> [C, d_out]
    loss: jax.Array


def _multiply(kind: str, a: jax.Array, b: jax.Array, cfg: NeuralMemoryConfig) -> jax.Array:
    """A product of two matrices. The compiler of kernels knows no operations of ours."""
    return (plain_product if cfg.view == "kernel" else product)(kind, a, b, cfg.dtype)


def _tapped(weights: Weights, taps: Weights, record: Weights, cfg: NeuralMemoryConfig) -> Hooks:
    """Interpreter of the write: remembers each hook's input and adds its tap."""

    def hook(operate):
        def run(name, h):
            if name in record:
                raise ValueError(f"the memory network uses the fast weight {name!r} twice")
            record[name] = h
            return operate(h, weights[name]) + taps[name]
        return run

    return Hooks(dense=hook(lambda h, w: _multiply("nn", h, w, cfg)),
                 scale=hook(lambda h, w: h * lift(w, h)), shift=hook(lambda h, w: h + lift(w, h)))


def gradients(slow, weights: Weights, k: jax.Array, v: jax.Array, cfg: NeuralMemoryConfig) -> Taps:
    """Inner gradients of all tokens at one set of weights (equation 12), as pairs of vectors (h, delta)."""
    tokens = k.shape[0]
    taps = {name: jnp.zeros((tokens, w.shape[-1]), w.dtype) for name, w in weights.items()}

    def loss(taps):
        record: Weights = {}
        error = forward(slow, k, _tapped(weights, taps, record, cfg), cfg) - v
        per_token = cfg.loss_scale * jnp.square(error).sum(-1)
        return per_token.sum(), (record, per_token)

    delta, (record, per_token) = jax.grad(loss, has_aux=True)(taps)
    return Taps(record, delta, per_token)


def _squared_norms(taps: Taps, weights: Weights, shifts: set[str], sets: dict[str, str]) -> dict[str, jax.Array]:
    """|G_i|^2 of every token, summed over the hooks of each set of gates: set -> f32[C]."""
    total = dict.fromkeys(sets.values(), 0.0)
    for name, w in weights.items():
        h, delta = taps.h[name], taps.delta[name]
        if w.ndim == 2:
            total[sets[name]] += jnp.square(h).sum(-1) * jnp.square(delta).sum(-1)
        else:
            total[sets[name]] += jnp.square(delta if name in shifts else h * delta).sum(-1)
    return total


def _rank_one(h: jax.Array, delta: jax.Array, is_shift: bool) -> jax.Array:
    """Per-token gradient of a vector weight: [C, d]."""
    return delta if is_shift else h * delta


def _dual(start: Weights, carry: Carry, taps: Taps, by_set: BySet, sets: dict[str, str],
          cfg: NeuralMemoryConfig) -> Hooks:
    """Interpreter of the read: token t uses the weights after (or before) token t. by_set: coefficients of all C tokens."""
    column = lambda c: c[:, None] if c.ndim == 1 else c
    columns = {s: (column(c.keep), column(c.initial), column(c.pushed)) for s, c in by_set.items()}
    written = {name: by_set[s].written for name, s in sets.items()}

    def vector(name, is_shift):
        grown = matmul(written[name], _rank_one(taps.h[name], taps.delta[name], is_shift), "float32")
        keep, initial, pushed = columns[sets[name]]
        return initial * start[name][None] + keep * carry.weights[name][None] + pushed * carry.surprise[name][None] - grown

    def dense(name, h):
        by_channel = written[name].ndim == 3
        scores = -(channels.scores(written[name], h, taps.h[name]) if by_channel
                   else written[name] * _multiply("nt", h, taps.h[name], cfg))
        keep, initial, pushed = columns[sets[name]]
        factors, parts = (initial, keep, pushed), (start[name], carry.weights[name], carry.surprise[name])
        if by_channel or h.shape[-1] < parts[0].shape[-1]:  # scale the narrower operand; the four products then become one matmul
            scaled = jnp.concatenate([*(factor * h for factor in factors), scores], axis=-1)
            return _multiply("nn", scaled, jnp.concatenate([*parts, taps.delta[name]]), cfg)
        base = sum(factor * _multiply("nn", h, part, cfg) for factor, part in zip(factors, parts, strict=True))
        return base + _multiply("nn", scores, taps.delta[name], cfg)

    return Hooks(dense, lambda name, h: h * vector(name, False), lambda name, h: h + vector(name, True))


def _outer_sums(h: jax.Array, delta: jax.Array, c: Coefficients, cfg: NeuralMemoryConfig) -> list[jax.Array]:
    """Sums of all tokens' gradients h_i^T delta_i, weighted as in the weights and as in the surprise, in one product."""
    by_channel = c.written.ndim == 2
    written = c.written if by_channel else c.written[:, None]
    twice = lambda x: jnp.concatenate([written * x, c.moving[:, None] * x], axis=-1)
    if by_channel or h.shape[-1] <= delta.shape[-1]:
        return jnp.split(_multiply("tn", twice(h), delta, cfg), 2)
    return jnp.split(_multiply("tn", h, twice(delta), cfg), 2, axis=-1)


def _times(factor: jax.Array, weight: jax.Array, cfg: NeuralMemoryConfig) -> jax.Array:
    """A number, or one for each row, times a weight.

    On a CPU a number is spread over the rows of a matrix by a product with ones: then its gradient sums over rows first, which XLA
    computes there five times as fast as a sum over all numbers.
    """
    if factor.ndim == 0 and weight.ndim == 2 and platform() == "cpu" and cfg.view != "kernel":
        row = jnp.broadcast_to(factor, (1, weight.shape[1]))
        return product("nn", jnp.ones((weight.shape[0], 1), weight.dtype), row, "float32") * weight
    return factor[:, None] * weight if factor.ndim else factor * weight


def _end(start: Weights, carry: Carry, taps: Taps, by_set: BySet, sets: dict[str, str], shifts: set[str],
         cfg) -> tuple[Weights, Weights]:
    """Weights (as deviations) and surprise after the last token. by_set: the coefficients of that token."""
    weights, surprise = {}, {}
    for name, w in carry.weights.items():
        c = by_set[sets[name]]
        if w.ndim == 2:
            grown, moved = _outer_sums(taps.h[name], taps.delta[name], c, cfg)
        else:
            rank_one = _rank_one(taps.h[name], taps.delta[name], name in shifts)
            grown, moved = ((share[None] @ rank_one)[0] for share in (c.written, c.moving))
        pushed = _times(c.pushed, carry.surprise[name], cfg)
        weights[name] = _times(c.initial - 1, start[name], cfg) + _times(c.keep, w, cfg) + pushed - grown
        surprise[name] = _times(c.past, carry.surprise[name], cfg) - moved
    return weights, surprise


def _shift_names(weights: Weights) -> set[str]:
    """Names of the fast biases."""
    return {name for name, w in weights.items() if w.ndim == 1 and name.startswith("b")}


def clip_steps(step: jax.Array, squared_norm: jax.Array, clip: float) -> jax.Array:
    """Each token's step, shrunk as if its gradient had been clipped to the norm `clip`; 0 is no clip.

    A token's step depends on its own gradient alone, and the derivative at a zero gradient is finite.
    """
    return step * clip * jax.lax.rsqrt(jnp.maximum(squared_norm, clip * clip)) if clip else step


def piece(start: Weights, slow, carry: Carry, x: Inputs, cfg: NeuralMemoryConfig) -> tuple[Weights, Weights, jax.Array, Surprise]:
    """Write and read the tokens of one piece that crosses no chunk border.

    start: learned initial weights of this memory, leaves [d_in, d_out] or [d]. slow: its slow parameters.
    Returns (weights, surprise, y f32[C, K], Surprise). The caller updates the anchor.
    """
    anchor = {name: w + carry.anchor[name] for name, w in start.items()}
    taps = gradients(slow, anchor, x.k, x.v, cfg)
    squared = _squared_norms(taps, start, _shift_names(start), gate_sets(cfg))
    x = x._replace(step=jax.tree.map(partial(clip_steps, squared_norm=_total(squared), clip=cfg.clip), x.step))
    if cfg.forget_by == "channel":
        weights, surprise, y = _by_blocks(start, slow, carry, taps, x, cfg)
        written = {s: _mean_share(taps.h[s], *_gates(x, s)) for s in squared}
    else:
        weights, surprise, y, last = _apply(start, slow, carry, taps, x, cfg)
        written = {s: jnp.where(x.real, c.written, 0) for s, c in last.items()}
    return weights, surprise, y, _surprise(taps.loss, squared, written)


def _gates(x: Inputs, gate_set: str) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Step, log_momentum, log_keep of one set of gates, and which tokens are real."""
    return *(gate_of(gate, gate_set) for gate in (x.step, x.log_momentum, x.log_keep)), x.real


def _apply(start: Weights, slow, carry: Carry, taps: Taps, x: Inputs, cfg: NeuralMemoryConfig):
    """Read every token and close the piece: (weights, surprise, y f32[C, K], coefficients of the last token)."""
    sets, of = gate_sets(cfg), channels.coefficients if cfg.forget_by == "channel" else coefficients
    after = {s: of(*_gates(x, s), cfg.forget_to) for s in dict.fromkeys(sets.values())}
    read = after if cfg.read == "after" else {s: before(c) for s, c in after.items()}
    y = forward(slow, x.q, _dual(start, carry, taps, read, sets, cfg), cfg)
    last = jax.tree.map(lambda c: c[-1], after)
    return *_end(start, carry, taps, last, sets, _shift_names(start), cfg), y, last


def _by_blocks(start: Weights, slow, carry: Carry, taps: Taps, x: Inputs, cfg: NeuralMemoryConfig):
    """`_apply` to one block of tokens after the other, so that coefficients of C x C x d_in stay small: (weights, surprise, y).

    The gradients are those of the whole piece, and a block starts with the weights and the surprise that the one before left.
    """
    tokens = x.k.shape[0]
    blocks, missing = -(-tokens // channels.BLOCK), -tokens % channels.BLOCK
    if blocks == 1:
        return _apply(start, slow, carry, taps, x, cfg)[:3]
    cut = lambda a: jnp.pad(a, ((0, missing),) + ((0, 0),) * (a.ndim - 1)).reshape(blocks, channels.BLOCK, *a.shape[1:])

    def block(state, part):
        *state, y, _ = _apply(start, slow, Carry(carry.anchor, *state), *part, cfg)
        return tuple(state), y

    (weights, surprise), y = jax.lax.scan(block, (carry.weights, carry.surprise), jax.tree.map(cut, (taps, x)))
    return weights, surprise, y.reshape(-1, y.shape[-1])[:tokens]


def _mean_share(h: jax.Array, *gates: jax.Array) -> jax.Array:
    """Share of each token's gradient in the weights at the end, the mean over channels k with the weights h_k^2: f32[C]."""
    squares = jnp.square(h)
    return (channels.shares_at_end(*gates) * squares).sum(-1) / (squares.sum(-1) + 1e-30)


def _total(by_set: dict[str, jax.Array]) -> jax.Array:
    """The sum over the sets of gates."""
    return reduce(jnp.add, by_set.values())


def _surprise(loss: jax.Array, squared: dict[str, jax.Array], written: dict[str, jax.Array]) -> Surprise:
    """Statistics of one piece. The gradient stops before the root, whose derivative at 0 is infinite.

    squared, written: set of gates -> f32[C], squared norm of each token's gradient and its share in the weights at the end.
    """
    loss, squared, written = jax.lax.stop_gradient((loss, squared, written))
    stability = {s: (written[s] * squared[s] / (2 * loss + 1e-6)).sum() for s in squared}
    return Surprise(loss, jnp.sqrt(_total(squared)), _total(stability))
