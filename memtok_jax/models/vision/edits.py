"""Changes to a trained model's forward pass, as values that `vit.features` applies; no code is patched.

Test-time registers (Jiang et al., arXiv 2506.08010): a few units of the feed-forward networks write the outlier norms. A token of
zeros is added behind the patches. On this token each such unit gets the activation of largest magnitude that it had on any token;
on the patches the unit is silenced. For a unit f of layer l, with a its activations after the non-linearity:

    a[new] = scale * a[t*], t* = argmax over tokens of |a[t]|;      a[patches] = 0

Replacement controls ask what registers hold: their contents are set to zero, to their mean over images, to noise of matched mean
and deviation, or to those of other images of the batch. Zeroing is not the same as a model without registers: the keys of zero
tokens still take part in the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.output import Counts

PATCHES = ("zero", "mean", "outliers", "unchanged")
MODES = ("zero", "mean", "noise", "shuffle")


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("neurons", "scale", "patches", "tokens", "shared_max"))
@dataclass(frozen=True)
class TestTimeRegisters:
    """See `test_time_registers`."""

    neurons: tuple[tuple[int, int], ...]
    scale: float
    patches: str
    tokens: int
    shared_max: bool


@partial(jax.tree_util.register_dataclass, data_fields=("mean", "std"), meta_fields=("shuffle", "layers", "seed"))
@dataclass(frozen=True)
class ReplaceRegisters:
    """See `replace_registers`. mean, std: f32, broadcast to [L+1, M, D]; zero, mean and noise differ in these numbers only."""

    shuffle: bool
    layers: tuple[int, ...]
    mean: jax.Array
    std: jax.Array
    seed: int


Edits = tuple[TestTimeRegisters | ReplaceRegisters, ...]


class RegisterStatistics(NamedTuple):
    """Mean and standard deviation of each register at each hidden state, over images."""

    mean: jax.Array  # f32[L+1, M, D]
    std: jax.Array   # f32[L+1, M, D]


# ------------------------------------------------------------------------------------------------------------ making them

def test_time_registers(neurons: Sequence[tuple[int, int]], scale: float = 1.0, patches: str = "zero", tokens: int = 1,
                        shared_max: bool = False) -> TestTimeRegisters:
    """Move the activations of register neurons to added tokens.

    neurons: (layer, unit of its feed-forward network), as `analysis.register_neurons.find` gives them. scale: of the moved
    activation. patches: what the units become on patches: "zero" (published), the "mean" over patches, zero only for "outliers"
    (magnitude above the mean plus 1 standard deviation of the patches), or "unchanged". tokens: number of added tokens.
    shared_max: all units of a layer get one common value, as in the authors' code.
    Raises ValueError for an unknown `patches` or a negative `tokens`.
    """
    if patches not in PATCHES:
        raise ValueError(f"patches={patches!r} must be one of {', '.join(map(repr, PATCHES))}")
    if tokens < 0:
        raise ValueError(f"tokens={tokens} must not be negative")
    return TestTimeRegisters(tuple((int(l), int(f)) for l, f in neurons), float(scale), patches, tokens, shared_max)


def replace_registers(mode: str, layers: Sequence[int], statistics: RegisterStatistics | tuple = (),
                      seed: int = 0) -> ReplaceRegisters:
    """Replace the registers' contents in some hidden states.

    mode: "zero"; "mean"; "noise" (normal, with the mean and deviation of `statistics`); or "shuffle" (every image of the batch gets
    the registers of another one, which is a number of images away that is drawn for each hidden state). layers: indices of hidden
    states; 0 is the embedding, l the output of the l-th block. "mean" at all hidden states is published as fixed mean. statistics:
    needed for "mean" and "noise". seed: of the noise and the shuffle. Raises ValueError for an unknown mode or missing statistics.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} must be one of {', '.join(map(repr, MODES))}")
    if mode in ("mean", "noise") and not statistics:
        raise ValueError(f"mode={mode!r} needs statistics: those of analysis.register_neurons.register_statistics")
    mean, std = statistics or RegisterStatistics(*(jnp.zeros((1, 1, 1), jnp.float32),) * 2)
    mean = mean if mode in ("mean", "noise") else jnp.zeros_like(mean)
    return ReplaceRegisters(mode == "shuffle", tuple(map(int, layers)), mean, std if mode == "noise" else jnp.zeros_like(std), seed)


# -------------------------------------------------------------------------------------------------------- applying them

class Replacement(NamedTuple):
    """One replacement, at every hidden state."""

    active: jax.Array  # bool[L+1]
    mean: jax.Array    # f32[L+1, M, D]
    std: jax.Array     # f32[L+1, M, D]
    key: jax.Array     # typed keys [L+1]


class Plan(NamedTuple):
    """All edits as arrays with a leading axis of layers (or hidden states), for the scan over layers."""

    neurons: tuple[jax.Array, ...]          # bool[L, F] for each TestTimeRegisters
    replacements: tuple[Replacement, ...]   # for each ReplaceRegisters


