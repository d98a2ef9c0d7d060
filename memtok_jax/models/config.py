"""Options of a block, shared by all mixers, and of the language model."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace

from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.numerics import REMAT

# How the residual branches of a block are made: each inner tuple is one branch, its mixers applied in turn.
BRANCHES: dict[str, tuple[tuple[str, ...], ...]] = {
    "attention": (("attention",),),
    "lmm": (("lmm",),),
    "mac": (("mac",),),
    "mag": (("mag",),),
    "mal": (("lmm",), ("attention",)),
    "mal_literal": (("lmm", "attention"),),
}


def _positive(**values) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


@dataclass(frozen=True)
class BlockConfig:
    """One layer.

    kind: a key of BRANCHES. width: D. head_dim: K of attention. hidden: F of the SwiGLU feed-forward.
    window: keys a query of the window attention may see, itself included. segment: T of MAC, which attends inside it.
    retrieved: N_l, vectors that MAC retrieves with learned questions; 0 retrieves one for each token.
    prefix: M, learned tokens that every query sees. combine: how MAC and MAG join attention and memory, "gate" or "sum".
    residual_scale: factor of the initial output projections. memory: options of the neural memory, width filled in.
    """

    kind: str
    width: int
    head_dim: int
    hidden: int
    window: int
    segment: int
    retrieved: int
    prefix: int
    rope_base: float
    combine: str
    residual_scale: float
    dtype: str
    aligned: bool
    memory: NeuralMemoryConfig

    @property
    def heads(self) -> int:
        """H of attention."""
        return self.width // self.head_dim


@dataclass(frozen=True)
class LanguageModelConfig:
    """A decoder with memory.

    vocabulary: V. width: D. layers: L. pattern: kinds of layers, repeated until there are L of them, each one of
        "attention", "lmm", "mac", "mag", "mal", "mal_literal".
    head_dim: K of attention. hidden: F of the feed-forward; 0 takes 8/3 D rounded up to a multiple of 32.
    window: of window attention. segment: of MAC. prefix: M persistent tokens (Titans section 3.3).
    retrieved: N_l of MAC; 0, the default, retrieves one vector for each token, with a question made of it.
    combine: "gate" (Titans, described below equation 28) or "sum". tied: the output layer is the embedding.
    dtype: of activations and matrix operands, "float32" or "bfloat16". remat: as in `numerics.recompute`.
    unroll: repeats of the pattern that are compiled side by side. All of them (`repeats`) makes decoding token by token faster on
        a CPU, where each layer then has arrays of its own (`language_model.unstack`), and compiling slower.
    aligned: promise that every call starts at a border of segment and chunk and has no padding; see `for_training`.
    memory: of the neural memory; its width and dtype are filled in here.
    """

    vocabulary: int = 256
    width: int = 128
    layers: int = 2
    pattern: tuple[str, ...] = ("mac",)
    head_dim: int = 32
    hidden: int = 0
    window: int = 128
    segment: int = 128
    retrieved: int = 0
    prefix: int = 16
    rope_base: float = 10000.0
    combine: str = "gate"
    tied: bool = True
    dtype: str = "float32"
    remat: str = "pointwise"
    unroll: int = 1
    aligned: bool = False
    memory: NeuralMemoryConfig = field(default_factory=lambda: NeuralMemoryConfig(head_dim=32, chunk=32))

    def __post_init__(self):
        _positive(vocabulary=self.vocabulary, width=self.width, layers=self.layers, head_dim=self.head_dim,
                  window=self.window, segment=self.segment, unroll=self.unroll)
        for kind in self.pattern:
            if kind not in BRANCHES:
                near = difflib.get_close_matches(kind, BRANCHES, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"pattern holds {kind!r}, known layers are {', '.join(BRANCHES)}{hint}")
        if not self.pattern or self.layers % len(self.pattern):
            raise ValueError(f"layers={self.layers} is not a multiple of the {len(self.pattern)} kinds in pattern={self.pattern}")
        if self.width % self.head_dim:
            raise ValueError(f"width={self.width} is not a multiple of head_dim={self.head_dim}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary positions turn pairs")
        if self.width % self.memory.head_dim:
            raise ValueError(f"width={self.width} is not a multiple of memory.head_dim={self.memory.head_dim}")
        if self.combine not in ("gate", "sum"):
            raise ValueError(f"combine={self.combine!r} must be 'gate' or 'sum'")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'bfloat16'")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r} must be one of {', '.join(map(repr, REMAT))}")
        for name in ("prefix", "hidden", "retrieved"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.retrieved and "mac" not in self.pattern:
            raise ValueError(f"retrieved={self.retrieved} has no reader in pattern={self.pattern}, without mac; set retrieved=0")
        if self.prefix and not self.mixers & {"attention", "mac", "mag"}:
            raise ValueError(f"prefix={self.prefix} has no reader in pattern={self.pattern}, where nothing attends; set prefix=0")
        if "mac" in self.pattern and self.segment % self.memory.chunk and self.memory.chunk % self.segment:
            raise ValueError(f"segment={self.segment} and memory.chunk={self.memory.chunk}: one must divide the other")

    @property
    def repeats(self) -> int:
        """How often the pattern is repeated."""
        return self.layers // len(self.pattern)

    def block(self, kind: str) -> BlockConfig:
        """Options of one layer of the given kind."""
        hidden = self.hidden or -(-self.width * 8 // 3 // 32) * 32
        memory = replace(self.memory, width=self.width, dtype=self.dtype)
        return BlockConfig(
            kind=kind, width=self.width, head_dim=self.head_dim, hidden=hidden, window=self.window, segment=self.segment,
            retrieved=self.retrieved, prefix=self.prefix, rope_base=self.rope_base, combine=self.combine,
            residual_scale=(2 * self.layers) ** -0.5, dtype=self.dtype, aligned=self.aligned, memory=memory)

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Options of the layers of one repeat."""
        return tuple(self.block(kind) for kind in self.pattern)

    @property
    def mixers(self) -> frozenset[str]:
        """Names of all mixers of the pattern."""
        return frozenset(m for kind in self.pattern for branch in BRANCHES[kind] for m in branch)

    def units(self) -> dict[str, int]:
        """Units whose borders a training segment must respect: name -> tokens."""
        units = {"model.segment": self.segment} if "mac" in self.mixers else {}
        return units | ({"model.memory.chunk": self.memory.chunk} if self.mixers & {"lmm", "mac", "mag"} else {})


def for_training(cfg: LanguageModelConfig, tokens: int) -> LanguageModelConfig:
    """The same model with `aligned` promised, where its units allow it, for calls of `tokens` tokens without padding.

    Raises ValueError naming both numbers where `tokens` is not a multiple of the segment or the chunk.
    """
    for name, unit in cfg.units().items():
        if tokens % unit:
            raise ValueError(f"a training segment of {tokens} tokens is not a multiple of {name}={unit}")
    # A chunk that is still open where a segment of MAC ends has an anchor of its own, which only the general path carries.
    open_chunks = "model.segment" in cfg.units() and cfg.segment % cfg.memory.chunk
    return replace(cfg, aligned=not open_chunks)
