"""GPT-NeoX and Pythia: layer norms, attention and feed-forward network side by side, and a quarter of each head that turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields
from memtok_jax.convert.decoders.family import Decoder, Layer, Names, dense, entry, norm
from memtok_jax.models.style import Style

DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "tie_word_embeddings": False, "max_position_embeddings": 2048,
            "use_parallel_residual": True, "attention_bias": True}


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """`rotary_pct` and `rotary_emb_base` are the names of older files."""
    width, heads = fields.whole(theirs, "hidden_size"), fields.whole(theirs, "num_attention_heads")
    positions, layers = fields.whole(theirs, "max_position_embeddings"), fields.whole(theirs, "num_hidden_layers")
    found = fields.rope_fields(theirs, theirs.get("rope_theta") or 10000.0, theirs.get("rotary_pct") or 0.25,
                               base_name="rotary_emb_base")
    base, scaling = fields.rotary(found, positions, context)
    style = Style(norm="layer", eps=fields.number(theirs, "layer_norm_eps"), rope_base=base, rotary=scaling, scale_embedding=False,
                  order="parallel" if fields.flag(theirs, "use_parallel_residual") else "pre",
                  bias=fields.flag(theirs, "attention_bias"), feed_forward=fields.units(theirs, "hidden_act", fields.PLAIN_UNITS),
                  embedding="tied" if fields.flag(theirs, "tie_word_embeddings") else "matrix")
    return Decoder("gpt_neox", fields.whole(theirs, "vocab_size"), width, heads, heads, width // heads,
                   fields.whole(theirs, "intermediate_size", 4 * width), positions, style, (Layer(0, style),) * layers)


def names(decoder: Decoder) -> Names:
    """Queries, keys and values of a head lie side by side; buffers of masks are no parameters."""
    style = decoder.style
    top = {"embed_in.weight": entry("words/embedding")} | norm("final_layer_norm", "norm", style)
    layer = (norm("input_layernorm", "mixer/norm", style) | norm("post_attention_layernorm", "feed_forward/norm", style)
             | dense("attention.query_key_value", "mixer/q", "mixer/k", "mixer/v", bias=style.bias, cut="groups")
             | dense("attention.dense", "mixer/o", bias=style.bias)
             | dense("mlp.dense_h_to_4h", "feed_forward/up", bias=True)
             | dense("mlp.dense_4h_to_h", "feed_forward/down", bias=True))
    return Names("gpt_neox.", "embed_in.weight", top, "layers.", layer, ("embed_out.weight", "lm_head.weight"),
                 (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"))
