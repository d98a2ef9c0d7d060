"""Gemma: Llama with scales 1 + w in its norms, embeddings times sqrt(D), GELU in the gate, and tied words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields, llama
from memtok_jax.convert.decoders.family import Decoder

DEFAULTS = {**llama.DEFAULTS, "max_position_embeddings": 8192, "head_dim": 256, "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh"}
STYLE = dict(norm="rms_offset", scale_embedding=True)
names = llama.names


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """`hidden_act` means the tanh form, whatever it says."""
    return llama.plain(theirs | {"hidden_activation": "gelu_pytorch_tanh"}, context, activation="hidden_activation",
                       bias=fields.flag(theirs, "attention_bias"), **STYLE)
