"""Options of the neural memory, with the defaults of `docs/mathematics.md` and the reason for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

NETWORKS = ("mlp", "swiglu", "gated", "low_rank")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu")


def _one_of(name: str, value, options) -> None:
    if value not in options:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, options))}")


def _at_least(name: str, value, least) -> None:
    if value < least:
        raise ValueError(f"{name}={value!r} must be at least {least}")


@dataclass(frozen=True)
class NeuralMemoryConfig:
    """Neural long-term memory (Titans, arXiv 2501.00663, section 3).

    width: D, features of a token; 0 inside a model, which fills in its own.
    head_dim: K; there are H = D / K memories side by side.
    chunk: C, tokens whose inner gradients are taken at the same weights. A property of the model, not a speed knob:
        the same parameters with another chunk are another function.
    network: "mlp" (`depth` layers; depth 1 without residual and norm is the linear memory), "swiglu", "gated", "low_rank".
    depth, expansion, rank, activation: of that network; hidden width F = expansion * K.
    residual, norm: f(x) = x + LayerNorm(net(x)) * gamma + beta; gamma and beta are ordinary (slow) parameters.
    fast_norm: gamma is a fast weight (stored minus one) instead. fast_bias: dense layers have fast biases.
    step_max: largest step size; 0 takes the rule of `default_step_max`.
    surprise_clip: largest norm of one token's gradient; 0 means no clip, -1 takes `default_surprise_clip`.
    momentum, forget: whether the surprise has a past and whether weights decay (the paper's ablations).
    forget_to: where forgetting leads, "init" (the learned initial weights) or "zero" (the paper's equation 13).
    read: whether token t reads after or before it is written.
    conv: width of the causal depthwise convolution on q, k, v; 1 means none. feature_activation, feature_norm: SiLU on
        q, k, v and l2 norm of q, k.
    step_bias, momentum_bias: initial gate biases. forget_range: initial forgetting, log-spaced over the heads.
    loss_scale: factor of the inner loss |f(k) - v|^2.
    aligned: every call starts at a chunk border, has a multiple of C tokens and no padding (training); the caller
        promises it. The result is the same, without the bookkeeping of open chunks.
    remat_group: chunks between two stored carries in the backward pass; 0 stores each of up to 16 and
        takes the square root of a larger number, -1 stores
        everything (for a caller that recomputes by itself).
    dtype: operands of matrix products, "float32" or "bfloat16"; sums, state, gates and norms are float32 always.
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
    forget_to: str = "init"
    read: str = "after"
    conv: int = 4
    feature_activation: bool = True
    feature_norm: bool = True
    step_bias: float = -2.0
    momentum_bias: float = 2.0
    forget_range: tuple[float, float] = (1e-2, 1e-4)
    loss_scale: float = 1.0
    aligned: bool = False
    remat_group: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        _one_of("network", self.network, NETWORKS)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("forget_to", self.forget_to, ("init", "zero"))
        _one_of("read", self.read, ("after", "before"))
        _one_of("dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("head_dim", "chunk", "depth", "expansion", "rank", "conv"):
            _at_least(name, getattr(self, name), 1)
        _at_least("width", self.width, 0)
        _at_least("step_max", self.step_max, 0)
        _at_least("remat_group", self.remat_group, -1)
        if self.width % self.head_dim:
            raise ValueError(f"width={self.width} is not a multiple of head_dim={self.head_dim}")
        if self.fast_norm and not self.norm:
            raise ValueError("fast_norm=True needs norm=True")
        if not all(0 < value < 1 for value in self.forget_range):
            raise ValueError(f"forget_range={self.forget_range} must lie between 0 and 1")

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
