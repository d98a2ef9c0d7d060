"""Run a vision transformer over images and keep what the measures need, as host arrays.

Large arrays (attention, hidden states, keys) are reduced on the device, batch by batch; tokens and norms are kept.
Letters: N images, n patches on a grid (h, w), L layers, H heads, M registers, c class tokens, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.analysis import attention, discovery
from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.edits import Edits
from memtok_jax.models.vision.output import Counts, VitOutput, query_index, split

CAPTURE = ("hidden", "norms", "attention", "qkv")


class Collected(NamedTuple):
    """Results for N images. Each array has one entry per image on its axis N; grid and counts hold for all images."""

    norms: np.ndarray          # f32[L+1, N, T] of all tokens before the final norm
    moments: np.ndarray        # f32[L+1, N, 4] means of x, x^2, x^3, x^4 over the patches' entries of the residual stream
    largest: np.ndarray        # f32[L+1, N] the largest |x| among these entries
    top_patch: np.ndarray      # f32[L, N, H] attention received by the patch that receives most
    mass: np.ndarray           # f32[L, N, c + M + added] attention received by class token, registers and added tokens
    maps: np.ndarray           # f32[N, c + M + 1, h, w] from `query_maps`
    cls: np.ndarray            # f32[N, c, D] after the final norm, like registers and patches
    registers: np.ndarray      # f32[N, M, D]
    patches: np.ndarray        # f32[N, n, D]
    embeddings: np.ndarray     # f32[N, n, D] projected patches before positions
    boxes: np.ndarray          # i32[N, 4] of LOST, in patches, as in `discovery.Found`
    attention_boxes: np.ndarray  # i32[N, 4] from the map of the class token, or of the patch if there is none
    valid: np.ndarray          # bool[N] LOST found an object
    grid: tuple[int, int]
    counts: Counts

    @property
    def patch_norms(self) -> np.ndarray:
        """f32[L+1, N, n]."""
        return np.asarray(split(self.norms, self.counts, axis=2)["patches"])

    @property
    def tokens(self) -> int:
        """T."""
        return sum(self.counts)


def collect(params, batches: Iterable[np.ndarray], cfg: VitConfig, edits: Edits = (), features: str = "k",
            bias: float = 0.0, patch: tuple[int, int] | None = None) -> Collected:
    """`Collected` over the images of all batches.

    params: of `vit.py`. batches: normalised f32[B, rows, columns, C] of one image size; each B is compiled once. edits: of
    `edits.py`. features: what LOST reads of the last layer, "k" or "v" (the registers paper: keys of DINOv2, values of DeiT III and
    OpenCLIP). bias: of LOST's Gram matrix. patch: (row, column) of the patch whose attention is mapped, None for the middle one.
    Raises ValueError if the grid has no such patch.
    """
    parts = [jax.device_get(one_batch(params, jnp.asarray(images), cfg, edits, features, bias, patch)) for images in batches]
    axes = Collected(1, 1, 1, 1, 1, *[0] * 8, None, None)
    joined = (np.concatenate(arrays, axis) for arrays, axis in zip(zip(*(p[:-2] for p in parts), strict=True), axes, strict=False))
    return Collected(*joined, *_static(parts[0]))


def _static(part: Collected) -> tuple[tuple[int, int], Counts]:
    return tuple(int(n) for n in part.grid), Counts(*(int(n) for n in part.counts))


@partial(jax.jit, static_argnames=("cfg", "features", "patch"))
def one_batch(params, images: jax.Array, cfg: VitConfig, edits: Edits, features: str, bias: float,
              patch: tuple[int, int] | None = None) -> Collected:
    """`Collected` of one batch, on the device."""
    out = vit.features(params, images, cfg, capture=CAPTURE, edits=edits)
    weights = out.captured["attention"]
    received = jax.vmap(lambda a: attention.received(a, out.counts))(weights)
    shares = split(received, out.counts, axis=3)
    others = jnp.concatenate([shares[name] for name in ("cls", "registers", "added")], axis=3).mean(2)
    hidden = split(out.captured["hidden"], out.counts, axis=2)["patches"].astype(jnp.float32)
    moments = jnp.stack([(hidden**k).mean((2, 3)) for k in (1, 2, 3, 4)], -1)
    maps = query_maps(out, patch)
    keys = split(out.captured[features][-1], out.counts)["patches"].astype(jnp.float32)
    found = jax.vmap(lambda f: discovery.lost(f.reshape(f.shape[0], -1), out.grid, bias))(keys)
    seen = jax.vmap(lambda a: discovery.attention_object(a.reshape(-1), out.grid))(maps[:, 0 if cfg.class_token else -1])
    tokens = (x.astype(jnp.float32) for x in (out.cls, out.registers, out.patches, vit.patch_embeddings(params, images, cfg)))
    return Collected(out.captured["norms"], moments, jnp.abs(hidden).max((2, 3)), shares["patches"].max(3), others, maps, *tokens,
                     found.box, seen.box, found.valid, out.grid, out.counts)


def query_maps(out: VitOutput, patch: tuple[int, int] | None = None) -> jax.Array:
    """Attention of class token, registers and one patch to the patches: f32[B, c + M + 1, h, w], last layer, mean over heads.

    patch: (row, column), None for the middle one. Raises ValueError if the grid has no such patch.
    """
    rows = out.captured["attention"][-1].mean(1)
    one = query_index(patch or (out.grid[0] // 2, out.grid[1] // 2), out.grid, out.counts)
    asking = jnp.concatenate([rows[:, :out.counts.cls + out.counts.registers], rows[:, one:one + 1]], axis=1)
    return split(asking, out.counts, axis=2)["patches"].reshape(*asking.shape[:2], *out.grid)


def query_names(counts: Counts, patch: tuple[int, int] | None = None) -> list[str]:
    """Names of the maps of `query_maps`, in their order."""
    one = f"patch {patch[0]}, {patch[1]}" if patch else "middle patch"
    return ["class token"] * counts.cls + [f"register {m}" for m in range(counts.registers)] + [one]


def other_names(counts: Counts) -> list[str]:
    """Names of the tokens of `Collected.mass`, in their order."""
    return ["cls"] * counts.cls + [f"register {m}" for m in range(counts.registers)] + [f"added {a}" for a in range(counts.added)]