def added_tokens(edits: Edits) -> int:
    """Number of tokens that the edits put behind the patches."""
    return sum(edit.tokens for edit in edits if isinstance(edit, TestTimeRegisters))


def plan(edits: Edits, cfg: VitConfig) -> Plan:
    """The edits as arrays. Raises ValueError if an edit names a layer, unit or register that the model does not have."""
    return Plan(tuple(_neuron_mask(edit, cfg) for edit in edits if isinstance(edit, TestTimeRegisters)),
                tuple(_replacement(edit, cfg) for edit in edits if isinstance(edit, ReplaceRegisters)))


def _neuron_mask(edit: TestTimeRegisters, cfg: VitConfig) -> jax.Array:
    mask = np.zeros((cfg.layers, cfg.hidden), bool)
    for layer, unit in edit.neurons:
        if not (0 <= layer < cfg.layers and 0 <= unit < cfg.hidden):
            raise ValueError(f"register neuron {(layer, unit)}: the model has {cfg.layers} layers of {cfg.hidden} units")
        mask[layer, unit] = True
    return jnp.asarray(mask)


def _replacement(edit: ReplaceRegisters, cfg: VitConfig) -> Replacement:
    states, shape = cfg.layers + 1, (cfg.layers + 1, cfg.registers, cfg.width)
    if cfg.registers == 0:
        raise ValueError("replace_registers: the model has no registers")
    for layer in edit.layers:
        if not 0 <= layer < states:
            raise ValueError(f"layers={edit.layers}: the hidden states of a model of {cfg.layers} layers are 0 .. {cfg.layers}")
    active = np.isin(np.arange(states), edit.layers)
    keys = jax.random.split(jax.random.key(edit.seed), states)
    return Replacement(jnp.asarray(active), jnp.broadcast_to(edit.mean, shape), jnp.broadcast_to(edit.std, shape), keys)


def edit_activations(edits: Edits, neurons: tuple[jax.Array, ...], a: jax.Array, counts: Counts) -> jax.Array:
    """Hidden units a[B, T, F] of one layer after the edits. neurons: bool[F] for each TestTimeRegisters."""
    moving = [edit for edit in edits if isinstance(edit, TestTimeRegisters)]
    last = sum(counts) - counts.added
    for edit, chosen in zip(moving, neurons, strict=True):
        first, end = last, last + edit.tokens
        a = _move(edit, chosen[None, None], a, counts, first, end)
        last = end
    return a


def _move(edit: TestTimeRegisters, chosen: jax.Array, a: jax.Array, counts: Counts, first: int, end: int) -> jax.Array:
    """Move the chosen units bool[1, 1, F] from the patches to the tokens first .. end - 1."""
    prefix = counts.cls + counts.registers
    patches = a[:, prefix:prefix + counts.patches]
    place = jnp.arange(a.shape[1])[None, :, None]
    is_patch, is_new = (place >= prefix) & (place < prefix + counts.patches), (place >= first) & (place < end)
    moved = edit.scale * _peak(a[:, :prefix + counts.patches], chosen, edit.shared_max)
    a = jnp.where(chosen & is_patch, _silenced(patches, a, edit.patches), a)
    return jnp.where(chosen & is_new, moved.astype(a.dtype), a)


def _peak(a: jax.Array, chosen: jax.Array, shared: bool) -> jax.Array:
    """Signed value of largest magnitude over the tokens of a[B, T, F]: [B, 1, F], or [B, 1, 1] over all chosen units."""
    flat = jnp.where(chosen, a, 0).reshape(a.shape[0], -1, 1) if shared else a
    at = jnp.argmax(jnp.abs(flat), axis=1, keepdims=True)
    return jnp.take_along_axis(flat, at, axis=1)


def _silenced(patches: jax.Array, a: jax.Array, how: str) -> jax.Array:
    """What units become on patches, [B, T or 1, F]."""
    size = jnp.abs(patches)
    return {
        "zero": lambda: jnp.zeros_like(a[:, :1]),
        "mean": lambda: patches.mean(1, keepdims=True),
        "outliers": lambda: jnp.where(jnp.abs(a) > size.mean(1, keepdims=True) + size.std(1, keepdims=True), 0, a),
        "unchanged": lambda: a,
    }[how]()


def edit_registers(edits: Edits, replacements: tuple[Replacement, ...], x: jax.Array, counts: Counts) -> jax.Array:
    """A hidden state x[B, T, D] after the edits. replacements: those of this hidden state, without the leading axis."""
    replacing = [edit for edit in edits if isinstance(edit, ReplaceRegisters)]
    start, end = counts.cls, counts.cls + counts.registers
    for edit, at in zip(replacing, replacements, strict=True):
        old = x[:, start:end]
        if edit.shuffle:
            new = jnp.roll(old, jax.random.randint(at.key, (), 1, max(len(old), 2)), axis=0)
        else:
            new = at.mean[None] + at.std[None] * jax.random.normal(at.key, old.shape, jnp.float32)
        x = x.at[:, start:end].set(jnp.where(at.active, new.astype(x.dtype), old))
    return x
