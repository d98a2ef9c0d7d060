"""The choices in which published backbones differ, as data: any memory runs in any of them.

| style | norm | order | feed-forward | positions | embedding | source |
|---|---|---|---|---|---|---|
| TITANS         | RMS   | pre  | SwiGLU    | rotary              | tied, times sqrt(D) | arXiv 2501.00663, section 4.4 |
| GPT2           | layer | pre  | GELU      | table               | tied                | Radford et al., 2019 |
| GPT2_RELATIVE  | layer | pre  | GELU      | relative            | tied, times sqrt(D) | GPT2 with arXiv 1901.02860, 3.3 |
| TRANSFORMER_XL | layer | post | ReLU      | relative, one u, v  | adaptive            | arXiv 1901.02860 |
| COMPRESSIVE    | layer | pre  | ReLU      | relative            | adaptive            | arXiv 1911.05507 |

The published decoders that can be loaded are styles too; the file of a family in `convert/decoders` makes its style out of the
family's config. A style grows a field only when a published checkpoint needs it: a new paper adds a mixer, never a style.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.models.rotary import PLAIN, RotaryConfig, turned

CHOICES = {"norm": ("rms", "rms_offset", "layer", "layer_scale"),
           "order": ("pre", "post", "branch", "sandwich", "parallel", "parallel_shared"),
           "feed_forward": ("swiglu", "geglu", "gelu", "gelu_erf", "relu"), "feed_forward_bias": ("ungated", "all", "none"),
           "norm_heads": ("none", "head", "all"),
           "positions": ("rope", "relative", "table", "alibi", "none"), "embedding": ("tied", "matrix", "adaptive"),
           "sink": ("none", "zero", "logit", "kv"), "gate": ("none", "elementwise", "head")}
GATED = ("swiglu", "geglu")  # feed-forward networks with a third matrix


@dataclass(frozen=True)
class Style:
    """A backbone.

    norm: "rms", "rms_offset" (times 1 + scale; Gemma), "layer" (with a bias) or "layer_scale" (without; MPT).
    eps: of the norms.
    order: where norms stand, see `block.py`: "pre", "post", "branch" (OLMo 2), "sandwich" (Gemma 2), "parallel" (GPT-NeoX) or
        "parallel_shared" (Falcon 7B).
    feed_forward: "swiglu", "geglu" (both with a gate; the second in its tanh form), "gelu" (tanh form), "gelu_erf" or "relu".
    feed_forward_bias: which of these networks have biases: "ungated" (those without a gate), "all" or "none".
    bias: whether the projections of attention have biases.
    output_bias: whether the one behind attention has one too, if `bias`; without: Qwen2.
    norm_heads: an RMS norm of queries and keys before their positions: "none", "head" (of each head; Qwen3) or "all" (of all heads
        together; OLMo 2).
    clip: queries, keys and values are clipped to this size (MPT); 0: not at all.
    score_scale: of attention; 0 takes 1 / sqrt(K).
    score_cap: scores s become cap tanh(s / cap) (Gemma 2); 0: not at all.
    logit_cap: the same of the logits.
    positions: "rope", "relative", "table" (learned, added to the input; needs segments), "alibi" or "none".
    rope_base: of the rotary frequencies.
    rotary: how they are scaled, and which features turn, see `rotary.py`.
    slopes: of "alibi", one for each head; () takes those of the paper.
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
    feed_forward_bias: str = "ungated"
    output_bias: bool = True
    norm_heads: str = "none"
    clip: float = 0.0
    score_scale: float = 0.0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    rotary: RotaryConfig = PLAIN
    slopes: tuple[float, ...] = ()

    def __post_init__(self):
        for name, known in CHOICES.items():
            choose(name, getattr(self, name), known)
        check_numbers("style", self, at_least=dict(clamp=0, distance_std=0, std=0, clip=0, score_scale=0, score_cap=0, logit_cap=0),
                      above=dict(eps=0, rope_base=0, slopes=0))

    def check_heads(self, heads: int, head_dim: int) -> None:
        """Raise UserError where positions do not suit H heads of K features."""
        if self.positions == "rope" and head_dim % 2 and self.rotary.share == 1:
            raise UserError(f"head_dim={head_dim} must be even: rotary positions turn pairs")
        if self.positions == "rope":
            turned(self.rotary, head_dim)
        if self.slopes and len(self.slopes) != heads:
            raise UserError(f"style.slopes has {len(self.slopes)} numbers; {heads} heads need as many, or none")

    @property
    def parallel(self) -> bool:
        """Whether attention and feed-forward network read the same residual stream."""
        return self.order in ("parallel", "parallel_shared")


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
