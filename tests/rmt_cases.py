"""Small models with memory tokens, their parameters and their tokens, which several tests share."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from neural_cases import cast, jit, random_params

from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import rmt
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2, GPT2_RELATIVE

V, T, M, D = 16, 4, 2, 8
LENGTHS = ((4, 2, 0, 3), (0, 4, 4, 1))  # of the segments of each row: short, empty in front and in between
TABLE, RELATIVE = replace(GPT2, scale_embedding=True), GPT2_RELATIVE


def model(tokens: int = M, form: str = "causal", init: str = "scaled", **options) -> RmtConfig:
    """Memory tokens around a decoder with a table of positions. options: of the decoder."""
    base = dict(vocabulary=V, width=D, layers=2, head_dim=4, hidden=12, segment=T, style=TABLE, pattern=(SegmentConfig(),))
    return RmtConfig(LanguageModelConfig(**(base | options)), tokens, form, init)


def cached(size: int = 5, tokens: int = M, form: str = "causal", see: bool = False, keep: bool = False, **options) -> RmtConfig:
    """With a cache. see: memory tokens see it. keep: it keeps memory tokens."""
    pattern = (CachedConfig(XlConfig(size), memory_tokens_see=see, keep_memory_tokens=keep),)
    return model(tokens, form, **(dict(style=RELATIVE, pattern=pattern) | options))


def associative(correction: bool = True, key_dim: int = 3, nu: int = 3, **options) -> RmtConfig:
    """With a matrix in each layer."""
    pattern = (ArmtLayerConfig(ArmtConfig(D, key_dim, nu, correction)),)
    return model(form="suffix", **(dict(pattern=pattern) | options))


def some_ids(batch: int, length: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(V, size=(batch, length)), jnp.int32)


def some_segments():
    """Tokens of LENGTHS [2, N, T], weights of their logits and of the last memory, lengths [2, N], which are real [2, N, T]."""
    ids = np.random.default_rng(1).integers(V, size=(2, len(LENGTHS[0]), T)).astype(np.int32)
    rng, lengths = np.random.default_rng(2), np.array(LENGTHS)
    return ids, rng.standard_normal((*ids.shape, V)), rng.standard_normal((2, M, D)), lengths, np.arange(T) < lengths[..., None]


def setup(cfg: RmtConfig, batch: int, dtype=np.float32):
    params = random_params(rmt.specs(cfg), 0, dtype)
    return params, rmt.init_state(params, cfg, batch)


def scan_segments(params, cfg: RmtConfig, ids, lengths):
    """Segments ids [B, N, T] of which `lengths` [B, N] are real, each closed by its call: (logits [B, N, T, V], carry).

    Logits of padding are zero.
    """
    def one(state, x):
        logits, state, _ = rmt.run(params, state, x[0], cfg, segment_call(x[1]))
        return state, logits

    xs = (jnp.moveaxis(jnp.asarray(ids), 1, 0), jnp.asarray(lengths.T, jnp.int32))
    state, logits = jax.lax.scan(one, rmt.init_state(params, cfg, len(ids)), xs)
    real = np.arange(ids.shape[2]) < lengths[..., None]
    return jnp.where(real[..., None], jnp.moveaxis(logits, 0, 1), 0.0), state


def segment_call(length) -> Call:
    """Each row's tokens end a segment; a row without tokens is none."""
    return Call(length=length, closes=length > 0)


_streamed = jit(lambda params, state, ids, cfg, n: rmt.run(params, state, ids, cfg, Call(length=n))[:2], static_argnums=3)
_closed = jit(lambda params, state, ids, cfg, n, closes: rmt.run(params, state, ids, cfg, Call(length=n, closes=closes))[:2],
              static_argnums=3)
_whole = jit(lambda params, state, ids, cfg: rmt.run(params, state, ids, cfg, Call(whole=True))[:2], static_argnums=3)


def call(params, state, ids, cfg, length=None):
    """Tokens that may cross borders, with a length always given, so that one compilation serves."""
    length = np.full(ids.shape[0], ids.shape[1]) if length is None else length
    return _streamed(params, state, ids, cfg, jnp.asarray(length, jnp.int32))


def closing(params, state, ids, cfg, length=None, closes=None):
    """Tokens of one segment, which ends with the call in rows that have tokens, or where `closes` says so."""
    length = np.asarray(np.full(ids.shape[0], ids.shape[1]) if length is None else length)
    closes = length > 0 if closes is None else np.full(ids.shape[0], closes)
    return _closed(params, state, ids, cfg, jnp.asarray(length, jnp.int32), jnp.asarray(closes))


def whole(params, state, ids, cfg):
    """Whole segments without padding."""
    return _whole(params, state, ids, cfg)


def layer_state(state, cfg: RmtConfig, n: int = 0):
    """The carry of the mixer of layer n of the pattern."""
    (found,) = state.stack.layers[n].values()
    return found


def to_float64(state):
    return cast(state, np.float64)
