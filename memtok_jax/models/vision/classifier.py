"""A vision transformer with a linear head, with the functions that the trainer expects: an image is a sequence of one.

    u8 or f32[B, 1, rows, columns, C] -> normalise -> vit.py -> pool -> logits f32[B, 1, classes]

What the head reads (`pool`); it reads registers only where the table says so:

    cls                 the class token
    patch_mean          mean over patches
    cls_patch           both, side by side (facebookresearch/dinov2, Hugging Face)
    cls_register        class token and every register
    cls_mean_register   class token and the mean register (arXiv 2501.04784)

The carry holds a random key for every row, because stochastic depth has to draw something else in each update. The key is state
like any other: a restored run draws what the uninterrupted one does, and a row draws the same on any mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import checks
from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.models.call import Call
from memtok_jax.models.vision import output, vit
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.output import VitOutput
from memtok_jax.numerics import affine_norm, dense

POOLS = ("cls", "patch_mean", "cls_patch", "cls_register", "cls_mean_register")
KEYS = "threefry2x32"     # the generator of the carried keys, whatever JAX's default is


@dataclass(frozen=True)
class ClassifierConfig:
    """An image classifier.

    vit: the transformer.
    classes: number of classes of the data.
    pool: what the head reads, see above.
    mean: of each channel, for pixels in 0 .. 1 (default: ImageNet's).
    std: standard deviation of each channel, in the same unit.
    """

    vit: VitConfig
    classes: int
    pool: str = "cls"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        check_numbers("model", self, at_least=dict(classes=2), above=dict(std=0))
        choose("model.pool", self.pool, POOLS)
        if "cls" in self.pool and not self.vit.class_token:
            raise UserError(f"pool={self.pool!r} reads the class token, which vit.class_token=False leaves out; "
                             "take pool='patch_mean'")
        if "register" in self.pool and not self.vit.registers:
            raise UserError(f"pool={self.pool!r} reads registers, and vit.registers is 0; take pool='cls'")
        if self.vit.final_norm == "pooled" and self.pool not in ("cls", "patch_mean"):
            raise UserError(f"vit.final_norm='pooled' normalises one pooled vector; pool={self.pool!r} has several")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.vit.channels:
                raise UserError(f"{name}={getattr(self, name)} must have one number for each of vit.channels={self.vit.channels}")

    @property
    def vocabulary(self) -> int:
        """What a target can be: the classes."""
        return self.classes

    @property
    def call_tokens(self) -> int:
        """An image is a sequence of one."""
        return 1

    @property
    def reach(self) -> int:
        """One image."""
        return 1

    @property
    def segment(self) -> int:
        """An image has no segments."""
        return 0

    @property
    def pooled(self) -> int:
        """Size of what the head reads."""
        return self.vit.width * {"cls_patch": 2, "cls_register": 1 + self.vit.registers, "cls_mean_register": 2}.get(self.pool, 1)


class ClassifierState(NamedTuple):
    """Random keys of the rows, as raw numbers, because a checkpoint cannot hold typed keys."""

    key: jax.Array   # u32[B, 2]


def specs(cfg: ClassifierConfig) -> dict:
    """The transformer and the head."""
    head = {"w": P.ParamSpec((cfg.pooled, cfg.classes), ("embed", None), P.truncated_normal(cfg.vit.std)),
            "b": P.ParamSpec((cfg.classes,), (None,), P.zeros, decayed=False)}
    return {"vit": vit.specs(cfg.vit), "head": head}


def state_specs(cfg: ClassifierConfig, batch: int) -> ClassifierState:
    """One key per row."""
    return ClassifierState(P.StateSpec((batch, 2), ("batch", None), jnp.uint32))


def init_state(params, cfg: ClassifierConfig, batch: int) -> ClassifierState:
    """Row b starts with key 0 folded with b."""
    rows = jax.vmap(lambda b: jax.random.fold_in(jax.random.key(0, impl=KEYS), b))(jnp.arange(batch))
    return ClassifierState(jax.random.key_data(rows))


def run(params, state: ClassifierState, images: jax.Array, cfg: ClassifierConfig, call: Call = Call()):  # noqa: B008
    """Images u8 or f32[B, 1, rows, columns, C] -> (logits f32[B, 1, classes], state, statistics).

    call: its length is 0 for a row without an image, whose key does not change; its `training` lets stochastic depth draw. The
    statistics f32[] are norms of the residual stream before the final norm: artifacts show as a largest patch far above the median.
    Raises UserError for images of another shape or another number of channels.
    """
    state, keys = _advance(state, checks.check_length(call.length, images))
    out = vit.features(params["vit"], normalise(_one(images), cfg), cfg.vit, key=keys if call.training else None)
    return logits(params, out, cfg)[:, None], state, _stats(out, cfg)


def _stats(out: VitOutput, cfg: ClassifierConfig) -> dict[str, jax.Array]:
    norms = output.token_norms(out)
    median = jnp.median(norms["patches"], axis=1)
    stats = {"patch_norm": median.mean(), "largest_patch_over_median": (norms["patches"].max(1) / median).mean()}
    return stats | ({"register_over_median": (norms["registers"].mean(1) / median).mean()} if cfg.vit.registers else {})


def _one(images: jax.Array) -> jax.Array:
    if images.ndim != 5 or images.shape[1] != 1:
        raise UserError(f"images have shape {images.shape}; expected [batch, 1, rows, columns, channels]")
    return images[:, 0]


def _advance(state: ClassifierState, length_B: jax.Array) -> tuple[ClassifierState, jax.Array]:
    """The keys of the next call, and one key per row to draw with now."""
    pairs = jax.vmap(jax.random.split)(jax.random.wrap_key_data(state.key, impl=KEYS))
    after = jnp.where((length_B > 0)[:, None], jax.random.key_data(pairs[:, 0]), state.key)
    return ClassifierState(after), pairs[:, 1]


def normalise(images: jax.Array, cfg: ClassifierConfig) -> jax.Array:
    """f32[B, rows, columns, C]: pixels in 0 .. 1 (u8 is divided by 255), minus `mean`, over `std`.

    Raises UserError for another number of channels.
    """
    pixels = images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
    if images.shape[-1] != cfg.vit.channels:
        raise UserError(f"images have {images.shape[-1]} channels, the model takes {cfg.vit.channels}; set data.channels and "
                         "model.vit.channels to the same number")
    mean, std = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (cfg.mean, cfg.std))
    return (pixels - mean) / std


def pool(out: VitOutput, cfg: ClassifierConfig) -> jax.Array:
    """What the head reads: f[B, pooled]."""
    flat = {"cls": out.cls.reshape(len(out.cls), -1), "patch": out.patches.mean(1),
            "register": out.registers.reshape(len(out.registers), -1)}
    parts = {"patch_mean": ("patch",), "cls_patch": ("cls", "patch"), "cls_register": ("cls", "register")}
    if cfg.pool == "cls_mean_register":
        return jnp.concatenate([flat["cls"], out.registers.mean(1)], -1)
    return jnp.concatenate([flat[name] for name in parts.get(cfg.pool, ("cls",))], -1)


def logits(params, out: VitOutput, cfg: ClassifierConfig) -> jax.Array:
    """f32[B, classes] from the tokens of the transformer."""
    read = pool(out, cfg).astype(jnp.float32)
    if cfg.vit.final_norm == "pooled":
        read = affine_norm(read, params["vit"]["norm"], cfg.vit.epsilon)
    return dense(read, params["head"], "float32")
