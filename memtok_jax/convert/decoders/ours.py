"""A plain language model of this package as a pretrained decoder: which config.json computes the same, and its parameters.

| positions | layers                      | becomes | exact for texts |
|-----------|-----------------------------|---------|-----------------|
| rotary    | windows of W tokens, alike  | mistral | of any length   |
| rotary    | segments                    | llama   | up to a segment |
| table     | segments                    | gpt2    | up to a segment |

The config that is written is read again, as any other is. Whatever of ours comes back as something else has no place there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError, differences
from memtok_jax.convert.decoders import fields
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import GATED, TITANS

LONGEST = 131_072  # tokens of a text that a model with rotary positions and windows is said to be for; it has no limit of its own


def plain(cfg: LanguageModelConfig) -> LanguageModelConfig:
    """The same function with a style that a folder can tell of.

    Embeddings that are multiplied by sqrt(D) are written multiplied, and an output layer tied to them becomes one of its own: the
    same products in float32, bit for bit.
    """
    style = cfg.style
    if style.feed_forward in GATED and style.feed_forward_bias == "none":
        style = replace(style, feed_forward_bias="ungated")
    if _scales(cfg):
        style = replace(style, scale_embedding=False, embedding="matrix")
    return replace(cfg, style=style)


def _scales(cfg: LanguageModelConfig) -> bool:
    return cfg.style.scale_embedding and cfg.style.embedding != "adaptive"


def folded(params: P.Tree, cfg: LanguageModelConfig) -> P.Tree:
    """The parameters of `plain(cfg)` that compute what those of cfg do."""
    words = params["words"]
    if not _scales(cfg):
        return params
    output = words["embedding"].T if cfg.style.embedding == "tied" else words["output"]
    return params | {"words": {"embedding": words["embedding"] * jnp.asarray(cfg.embedding_scale, words["embedding"].dtype),
                               "output": output}}


def config(cfg: LanguageModelConfig) -> dict[str, Any]:
    """The fields of a config.json for a model that is `plain`. Raises UserError, in one line, if nothing there means it."""
    kinds = {type(layer) for layer in cfg.pattern}
    if kinds not in ({WindowConfig}, {SegmentConfig}) or len(set(cfg.pattern)) > 1:
        raise UserError(f"layers of a pretrained model's folder are windows or segments, all alike; this model has "
                        f"{', '.join(sorted(kind.__name__ for kind in kinds))} in {len(set(cfg.pattern))} kinds")
    layer = cfg.pattern[0]
    if isinstance(layer, WindowConfig) and layer.sinks or cfg.prefix:
        raise UserError("a pretrained model's folder has no place for sinks of a window and for prefix tokens; set sinks=0, or a "
                        f"model without a prefix (this one has {cfg.prefix} tokens)")
    return _gpt2(cfg) if cfg.style.positions == "table" else _llama(cfg, layer)


def _word(known: Mapping[str, str], ours: str) -> str:
    """Their name of a feed-forward network; ours where they have none, which is refused when it is read."""
    return next((theirs for theirs, own in known.items() if own == ours), ours)


def _llama(cfg: LanguageModelConfig, layer: WindowConfig | SegmentConfig) -> dict[str, Any]:
    b, style = cfg.backbone(), cfg.style
    window = layer.window if isinstance(layer, WindowConfig) else 0
    kind = {"model_type": "mistral", "sliding_window": window} if window else {
        "model_type": "llama", "attention_bias": style.bias, "mlp_bias": style.feed_forward_bias == "all"}
    return kind | {"vocab_size": cfg.vocabulary, "hidden_size": b.width, "num_hidden_layers": b.layers,
                   "num_attention_heads": b.heads, "num_key_value_heads": b.kv_heads, "head_dim": b.head_dim,
                   "intermediate_size": b.hidden, "max_position_embeddings": LONGEST if window else cfg.segment,
                   "rms_norm_eps": style.eps, "hidden_act": _word(fields.GATED_UNITS, style.feed_forward),
                   "tie_word_embeddings": style.embedding == "tied",
                   "rope_parameters": {"rope_type": "default", "rope_theta": style.rope_base}}


def _gpt2(cfg: LanguageModelConfig) -> dict[str, Any]:
    b, style = cfg.backbone(), cfg.style
    return {"model_type": "gpt2", "vocab_size": cfg.vocabulary, "n_embd": b.width, "n_layer": b.layers, "n_head": b.heads,
            "n_positions": cfg.rows_of_positions(b), "n_inner": b.hidden, "layer_norm_epsilon": style.eps,
            "activation_function": _word(fields.PLAIN_UNITS, style.feed_forward), "tie_word_embeddings": style.embedding == "tied"}


def check_same(cfg: LanguageModelConfig, back: LanguageModelConfig) -> None:
    """Raise UserError, naming the first field, unless the config that was read back computes what ours does.

    Initial deviations, unrolling and the dtype of activations are no part of the function; nor is what was left for the model to
    fill in.
    """
    bare = lambda c: replace(c, style=replace(c.style, std=TITANS.std, distance_std=TITANS.distance_std, clamp=TITANS.clamp),
                              heads=c.query_heads, kv_heads=c.backbone().kv_heads, value_dim=c.backbone().value_dim,
                              hidden=c.backbone().hidden, pattern=(SegmentConfig(),), segment=1, positions=1, dtype="float32",
                              remat="pointwise", unroll=1)
    if found := differences(bare(cfg), bare(back), "model"):
        field, ours, theirs = found[0]
        raise UserError(f"{field}={ours!r} has no place in a pretrained model's folder, whose nearest kind has {theirs!r}")
