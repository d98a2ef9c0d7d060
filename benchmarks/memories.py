"""The rows of every table that compares memories: one small model for each, alike in all but what it remembers.

Width 128, two layers with the memory in each, heads of 32, RMSNorm, SwiGLU, rotary positions; the feed-forward is as wide as makes
all models equally large, without embeddings. T is the tokens of a segment, a window, a cache and a chunk; 8 memory tokens.

A new mechanism joins all tables by one entry in MEMORIES.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.memory.ssm import MambaConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.hymba import HymbaConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.ssm import SsmConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.training.recipes import segment_of, titans_layer

WIDTH, LAYERS, HEAD, TOKENS, SINKS = 128, 2, 32, 8, 4
PARAMETERS, SPREAD = 500_000, 0.01


class Sizes(NamedTuple):
    """What a task asks of a model.

    vocabulary: V. tokens: T. context: tokens that full attention sees in training. chunk: of a neural memory; 0 takes T.
    parameters: without embeddings.
    """

    vocabulary: int
    tokens: int
    context: int
    chunk: int = 0
    parameters: int = PARAMETERS


class Entry(NamedTuple):
    """A row.

    build: sizes -> config of the model. family: rows of one family have one colour. twin: the row without this memory, "" for rows
    that have none. evaluation: overrides of the config when it is tested; "{longest}" stands for `Page.longest`.
    """

    build: Callable[[Sizes], Any]
    family: str
    twin: str
    evaluation: tuple[str, ...] = ()


def _model(s: Sizes, *layer: Any, **more: Any) -> LanguageModelConfig:
    return LanguageModelConfig(**(dict(vocabulary=s.vocabulary, width=WIDTH, layers=LAYERS, head_dim=HEAD, pattern=layer) | more))


def _segments(s: Sizes, layer: Any) -> LanguageModelConfig:
    return _model(s, layer, segment=s.tokens)


def _neural(s: Sizes, **more: Any) -> NeuralMemoryConfig:
    return NeuralMemoryConfig(**(dict(head_dim=HEAD, expansion=2, chunk=s.chunk or s.tokens) | more))


def _titans(kind: str, **network: Any) -> Callable[[Sizes], LanguageModelConfig]:
    # MAC adds its memory: with the paper's gate it learns to recall several times slower (docs/log.md).
    combine = "sum" if kind == "mac" else "gate"
    return lambda s: _model(s, titans_layer(kind, s.tokens, _neural(s, **network), combine), segment=segment_of(kind, s.tokens),
                            prefix=0 if kind == "lmm" else TOKENS)


LINEAR = dict(depth=1, residual=False, norm=False)
SEGMENT, WINDOW = "segment attention", "window"

MEMORIES: dict[str, Entry] = {
    "full attention": Entry(lambda s: _model(s, WindowConfig(s.context)), "attention", "",
                            ("model.pattern.0.window={longest}",)),
    SEGMENT: Entry(lambda s: _segments(s, SegmentConfig()), "attention", ""),
    WINDOW: Entry(lambda s: _model(s, WindowConfig(s.tokens)), "attention", ""),
    "window + sinks": Entry(lambda s: _model(s, WindowConfig(s.tokens, sinks=SINKS)), "attention", WINDOW),
    "persistent tokens": Entry(lambda s: _model(s, WindowConfig(s.tokens), prefix=TOKENS), "attention", WINDOW),
    "Transformer-XL": Entry(lambda s: _segments(s, CachedConfig(XlConfig(s.tokens))), "cache", SEGMENT),
    "Compressive": Entry(lambda s: _segments(s, CachedConfig(CompressiveConfig(s.tokens // 2, s.tokens // 2, 4))), "cache",
                         SEGMENT),
    "RMT": Entry(lambda s: RmtConfig(_segments(s, SegmentConfig()), TOKENS), "memory tokens", SEGMENT),
    "ARMT": Entry(lambda s: RmtConfig(_segments(s, ArmtLayerConfig(ArmtConfig(key_dim=HEAD))), TOKENS, "suffix"), "memory tokens",
                  SEGMENT),
    "linear memory + window": Entry(_titans("mal", **LINEAR), "neural memory", "persistent tokens"),
    "Titans LMM": Entry(_titans("lmm"), "neural memory", WINDOW),
    "Titans MAC": Entry(_titans("mac"), "neural memory", SEGMENT),
    "Titans MAG": Entry(_titans("mag"), "neural memory", "persistent tokens"),
    "Titans MAL": Entry(_titans("mal"), "neural memory", "persistent tokens"),
    "Mamba": Entry(lambda s: _model(s, SsmConfig(MambaConfig())), "selective scan", WINDOW),
    "Hymba": Entry(lambda s: _model(s, HymbaConfig(s.tokens, memory=MambaConfig(norms=True)), kv_heads=2, value_dim=64,
                                    prefix=TOKENS), "selective scan", "persistent tokens"),
}


def named(names: list[str]) -> dict[str, Entry]:
    """These rows, or all. Leaves with one line for an unknown name."""
    unknown = [name for name in names if name not in MEMORIES]
    if unknown:
        raise SystemExit(f"error: no model {unknown[0]!r}; there are {', '.join(MEMORIES)}")
    return {name: MEMORIES[name] for name in names or MEMORIES}


# ------------------------------------------------------------------------------------------------------------------------- sizes

def with_hidden(model: Any, hidden: int) -> Any:
    """The model with this width of its feed-forward."""
    return replace(model, model=with_hidden(model.model, hidden)) if hasattr(model, "model") else replace(model, hidden=hidden)


@functools.cache
def parameters(model: Any) -> int:
    """Parameters of a config without those of embedding and output."""
    specs = bind(model).specs()
    words = specs["words"] if "words" in specs else specs["model"]["words"]
    return P.count(specs) - P.count(words)


def fitted(model: Any, wanted: int = PARAMETERS) -> Any:
    """The model with the width of its feed-forward that brings it nearest to the wanted parameters, within 1 %."""
    low, high = parameters(with_hidden(model, 8)), parameters(with_hidden(model, 16))
    best = with_hidden(model, max(8 + 8 * round((wanted - low) / (high - low)), 8))
    if abs(parameters(best) - wanted) > SPREAD * wanted:
        raise ValueError(f"{type(model).__name__} has {parameters(best):,} parameters at best, not within 1 % of {wanted:,}")
    return best


@functools.cache
def model_of(name: str, sizes: Sizes) -> Any:
    """The fitted model of one row."""
    return fitted(MEMORIES[name].build(sizes), sizes.parameters)


def carry_floats(model: Any) -> int:
    """Numbers that one stream carries over a segment border. Counters do not count, nor does what follows from the parameters."""
    leaves = jax.tree.leaves(bind(model).state_specs(1), is_leaf=P.is_spec)
    return sum(math.prod(s.shape) for s in leaves if s.lives == "stream" and jnp.issubdtype(s.dtype, jnp.floating))
