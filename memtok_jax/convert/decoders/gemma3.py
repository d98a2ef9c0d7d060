"""Gemma 3 (the text model): Gemma 2 with norms of queries and keys in the place of caps, five windowed layers to one that sees
everything, and a rotary base of their own for the windowed ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memtok_jax.convert.decoders import fields, gemma2, llama
from memtok_jax.convert.decoders.family import Decoder, Layer

DEFAULTS = {**gemma2.DEFAULTS, "max_position_embeddings": 131_072, "attn_logit_softcapping": None, "final_logit_softcapping": None,
            "sliding_window_pattern": 6}
names = llama.names


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Scaling of rotary positions, if any, in the layers that see everything."""
    fields.only(theirs, use_bidirectional_attention=False)
    layers, every = fields.whole(theirs, "num_hidden_layers"), fields.whole(theirs, "sliding_window_pattern")
    windows = fields.window_of_layers(theirs, layers, fields.whole(theirs, "sliding_window"),
                                      [bool((n + 1) % every) for n in range(layers)])
    decoder = llama.plain(theirs, context, activation="hidden_activation", norm_heads="head", **gemma2.style(theirs))
    wide = fields.rotary(fields.rope_fields(theirs, 1e6, kind="full_attention"), decoder.positions, context)
    near = fields.rope_fields(theirs | {"rope_scaling": None}, 1e4, kind="sliding_attention", base_name="rope_local_base_freq")
    near = fields.rotary(near, decoder.positions, context)
    styles = {there: replace(decoder.style, rope_base=base, rotary=scaling)
              for there, (base, scaling) in ((True, near), (False, wide))}
    return decoder._replace(style=styles[True], layers=tuple(Layer(window, styles[window > 0]) for window in windows))
