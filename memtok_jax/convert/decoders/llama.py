"""Llama 2, 3 and 3.x, and what is made like them (SmolLM2, TinyLlama, Yi); the base of the families that differ in a few fields.

Their code: transformers, models/llama. RMS norms before each branch, rotary positions, groups of query heads, SwiGLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields
from memtok_jax.convert.decoders.family import Decoder, Entry, Layer, Names, dense, entry, norm
from memtok_jax.models.style import GATED, Style

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 2048}
# Norms of a layer: theirs -> ours, by the order of the style. The same name means three things.
NORMS = {"pre": {"input_layernorm": "mixer/norm", "post_attention_layernorm": "feed_forward/norm"},
         "branch": {"post_attention_layernorm": "mixer/norm", "post_feedforward_layernorm": "feed_forward/norm"},
         "sandwich": {"input_layernorm": "mixer/norm", "post_attention_layernorm": "mixer/norm_after",
                      "pre_feedforward_layernorm": "feed_forward/norm", "post_feedforward_layernorm": "feed_forward/norm_after"}}


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Llama itself."""
    fields.only(theirs, quantization_config=None)
    bias = fields.flag(theirs, "attention_bias")
    return plain(theirs, context, bias=bias, feed_forward_bias="all" if fields.flag(theirs, "mlp_bias") else "ungated")


def sizes(theirs: Mapping[str, Any]) -> dict[str, int]:
    """Sizes that all of these families name alike."""
    width, heads = fields.whole(theirs, "hidden_size"), fields.whole(theirs, "num_attention_heads")
    return dict(vocabulary=fields.whole(theirs, "vocab_size"), width=width, heads=heads,
                kv_heads=fields.whole(theirs, "num_key_value_heads", heads),
                head_dim=fields.whole(theirs, "head_dim", width // heads), hidden=fields.whole(theirs, "intermediate_size"),
                positions=fields.whole(theirs, "max_position_embeddings"))


def plain(theirs: Mapping[str, Any], context: int, windows: tuple[int, ...] = (), base: float = 10000.0,
          activation: str = "hidden_act", **style) -> Decoder:
    """The decoder with the style of Llama, but for the fields in `style`.

    windows: of the layers; () means that all see everything. base: of a file that names none. activation: name of its field.
    """
    own, layers = sizes(theirs), fields.whole(theirs, "num_hidden_layers")
    base, scaling = fields.rotary(fields.rope_fields(theirs, base), own["positions"], context)
    chosen = Style(**dict(eps=fields.number(theirs, "rms_norm_eps"), rope_base=base, rotary=scaling, scale_embedding=False,
                          feed_forward=fields.units(theirs, activation, fields.GATED_UNITS),
                          embedding="tied" if fields.flag(theirs, "tie_word_embeddings") else "matrix") | style)
    return Decoder(theirs["model_type"], **own, style=chosen, layers=tuple(Layer(w, chosen) for w in windows or (0,) * layers))


def names(decoder: Decoder) -> Names:
    """Their names, for every style that these families have."""
    style = decoder.style
    return Names("model.", "embed_tokens.weight", {"embed_tokens.weight": entry("words/embedding")} | norm("norm", "norm", style),
                 "layers.", _attention(style) | _feed_forward(style) | _norms(style), ignored=("rotary_emb.inv_freq",))


def _attention(style: Style) -> dict[str, Entry]:
    out: dict[str, Entry] = {}
    for name in "qkv":
        out |= dense(f"self_attn.{name}_proj", f"mixer/{name}", bias=style.bias)
    out |= dense("self_attn.o_proj", "mixer/o", bias=style.bias and style.output_bias)
    if style.norm_heads != "none":
        out |= {f"self_attn.{name}_norm.weight": entry(f"mixer/norm_{name}") for name in "qk"}
    return out


def _feed_forward(style: Style) -> dict[str, Entry]:
    bias = style.feed_forward_bias == "all" or style.feed_forward_bias == "ungated" and style.feed_forward not in GATED
    out: dict[str, Entry] = {}
    for name in ("gate", "up", "down"):
        out |= dense(f"mlp.{name}_proj", f"feed_forward/{name}", bias=bias)
    return out


def _norms(style: Style) -> dict[str, Entry]:
    out: dict[str, Entry] = {}
    for theirs, ours in NORMS[style.order].items():
        out |= norm(theirs, ours, style)
    return out
