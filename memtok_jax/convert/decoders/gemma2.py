"""Gemma 2: Gemma with norms before and behind each branch, capped scores and logits, and a window in every other layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields, gemma, llama
from memtok_jax.convert.decoders.family import Decoder

DEFAULTS = {**gemma.DEFAULTS, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "num_key_value_heads": 4}
names = llama.names


def style(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    return gemma.STYLE | dict(order="sandwich", score_scale=fields.number(theirs, "query_pre_attn_scalar") ** -0.5,
                              score_cap=fields.number(theirs, "attn_logit_softcapping"),
                              logit_cap=fields.number(theirs, "final_logit_softcapping"),
                              bias=fields.flag(theirs, "attention_bias"))


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Layers 0, 2, ... have the window."""
    fields.only(theirs, use_bidirectional_attention=False)
    layers = fields.whole(theirs, "num_hidden_layers")
    windows = fields.window_of_layers(theirs, layers, fields.whole(theirs, "sliding_window"), [n % 2 == 0 for n in range(layers)])
    return llama.plain(theirs, context, windows, activation="hidden_activation", **style(theirs))
