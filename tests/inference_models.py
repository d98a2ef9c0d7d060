"""The models that the tests of `memtok_jax/inference` run over: name -> (module of functions, config), all tiny.

"titans" has a layer of each kind of memory. What needs a program of its own for each case is tested over "toy" alone.
"""

from __future__ import annotations

import functools

import inference_toys as toys
import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.inference import session as S
from memtok_jax.inference import stream as F
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.models import language_model
from memtok_jax.params import init_params

TITANS = language_model.LanguageModelConfig(
    vocabulary=11, width=8, layers=3, pattern=("mac", "mag", "lmm"), head_dim=4, hidden=8, window=5, segment=6,
    prefix=2, memory=NeuralMemoryConfig(head_dim=8, chunk=3, expansion=1))
MODELS = {"toy": (toys.language_model, toys.LanguageModelConfig()), "titans": (language_model, TITANS)}
# Rounding grows through three memories of width 8: in float64 the same splits agree to 1e-7.
TOLERANCE = {"toy": 2e-5, "titans": 2e-3}
ROWS, K, LONGEST = 3, 5, 41


@functools.cache
def load(name):
    """(model, cfg, params)."""
    model, cfg = MODELS[name]
    return model, cfg, init_params(model.specs(cfg), jax.random.key(0))


@functools.cache
def session(name, stop=()):
    """One compiled session of ROWS rows for each model, shared by all tests."""
    model, cfg, params = load(name)
    feed, append = ((4, 16), (4,)) if name == "toy" else ((4,), ())   # each block is one more program to compile
    return S.open_session(model, params, cfg, fresh(name), feed_blocks=feed, append_blocks=append, k=K, stop=stop)


def fresh(name, rows=ROWS, seed=1):
    """A stream before its first token."""
    model, cfg, params = load(name)
    return S.new_stream(model, params, cfg, rows, jax.random.key(seed))


def tokens(name, rows=ROWS, length=LONGEST, seed=0):
    """int[rows, length] of random tokens on the host."""
    return np.random.RandomState(seed).randint(0, MODELS[name][1].vocabulary, (rows, length))


@functools.cache
def _whole(name):
    model, cfg, _ = load(name)
    return jax.jit(lambda params, stream, ids, length: F.append(model, params, stream, ids, cfg, length))


def whole(name, ids):
    """Logits [ROWS, T, V] and the stream after one single call over ids[ROWS, T], T up to LONGEST."""
    padded = np.zeros((ROWS, LONGEST), np.int32)
    padded[:, :ids.shape[1]] = ids
    length = jnp.full(ROWS, ids.shape[1], jnp.int32)
    logits, stream = _whole(name)(load(name)[2], fresh(name), padded, length)
    return logits[:, :ids.shape[1]], stream
