"""Grouped-query attention equals full attention whose keys and values are repeated, values and gradients, in float64."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, cast, jit, random_params

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TITANS, Backbone

H, G, K, V, D, T = 4, 2, 4, 6, 8, 7
WINDOW, CACHED, MEMORY = WindowConfig(3), CachedConfig(XlConfig(4)), NeuralMemoryConfig(head_dim=4, chunk=4)


def backbone(positions: str, kv_heads: int) -> Backbone:
    return Backbone(replace(TITANS, positions=positions), width=D, layers=1, heads=H, head_dim=K, hidden=8, segment=4, prefix=2,
                    kv_heads=kv_heads, value_dim=V)


def repeated(params):
    """The same layer with a key head and a value head of its own for each query head."""
    return params | {name: {"w": jnp.repeat(params[name]["w"], H // G, axis=1)} for name in "kv"}


@pytest.mark.parametrize("mixer, positions", [(WINDOW, "rope"), (WINDOW, "relative"), (CACHED, "relative"), (CACHED, "alibi"),
                                               (CACHED, "none")], ids=lambda x: x if isinstance(x, str) else x.name)
def test_groups_equal_repeated_keys(mixer, positions):
    """Two calls, the second with a past; every parameter's gradient, keys and values summed over their group."""
    with jax.enable_x64(True):
        few, many = backbone(positions, G), backbone(positions, H)
        specs = mixer.module.specs(mixer, few) | {"norm": {"scale": P.ParamSpec((D,), (None,), P.ones)}}
        params = random_params(specs, 0, np.float64)
        rng = np.random.default_rng(1)
        x, prefix, weight = (jnp.asarray(rng.standard_normal(shape)) for shape in ((2, 2 * T, D), (2, D), (2, 2 * T, D)))

        def loss(params, b):
            y0, state, _ = mixer.module.begin(params, prefix, mixer, b, 2, {})
            state, ys = cast(state, np.float64), []
            for part in (x[:, :T], x[:, T:]):
                slot = jnp.full((2,), T * len(ys) % 4, jnp.int32)
                y, state, *_ = mixer.module.run(params, state, part, mixer, b, Call(P.full_length(part), slot=slot), {})
                ys.append(y)
            return (jnp.concatenate(ys, 1) * weight).sum() + y0.sum(), ys

        both = jit(jax.value_and_grad(lambda p: loss(p, few), has_aux=True)), jit(
            jax.value_and_grad(lambda p: loss(repeated(p), many), has_aux=True))
        got, want = (f(params) for f in both)
    assert_close(got, want, 1e-12)
    shapes = jax.tree.map(lambda s: s.shape, P.abstract(mixer.module.specs(mixer, few)))
    assert [shapes[n]["w"] for n in "qkvo"] == [(D, H, K), (D, G, K), (D, G, V), (H * V, D)]


def test_carries_hold_the_heads_of_keys():
    """W slots of G keys of K features and G values of V, and as many tokens of the prefix."""
    state = P.abstract(WINDOW.module.state_specs(WINDOW, backbone("rope", G), 3))
    sizes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert sizes == [(3, 2, G, K), (3, 2, G, V), (3, 3, G, K), (3, 3, G, V), (3,)]


@pytest.mark.parametrize("options, message", [
    (dict(kv_heads=3), "kv_heads=3 does not divide the 2 heads of queries"),
    (dict(kv_heads=-1), "model.kv_heads is -1"),
    (dict(value_dim=6, pattern=(MagConfig(memory=MEMORY),)), "mag joins attention of 2 heads of 6"),
    (dict(value_dim=6, segment=4, pattern=(MacConfig(memory=MEMORY),)), "mac joins attention of 2 heads of 6"),
], ids=str)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        LanguageModelConfig(**(dict(width=8, layers=1, head_dim=4, pattern=(WINDOW,)) | options))


def test_mac_starts_with_queries_like_the_key_they_read():
    cfg, b = MacConfig(memory=MEMORY), replace(backbone("rope", 1), value_dim=2)
    params = P.init_params(cfg.module.specs(cfg, b), jax.random.key(0))
    q, k = params["q"]["w"], params["k"]["w"]
    assert np.abs(q - k).max() < 0.2 and np.abs(q).max() > 0.8
