"""The models that the tests of `memtok_jax/inference` run over: name -> Model, all tiny.

A new model is one line of MODELS. "titans" has a layer of each use of the neural memory, and prefix tokens; "hymba" a scan, a
window with pinned tokens whose keys two layers share, meta tokens, grouped keys and a sink; "toy" is the smallest
model there is: what needs a program of its own for each case is tested over it alone.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import inference_toys as toys
import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.inference import session as S
from memtok_jax.inference import stream as F
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.memory.ssm import MambaConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.hymba import HymbaConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.protocol import Model, bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import COMPRESSIVE, GPT2, GPT2_RELATIVE, TITANS, TRANSFORMER_XL

SEGMENT = 4


def model_of(*pattern, **options):
    """A language model of two layers, or as many as the pattern has."""
    base = dict(vocabulary=11, width=8, layers=max(2, len(pattern)), pattern=pattern, head_dim=4, hidden=8, segment=SEGMENT)
    return LanguageModelConfig(**(base | options))


NEURAL = NeuralMemoryConfig(head_dim=8, chunk=2, expansion=1)
HYMBA = HymbaConfig(window=5, sinks=2, memory=MambaConfig(state=3, conv=3, rank=2, norms=True))
MODELS = {
    "toy": Model(toys.language_model, toys.LanguageModelConfig()),
    "titans": bind(model_of(MacConfig(memory=NEURAL), MagConfig(window=5, memory=NEURAL), LmmConfig(NEURAL), prefix=2)),
    "hymba": bind(model_of(HYMBA, replace(HYMBA, keys="before"), segment=0, prefix=2, kv_heads=1, value_dim=8,
                           style=replace(TITANS, sink="logit"))),
    "transformer_xl": bind(model_of(CachedConfig(XlConfig(6)), style=TRANSFORMER_XL)),
    "compressive": bind(model_of(CachedConfig(CompressiveConfig(length=4, compressed=4, rate=2)), style=COMPRESSIVE)),
    "rmt": bind(RmtConfig(model_of(SegmentConfig(), style=GPT2_RELATIVE), tokens=2)),
    "armt": bind(RmtConfig(model_of(ArmtLayerConfig(ArmtConfig(key_dim=4)), style=replace(GPT2, scale_embedding=True)), tokens=2,
                           form="suffix")),
}
# Rounding grows through three memories of width 8: in float64 the same splits agree to 1e-7.
TOLERANCE = {name: 2e-3 if name == "titans" else 5e-5 for name in MODELS}
ROWS, K, LONGEST = 3, 5, 41


@functools.cache
def load(name):
    """(model, params)."""
    model = MODELS[name]
    return model, model.init(jax.random.key(0))


@functools.cache
def session(name, stop=()):
    """One compiled session of ROWS rows for each model, shared by all tests."""
    feed, append = ((3, 16), (4,)) if name == "toy" else ((SEGMENT,), ())   # each block is one more program to compile
    return S.open_session(*load(name), fresh(name), feed_blocks=feed, append_blocks=append, k=K, stop=stop)


def fresh(name, rows=ROWS, seed=1):
    """A stream before its first token."""
    return S.new_stream(*load(name), rows, jax.random.key(seed))


def tokens(name, rows=ROWS, length=LONGEST, seed=0):
    """int[rows, length] of random tokens on the host."""
    return np.random.RandomState(seed).randint(0, MODELS[name].vocabulary, (rows, length))


@functools.cache
def _in_one_call(name):
    return jax.jit(functools.partial(F.append, MODELS[name]))


def whole(name, ids):
    """Logits [ROWS, T, V] and the stream after one single call over ids[ROWS, T], T up to LONGEST."""
    padded = np.zeros((ROWS, LONGEST), np.int32)
    padded[:, :ids.shape[1]] = ids
    length = jnp.full(ROWS, ids.shape[1], jnp.int32)
    logits, stream = _in_one_call(name)(load(name)[1], fresh(name), padded, length)
    return logits[:, :ids.shape[1]], stream
