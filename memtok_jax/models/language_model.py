"""Embedding, a stack of layers, output: the one decoder of the package. Its memory is what its layers remember.

    x = E[ids] (times sqrt(D))  (+ positions of a table)
    x = stack(x)                                          stack.py; prefix tokens are seen by all
    logits = norm(x) W                                    W is E transposed, a matrix, or an adaptive softmax
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.memory import tokens
from memtok_jax.models import adaptive, block, layers, positions, stack
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import MixerConfig
from memtok_jax.models.stack import Stack, StackState
from memtok_jax.models.style import GATED, TITANS, Backbone, Style
from memtok_jax.numerics import REMAT, matmul, wide
from memtok_jax.sharding import constrain, look_up


@dataclass(frozen=True)
class LanguageModelConfig:
    """A decoder with memory.

    vocabulary: V.
    width: D.
    layers: L.
    pattern: layers of one repeat, each the config of its mixer or a tuple of configs, one for each residual branch.
    head_dim: K of attention.
    heads: H of attention; 0 takes D / K.
    kv_heads: G, heads of keys and values, which groups of H / G query heads share; 0 takes H.
    value_dim: features of a head's values; 0 takes K.
    hidden: F of the feed-forward network; 0 takes 8/3 D rounded up to a multiple of 32 for SwiGLU, else 4 D.
    segment: tokens between two borders; 0 for a model without segments.
    prefix: M learned tokens that every query sees (persistent memory, meta tokens; Titans section 3.3).
    style: the backbone, see `style.py`.
    cutoffs, shrink: clusters of a vocabulary sorted by frequency, see `adaptive.AdaptiveConfig`; for style.embedding "adaptive".
    positions: rows of the table of positions; 0 takes the places of a full segment.
    dtype: of activations and matrix operands, "float32" or "bfloat16".
    remat: as in `numerics.recompute`.
    unroll: repeats of the pattern that are compiled side by side. All of them makes decoding token by token faster on a CPU, where
        each layer then has arrays of its own, and compiling slower.
    """

    vocabulary: int = 256
    width: int = 128
    layers: int = 2
    pattern: tuple[MixerConfig | tuple[MixerConfig, ...], ...] = ()
    head_dim: int = 32
    heads: int = 0
    hidden: int = 0
    segment: int = 0
    prefix: int = 0
    style: Style = TITANS
    cutoffs: tuple[int, ...] = ()
    shrink: int = 1
    positions: int = 0
    dtype: str = "float32"
    remat: str = "pointwise"
    unroll: int = 1
    kv_heads: int = 0
    value_dim: int = 0

    def __post_init__(self):
        check_numbers("model", self, at_least=dict(vocabulary=1, width=1, layers=1, head_dim=1, heads=0, hidden=0, segment=0,
                                                   prefix=0, shrink=1, positions=0, unroll=1, kv_heads=0, value_dim=0))
        choose("model.dtype", self.dtype, ("float32", "bfloat16"))
        choose("model.remat", self.remat, REMAT)
        if not self.pattern or self.layers % block.depth(self.pattern):
            raise UserError(f"layers={self.layers} is not a multiple of the {block.depth(self.pattern)} layers in model.pattern")
        if not self.heads and self.width % self.head_dim:
            raise UserError(f"width={self.width} is not a multiple of head_dim={self.head_dim}; set model.heads, "
                            "or another head_dim")
        if self.kv_heads and self.query_heads % self.kv_heads:
            raise UserError(f"kv_heads={self.kv_heads} does not divide the {self.query_heads} heads of queries, which share them "
                            "in groups of equal size")
        check_style(self)
        if not any(m.needs_memory_tokens for layer in self.pattern for m in block.branches(layer)):
            self.check_pattern(self.backbone())

    def check_pattern(self, b: Backbone) -> None:
        """Raise UserError where layers do not suit the backbone; with memory tokens around the model, that of the wrapper."""
        mixers = [m for layer in self.pattern for m in block.branches(layer)]
        for place, mixer in enumerate(mixers):
            mixer.check(b)
            mixer.check_after(tuple(mixers[:place]))
        if self.prefix and not any(m.reads_prefix for m in mixers):
            raise UserError(f"prefix={self.prefix} has no reader in model.pattern, where nothing attends or scans; set prefix=0")
        if (b.style.sink, b.style.gate) != ("none", "none") and not any(m.attends for m in mixers):
            raise UserError(f"style.sink={b.style.sink!r} and style.gate={b.style.gate!r} belong to attention, and nothing in "
                            "model.pattern attends; set both to 'none'")
        if b.style.positions == "table" and self.rows_of_positions(b) < b.slots:
            raise UserError(f"positions={self.positions} is less than the {b.slots} places of a segment and its memory tokens")

    def backbone(self, head: int = 0, tail: int = 0) -> Backbone:
        """What the layers are told. head, tail: memory tokens that a wrapper puts around each segment."""
        wide = self.style.feed_forward not in GATED
        hidden = self.hidden or (4 * self.width if wide else -(-self.width * 8 // 3 // 32) * 32)
        return Backbone(self.style, self.width, self.layers, self.query_heads, self.head_dim, hidden, self.segment, self.prefix,
                        head, tail, self.dtype, self.kv_heads, self.value_dim)

    @property
    def query_heads(self) -> int:
        """H."""
        return self.heads or self.width // self.head_dim

    @property
    def repeats(self) -> int:
        """How often the pattern comes."""
        return self.layers // block.depth(self.pattern)

    def stack(self, head: int = 0, tail: int = 0) -> Stack:
        """The layers."""
        return Stack(self.pattern, self.repeats, self.backbone(head, tail), self.remat, self.unroll)

    def rows_of_positions(self, b: Backbone) -> int:
        """Rows of the table of positions."""
        return self.positions or b.slots

    @property
    def words(self) -> adaptive.AdaptiveConfig:
        """Options of adaptive embeddings and output."""
        return adaptive.AdaptiveConfig(self.vocabulary, self.width, self.cutoffs, self.shrink, self.style.std or self.width ** -0.5,
                                       self.dtype)

    @property
    def embedding_scale(self) -> float:
        """Factor of the embeddings."""
        return self.width ** 0.5 if self.style.scale_embedding else 1.0

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the initial embeddings as they enter the stack."""
        return (self.style.std or self.width ** -0.5) * self.embedding_scale

    @property
    def call_tokens(self) -> int:
        """A training call is a multiple of this many tokens: whole segments and chunks."""
        b = self.backbone()
        units = [m.unit(b) for layer in self.pattern for m in block.branches(layer)]
        return math.lcm(*units, *((self.segment,) if self.segment else ()))

    @property
    def reach(self) -> int:
        """Tokens that a token can see without the memory, itself included: L layers of windows, and its segment."""
        b = self.backbone()
        mixers = [m for layer in self.pattern for m in block.branches(layer)]
        inside = self.segment if any(m.by_segment for m in mixers) else 1
        return inside + self.repeats * sum(m.reach(b) for m in mixers)


