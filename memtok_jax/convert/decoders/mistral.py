"""Mistral: Llama with a window in all layers. A token sees W tokens, itself included; `sliding_window` null means all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields, llama
from memtok_jax.convert.decoders.family import Decoder

DEFAULTS = {**llama.DEFAULTS, "max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096}
names = llama.names


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """The same window everywhere."""
    window = fields.whole(theirs, "sliding_window") if theirs["sliding_window"] is not None else 0
    return llama.plain(theirs, context, (window,) * fields.whole(theirs, "num_hidden_layers"))
