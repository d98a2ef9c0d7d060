"""SmolLM3: Llama in which some layers (every fourth, if the file does not say) have no positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memtok_jax.config import UserError
from memtok_jax.convert.decoders import fields, llama
from memtok_jax.convert.decoders.family import Decoder

DEFAULTS = {**llama.DEFAULTS, "max_position_embeddings": 32_768, "num_key_value_heads": 4, "tie_word_embeddings": True,
            "no_rope_layer_interval": 4, "use_sliding_window": False}
names = llama.names


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """1 in `no_rope_layers` means that the layer has rotary positions."""
    layers, every = fields.whole(theirs, "num_hidden_layers"), fields.whole(theirs, "no_rope_layer_interval")
    turns = theirs.get("no_rope_layers") or [int((n + 1) % every != 0) for n in range(layers)]
    if not (isinstance(turns, list) and len(turns) == layers and set(turns) <= {0, 1}):
        raise UserError(f"config.json: no_rope_layers must have 0 or 1 for each of {layers} layers")
    window = fields.whole(theirs, "sliding_window") if fields.flag(theirs, "use_sliding_window") else 0
    windows = fields.window_of_layers(theirs, layers, window, [bool(window) and not turn for turn in turns])
    decoder = llama.plain(theirs, context, windows, 2e6, bias=fields.flag(theirs, "attention_bias"),
                          feed_forward_bias="all" if fields.flag(theirs, "mlp_bias") else "ungated")
    still = replace(decoder.style, positions="none")
    return decoder._replace(layers=tuple(layer if turn else layer._replace(style=still)
                                         for layer, turn in zip(decoder.layers, turns, strict=True)))
