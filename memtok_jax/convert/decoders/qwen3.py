"""Qwen3: Llama with an RMS norm of each head's queries and keys, and heads whose size is free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok_jax.convert.decoders import fields, llama, qwen2
from memtok_jax.convert.decoders.family import Decoder

DEFAULTS = {**qwen2.DEFAULTS, "head_dim": 128}
names = llama.names


def read(theirs: Mapping[str, Any], context: int) -> Decoder:
    """Norms of queries and keys."""
    return llama.plain(theirs, context, qwen2.windows(theirs), norm_heads="head", bias=fields.flag(theirs, "attention_bias"))
