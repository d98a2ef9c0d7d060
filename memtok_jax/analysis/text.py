"""Where attention goes in a language model, and how large its hidden states are, layer by layer.

Letters: B texts of T tokens, L layers, H heads, D width. Only for models whose layers are all window attention, and for texts that
fit into the window. The numbers are those that the model computes, with its sinks, gates and prefix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.config import UserError
from memtok_jax.models import attention as A
from memtok_jax.models import block, layers
from memtok_jax.models import language_model as lm
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.numerics import wide


class Looked(NamedTuple):
    """Attention and hidden states of all layers."""

    weights: jax.Array  # f32[L, B, H, T, T] queries before keys; the rest of each query's 1 went to a sink or the prefix
    hidden: jax.Array   # f32[L+1, B, T, D] the residual stream before each layer and after the last


def look(params, ids: jax.Array, cfg: lm.LanguageModelConfig) -> Looked:
    """Attention and hidden states of texts ids i32[B, T], each from its first token.

    Raises UserError for a model with other layers than window attention, or with a window shorter than T.
    """
    _refuse(cfg, ids.shape[1])
    b, side, state = cfg.backbone(), lm.side_of(params), lm.init_state(params, cfg, len(ids))
    length = jnp.full(len(ids), ids.shape[1], jnp.int32)
    call = Call(length=length, slot=state.slot)
    x = lm.placed(params, lm.embed(params, ids, cfg), state.slot, cfg)
    weights, hidden = [], [x]
    for repeat in range(cfg.repeats):
        for layer, stacked, carries in zip(cfg.pattern, params["layers"], state.layers, strict=True):
            own, carry = jax.tree.map(lambda leaf, n=repeat: leaf[n], (stacked, carries))
            weights.append(_weights(own, carry, x, layer, b, side))
            x, _, _, side = block.run(own, carry, x, layer, b, call, side)
            hidden.append(x)
    return Looked(jnp.stack(weights), jnp.stack(hidden).astype(wide(x)))


def _refuse(cfg: lm.LanguageModelConfig, tokens: int) -> None:
    for layer in cfg.pattern:
        if not isinstance(layer, WindowConfig):
            raise UserError(f"only models of window attention can be looked into; model.pattern has {layer!r}")
        if layer.window < tokens:
            raise UserError(f"a text of {tokens} tokens is longer than the window of {layer.window}; give at most {layer.window}")


def _weights(own: dict, carry: dict, x: jax.Array, layer: WindowConfig, b, side: dict) -> jax.Array:
    """Weights f32[B, H, T, T] of one layer on x[B, T, D]."""
    (name,) = block.names(layer)
    u = layers.enter(own[name], x, b)
    k, v = (A.heads(own[name], u, part, b) for part in "kv")
    causal = jnp.broadcast_to(jnp.tri(x.shape[1], dtype=bool), (len(x), x.shape[1], x.shape[1]))
    return A.at_places(own[name], u, k, v, causal, b, side, prefix=carry[name].prefix)[1]


def off_token_mass(weights_LBHTT: jax.Array) -> float:
    """Attention that went to no token of the text (a sink's column or a prefix), as a mean over all queries: 0 to 1."""
    return float(1 - weights_LBHTT.astype(jnp.float32).sum(-1).mean())


def massive_activations(hidden_LBTD: jax.Array) -> tuple[float, int, int]:
    """The largest |x| of a hidden state over its median |x|, for the hidden state with the largest ratio.

    hidden: f[L+1, B, T, D]. Source: arXiv 2402.17762, section 2.
    Returns the ratio, as a median over texts; the number of the hidden state, 0 for the embeddings; and the position of the token
    with the largest |x| in the text whose ratio is nearest to the median.
    """
    size = jnp.abs(hidden_LBTD.astype(jnp.float32))
    largest, median = size.max((2, 3)), jnp.median(size.reshape(*size.shape[:2], -1), axis=-1)
    ratio = largest / median
    middle = jnp.median(ratio, axis=1)
    layer = int(middle.argmax())
    text = int(jnp.abs(ratio[layer] - middle[layer]).argmin())
    return float(middle[layer]), layer, int(size[layer, text].max(-1).argmax())