def check_style(cfg: LanguageModelConfig) -> None:
    """Raise UserError where sizes do not suit the style."""
    style = cfg.style
    style.check_heads(cfg.query_heads, cfg.head_dim)
    if style.positions == "relative" and cfg.width % 2:
        raise UserError(f"width={cfg.width} must be even: relative positions are pairs of sine and cosine")
    if style.positions == "table" and not cfg.segment:
        raise UserError("style.positions is 'table', which has a row for each token of a segment; set model.segment")
    if cfg.cutoffs and style.embedding != "adaptive":
        raise UserError(f"cutoffs={cfg.cutoffs} need style.embedding='adaptive', not {style.embedding!r}")
    _ = cfg.words


# ----------------------------------------------------------------------------------------------------- parameters and carry

def specs(cfg: LanguageModelConfig, b: Backbone | None = None) -> dict:
    """Embedding and output, prefix [M, D], stacked layers, and what the style adds. b: with a wrapper's memory tokens."""
    b = b or cfg.backbone()
    out = {"words": _word_specs(cfg), "prefix": tokens.specs(tokens.TokensConfig(cfg.width, cfg.prefix)),
           "layers": stack.specs(replace(cfg.stack(), b=b))}
    if cfg.style.final_norm:
        out["norm"] = layers.norm_specs(b)
    if cfg.style.positions == "relative" and cfg.style.shared_position:
        out["position"] = positions.bias_specs(b)
    if cfg.style.positions == "table":
        # As large as a word embedding as it enters: beside a memory of unit size a small position would not be seen.
        rows = cfg.rows_of_positions(b)
        out["positions"] = P.ParamSpec((rows, cfg.width), (None, "embed"), P.normal(cfg.embedding_std), decayed=False)
    return out


