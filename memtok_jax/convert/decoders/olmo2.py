"""OLMo 2: Llama with norms on the outputs of the branches, and one RMS norm over the queries, and the keys, of all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields, llama
from memtok_jax.convert.decoders.family import Decoder

DEFAULTS = {**llama.DEFAULTS, "rms_norm_eps": 1e-5}
names = llama.names


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Norms behind the branches."""
    return llama.plain(theirs, context, order="branch", norm_heads="all", bias=fields.flag(theirs, "attention_bias"))
