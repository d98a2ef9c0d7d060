"""Small configurations, random parameters and random states that the tests of the neural memory share."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.memory.neural.config import NeuralMemoryConfig

# Compile fast rather than run fast: the tests spend their time in the compiler.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = partial(jax.jit, compiler_options=QUICK)


def config(**options) -> NeuralMemoryConfig:
    """Two heads of six features, chunks of five; steps large enough to matter."""
    base = dict(width=12, head_dim=6, chunk=5, expansion=2, rank=3, conv=3, step_max=0.1, step_bias=0.0,
                momentum_bias=0.5, forget_range=(0.2, 0.05), surprise_clip=0.0)
    return NeuralMemoryConfig(**(base | options))


def random_like(tree, seed: int, scale: float, dtype):
    """A tree of the same shapes with normal entries."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), dtype), tree)


def random_params(specs, seed: int, dtype):
    """Initial values plus noise, so that nothing stands at a special value (zero bias, unit scale)."""
    params = P.init_params(specs, jax.random.key(seed))
    noise = random_like(params, seed + 1, 0.1, dtype)
    return jax.tree.map(lambda p, n: p.astype(dtype) + n, params, noise)


def random_state(cfg: NeuralMemoryConfig, batch: int, seed: int, dtype) -> neural.NeuralMemoryState:
    """In the middle of a chunk: anchor, weights and surprise differ from each other and from zero."""
    zero = P.zero_state(neural.state_specs(cfg, batch))
    drawn = random_like(zero._replace(phase=()), seed, 0.1, dtype)
    phase = jnp.asarray(1 + (np.arange(batch) * 3 + 2) % (cfg.chunk - 1), jnp.int32)
    return drawn._replace(phase=phase)


def tokens(cfg, batch: int, length: int, seed: int, dtype):
    """x[B, T, D]."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, length, cfg.width)), dtype)


def cast(tree, dtype):
    """All floating leaves in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def split_float(tree):
    """(floating leaves, rebuild): rebuild(leaves) gives the tree back, integer leaves as they were."""
    leaves, treedef = jax.tree.flatten(tree)
    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def rebuild(values):
        values = iter(values)
        return treedef.unflatten([next(values) if f else x for f, x in zip(floating, leaves, strict=True)])

    return [x for f, x in zip(floating, leaves, strict=True) if f], rebuild


def assert_close(got, want, rtol: float):
    """Every leaf equal to `rtol` of its own largest entry (and a thousandth of that of the largest of all leaves)."""
    largest = lambda x: float(np.max(np.abs(np.asarray(x)), initial=0.0))
    overall = max((largest(x) for x in jax.tree.leaves(want)), default=0.0)

    def check(path, a, b):
        assert a.shape == b.shape and a.dtype == b.dtype, jax.tree_util.keystr(path)
        error, scale = largest(np.asarray(a, np.float64) - np.asarray(b, np.float64)), max(largest(b), 1e-3 * overall)
        assert error <= rtol * scale, f"{jax.tree_util.keystr(path)}: error {error:.3g}, largest entry {scale:.3g}"

    jax.tree_util.tree_map_with_path(check, got, want)


def assert_equal(got, want):
    """Every leaf the same, bit for bit."""
    chex.assert_trees_all_equal(got, want)
