"""What kind of vision transformer: the choices in which published models differ, and nothing else."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from memtok_jax.memory.tokens import TokensConfig
from memtok_jax.numerics import REMAT

CHOICES = {
    "positions": ("table", "rope"),
    "table_rows": ("cls+patches", "patches", "all"),
    "interpolation": ("size_aa", "size_noaa", "offset_noaa"),
    "feed_forward": ("gelu", "swiglu"),
    "attention": ("softmax", "zero", "logit", "kv", "gate"),
    "final_norm": ("tokens", "pooled"),
    "dtype": ("float32", "bfloat16"),
    "remat": REMAT,
}


@dataclass(frozen=True)
class VitConfig:
    """A vision transformer with registers.

    width: D. layers: L. heads: H. hidden: F of the feed-forward network. patch: P, pixels of a patch's side. channels: C of an
    image. grid: (rows, columns) of patches for which the table of positions was trained; images may have any other size.
    registers: M. class_token, mask_token: whether there is one; a mask token stands in for masked patches.
    positions: "table" (learned, added to the input) or "rope" (axial rotation of queries and keys of patches, as in DINOv3).
    table_rows: which tokens the table has rows for, "cls+patches" (DINOv2), "patches" (DeiT-III, timm with no_embed_class) or "all"
        (cls, registers, patches: timm without).
    interpolation: how the table is resized to another grid, see `positions.py`. rope_base: of the rotation's frequencies.
    layerscale: initial value of the factors on each branch (CaiT, arXiv 2103.17239); 0 for none.
    feed_forward: "gelu" (erf form) or "swiglu". epsilon: of every LayerNorm.
    qkv_bias: of queries, keys and values; key_bias: of the keys, where the others have one. qk_norm: LayerNorm of each head's
        queries and keys. attention: "softmax", or one of the alternatives of `attention.py`.
    drop_path: probability that a branch is left out for an image in training (stochastic depth, arXiv 1603.09382), the same in
        every layer as in DeiT-III.
    final_norm: "tokens" normalises every token at the end; "pooled" leaves that to the head (timm's fc_norm).
    std: of the initial weights (truncated normal); token_std: of registers, class and mask token.
    dtype: of activations and matrix operands. remat: as in `numerics.recompute`. unroll: layers side by side in the
    program.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    patch: int
    grid: tuple[int, int]
    channels: int = 3
    registers: int = 4
    class_token: bool = True
    mask_token: bool = False
    positions: str = "table"
    table_rows: str = "cls+patches"
    interpolation: str = "size_aa"
    rope_base: float = 100.0
    layerscale: float = 1e-5
    feed_forward: str = "gelu"
    epsilon: float = 1e-6
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    attention: str = "softmax"
    drop_path: float = 0.0
    final_norm: str = "tokens"
    std: float = 0.02
    token_std: float = 0.02
    dtype: str = "float32"
    remat: str = "pointwise"
    unroll: int = 1

    def __post_init__(self):
        for name in ("width", "layers", "heads", "hidden", "patch", "channels", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid={self.grid} must be two numbers of at least 1: rows and columns of patches")
        if self.registers < 0:
            raise ValueError(f"registers={self.registers} must not be negative")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} does not divide into heads={self.heads}")
        if self.positions == "rope" and self.head_dim % 4:
            raise ValueError(f"positions='rope' needs heads whose size divides by 4, got {self.head_dim}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must be at least 0 and below 1")
        if self.layerscale < 0:
            raise ValueError(f"layerscale={self.layerscale} must not be negative; 0 means none")
        for name, known in CHOICES.items():
            _check_choice(name, getattr(self, name), known)

    @property
    def head_dim(self) -> int:
        """K."""
        return self.width // self.heads

    @property
    def class_tokens(self) -> int:
        """c: 1 with a class token, else 0."""
        return int(self.class_token)

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: class token and registers."""
        return self.class_tokens + self.registers

    @property
    def prefix_rows(self) -> int:
        """The first so many tokens of the prefix have positions of their own."""
        if self.positions == "rope":
            return 0
        return {"patches": 0, "cls+patches": self.class_tokens, "all": self.prefix}[self.table_rows]

    @property
    def register_tokens(self) -> TokensConfig:
        """The registers as the memory they are."""
        return TokensConfig(self.width, self.registers, self.token_std, after=self.class_tokens)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}{hint}")