def _word_specs(cfg: LanguageModelConfig) -> dict:
    """Embedding [V, D], and the output layer where it is another."""
    if cfg.style.embedding == "adaptive":
        return adaptive.specs(cfg.words)
    std = cfg.style.std or cfg.width ** -0.5
    out = {"embedding": P.ParamSpec((cfg.vocabulary, cfg.width), ("vocab", "embed"), P.normal(std), decayed=False)}
    if cfg.style.embedding == "tied":
        return out
    return out | {"output": P.ParamSpec((cfg.width, cfg.vocabulary), ("embed", "vocab"), P.fan_in(0))}


def state_specs(cfg: LanguageModelConfig, batch: int) -> StackState:
    """Shapes, axes and lifetimes of the carry of `batch` streams."""
    return stack.state_specs(cfg.stack(), batch)


def side_of(params) -> dict:
    """What all layers share."""
    return {"position": params["position"]} if "position" in params else {}


def start(params, cfg: LanguageModelConfig, s: Stack, batch: int) -> StackState:
    """The carry of the stack before the first token; float64 where the parameters are."""
    x = layers.compute_dtype(params["prefix"]["tokens"], cfg.dtype)
    state = stack.init_state(params["layers"], x, s, batch, side_of(params))
    if x.dtype != jnp.float64:
        return state
    return jax.tree.map(lambda leaf: leaf.astype(x.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)


def init_state(params, cfg: LanguageModelConfig, batch: int) -> StackState:
    """The carry of streams before their first token, prefix in place."""
    return start(params, cfg, cfg.stack(), batch)


# -------------------------------------------------------------------------------------------------------------- computation

def embed(params, ids: jax.Array, cfg: LanguageModelConfig) -> jax.Array:
    """Word embeddings [B, T, D] in the dtype of activations. An id outside 0 .. V-1 is clamped or wraps: check ids on the host."""
    words = params["words"]
    x = adaptive.embed(words, ids, cfg.words) if cfg.style.embedding == "adaptive" else look_up(words["embedding"], ids)
    return constrain(layers.compute_dtype(x * jnp.asarray(cfg.embedding_scale, x.dtype), cfg.dtype), "batch", "length", "embed")


def placed(params, x: jax.Array, slot: jax.Array, cfg: LanguageModelConfig) -> jax.Array:
    """x[B, T, D] with the learned positions of a table; other styles place tokens inside attention. slot: i32[B], of the first."""
    if cfg.style.positions != "table":
        return x
    place = slot[:, None] + jnp.arange(x.shape[1])[None]
    return x + look_up(params["positions"], jnp.minimum(place, len(params["positions"]) - 1)).astype(x.dtype)


def finish(params, x: jax.Array, cfg: LanguageModelConfig) -> jax.Array:
    """The last norm, where the style has one."""
    return layers.norm(params["norm"], x, cfg.backbone()) if cfg.style.final_norm else x


def logits(params, h: jax.Array, cfg: LanguageModelConfig) -> jax.Array:
    """Logits f32[B, T, V] of finished hidden states."""
    words = params["words"]
    if cfg.style.embedding == "adaptive":
        out = adaptive.logits(words, h, cfg.words)
    else:
        out = matmul(h, words["output"] if cfg.style.embedding == "matrix" else words["embedding"].T, cfg.dtype)
    if cfg.style.logit_cap:
        out = cfg.style.logit_cap * jnp.tanh(out / cfg.style.logit_cap)
    return constrain(out, "batch", "length", "vocab")


def run(params, state: StackState, ids: jax.Array, cfg: LanguageModelConfig, call: Call = Call()):  # noqa: B008
    """Tokens ids i32[B, T] -> (logits f32[B, T, V], state, statistics name -> f32[]).

    Any cut of a stream into calls gives the same. Raises UserError where a call promises to be whole and is not.
    """
    check_call(ids, call, cfg)
    if 0 in ids.shape:
        return jnp.zeros((*ids.shape, cfg.vocabulary), wide(params["prefix"]["tokens"])), state, {}
    h, after, stats = hidden(params, state, ids, cfg, call)
    return logits(params, h, cfg), after, stats


def hidden(params, state: StackState, ids: jax.Array, cfg: LanguageModelConfig, call: Call = Call()):  # noqa: B008
    """`run` without the output layer: ids i32[B, T], T at least 1 -> (finished hidden states [B, T, D], state, statistics)."""
    x = embed(params, ids, cfg)
    if cfg.style.positions == "table":
        x = _placed_by_count(params, x, state.slot, cfg)
    x, after, stats = stack.run(params["layers"], state, x, cfg.stack(), call, side_of(params))
    return finish(params, x, cfg), after, stats


def _placed_by_count(params, x: jax.Array, slot: jax.Array, cfg: LanguageModelConfig) -> jax.Array:
    """The table's positions of tokens that may run over borders."""
    place = (slot[:, None] + jnp.arange(x.shape[1])[None]) % cfg.segment
    return x + look_up(params["positions"], place).astype(x.dtype)


def check_call(ids: jax.Array, call: Call, cfg: LanguageModelConfig) -> None:
    """Raise UserError where the tokens of a call are not whole segments and chunks though it says so, or are too many for a segment
    that the caller closes."""
    if call.whole and call.closes is None and ids.shape[1] % cfg.call_tokens:
        raise UserError(f"a training call of {ids.shape[1]} tokens is not a multiple of the model's {cfg.call_tokens} "
                        f"(segment={cfg.segment}, and chunks of its memories)")
    if call.closes is not None and cfg.segment and ids.shape[1] > cfg.segment:
        raise UserError(f"a call of {ids.shape[1]} tokens does not fit into a segment of {cfg.segment}")


def run_segments(params, state: StackState, ids_NBT: jax.Array, cfg: LanguageModelConfig):
    """N whole calls at once along the diagonals of layers and calls: what a scan of whole calls over them gives.

    ids_NBT: i32[N, B, T]. Returns (logits f32[N, B, T, V], state).
    """
    n, batch, t = ids_NBT.shape
    check_call(ids_NBT[0], Call(whole=True), cfg)
    x = embed(params, ids_NBT.reshape(n * batch, t), cfg)
    if cfg.style.positions == "table":
        x = _placed_by_count(params, x, jnp.zeros((n * batch,), jnp.int32), cfg)
    x = x.reshape(n, batch, t, cfg.width)
    x, after = stack.run_segments(params["layers"], state, x, cfg.stack(), Call(), side_of(params))
    out = logits(params, finish(params, x.reshape(n * batch, t, cfg.width), cfg), cfg)
    return out.reshape(n, batch, t, cfg.vocabulary), after


# ------------------------------------------------------------------------------------------------------------- token by token

def apart(cfg: LanguageModelConfig) -> LanguageModelConfig:
    """The config of the same model with arrays of its own for each layer: its pattern is all layers."""
    return replace(cfg, pattern=cfg.pattern * cfg.repeats, unroll=1)


def unstacked(cfg: LanguageModelConfig) -> LanguageModelConfig:
    """The config of the model that `unstack` makes: its pattern is all layers."""
    return apart(cfg) if stack.side_by_side(cfg.stack()) else cfg


def unstack(params, state: StackState, cfg: LanguageModelConfig):
    """The same model with arrays of its own for each layer, for a loop over tokens: (params, state, cfg); see `stack.unstack`."""
    own, after, _ = stack.unstack(params["layers"], state, cfg.stack())
    return params | {"layers": own}, after, unstacked(cfg)


def restack(state: StackState, cfg: LanguageModelConfig) -> StackState:
    """The carry of a model of `cfg` out of that of the model which `unstack` made of it."""
    return stack.restack(state, cfg.stack())
