"""One small model for each memory: the only list of them, for configs and for tables that compare memories; and the memories that
a pretrained decoder can be given.

Heads of 32; the memory stands in every layer. Two lists take their models from here and differ in what `How` says:

    OWN     configs: each memory in the backbone it was published with
    ALIKE   tables (`benchmarks/memories.py`): one backbone for all, small networks in the neural memories
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

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
from memtok_jax.models.style import GPT2, GPT2_RELATIVE, TITANS, TRANSFORMER_XL, Style
from memtok_jax.training.recipes import segment_of, titans_layer

HEAD, MEMORY_TOKENS, SINKS = 32, 8, 4
CHUNK = 64   # longest chunk of a neural memory that is not asked for


class Shape(NamedTuple):
    """What is asked of a model.

    vocabulary: V. tokens: of a window, a segment and a cache. context: tokens that full attention sees. chunk: of a neural memory;
    0 takes `tokens`, at most 64.
    """

    vocabulary: int
    tokens: int
    context: int
    chunk: int = 0
    width: int = 128
    layers: int = 2


class How(NamedTuple):
    """In what two lists differ.

    style: (memory, width) -> backbone. prefix: learned tokens of the models that have some. expansion: of a neural memory. slots:
    vectors in the queue of Compressive, and compressed ones, as a share of `Shape.tokens`. pinned: sinks that take the place of
    tokens of a window.
    """

    style: Callable[[str, int], Style]
    prefix: int
    expansion: int
    slots: float
    pinned: int


def published_style(memory: str, width: int) -> Style:
    """The backbone of a memory's paper. Weights of caches start at 1 / sqrt(width); the published 0.02 is made for wider models."""
    cached = replace(TRANSFORMER_XL, std=width ** -0.5)
    return {"rmt": GPT2_RELATIVE, "armt": replace(GPT2, scale_embedding=True), "transformer_xl": cached,
            "compressive": cached}.get(memory, TITANS)


OWN = How(published_style, prefix=4, expansion=4, slots=1.0, pinned=SINKS)
ALIKE = How(lambda memory, width: TITANS, prefix=8, expansion=2, slots=0.5, pinned=0)


class Layer(NamedTuple):
    """What a memory makes of a model.

    mixer: of every layer. segment: whether the model has segments. prefix: whether it has learned tokens. sizes: other fields of
    `LanguageModelConfig`. around: "" or the form of the memory tokens around the model.
    """

    mixer: Any
    segment: bool = False
    prefix: bool = False
    sizes: tuple[tuple[str, int], ...] = ()
    around: str = ""


def _neural(s: Shape, how: How, **more: Any) -> NeuralMemoryConfig:
    return NeuralMemoryConfig(**(dict(head_dim=HEAD, expansion=how.expansion, chunk=s.chunk or min(s.tokens, CHUNK)) | more))


def _titans(kind: str, **network: Any) -> Callable[[Shape, How], Layer]:
    # MAC adds its memory: with the paper's gate it learns to recall several times slower (docs/log.md).
    combine = "sum" if kind == "mac" else "gate"
    return lambda s, how: Layer(titans_layer(kind, s.tokens, _neural(s, how, **network), combine), segment_of(kind, s.tokens) > 0,
                                kind != "lmm")


def _compressive(s: Shape, how: How) -> CompressiveConfig:
    return CompressiveConfig(*2 * (int(s.tokens * how.slots),), rate=4)


LAYERS: dict[str, Callable[[Shape, How], Layer]] = {
    "mac": _titans("mac"),
    "mag": _titans("mag"),
    "mal": _titans("mal"),
    "lmm": _titans("lmm"),
    "rmt": lambda s, how: Layer(SegmentConfig(), segment=True, around="causal"),
    "armt": lambda s, how: Layer(ArmtLayerConfig(ArmtConfig(key_dim=HEAD)), segment=True, around="suffix"),
    "transformer_xl": lambda s, how: Layer(CachedConfig(XlConfig(s.tokens)), segment=True),
    "compressive": lambda s, how: Layer(CachedConfig(_compressive(s, how)), segment=True),
    "streaming_llm": lambda s, how: Layer(WindowConfig(s.tokens - how.pinned, sinks=SINKS)),
    "hymba": lambda s, how: Layer(HymbaConfig(s.tokens, memory=MambaConfig(norms=True)), prefix=True,
                                  sizes=(("kv_heads", 2), ("value_dim", 64))),
    "mamba": lambda s, how: Layer(SsmConfig(MambaConfig())),
    "window": lambda s, how: Layer(WindowConfig(s.tokens)),
    # Rows of tables only: what a memory is compared with.
    "segment": lambda s, how: Layer(SegmentConfig(), segment=True),
    "full": lambda s, how: Layer(WindowConfig(s.context)),
    "persistent": lambda s, how: Layer(WindowConfig(s.tokens), prefix=True),
    "linear": _titans("mal", depth=1, residual=False, norm=False),
}
MEMORIES = tuple(name for name in LAYERS if name not in ("segment", "full", "persistent", "linear"))


def model_of(memory: str, shape: Shape, how: How) -> Any:
    """The config of a model with one of LAYERS in every layer. Raises UserError for an unknown one."""
    choose("memory", memory, LAYERS)
    layer = LAYERS[memory](shape, how)
    model = LanguageModelConfig(vocabulary=shape.vocabulary, width=shape.width, layers=shape.layers, head_dim=HEAD,
                                pattern=(layer.mixer,), segment=shape.tokens if layer.segment else 0,
                                prefix=how.prefix if layer.prefix else 0, style=how.style(memory, shape.width), **dict(layer.sizes))
    return RmtConfig(model, MEMORY_TOKENS, layer.around) if layer.around else model


def small_model(memory: str, vocabulary: int, tokens: int, width: int = 128, layers: int = 2, chunk: int = 0) -> Any:
    """A model of the configs: one of MEMORIES in the backbone it was published with; see `Shape`.

    RMT and ARMT have 8 memory tokens, Titans' models a prefix of 4 learned ones (LMM none). Raises UserError for an unknown memory.
    """
    choose("memory", memory, MEMORIES)
    return model_of(memory, Shape(vocabulary, tokens, tokens, chunk, width, layers), OWN)


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
