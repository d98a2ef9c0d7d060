"""What a call says about its tokens, the same value for every layer of a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax


@partial(jax.tree_util.register_dataclass, data_fields=["length", "closes", "slot"],
         meta_fields=["whole", "training", "head", "tail", "sees"])
@dataclass(frozen=True)
class Call:
    """B streams, T tokens each.

    length: i32[B], real tokens of each row, a prefix of the row; None: all T.
    closes: bool[B], the open segment ends with this call. None: a count says where segments end, every `segment` tokens. A caller
        that closes segments keeps each within `segment` tokens: there is no place for more.
    slot: i32[B], place of the first token in the open segment; a stack fills it in from its carry.
    whole: promise that the call begins and ends at a border of every unit (segment, chunk) and has no padding. The result is the
        same, sooner.
    training: whether what is random in training draws (stochastic depth).
    head, tail: this many tokens in front and at the end are memory tokens: they are read and written like others, and no cache
        keeps them unless its options say so.
    sees: "past" (causal), "memory" (causal, but memory tokens see all of their own block) or "all" (an encoder).
    """

    length: jax.Array | None = None
    closes: jax.Array | None = None
    slot: jax.Array | None = None
    whole: bool = False
    training: bool = False
    head: int = 0
    tail: int = 0
    sees: str = "past"
