"""What a vision transformer returns: its tokens by name, and what was captured on the way.

All published models put the registers between class token and patches; tokens that an edit adds come last. Tokens are addressed by
name here, because an index that is right for one model is off by M for another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

CAPTURES = ("hidden", "norms", "attention", "qkv", "mlp")


class Counts(NamedTuple):
    """Number of tokens of each kind, in the order of the sequence."""

    cls: int
    registers: int
    patches: int
    added: int


@partial(jax.tree_util.register_dataclass, meta_fields=("grid", "counts"),
         data_fields=("cls", "registers", "patches", "prenorm", "captured"))
@dataclass(frozen=True)
class VitOutput:
    """Tokens after the last block.

    cls [B, c, D] (c = 0 without a class token), registers [B, M, D], patches [B, n, D]: after the final norm.
    prenorm [B, T, D]: all tokens before it, where artifacts show. grid: (rows, columns) of patches, row by row. counts: of each
    kind.
    captured: name -> array, stacked over layers:
        hidden f[L+1, B, T, D]       the embedding, then the output of every block, before the final norm
        norms f32[L+1, B, T]         their L2 norms
        attention f32[L, B, H, T, T] weights after the softmax, queries before keys
        q, k, v f[L, B, T, H, K]     asked for as "qkv"; with rotary positions also q_rotated, k_rotated
        mlp f[L, B, T, F]            hidden units after the non-linearity
    """

    cls: jax.Array
    registers: jax.Array
    patches: jax.Array
    prenorm: jax.Array
    grid: tuple[int, int]
    counts: Counts
    captured: dict[str, jax.Array] = field(default_factory=dict)


def split(tokens: jax.Array, counts: Counts, axis: int = 1) -> dict[str, jax.Array]:
    """Name -> its part of an array whose `axis` runs over all T tokens. Raises ValueError if that axis has another size."""
    if tokens.shape[axis] != sum(counts):
        raise ValueError(f"axis {axis} has {tokens.shape[axis]} entries, but there are {sum(counts)} tokens: {counts}")
    parts, start = {}, 0
    for name, count in counts._asdict().items():
        parts[name] = jax.lax.slice_in_dim(tokens, start, start + count, axis=axis)
        start += count
    return parts


def norms(tokens: jax.Array) -> jax.Array:
    """L2 norms f32[...] of tokens [..., D]."""
    return jnp.linalg.norm(tokens.astype(jnp.float32), axis=-1)


def token_norms(out: VitOutput, stage: str = "prenorm") -> dict[str, jax.Array]:
    """Name -> L2 norms f32[B, number of such tokens].

    stage: "prenorm" (the residual stream) or "final" (after the final norm, where every token has about the same norm and an
    artifact is invisible; tokens added by an edit are not returned there). Raises ValueError for another stage.
    """
    if stage == "prenorm":
        return split(norms(out.prenorm), out.counts)
    if stage == "final":
        return {name: norms(getattr(out, name)) for name in ("cls", "registers", "patches")}
    raise ValueError(f"stage={stage!r} must be 'prenorm' or 'final'")


def query_index(query: str | tuple[int, int], grid: tuple[int, int], counts: Counts) -> int:
    """Index among the T tokens of "cls", of "reg2" (the third register), or of the patch (row, column).

    Raises ValueError if there is no such token.
    """
    if isinstance(query, str):
        kind, number = ("cls", 0) if query == "cls" else ("registers", _register_number(query))
        first = 0 if kind == "cls" else counts.cls
        if number >= getattr(counts, kind):
            raise ValueError(f"query={query!r}: the model has {counts.cls} class tokens and {counts.registers} registers")
        return first + number
    row, column = query
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise ValueError(f"query={query}: the grid has {grid[0]} rows and {grid[1]} columns of patches, counted from 0")
    return counts.cls + counts.registers + row * grid[1] + column


def _register_number(query: str) -> int:
    if not (query.startswith("reg") and query[3:].isdigit()):
        raise ValueError(f"query={query!r} must be 'cls', 'reg0', 'reg1', ..., or a pair (row, column) of a patch")
    return int(query[3:])


def attention_maps(out: VitOutput, layer: int, query: str | tuple[int, int] = "cls", renormalise: bool = False) -> jax.Array:
    """What one token attends to: f32[B, H, rows, columns] over the patches.

    layer: counted from 0; negative from the end. query: as in `query_index`. The weights that class token and registers receive are
    left out, so a map sums to less than one unless `renormalise`. Raises ValueError without `capture=("attention",)`.
    """
    if "attention" not in out.captured:
        raise ValueError("attention maps need features(..., capture=('attention',))")
    row = out.captured["attention"][layer][:, :, query_index(query, out.grid, out.counts)]
    maps = split(row, out.counts, axis=2)["patches"].reshape(*row.shape[:2], *out.grid)
    return maps / maps.sum((-2, -1), keepdims=True) if renormalise else maps
