"""One layer: mixers on residual branches, then a feed-forward network.

    pre:       x <- x + mixer(norm(x))        for each branch (MAL has two);   x <- x + feed_forward(norm(x))
    post:      x <- norm(x + mixer(x));                                        x <- norm(x + feed_forward(x))
    branch:    x <- x + norm(mixer(x));                                        x <- x + norm(feed_forward(x))
    sandwich:  x <- x + norm'(mixer(norm(x)));                                 x <- x + norm'(feed_forward(norm(x)))
    parallel:  x <- x + mixer(norm(x)) + feed_forward(norm(x))                 both read what the last mixer reads

Each norm has a scale of its own, but in "parallel_shared", where the feed-forward network reads the mixer's.
A layer is given as the config of its mixer, or as a tuple of them, one a branch. Functions as in `mixers/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax

from memtok_jax.models import layers
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import MixerConfig
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import recompute
from memtok_jax.sharding import constrain

Layer = MixerConfig | tuple[MixerConfig, ...]


def branches(layer: Layer) -> tuple[MixerConfig, ...]:
    """The mixers of a layer's branches."""
    return layer if isinstance(layer, tuple) else (layer,)


def depth(pattern: tuple[Layer, ...]) -> int:
    """Layers of a pattern."""
    return sum(branches(layer)[0].depth for layer in pattern)


def names(layer: Layer) -> tuple[str, ...]:
    """A name for each branch: the mixer's, with a number in front where there are several."""
    mixers = branches(layer)
    return tuple(m.name if len(mixers) == 1 else f"{n}_{m.name}" for n, m in enumerate(mixers))


def specs(layer: Layer, b: Backbone) -> dict:
    """Each branch with its norm, and the feed-forward network."""
    own = zip(names(layer), branches(layer), strict=True)
    parts = {name: m.module.specs(m, b) | layers.branch_norm_specs(b) for name, m in own}
    return parts | {"feed_forward": layers.feed_forward_specs(b)}


def state_specs(layer: Layer, b: Backbone, batch: int) -> dict:
    """Carry of each branch, by name."""
    return {name: m.module.state_specs(m, b, batch) for name, m in zip(names(layer), branches(layer), strict=True)}


def _whole(x: jax.Array) -> jax.Array:
    return x


def _close(own, feed_forward, x: jax.Array, y: jax.Array, b: Backbone, place: Callable = _whole) -> jax.Array:
    """The sum of x and the last branch y, and the feed-forward network. own: parameters of the branch. place: of x on a mesh."""
    after, norms = place(layers.add(own, x, y, b)), own if b.style.order == "parallel_shared" else feed_forward
    u = layers.enter(norms, x if b.style.parallel else after, b)
    return layers.add(feed_forward, after, layers.feed_forward(feed_forward, u, b.style.feed_forward, b.dtype), b)


def _place(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", "length", "embed")


def begin(params, x_MD: jax.Array, layer: Layer, b: Backbone, batch: int, side: dict) -> tuple[jax.Array, dict, dict]:
    """The prefix tokens [M, D] through the layer: (x, the carry before the first token, side)."""
    state, last = {}, names(layer)[-1]
    for name, m in zip(names(layer), branches(layer), strict=True):
        y, state[name], side = m.module.begin(params[name], x_MD, m, b, batch, side)
        x_MD = layers.add(params[name], x_MD, y, b) if name != last else x_MD
    return _close(params[last], params["feed_forward"], x_MD, y, b), state, side


def run(params, state: dict, x: jax.Array, layer: Layer, b: Backbone, call: Call, side: dict) -> tuple[jax.Array, dict, dict, dict]:
    """x[B, T, D] -> (x, state, statistics "mixer.name" -> f32[], side).

    What follows the mixers is computed again in the backward pass, sums and norms included. A mixer does the same for its own part,
    because a policy around the whole layer would reach into a memory that recomputes its chunks, and store their products.
    """
    after, stats, last = {}, {}, names(layer)[-1]
    for name, m in zip(names(layer), branches(layer), strict=True):
        y, after[name], found, side = m.module.run(params[name], state[name], x, m, b, call, side)
        stats |= {f"{name}.{key}": value for key, value in found.items()}
        if name != last:
            x = _place(layers.add(params[name], x, y, b))
    x = recompute(partial(_close, b=b, place=_place))(params[last], params["feed_forward"], x, y)
    return _place(x), after, stats, side
