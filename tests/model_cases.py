"""Every model of the package at width 8, by name: what the contract, sessions and other tests of all models share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.ssm import Mamba2Config, MambaConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.hymba import HymbaConfig
from memtok_jax.models.mixers.in_turn import InTurnConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.mixers.repeated import RepeatedConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.ssm import SsmConfig
from memtok_jax.models.mixers.styled import StyledConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import COMPRESSIVE, GPT2, GPT2_RELATIVE, TITANS, TRANSFORMER_XL

V, SEGMENT = 16, 4
MEMORY = NeuralMemoryConfig(head_dim=4, chunk=4, expansion=2, conv=2, step_max=0.1)


def model(*pattern, **options) -> LanguageModelConfig:
    """A language model of width 8 with these layers, in segments of four tokens."""
    base = dict(vocabulary=V, width=8, layers=len(pattern), pattern=pattern, head_dim=4, hidden=8, segment=SEGMENT)
    return LanguageModelConfig(**(base | options))


def rmt(*pattern, tokens: int = 2, form: str = "causal", style=GPT2_RELATIVE, **options) -> RmtConfig:
    """Memory tokens around such a model."""
    return RmtConfig(model(*pattern, style=style, **options), tokens=tokens, form=form)


MAC, MAG, LMM, WINDOW = MacConfig(memory=MEMORY), MagConfig(window=3, memory=MEMORY), LmmConfig(MEMORY), WindowConfig(3)
XL, PLAIN = CachedConfig(XlConfig(5)), SegmentConfig()
MAMBA = SsmConfig(MambaConfig(state=3, conv=3, rank=2, norms=True, block=4))
HYMBA = HymbaConfig(window=3, memory=MAMBA.memory)
MAMBA2 = SsmConfig(Mamba2Config(head_dim=4, groups=2, state=3, conv=3, block=4))

MODELS: dict[str, Any] = {
    "window": model(WINDOW, WINDOW, prefix=2, segment=0),
    "segment": model(PLAIN, PLAIN, style=GPT2),
    "lmm": model(LMM, LMM, segment=0),
    "mac": model(MAC, WINDOW, prefix=2),
    "mac_questions": model(MacConfig(retrieved=3, memory=MEMORY), prefix=2),
    "mag": model(MAG, WINDOW, prefix=2, segment=0),
    "mal": model((LMM, WINDOW), InTurnConfig((LMM, WINDOW)), prefix=2, segment=0),
    "transformer_xl": model(XL, XL, style=TRANSFORMER_XL),
    "transformer_xl_same_length": model(CachedConfig(XlConfig(5), "on"), style=TRANSFORMER_XL),
    "compressive": model(CachedConfig(CompressiveConfig(4, 3, 2, "conv", "bptt")), XL, style=COMPRESSIVE),
    "compressive_most_used": model(CachedConfig(CompressiveConfig(4, 4, 2, "most_used", block=4)), style=COMPRESSIVE),
    "mamba": model(MAMBA, MAMBA, segment=0),
    "mamba_prefix": model(MAMBA, WINDOW, prefix=2, segment=0),
    "mamba2": model(MAMBA2, segment=0),
    "hymba": model(HYMBA, replace(HYMBA, keys="before"), prefix=2, segment=0, kv_heads=1, value_dim=8),
    "repeated": model(HYMBA, RepeatedConfig((HYMBA, replace(HYMBA, keys="before")), 2), layers=5, prefix=2, segment=0, kv_heads=1,
                      value_dim=8),
    "rmt": rmt(PLAIN, PLAIN),
    "rmt_paper": rmt(PLAIN, PLAIN, form="paper", style=GPT2),
    "rmt_cached": rmt(CachedConfig(XlConfig(6), memory_tokens_see=True, keep_memory_tokens=True), PLAIN, form="paper"),
    "memory_transformer": rmt(PLAIN, form="prefix"),
    "armt": rmt(ArmtLayerConfig(ArmtConfig(key_dim=3)), ArmtLayerConfig(ArmtConfig(key_dim=3)), form="suffix"),
    "sinks": model(WindowConfig(3, sinks=2), WINDOW, prefix=2, segment=0, kv_heads=1),
    "sinks_alibi": model(WindowConfig(2, sinks=1, positions="absolute"), prefix=1, segment=0, value_dim=3,
                         style=replace(TITANS, positions="alibi", sink="kv", gate="head")),
    "logit_gate": model(WindowConfig(4, sinks=1), XL, style=replace(GPT2_RELATIVE, sink="logit", gate="elementwise"), kv_heads=1),
    "beside": model(StyledConfig(BesideConfig((WINDOW, MAMBA)), replace(TITANS, rope_base=100.0)), prefix=2, segment=0),
    # Two that no paper has.
    "xl_below_mag": model(XL, MAG, prefix=2),
    "rmt_around_mag": rmt(MAG, PLAIN, prefix=2),
}


def some_ids(batch: int, length: int, seed: int = 0):
    """Token ids i32[B, T]."""
    return jnp.asarray(np.random.default_rng(seed).integers(V, size=(batch, length)), jnp.int32)


def in_bfloat16(cfg: Any) -> Any:
    """The same model with bfloat16 activations."""
    return replace(cfg, model=in_bfloat16(cfg.model)) if isinstance(cfg, RmtConfig) else replace(cfg, dtype="bfloat16")
