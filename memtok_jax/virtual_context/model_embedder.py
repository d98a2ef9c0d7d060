"""An embedder made of a model of this library: the mean of its last hidden states over the tokens of a text."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.config import UserError
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Model
from memtok_jax.params import Tree
from memtok_jax.virtual_context import codec
from memtok_jax.virtual_context.embed import unit
from memtok_jax.virtual_context.session_device import parameters_digest


class ModelEmbedder:
    """See `embed.Embedder`.

    model: of bytes. params: its parameters. steps: updates that made them. tokens: a text is cut to this many. untrained: allow
    parameters of 0 steps, whose vectors mean nothing.
    Raises UserError for a model without hidden states (`hidden`), for another vocabulary, and for 0 steps without `untrained`.
    """

    def __init__(self, model: Model, params: Tree, steps: int, tokens: int = 256, untrained: bool = False):
        if not hasattr(model.functions, "hidden") or model.vocabulary != 256:
            raise UserError("an embedder needs a language model of bytes: a vocabulary of 256 and a function `hidden`")
        if steps < 1 and not untrained:
            raise UserError("vectors of an untrained model mean nothing; train it, or set untrained to use them all the same")
        self._params, self._tokens = params, -(-tokens // model.call_tokens) * model.call_tokens
        self._run = jax.jit(functools.partial(_mean, model))
        self.dim = jax.eval_shape(self._run, params, jnp.zeros((1, self._tokens), jnp.int32), jnp.ones(1, jnp.int32)).shape[1]
        self.name = f"model-{parameters_digest(params)[:16]}-{self._tokens}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """f32[n, dim]. One text is a row of its own, so that its vector does not depend on others."""
        out = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(out, texts, strict=True):
            content = codec.encode(text)[:self._tokens]
            ids = np.zeros((1, self._tokens), np.int32)
            ids[0, :len(content)] = list(content)
            if content:
                row[:] = np.asarray(self._run(self._params, ids, np.array([len(content)], np.int32)))[0]
        return unit(out)


def _mean(model: Model, params: Tree, ids: jax.Array, length: jax.Array) -> jax.Array:
    """Mean of the hidden states over the first `length` tokens: [B, D]."""
    h = model.functions.hidden(params, model.init_state(params, len(ids)), ids, model.cfg, Call(length=length))[0]
    real = (jnp.arange(ids.shape[1])[None] < length[:, None])[..., None]
    return jnp.where(real, h, 0).sum(1) / jnp.maximum(length, 1)[:, None].astype(h.dtype)
