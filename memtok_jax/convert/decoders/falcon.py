"""Falcon: the 7B (one head of keys, branches side by side under one norm), the 40B (groups, two norms), and RW (ALiBi).

Their ALiBi is slope times place, rounded to bfloat16; the slopes here are rounded so, their products with distances are not, so
texts beyond 256 tokens agree less well. It is divided by sqrt(K), like the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from memtok_jax.convert.decoders import fields
from memtok_jax.convert.decoders.family import Decoder, Layer, Names, dense, entry, norm
from memtok_jax.models.positions import slopes
from memtok_jax.models.style import Style

DEFAULTS = {"layer_norm_epsilon": 1e-5, "alibi": False, "new_decoder_architecture": False, "multi_query": True,
            "parallel_attn": True, "bias": False, "max_position_embeddings": 2048, "activation": "gelu",
            "tie_word_embeddings": True}


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Files of different ages name the sizes differently."""
    width, heads = fields.whole(theirs, "hidden_size"), fields.whole(theirs, "num_attention_heads", theirs.get("n_head") or 0)
    layers, positions = (fields.whole(theirs, "num_hidden_layers", theirs.get("n_layer") or 0),
                         fields.whole(theirs, "max_position_embeddings"))
    new, alibi = fields.flag(theirs, "new_decoder_architecture"), fields.flag(theirs, "alibi")
    groups = fields.whole(theirs, "num_kv_heads", theirs.get("n_head_kv") or heads)
    groups = 1 if fields.flag(theirs, "multi_query") and not new else groups if new else heads
    base, scaling = fields.rotary(fields.rope_fields(theirs, 10000.0), positions, context)
    bent = slopes(heads).astype(ml_dtypes.bfloat16).astype(np.float64) * (width // heads) ** -0.5
    style = Style(norm="layer", eps=fields.number(theirs, "layer_norm_epsilon"), order=_order(theirs, new), scale_embedding=False,
                  bias=fields.flag(theirs, "bias"), feed_forward_bias="all" if fields.flag(theirs, "bias") else "none",
                  feed_forward=fields.units(theirs, "activation", fields.PLAIN_UNITS), positions="alibi" if alibi else "rope",
                  slopes=tuple(map(float, bent)) if alibi else (), rope_base=base, rotary=scaling,
                  embedding="tied" if fields.flag(theirs, "tie_word_embeddings") else "matrix")
    return Decoder("falcon", fields.whole(theirs, "vocab_size"), width, heads, groups, width // heads,
                   fields.whole(theirs, "ffn_hidden_size", 4 * width), positions, style, (Layer(0, style),) * layers)


def _order(theirs: Mapping[str, Any], new: bool) -> str:
    if not fields.flag(theirs, "parallel_attn"):
        fields.only(theirs, new_decoder_architecture=False)
        return "pre"
    count = theirs.get("num_ln_in_parallel_attn")
    return "parallel" if new and count in (None, 2) else "parallel_shared"


def names(decoder: Decoder) -> Names:
    """The norms' names tell how many there are."""
    style = decoder.style
    norms = {"pre": {"input_layernorm": "mixer/norm", "post_attention_layernorm": "feed_forward/norm"},
             "parallel": {"ln_attn": "mixer/norm", "ln_mlp": "feed_forward/norm"},
             "parallel_shared": {"input_layernorm": "mixer/norm"}}[style.order]
    layer = (dense("self_attention.query_key_value", "mixer/q", "mixer/k", "mixer/v", bias=style.bias, cut="groups")
             | dense("self_attention.dense", "mixer/o", bias=style.bias)
             | dense("mlp.dense_h_to_4h", "feed_forward/up", bias=style.bias)
             | dense("mlp.dense_4h_to_h", "feed_forward/down", bias=style.bias))
    for theirs, ours in norms.items():
        layer |= norm(theirs, ours, style)
    top = {"word_embeddings.weight": entry("words/embedding")} | norm("ln_f", "norm", style)
    return Names("transformer.", "word_embeddings.weight", top, "h.", layer, ignored=("rotary_emb.inv_freq", "rotary.inv_freq"))
