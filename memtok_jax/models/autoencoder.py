"""A sequence through one vector: an encoder with memory, and a decoder that sees its last output alone (MAD's compression).

    h = output of the encoder at the last token of the call
    logits_t = W2 gelu(W1 norm(h + position_t))          position_t: fixed sines and cosines of the place in the call

Source: Poli et al., arXiv 2403.17844, and its released code: two layers of width D, GELU, then the output. Only what the encoder's
state holds at the last token can be decoded. A call is one sequence: unlike other models, a cut stream gives something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.models import language_model, stack
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.layers import gelu
from memtok_jax.models.positions import sinusoids
from memtok_jax.numerics import dense, rms_norm


@dataclass(frozen=True)
class AutoencoderConfig:
    """inside: the encoder; its output layer is left out."""

    inside: LanguageModelConfig

    def __post_init__(self):
        style = self.inside.style
        if style.positions == "table" or style.embedding == "adaptive":
            raise UserError(f"an autoencoder takes words as they are, and style.positions={style.positions!r} with "
                            f"style.embedding={style.embedding!r} asks for more; choose another style")

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.inside.vocabulary

    @property
    def call_tokens(self) -> int:
        """As the encoder's."""
        return self.inside.call_tokens

    @property
    def reach(self) -> int:
        """A decoded symbol sees no token, only a vector."""
        return 1

    @property
    def segment(self) -> int:
        """As the encoder's."""
        return self.inside.segment


def specs(cfg: AutoencoderConfig) -> dict:
    """The encoder without its output, and the decoder."""
    d, v = cfg.inside.width, cfg.vocabulary
    encoder = language_model.specs(cfg.inside)
    layer = {"w": P.ParamSpec((d, d), ("embed", None), P.fan_in(0)), "b": P.ParamSpec((d,), (None,), P.zeros, decayed=False)}
    output = {"w": P.ParamSpec((d, v), ("embed", "vocab"), P.fan_in(0)), "b": P.ParamSpec((v,), ("vocab",), P.zeros, decayed=False)}
    decoder = {"norm": P.ParamSpec((d,), (None,), P.ones, decayed=False), "first": layer, "second": layer, "output": output}
    return {"encoder": encoder | {"words": {"embedding": encoder["words"]["embedding"]}}, "decoder": decoder}


def state_specs(cfg: AutoencoderConfig, batch: int) -> stack.StackState:
    """The carry of the encoder."""
    return language_model.state_specs(cfg.inside, batch)


def init_state(params, cfg: AutoencoderConfig, batch: int) -> stack.StackState:
    """The encoder before its first token."""
    return language_model.init_state(params["encoder"], cfg.inside, batch)


def run(params, state: stack.StackState, ids: jax.Array, cfg: AutoencoderConfig, call: Call = Call()):  # noqa: B008
    """Tokens ids i32[B, T] -> (logits f32[B, T, V] of the same tokens, state, statistics). The last real token of a row ends it."""
    language_model.check_call(ids, call, cfg.inside)
    encoder, length = params["encoder"], P.full_length(ids) if call.length is None else call.length
    x = language_model.embed(encoder, ids, cfg.inside)
    x, after, stats = stack.run(encoder["layers"], state, x, cfg.inside.stack(), call, language_model.side_of(encoder))
    x = language_model.finish(encoder, x, cfg.inside)
    last = jnp.take_along_axis(x, jnp.maximum(length - 1, 0)[:, None, None], axis=1)
    return decode(params["decoder"], last, ids.shape[1], cfg), after, stats


def decode(params, last_B1D: jax.Array, tokens: int, cfg: AutoencoderConfig) -> jax.Array:
    """Logits f32[B, T, V] of all places from one vector each."""
    dtype = cfg.inside.dtype
    place = sinusoids(jnp.arange(tokens), cfg.inside.width, 0, jnp.float32)
    h = rms_norm(last_B1D + place[None].astype(last_B1D.dtype), params["norm"])
    h = gelu(dense(gelu(dense(h, params["first"], dtype)), params["second"], dtype))
    return dense(h, params["output"], dtype).astype(jnp.float32)


def unstack(params, state: stack.StackState, cfg: AutoencoderConfig) -> tuple[Any, stack.StackState, AutoencoderConfig]:
    """As it is: nothing is decoded token by token."""
    return params, state, cfg


def restack(state: stack.StackState, cfg: AutoencoderConfig) -> stack.StackState:
    """As it is."""
    return state
