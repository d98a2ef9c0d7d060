"""Vision transformers with registers: an image becomes patches, and M learned tokens go through the layers with them.

Darcet et al., "Vision Transformers Need Registers" (arXiv 2309.16588), in the layouts of DINOv2, DINOv3, DeiT-III and timm:

    patches = P x P pixels each, projected to D; masked ones replaced by the mask token; positions added
    tokens  = [class token ; M registers ; patches]            memory/tokens.py puts the registers in
    L blocks (block.py), one final LayerNorm; the usual heads do not read the registers

`features` returns all tokens by name (output.py). With registers=0 this is exactly the plain vision transformer.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import tokens as memory_tokens
from memtok_jax.memory.tokens import TokensConfig
from memtok_jax.models.layers import layer_norm_specs
from memtok_jax.models.vision import block, positions, rope
from memtok_jax.models.vision import edits as E
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.output import CAPTURES, Counts, VitOutput, norms, split
from memtok_jax.numerics import affine_norm, dense, recompute
from memtok_jax.sharding import constrain

# ----------------------------------------------------------------------------------------------------------- parameters

def specs(cfg: VitConfig) -> dict:
    """Patch projection, class token, registers, mask token, positions, stacked layers, final norm.

    A token that the model does not have is an array [0, D], so every model has the same tree of tokens.
    """
    size = cfg.patch * cfg.patch * cfg.channels
    one_or_none = lambda there: memory_tokens.specs(TokensConfig(cfg.width, int(there), cfg.token_std))
    out = {
        "patch": {"w": P.ParamSpec((size, cfg.width), (None, "embed"), P.truncated_normal(cfg.std)),
                  "b": P.ParamSpec((cfg.width,), (None,), P.zeros, decayed=False)},
        "class": one_or_none(cfg.class_token),
        "registers": memory_tokens.specs(cfg.register_tokens),
        "mask": one_or_none(cfg.mask_token),
        "layers": P.stack(block.specs(cfg), cfg.layers),
        "norm": layer_norm_specs(cfg.width),
    }
    return out if cfg.positions == "rope" else out | {"positions": _table_specs(cfg)}


def _table_specs(cfg: VitConfig) -> dict:
    """Positions of the first r tokens [r, D] and of the patches [rows, columns, D]."""
    def table(*shape: int) -> P.ParamSpec:
        return P.ParamSpec((*shape, cfg.width), (*[None] * len(shape), "embed"), P.truncated_normal(cfg.std), decayed=False)

    return {"prefix": table(cfg.prefix_rows), "patches": table(*cfg.grid)}


# ------------------------------------------------------------------------------------------------------------ embedding

def grid_of(images: jax.Array, cfg: VitConfig) -> tuple[int, int]:
    """(rows, columns) of patches of images [B, rows, columns, C]. Raises ValueError if they do not fit the model."""
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}; expected [batch, rows, columns, channels]")
    _, rows, columns, channels = images.shape
    if channels != cfg.channels:
        raise ValueError(f"images have {channels} channels, the model takes {cfg.channels}; the last dimension is the channels")
    p = cfg.patch
    if min(rows, columns) < p or rows % p or columns % p:  # an empty image passes the test of the remainder
        raise ValueError(f"images of {rows} x {columns} pixels are not whole patches of {p} x {p}; resize, crop or pad them")
    return rows // p, columns // p


def patch_embeddings(params, images: jax.Array, cfg: VitConfig) -> jax.Array:
    """The projected patches [B, n, D] of images f[B, rows, columns, C], row by row, without positions."""
    h, w = grid_of(images, cfg)
    p = cfg.patch
    pixels = images.reshape(len(images), h, p, w, p, cfg.channels).swapaxes(2, 3).reshape(len(images), h * w, -1)
    if pixels.dtype != jnp.float64:
        pixels = pixels.astype(cfg.dtype)
    return dense(pixels, params["patch"], cfg.dtype)


def _masked(params, x: jax.Array, mask: jax.Array, cfg: VitConfig) -> jax.Array:
    """Patches x[B, n, D] with the mask token where mask [B, n] is True."""
    if not cfg.mask_token:
        raise ValueError("a mask was given, but the model has no mask token (mask_token=False)")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask has shape {mask.shape}; expected one bool for each patch, {x.shape[:2]}")
    return jnp.where(mask[..., None], params["mask"]["tokens"][None].astype(x.dtype), x)


def embed(params, images: jax.Array, cfg: VitConfig, mask: jax.Array | None = None) -> jax.Array:
    """[B, c + M + n, D]: class token, registers, patches, with their positions."""
    x, grid = patch_embeddings(params, images, cfg), grid_of(images, cfg)
    x = x if mask is None else _masked(params, x, mask, cfg)
    if cfg.positions == "table":
        table = positions.resize(params["positions"]["patches"], grid, cfg.interpolation)
        x = x + table.reshape(1, -1, cfg.width).astype(x.dtype)
    x, _ = memory_tokens.apply(params["class"], (), x, TokensConfig(cfg.width, cfg.class_tokens))
    x, _ = memory_tokens.apply(params["registers"], (), x, cfg.register_tokens)
    if cfg.prefix_rows:
        x = x.at[:, :cfg.prefix_rows].add(params["positions"]["prefix"][None].astype(x.dtype))
    return constrain(x, "batch", "length", "embed")


# ------------------------------------------------------------------------------------------------------------ the model

def features(params, images: jax.Array, cfg: VitConfig, *, mask: jax.Array | None = None, capture: Sequence[str] = (),
             edits: E.Edits = (), key: jax.Array | None = None) -> VitOutput:
    """All tokens after the last block, by name.

    images: f[B, rows, columns, C], normalised, of any size that is whole patches. mask: bool[B, n], patches to replace by the mask
    token. capture: any of "hidden", "norms", "attention", "qkv", "mlp"; only what is asked for is kept. edits: of `edits.py`.
    key: typed PRNG key, or one for each image, for stochastic depth; without it (or with drop_path 0) no branch is left out.
    Raises ValueError for images, mask, capture or edits that do not fit the model.
    """
    for name in capture:
        if name not in CAPTURES:
            raise ValueError(f"capture={name!r} must be one of {', '.join(map(repr, CAPTURES))}")
    grid, added = grid_of(images, cfg), E.added_tokens(edits)
    counts = Counts(cfg.class_tokens, cfg.registers, grid[0] * grid[1], added)
    plan = E.plan(edits, cfg)
    x = jnp.pad(embed(params, images, cfg, mask), ((0, 0), (0, added), (0, 0)))
    x = E.edit_registers(edits, jax.tree.map(lambda leaf: leaf[0], plan.replacements), x, counts)
    turn = rope.rotation(grid, cfg.prefix, added, cfg.head_dim, cfg.rope_base) if cfg.positions == "rope" else rope.NONE
    keep = block.stochastic_depth(key, cfg, len(images))

    def layer(x, tree):
        params, keep, neurons, replacements = tree
        x, seen = block.run(params, x, turn, keep, lambda a: E.edit_activations(edits, neurons, a, counts), cfg)
        x = E.edit_registers(edits, replacements, x, counts)
        return x, _wanted(seen | {"hidden": x, "norms": norms(x)}, capture)

    after = jax.tree.map(lambda leaf: leaf[1:], plan.replacements)
    last, seen = jax.lax.scan(recompute(layer, cfg.remat), x, (params["layers"], keep, plan.neurons, after), unroll=cfg.unroll)
    first = _wanted({"hidden": x, "norms": norms(x)}, capture)
    seen |= {name: jnp.concatenate([first[name][None], seen[name]]) for name in first}
    return output(params, last, grid, counts, seen, cfg)


def _wanted(seen: dict[str, jax.Array], capture: Sequence[str]) -> dict[str, jax.Array]:
    """What was asked for; "qkv" asks for queries, keys and values, rotated ones included."""
    names = {*capture, *(("q", "k", "v", "q_rotated", "k_rotated") if "qkv" in capture else ())}
    return {name: x for name, x in seen.items() if name in names}


def output(params, x: jax.Array, grid: tuple[int, int], counts: Counts, captured: dict, cfg: VitConfig) -> VitOutput:
    """The last hidden state x[B, T, D] as `VitOutput`."""
    normed = affine_norm(x, params["norm"], cfg.epsilon) if cfg.final_norm == "tokens" else x
    parts = split(normed, counts)
    return VitOutput(parts["cls"], parts["registers"], parts["patches"], x, grid, counts, captured)
