"""One small model for each memory, alike in width, depth and reach of attention, for tables that compare memories on a task; and
the memories that a pretrained decoder can be given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memtok_jax.config import choose
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.ssm import MambaConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.hymba import HymbaConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.ssm import SsmConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2, GPT2_RELATIVE, TITANS, TRANSFORMER_XL
from memtok_jax.training.recipes import titans_layer

CHUNK = 64   # longest chunk of a neural memory that is not asked for
FAST = ("mac", "mag", "mal", "lmm")  # neural memories
MEMORIES = (*FAST, "rmt", "armt", "transformer_xl", "compressive", "streaming_llm", "hymba", "mamba", "window")


def small_model(memory: str, vocabulary: int, tokens: int, width: int = 128, layers: int = 2, chunk: int = 0) -> Any:
    """The config of a model with one of MEMORIES in every layer, heads of 32.

    tokens: of a window, a segment and a cache. chunk: of a neural memory; 0 takes `tokens`, at most 64. RMT and ARMT have 8 memory
    tokens, Titans' models a prefix of 4 learned ones (LMM none). Raises UserError for an unknown memory.
    """
    choose("memory", memory, MEMORIES)
    shape = dict(vocabulary=vocabulary, width=width, layers=layers, head_dim=32)
    if memory in FAST:
        # MAC adds its memory: with the paper's gate it learns several times slower (docs/log.md).
        fast = NeuralMemoryConfig(head_dim=32, chunk=chunk or min(tokens, CHUNK))
        layer = titans_layer(memory, tokens, fast, "sum" if memory == "mac" else "gate")
        return LanguageModelConfig(pattern=(layer,), segment=tokens if memory == "mac" else 0, prefix=0 if memory == "lmm" else 4,
                                   **shape)
    if memory == "rmt":
        return RmtConfig(LanguageModelConfig(pattern=(SegmentConfig(),), segment=tokens, style=GPT2_RELATIVE, **shape), tokens=8)
    if memory == "armt":
        inside = LanguageModelConfig(pattern=(ArmtLayerConfig(ArmtConfig(key_dim=32)),), segment=tokens,
                                     style=replace(GPT2, scale_embedding=True), **shape)
        return RmtConfig(inside, tokens=8, form="suffix")
    if memory in ("transformer_xl", "compressive"):
        slots = XlConfig(tokens) if memory == "transformer_xl" else CompressiveConfig(length=tokens, compressed=tokens, rate=4)
        # Weights start at 1 / sqrt(width); the published 0.02 is made for wider models.
        return LanguageModelConfig(pattern=(CachedConfig(slots),), segment=tokens, style=replace(TRANSFORMER_XL, std=width ** -0.5),
                                   **shape)
    layer = {"streaming_llm": WindowConfig(tokens - 4, sinks=4), "hymba": HymbaConfig(tokens, memory=MambaConfig(norms=True)),
             "mamba": SsmConfig(MambaConfig()), "window": WindowConfig(tokens)}[memory]
    own = dict(kv_heads=2, value_dim=64, prefix=4) if memory == "hymba" else {}
    return LanguageModelConfig(pattern=(layer,), **own, **shape)


RETROFITS = ("mag", "armt", "rmt", "xl", "sinks", "plain")


def retrofit_model(memory: str, tokens: int) -> LanguageModelConfig | RmtConfig:
    """A model with one of RETROFITS, whose sizes and style `retrofit.py` replaces by those of a base.

    tokens: of a window, a segment and a cache. RMT and ARMT have 16 memory tokens. Raises UserError for an unknown memory.
    """
    choose("memory", memory, RETROFITS)
    layer, segment = {
        "mag": (BesideConfig((WindowConfig(tokens), LmmConfig(NeuralMemoryConfig(head_dim=64, chunk=64)))), 0),
        "sinks": (WindowConfig(tokens, sinks=4), 0), "plain": (WindowConfig(tokens), 0),
        "armt": (ArmtLayerConfig(ArmtConfig()), tokens), "rmt": (SegmentConfig(), tokens),
        "xl": (CachedConfig(XlConfig(tokens)), tokens)}[memory]
    inside = LanguageModelConfig(width=128, layers=2, head_dim=32, pattern=(layer,), segment=segment,
                                 style=replace(TITANS, scale_embedding=False))
    form = {"armt": "suffix", "rmt": "causal"}.get(memory)
    return RmtConfig(inside, tokens=16, form=form) if form else inside
