"""The models that the tests of `memtok_jax/inference` run over: name -> (module of functions, config), all tiny."""

from __future__ import annotations

import functools

import inference_toys as toys
import jax

from memtok_jax.inference.session import new_stream, open_session
from memtok_jax.params import init_params

MODELS = {"toy": (toys.language_model, toys.LanguageModelConfig())}
ROWS, K = 3, 5


@functools.cache
def load(name):
    """(model, cfg, params) with parameters large enough that the carry matters."""
    model, cfg = MODELS[name]
    return model, cfg, init_params(model.specs(cfg), jax.random.key(0))


@functools.cache
def session(name, stop=()):
    """One compiled session of ROWS rows for each model, shared by all tests."""
    model, cfg, params = load(name)
    return open_session(model, params, cfg, fresh(name), feed_blocks=(4, 16), append_blocks=(4,), k=K, stop=stop)


def fresh(name, rows=ROWS, seed=1):
    model, cfg, params = load(name)
    return new_stream(model, params, cfg, rows, jax.random.key(seed))


def tokens(name, rows=ROWS, length=41, seed=0):
    """int[rows, length] of random tokens on the host."""
    import numpy as np

    vocabulary = session(name).vocabulary
    return np.random.RandomState(seed).randint(0, vocabulary, (rows, length))
