"""Qwen2 and 2.5: Llama with biases on queries, keys and values but not behind attention; later layers may have a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields, llama
from memtok_jax.convert.decoders.family import Decoder

DEFAULTS = {**llama.DEFAULTS, "max_position_embeddings": 32_768, "num_key_value_heads": 32, "use_sliding_window": False,
            "sliding_window": 4096, "max_window_layers": 28}
names = llama.names


def windows(theirs: Mapping[str, Any]) -> tuple[int, ...]:
    """A window in layers from `max_window_layers` on, if `use_sliding_window`."""
    layers, used = fields.whole(theirs, "num_hidden_layers"), fields.flag(theirs, "use_sliding_window")
    window = fields.whole(theirs, "sliding_window", 4096) if used else 0
    if not used:
        return (0,) * layers
    first = fields.number(theirs, "max_window_layers")
    return fields.window_of_layers(theirs, layers, window, [n >= first for n in range(layers)])


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Biases on q, k, v."""
    return llama.plain(theirs, context, windows(theirs), bias=True, output_bias=False)
