"""Many segments through many layers along diagonals: L + N - 1 steps instead of L N.

Diagonal batching (Sivtsov et al., arXiv 2506.05229). Layer l at segment n needs layer l-1 at segment n for its input and layer l at
segment n-1 for its state. All pairs with l + n = d are therefore independent and run as one `vmap` over layers:

    H[0] <- segment d;   Y, new = vmap(layer)(params, states, H)
    states <- new where 0 <= d - l < N;   the last layer's Y is segment d - L + 1;   H <- [ . ; Y without its last]

For any model whose layers are equal and carry a state each (a Transformer-XL cache, a memory per layer). Not for one whose first
layer waits for the last one, such as a recurrent memory that travels through the tokens. It pays where one layer of one
segment is too little work for the machine; the work itself is the same, but for the L - 1 steps at both ends that are partly
thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def run(layer: Callable, params: Any, states: Any, x_NBTD: jax.Array) -> tuple[jax.Array, Any, Any]:
    """All segments through all layers.

    layer: (params, state, x [B, T, D]) -> (y [B, T, D], state, statistics) of one layer; a function of zeros must be finite, with a
    finite gradient. params, states: leaves stacked over layers, [L, ...].
    Returns (y [N, B, T, D] of the last layer, states after the last segment, statistics [L, ...] summed over segments).
    """
    segments, layers = x_NBTD.shape[0], jax.tree.leaves(states)[0].shape[0]
    dummies = jnp.zeros((layers - 1, *x_NBTD.shape[1:]), x_NBTD.dtype)
    steps = segments + layers - 1

    def diagonal(carry, inputs):
        states, waiting = carry
        x, d = inputs
        segment = d - jnp.arange(layers)
        on = (segment >= 0) & (segment < segments)
        y, new, seen = jax.vmap(layer)(params, states, jnp.concatenate([x[None], waiting]))
        states = jax.tree.map(lambda n, o: _where(on, n, o), new, states)
        return (states, y[:-1]), (y[-1], jax.tree.map(lambda s: _where(on, s, jnp.zeros_like(s)), seen))

    xs = (jnp.concatenate([x_NBTD, dummies]), jnp.arange(steps))
    (states, _), (y, seen) = jax.lax.scan(diagonal, (states, dummies), xs)
    return y[layers - 1:], states, jax.tree.map(lambda s: s.sum(0), seen)


def _where(on_L: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """new where the layer is on, else old; both [L, ...]."""
    return jnp.where(on_L.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
