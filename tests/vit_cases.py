"""Small vision transformers with parameters that stand at no special value, shared by the tests of the vision models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from neural_cases import jit

from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig


def config(**options) -> VitConfig:
    """Two layers of width 32 on a 3 x 3 grid of patches of 4 x 4 pixels, three registers."""
    base = dict(width=32, layers=2, heads=4, hidden=48, patch=4, grid=(3, 3), registers=3, mask_token=True)
    return VitConfig(**(base | options))


def scrambled(specs, seed: int = 0, dtype=np.float32):
    """Normal numbers for every parameter, of a size at which each matters; norms and LayerScale around one half."""
    rng = np.random.default_rng(seed)

    def one(path, spec):
        name = jax.tree_util.keystr(path)
        noise = rng.standard_normal(spec.shape)
        if "scale" in name:
            return jnp.asarray(0.5 + 0.25 * noise, dtype)
        fan_in = spec.shape[1] if "layers" in name else spec.shape[0]
        return jnp.asarray(noise / max(fan_in, 1) ** 0.5 if name.endswith("['w']") else 0.5 * noise, dtype)

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=lambda node: hasattr(node, "axes"))


def images(batch: int = 2, rows: int = 12, columns: int = 12, channels: int = 3, seed: int = 1, dtype=np.float32) -> jax.Array:
    """Normal numbers as pixels."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, rows, columns, channels)), dtype)


features = jit(vit.features, static_argnums=2, static_argnames=("capture",))

# Of all parameters, for the sum of squares of the patches that come out.
gradient = jit(jax.grad(lambda params, x, cfg: jnp.square(vit.features(params, x, cfg).patches).sum()), static_argnums=2)
