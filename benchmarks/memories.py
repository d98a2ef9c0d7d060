"""The rows of every table that compares memories: one small model for each, alike in all but what it remembers.

The models are those of `memtok_jax/training/memories.py` in one backbone: width 128, two layers with the memory in each, heads of
32, RMSNorm, SwiGLU, rotary positions; the feed-forward is as wide as makes all models equally large, without embeddings. T is the
tokens of a segment, a window, a cache and a chunk; 8 memory tokens.

A new mechanism joins all tables by one entry there and one in MEMORIES.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.models.protocol import bind
from memtok_jax.training.memories import ALIKE, Shape
from memtok_jax.training.memories import model_of as unfitted

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

    memory: its name in `memtok_jax/training/memories.py`. family: rows of one family have one colour. twin: the row without this
    memory, "" for rows that have none. evaluation: overrides of the config when it is tested; "{longest}" stands for
    `Page.longest`.
    """

    memory: str
    family: str
    twin: str
    evaluation: tuple[str, ...] = ()

    def build(self, sizes: Sizes) -> Any:
        """The config of the model, before its size is fitted."""
        return unfitted(self.memory, Shape(*sizes[:4]), ALIKE)


SEGMENT, WINDOW = "segment attention", "window"

MEMORIES: dict[str, Entry] = {
    "full attention": Entry("full", "attention", "", ("model.pattern.0.window={longest}",)),
    SEGMENT: Entry("segment", "attention", ""),
    WINDOW: Entry("window", "attention", ""),
    "window + sinks": Entry("streaming_llm", "attention", WINDOW),
    "persistent tokens": Entry("persistent", "attention", WINDOW),
    "Transformer-XL": Entry("transformer_xl", "cache", SEGMENT),
    "Compressive": Entry("compressive", "cache", SEGMENT),
    "RMT": Entry("rmt", "memory tokens", SEGMENT),
    "ARMT": Entry("armt", "memory tokens", SEGMENT),
    "linear memory + window": Entry("linear", "neural memory", "persistent tokens"),
    "Titans LMM": Entry("lmm", "neural memory", WINDOW),
    "Titans MAC": Entry("mac", "neural memory", SEGMENT),
    "Titans MAG": Entry("mag", "neural memory", "persistent tokens"),
    "Titans MAL": Entry("mal", "neural memory", "persistent tokens"),
    "Mamba": Entry("mamba", "selective scan", WINDOW),
    "Hymba": Entry("hymba", "selective scan", "persistent tokens"),
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
