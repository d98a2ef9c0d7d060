"""Options of the neural memory, with the defaults of `docs/mathematics.md` and the reason for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.numerics import DTYPES

NETWORKS = ("mlp", "swiglu", "gated", "low_rank")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu")
VIEWS = ("chunked", "kernel", "literal")


@dataclass(frozen=True)
class NeuralMemoryConfig:
    """Neural long-term memory (Titans, arXiv 2501.00663, section 3).

    width: D, features of a token; 0 inside a model, which fills it in.
    head_dim: K, features of one memory; H = D / K memories work side by side.
    chunk: C, tokens whose inner gradients are taken at the same weights. It is a property of the model, not of the speed: the
        same parameters with another chunk are another function.
    network: "mlp" (`depth` layers; depth 1 without residual and norm is the linear memory), "swiglu", "gated", "low_rank".
    depth: dense layers of "mlp" and of the branch of "gated".
    expansion: the hidden width of the network is F = expansion * K.
    rank: inner width of the factors of "low_rank".
    activation: between the layers, "gelu", "gelu_tanh" or "silu".
    residual: f(x) = x + net(x).
    norm: the network ends in LayerNorm(.) * gamma + beta; gamma and beta are ordinary (slow) parameters.
    fast_norm: gamma is a fast weight (stored minus one) instead of a slow parameter.
    fast_bias: dense layers of "mlp" and "gated" have fast biases.
    step_max: largest step size; 0 takes `default_step_max`.
    surprise_clip: largest norm of one token's gradient; 0 is no clip, -1 takes `default_surprise_clip`.
    momentum: whether the surprise has a past (False is the paper's ablation).
    forget: whether weights decay (False is the paper's ablation).
    gates: "shared" (one step size, momentum and forgetting of a token for the whole network) or "per_layer" (one set for each
        dense layer; a fast vector takes that of the dense layer before it).
    forget_by: "head" (one forgetting of a token for all weights of a set) or "channel" (one for each input channel of each dense
        layer). Chunks of more than 16 tokens then cost more.
    forget_rank: inner width of the projection from tokens to the forgetting of channels.
    forget_to: where forgetting leads, "init" (the learned initial weights) or "zero" (the paper's equation 13).
    read: whether token t reads "after" or "before" it is written.
    conv: width of the causal depthwise convolution on q, k and v; 1 is none.
    feature_activation: SiLU on q, k and v.
    feature_norm: q and k have length 1 in each head.
    step_bias: initial bias of the gate of the step size.
    momentum_bias: initial bias of the gate of the momentum.
    forget_range: initial forgetting of the first and of the last head; the others lie between, evenly in the logarithm.
    loss_scale: factor of the inner loss |f(k) - v|^2.
    remat_group: chunks between two carries that the backward pass stores. 0 takes 1 for up to 16 chunks, else about
        sqrt(chunks). -1 stores everything, for a caller that recomputes the whole call.
    dtype: of the operands of matrix products, "float32" or "bfloat16"; sums, state, gates and norms are float32 always.
    view: how the rule is computed: "chunked"; "kernel", with the weights on the chip (TPU; interpreted and slow elsewhere); or
        "literal", token by token and slow. The values are the same.
    """

    width: int = 0
    head_dim: int = 64
    chunk: int = 64
    network: str = "mlp"
    depth: int = 2
    expansion: int = 4
    rank: int = 16
    activation: str = "gelu"
    residual: bool = True
    norm: bool = True
    fast_norm: bool = False
    fast_bias: bool = False
    step_max: float = 0.0
    surprise_clip: float = -1.0
    momentum: bool = True
    forget: bool = True
    gates: str = "shared"
    forget_by: str = "head"
    forget_rank: int = 16
    forget_to: str = "init"
    read: str = "after"
    conv: int = 4
    feature_activation: bool = True
    feature_norm: bool = True
    step_bias: float = -2.0
    momentum_bias: float = 2.0
    forget_range: tuple[float, float] = (1e-2, 1e-4)
    loss_scale: float = 1.0
    remat_group: int = 0
    dtype: str = "float32"
    view: str = "chunked"

    def __post_init__(self):
        positive = ("head_dim", "chunk", "depth", "expansion", "rank", "conv", "forget_rank")
        check_numbers("memory", self, at_least={"width": 0, "step_max": 0, "remat_group": -1, **dict.fromkeys(positive, 1)},
                      above={"forget_range": 0, "loss_scale": 0}, below={"forget_range": 1})
        for name, known in (("network", NETWORKS), ("activation", ACTIVATIONS), ("gates", ("shared", "per_layer")),
                            ("forget_by", ("head", "channel")), ("forget_to", ("init", "zero")),
                            ("read", ("after", "before")), ("dtype", DTYPES), ("view", VIEWS)):
            choose(f"memory.{name}", getattr(self, name), known)
        if self.surprise_clip < 0 and self.surprise_clip != -1:
            raise UserError(f"memory.surprise_clip is {self.surprise_clip}; it must be positive, 0 (no clip) or -1 (the default)")
        if self.width % self.head_dim:
            raise UserError(f"memory.width={self.width} is not a multiple of memory.head_dim={self.head_dim}")
        if self.fast_norm and not self.norm:
            raise UserError("memory.fast_norm=True needs memory.norm=True")
        if self.view == "kernel" and self.forget_by == "channel" and self.chunk > 16:
            raise UserError(f"memory.view='kernel' with forget_by='channel' needs memory.chunk of at most 16, not {self.chunk}")
        if self.forget_by == "channel":
            for name, value in (("forget", True), ("fast_norm", False), ("fast_bias", False)):
                if getattr(self, name) is not value:
                    raise UserError(f"memory.forget_by='channel' needs memory.{name}={value}; it acts on rows of matrices alone")

    @property
    def unit(self) -> int:
        """A whole call has a multiple of this many tokens."""
        return self.chunk

    @property
    def heads(self) -> int:
        """H, the number of memories."""
        return self.width // self.head_dim

    @property
    def hidden(self) -> int:
        """F, the hidden width of the memory network."""
        return self.expansion * self.head_dim

    @property
    def default_step_max(self) -> float:
        """Largest step size by the curvature of the network at its start: 2F with a norm, about 2 without."""
        if self.norm:
            return (1.5 if self.fast_norm else 16.0) / (self.hidden * self.chunk)
        return (0.5 if self.depth == 1 and self.network == "mlp" else 0.1) / self.chunk

    @property
    def default_surprise_clip(self) -> float:
        """4 sqrt(K), or none where a slow norm on the output bounds the reads by itself."""
        return 0.0 if self.norm and not self.fast_norm else 4.0 * math.sqrt(self.head_dim)

    @property
    def largest_step(self) -> float:
        """The step size at an open gate."""
        return self.step_max or self.default_step_max

    @property
    def clip(self) -> float:
        """The largest gradient norm of one token, 0 for no limit."""
        return self.default_surprise_clip if self.surprise_clip < 0 else self.surprise_clip
