"""The config of a vision transformer: sizes, and the choices in which published models differ."""

from __future__ import annotations

from dataclasses import dataclass

from memtok_jax.config import UserError, check_numbers, choose
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

    width: D.
    layers: L.
    heads: H.
    hidden: F of the feed-forward network.
    patch: P, pixels of a patch's side.
    grid: (rows, columns) of patches for which the table of positions was trained; images may have any other size.
    channels: C of an image.
    registers: M.
    class_token: whether there is a class token.
    mask_token: whether there is a mask token, which stands in for masked patches.
    positions: "table" (learned, added to the input) or "rope" (axial rotation of queries and keys of patches, as in DINOv3).
    table_rows: which tokens have a position in the table: "cls+patches" (DINOv2), "patches" (DeiT-III, timm with no_embed_class) or
        "all" (class token, registers and patches: timm without no_embed_class).
    interpolation: how the table is resized to another grid, see `positions.py`.
    rope_base: base of the rotation's frequencies.
    layerscale: initial value of the factors on each branch (CaiT, arXiv 2103.17239); 0 for none.
    feed_forward: "gelu" (erf form) or "swiglu".
    epsilon: of every LayerNorm.
    qkv_bias: whether queries, keys and values have a bias.
    key_bias: whether the keys have one too, if `qkv_bias`.
    qk_norm: LayerNorm of each head's queries and keys.
    attention: "softmax", or one of the alternatives of `attention.py`.
    drop_path: probability that a branch is left out for an image in training (stochastic depth, arXiv 1603.09382), the same in
        every layer as in DeiT-III.
    final_norm: "tokens" normalises every token at the end; "pooled" leaves that to the head (timm's fc_norm).
    std: of the initial weights (truncated normal).
    token_std: of registers, class token and mask token.
    dtype: of activations and matrix operands.
    remat: as in `numerics.recompute`.
    unroll: number of layers that one step of the scan over layers holds.
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
        check_numbers("vit", self, at_least=dict(width=1, layers=1, heads=1, hidden=1, patch=1, channels=1, unroll=1, registers=0,
                                                 grid=1, layerscale=0, drop_path=0, std=0, token_std=0),
                      above=dict(epsilon=0, rope_base=0), below=dict(drop_path=1))
        if self.width % self.heads:
            raise UserError(f"width={self.width} does not divide into heads={self.heads}")
        if self.positions == "rope" and self.head_dim % 4:
            raise UserError(f"positions='rope' needs heads whose size divides by 4, got {self.head_dim}")
        for name, known in CHOICES.items():
            choose(f"vit.{name}", getattr(self, name), known)

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
        """Number of tokens, from the first, of the prefix that have a position in the table."""
        if self.positions == "rope":
            return 0
        return {"patches": 0, "cls+patches": self.class_tokens, "all": self.prefix}[self.table_rows]

    @property
    def register_tokens(self) -> TokensConfig:
        """The registers as a config of `memory/tokens.py`."""
        return TokensConfig(self.width, self.registers, self.token_std, after=self.class_tokens)
