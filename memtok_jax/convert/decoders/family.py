"""What the file of a family says about its decoders: `Decoder` out of their config.json, `Names` of their arrays.

A family is a module with

    DEFAULTS                 fields that a config.json may leave out -> the value of their class
    read(theirs, context)    -> Decoder; theirs: the fields of config.json, over DEFAULTS; context: tokens that a stream will see
    names(decoder)           -> Names

It computes nothing: all families are one model (`models/language_model.py`) in a style each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memtok_jax.models.style import Style


class Layer(NamedTuple):
    """One layer. window: tokens that a token sees, itself included; 0: all before it."""

    window: int
    style: Style


class Decoder(NamedTuple):
    """A decoder in our words.

    kind: its model_type. vocabulary, width, heads, kv_heads, head_dim, hidden: V, D, H, G, K, F. positions: tokens of the longest
    text that their config allows. layers: of all L layers. style: of the model, and of most layers.
    """

    kind: str
    vocabulary: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    positions: int
    style: Style
    layers: tuple[Layer, ...]


class Entry(NamedTuple):
    """Our arrays that one of theirs holds.

    ours: paths in the tree of parameters; in a layer, "mixer" stands for the name of its mixer. cut: how theirs lies over several
    of ours, a name of `layout.CUTS`. turned: whether theirs is [out, in]; without, [in, out], as ours are.
    """

    ours: tuple[str, ...]
    cut: str = "rows"
    turned: bool = True


class Names(NamedTuple):
    """Their names -> ours.

    wrapper: what stands before each name but the output layer's in a whole model; it may be absent, or another.
    anchor: a name that each model has once, by which its wrapper is found.
    top: outside of the layers. front: before the number of a layer. layer: behind it. head: of the output layer, what they call it.
    ignored: endings of names that hold no parameters.
    """

    wrapper: str
    anchor: str
    top: Mapping[str, Entry]
    front: str
    layer: Mapping[str, Entry]
    head: tuple[str, ...] = ("lm_head.weight",)
    ignored: tuple[str, ...] = ()


def entry(*ours: str, cut: str = "rows", turned: bool = True) -> Entry:
    """`Entry` with the paths as arguments."""
    return Entry(ours, cut, turned)


def dense(theirs: str, *ours: str, bias: bool = False, cut: str = "rows", turned: bool = True) -> dict[str, Entry]:
    """Entries of a projection: `theirs`.weight and, with a bias, `theirs`.bias, which hold `w` and `b` of ours."""
    kinds = (("weight", "w"), ("bias", "b")) if bias else (("weight", "w"),)
    return {f"{theirs}.{end}": Entry(tuple(f"{path}/{own}" for path in ours), cut, turned) for end, own in kinds}


def norm(theirs: str, ours: str, style: Style) -> dict[str, Entry]:
    """Entries of a norm: its weight and, of a layer norm, its bias."""
    out = {f"{theirs}.weight": entry(f"{ours}/scale")}
    return out | ({f"{theirs}.bias": entry(f"{ours}/bias")} if style.norm == "layer" else {})
