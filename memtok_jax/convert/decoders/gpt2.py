"""GPT-2: a table of positions, layer norms, biases everywhere, GELU in its tanh form; matrices are [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields
from memtok_jax.convert.decoders.family import Decoder, Layer, Names, dense, entry, norm
from memtok_jax.models.style import Style

DEFAULTS = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "n_positions": 1024}


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Options that its published models do not use are refused."""
    fields.only(theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, heads = fields.whole(theirs, "n_embd"), fields.whole(theirs, "n_head")
    style = Style(norm="layer", eps=fields.number(theirs, "layer_norm_epsilon"), bias=True, positions="table",
                  scale_embedding=False,
                  feed_forward=fields.units(theirs, "activation_function", fields.PLAIN_UNITS),
                  embedding="tied" if fields.flag(theirs, "tie_word_embeddings") else "matrix")
    return Decoder("gpt2", fields.whole(theirs, "vocab_size"), width, heads, heads, width // heads,
                   fields.whole(theirs, "n_inner", 4 * width), fields.whole(theirs, "n_positions"), style,
                   (Layer(0, style),) * fields.whole(theirs, "n_layer"))


def names(decoder: Decoder) -> Names:
    """`c_attn` holds queries, keys and values one after the other; buffers of masks are no parameters."""
    style = decoder.style
    fused = lambda theirs, *ours: dense(theirs, *ours, bias=True, turned=False)
    layer = (norm("ln_1", "mixer/norm", style) | norm("ln_2", "feed_forward/norm", style)
             | fused("attn.c_attn", "mixer/q", "mixer/k", "mixer/v") | fused("attn.c_proj", "mixer/o")
             | fused("mlp.c_fc", "feed_forward/up") | fused("mlp.c_proj", "feed_forward/down"))
    top = {"wte.weight": entry("words/embedding"), "wpe.weight": entry("positions")} | norm("ln_f", "norm", style)
    return Names("transformer.", "wte.weight", top, "h.", layer, ignored=(".attn.bias", ".attn.masked_bias"))
