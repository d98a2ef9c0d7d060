"""A small RMT, its parameters and its tokens, which the tests of the model and of the gradient through it share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from neural_cases import jit, random_params

from memtok_jax.models import recurrent
from memtok_jax.models.recurrent import RecurrentConfig

V, T, M = 16, 4, 2
LENGTHS = ((4, 2, 0, 3), (0, 4, 4, 1))  # of the segments of each row: short, empty in front and in between


def model(**options) -> RecurrentConfig:
    base = dict(vocabulary=V, width=8, layers=2, head_dim=4, hidden=12, segment=T, tokens=M)
    return RecurrentConfig(**(base | options))


def some_ids(batch: int, length: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(V, size=(batch, length)), jnp.int32)


def some_segments():
    """Tokens of LENGTHS [2, N, T], weights of their logits and of the last memory, lengths [2, N], which are real [2, N, T]."""
    ids = np.random.default_rng(1).integers(V, size=(2, len(LENGTHS[0]), T)).astype(np.int32)
    rng, lengths = np.random.default_rng(2), np.array(LENGTHS)
    return ids, rng.standard_normal((*ids.shape, V)), rng.standard_normal((2, M, 8)), lengths, np.arange(T) < lengths[..., None]


def setup(cfg, batch: int, dtype=np.float32):
    params = random_params(recurrent.specs(cfg), 0, dtype)
    return params, recurrent.init_state(params, cfg, batch)


apply = jit(recurrent.apply, static_argnums=3)


def call(params, state, ids, cfg, length=None):
    """`apply` with a length always given, so that one compilation serves."""
    length = np.full(ids.shape[0], ids.shape[1]) if length is None else length
    return apply(params, state, ids, cfg, jnp.asarray(length, jnp.int32))
