"""A repeated pattern of layers: specs, carry, the scan over repeats, diagonals, unstacking. Once, for all models.

The parameters and carries of the repeats are stacked and scanned, so compile time does not grow with depth. Prefix tokens run
through the layers once for each parameter value, not once for each token: what the layers keep of them are derived leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models import block, wavefront
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import LayerConfig, MixerConfig
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import over_layers

Pattern = tuple[MixerConfig | tuple[MixerConfig, ...], ...]


@dataclass(frozen=True)
class Stack:
    """pattern: layers of one repeat. repeats: how often they come. b: the backbone.

    remat: "block" computes each layer again in the backward pass; "pointwise" stores matrix products only.
    unroll: repeats that are compiled side by side.
    """

    pattern: Pattern
    repeats: int
    b: Backbone
    remat: str = "pointwise"
    unroll: int = 1


class StackState(NamedTuple):
    """The carry."""

    layers: tuple      # one tree for each layer of the pattern, leaves [repeats, B, ...]
    slot: jax.Array    # i32[B] tokens, memory tokens included, in the open segment; 0 where the model has no segments


def _module(layer: Any) -> ModuleType:
    return layer.module if isinstance(layer, LayerConfig) else block


def specs(s: Stack) -> tuple:
    """One stacked tree for each layer of the pattern."""
    return tuple(P.stack(_module(layer).specs(layer, s.b), s.repeats) for layer in s.pattern)


def state_specs(s: Stack, batch: int) -> StackState:
    """Shapes, axes and lifetimes of the carry of `batch` streams."""
    layers = tuple(P.stack(_module(layer).state_specs(layer, s.b, batch), s.repeats) for layer in s.pattern)
    return StackState(layers, P.StateSpec((batch,), ("batch",), jnp.int32, phase=True))


def _scan(body: Callable, x: jax.Array, trees: tuple, s: Stack):
    """Scan `body(x, tree of one layer, layer=its config, own=side) -> (x, out, side)` over the repeats."""

    def step(layer):
        own = partial(body, layer=layer)
        again = s.remat == "block" and not any(m.recomputes for m in block.branches(layer))
        return jax.checkpoint(own, prevent_cse=False) if again else own

    def repeat(x, trees):
        outs, side = [], {}
        for tree, layer in zip(trees, s.pattern, strict=True):
            x, out, side = step(layer)(x, tree, own=side)
            outs.append(out)
        return x, tuple(outs)

    return jax.lax.scan(repeat, x, trees, unroll=s.unroll)


def init_state(params: tuple, x_MD: jax.Array, s: Stack, batch: int, side: dict) -> StackState:
    """The carry before the first token, after the prefix tokens x_MD have gone through the layers. side: what all layers share."""

    def body(x, tree, layer, own):
        return _module(layer).begin(tree, x, layer, s.b, batch, side | own)

    _, layers = _scan(body, x_MD, params, s)
    return StackState(layers, jnp.zeros((batch,), jnp.int32))


def run(params: tuple, state: StackState, x: jax.Array, s: Stack, call: Call, side: dict) -> tuple[jax.Array, StackState, dict]:
    """All layers on x[B, T, D]: (x, state, statistics "number of the layer.mixer.name" -> f32[]).

    side: what all layers share, such as position biases; layers of one repeat may add to it.
    """
    length = P.full_length(x) if call.length is None else call.length
    call = replace(call, length=length, slot=state.slot)

    def body(x, tree, layer, own):
        x, after, stats, own = _module(layer).run(*tree, x, layer, s.b, call, side | own)
        return x, (after, stats), own

    x, outs = _scan(body, x, tuple(zip(params, state.layers, strict=True)), s)
    stats = {f"{n}.{key}": over_layers(key, value) for n, (_, found) in enumerate(outs) for key, value in found.items()}
    return x, StackState(tuple(after for after, _ in outs), next_slot(state.slot, length, call, s.b)), stats


def next_slot(slot: jax.Array, length: jax.Array, call: Call, b: Backbone) -> jax.Array:
    """i32[B]: tokens in the open segment after a call."""
    if call.closes is not None:
        return jnp.where(call.closes, 0, slot + length)
    return (slot + length) % b.segment if b.segment else slot


def run_segments(params: tuple, state: StackState, x_NBTD: jax.Array, s: Stack, call: Call,
                 side: dict) -> tuple[jax.Array, StackState]:
    """N whole calls at once along the diagonals of layers and calls: what a scan of `run` over them gives.

    What runs side by side is one repeat of the pattern. call: the same for all. Returns (x[N, B, T, D], state).
    """
    length = jnp.full(x_NBTD.shape[1:2], x_NBTD.shape[2], jnp.int32)
    call = replace(call, length=length, slot=state.slot, whole=True)

    def repeat(trees, states, x):
        after, own = [], {}
        for tree, old, layer in zip(trees, states, s.pattern, strict=True):
            x, new, _, own = _module(layer).run(tree, old, x, layer, s.b, call, side | own)
            after.append(new)
        return x, tuple(after), {}

    repeat = jax.checkpoint(repeat, prevent_cse=False) if s.remat == "block" else repeat
    x, layers, _ = wavefront.run(repeat, params, state.layers, x_NBTD)
    return x, state._replace(layers=layers)


def unstack(params: tuple, state: StackState, s: Stack) -> tuple[tuple, StackState, Stack]:
    """The same stack as one whose pattern is all of its layers, so that each layer has arrays of its own.

    A loop over tokens would otherwise slice every layer's weights and carry out of a stack for each token. `restack` brings the
    carry back. Only layers that are compiled side by side (`unroll`) are taken apart: of many layers the program would be long.
    """
    if not side_by_side(s):
        return params, state, s

    def cut(kinds):
        return tuple(jax.tree.map(lambda leaf, r=r: leaf[r:r + 1], kind) for r in range(s.repeats) for kind in kinds)

    return cut(params), state._replace(layers=cut(state.layers)), replace(s, pattern=s.pattern * s.repeats, repeats=1, unroll=1)


def side_by_side(s: Stack) -> bool:
    """Whether all repeats are compiled side by side."""
    return s.unroll >= s.repeats


def restack(state: StackState, s: Stack) -> StackState:
    """The carry of stack `s` out of that of the stack which `unstack` made of it."""
    if not side_by_side(s):
        return state
    kinds = len(s.pattern)
    return state._replace(layers=tuple(jax.tree.map(lambda *layers: jnp.concatenate(layers), *state.layers[kind::kinds])
                                       for kind in range(kinds)))
