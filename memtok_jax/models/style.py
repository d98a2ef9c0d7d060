"""The choices in which published backbones differ, as data: any memory runs in any of them.

| style | norm | order | feed-forward | positions | embedding | source |
|---|---|---|---|---|---|---|
| TITANS         | RMS   | pre  | SwiGLU    | rotary              | tied, times sqrt(D) | arXiv 2501.00663, section 4.4 |
| GPT2           | layer | pre  | GELU      | table               | tied                | Radford et al., 2019 |
| GPT2_RELATIVE  | layer | pre  | GELU      | relative            | tied, times sqrt(D) | GPT2 with arXiv 1901.02860, 3.3 |
| TRANSFORMER_XL | layer | post | ReLU      | relative, one u, v  | adaptive            | arXiv 1901.02860 |
| COMPRESSIVE    | layer | pre  | ReLU      | relative            | adaptive            | arXiv 1911.05507 |

A style grows a field only when a published checkpoint needs it: a new paper adds a mixer, never a style.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from memtok_jax.config import check_numbers, choose

CHOICES = {"norm": ("rms", "layer"), "order": ("pre", "post"), "feed_forward": ("swiglu", "gelu", "relu"),
           "positions": ("rope", "relative", "table", "alibi", "none"), "embedding": ("tied", "matrix", "adaptive"),
           "sink": ("none", "zero", "logit", "kv"), "gate": ("none", "elementwise", "head")}


@dataclass(frozen=True)
class Style:
    """A backbone.

    norm: "rms" or "layer" (with a bias).
    eps: of the norms.
    order: "pre" norms the input of each branch, "post" the sum behind it.
    feed_forward: "swiglu" (no biases), "gelu" (tanh form) or "relu" (with biases).
    bias: whether the projections of attention have biases.
    positions: "rope", "relative", "table" (learned, added to the input; needs segments), "alibi" or "none".
    rope_base: of the rotary frequencies.
    clamp: largest distance that relative positions tell apart; 0 means no limit.
    shared_position: all layers share the two position biases (u and v of Transformer-XL).
    distance_std: standard deviation of the initial distance bias; 0 takes `std`.
    embedding: "tied" (the output layer is the embedding), "matrix" (it has its own) or "adaptive" (see `adaptive.py`).
    scale_embedding: embeddings are multiplied by sqrt(D).
    final_norm: whether there is a norm before the output layer.
    std: standard deviation of the initial weights; 0 takes 1 / sqrt(fan-in), and small output projections.
    sink: where attention may go instead of to a token, "none", "zero", "logit" (gpt-oss) or "kv"; see `sinks.py`. A learned sink
        token is `model.prefix=1`.
    gate: of the attention's output, "none", "elementwise" or "head" (Qwen3-Next); see `sinks.py`.
    """

    norm: str = "rms"
    eps: float = 1e-6
    order: str = "pre"
    feed_forward: str = "swiglu"
    bias: bool = False
    positions: str = "rope"
    rope_base: float = 10000.0
    clamp: int = field(default=0, metadata={"evaluation": True})
    shared_position: bool = False
    distance_std: float = 0.0
    embedding: str = "tied"
    scale_embedding: bool = True
    final_norm: bool = True
    std: float = 0.0
    sink: str = "none"
    gate: str = "none"

    def __post_init__(self):
        for name, known in CHOICES.items():
            choose(name, getattr(self, name), known)
        check_numbers("style", self, at_least=dict(clamp=0, distance_std=0, std=0), above=dict(eps=0, rope_base=0))


TITANS = Style()
GPT2 = Style(norm="layer", eps=1e-5, feed_forward="gelu", bias=True, positions="table", scale_embedding=False)
# The distance bias starts large, so that the scores of distances differ by about 2 and each head prefers a few distances from the
# start, whatever stands there: a memory is written and read by place before it can be used by content. From zero, RMT took
# twice as many updates to copy 12 symbols (docs/log.md).
GPT2_RELATIVE = replace(GPT2, positions="relative", scale_embedding=True, distance_std=3.0)
TRANSFORMER_XL = Style(norm="layer", eps=1e-5, order="post", feed_forward="relu", positions="relative", shared_position=True,
                       embedding="adaptive", final_norm=False, std=0.02)
COMPRESSIVE = replace(TRANSFORMER_XL, order="pre", shared_position=False)


@dataclass(frozen=True)
class Backbone:
    """A style with its sizes: what every mixer of a model is told beside its own options.

    width: D. layers: L. heads: H. head_dim: K of queries and keys. hidden: F of the feed-forward.
    segment: tokens between two borders, 0 where the model has none.
    prefix: learned tokens that every query sees.
    head, tail: memory tokens in front of and behind the tokens of a segment.
    dtype: of activations and matrix operands, "float32" or "bfloat16".
    kv_heads: G, heads of keys and values, each read by H / G heads of queries (grouped-query attention, arXiv 2305.13245); 0
        takes H.
    value_dim: V, features of a head's values; 0 takes K.
    """

    style: Style
    width: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    segment: int = 0
    prefix: int = 0
    head: int = 0
    tail: int = 0
    dtype: str = "float32"
    kv_heads: int = 0
    value_dim: int = 0

    def __post_init__(self):
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "value_dim", self.value_dim or self.head_dim)

    @property
    def slots(self) -> int:
        """Places of a full segment, its memory tokens included."""
        return self.head + self.segment + self.tail

    @property
    def residual_scale(self) -> float:
        """Factor of the initial output projections: 1 / sqrt(2 L), or 1 where `std` sets all weights."""
        return 1.0 if self.style.std else (2 * self.layers) ** -0.5
