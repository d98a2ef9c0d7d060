"""MPT: layer norms without a bias, ALiBi, no biases, GELU; queries, keys and values may be clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields
from memtok_jax.convert.decoders.family import Decoder, Layer, Names, dense, entry, norm
from memtok_jax.models.style import Style

DEFAULTS = {"max_seq_len": 2048, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "attn_config": {}}


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Options of MPT that its published models do not use are refused."""
    attention = theirs.get("attn_config") or {}
    fields.only(theirs, expansion_ratio=4, no_bias=True, logit_scale=None, embedding_fraction=1.0)
    fields.only(attention, attn_type="multihead_attention", prefix_lm=False, qk_ln=False, alibi=True, alibi_bias_max=8)
    width, heads = fields.whole(theirs, "d_model"), fields.whole(theirs, "n_heads")
    style = Style(norm="layer_scale", eps=fields.number(theirs, "layer_norm_epsilon"), feed_forward="gelu_erf",
                  feed_forward_bias="none", positions="alibi", scale_embedding=False, clip=fields.number(attention, "clip_qkv"),
                  score_scale=fields.number(attention, "softmax_scale"),
                  embedding="tied" if fields.flag(theirs, "tie_word_embeddings") else "matrix")
    return Decoder("mpt", fields.whole(theirs, "vocab_size"), width, heads, heads, width // heads, 4 * width,
                   fields.whole(theirs, "max_seq_len"), style, (Layer(0, style),) * fields.whole(theirs, "n_layers"))


def names(decoder: Decoder) -> Names:
    """`Wqkv` holds queries, keys and values one after the other."""
    style = decoder.style
    layer = (norm("norm_1", "mixer/norm", style) | norm("norm_2", "feed_forward/norm", style)
             | dense("attn.Wqkv", "mixer/q", "mixer/k", "mixer/v") | dense("attn.out_proj", "mixer/o")
             | dense("ffn.up_proj", "feed_forward/up") | dense("ffn.down_proj", "feed_forward/down"))
    return Names("transformer.", "wte.weight", {"wte.weight": entry("words/embedding")} | norm("norm_f", "norm", style), "blocks.",
                 layer)
