"""Phi-3: Llama with queries, keys and values in one matrix, gate and up in another, and rotary positions for long texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields, llama
from memtok_jax.convert.decoders.family import Decoder, Names, dense

DEFAULTS = {**llama.DEFAULTS, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """What its files call "su" or "yarn" is LongRoPE."""
    scaling = theirs.get("rope_scaling")
    if scaling and scaling.get("type", scaling.get("rope_type")) in ("su", "yarn"):
        theirs = theirs | {"rope_scaling": scaling | {"rope_type": "longrope"}}
    window = fields.whole(theirs, "sliding_window") if theirs.get("sliding_window") is not None else 0
    return llama.plain(theirs, context, (window,) * fields.whole(theirs, "num_hidden_layers"))


def names(decoder: Decoder) -> Names:
    """Those of Llama, two of them joined."""
    plain = llama.names(decoder)
    apart = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    layer = {name: own for name, own in plain.layer.items() if not name.startswith(apart)}
    return plain._replace(layer=layer | dense("self_attn.qkv_proj", "mixer/q", "mixer/k", "mixer/v")
                          | dense("mlp.gate_up_proj", "feed_forward/gate", "feed_forward/up"))
