"""Layers repeated inside a pattern are the layers one after the other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from model_cases import HYMBA, LMM, MODELS, WINDOW, model
from neural_cases import assert_close

from memtok_jax.config import UserError, differences
from memtok_jax.models.mixers.repeated import RepeatedConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import bind

SHARED = replace(HYMBA, keys="before")


def in_a_row(cfg):
    """The same model with a pattern that names every layer."""
    flat = lambda layer: layer.layers * layer.times if isinstance(layer, RepeatedConfig) else (layer,)
    return replace(cfg, pattern=tuple(one for layer in cfg.pattern for one in flat(layer)))


def apart(trees: tuple, cfg) -> tuple:
    """The trees of the repeated model as those of `in_a_row`. The stack's own axis comes first, that of the repeats second."""
    take = lambda tree, n: jax.tree.map(lambda leaf: leaf[:, n], tree)
    cut = lambda tree, layer: (tuple(take(one, n) for n in range(layer.times) for one in tree)
                               if isinstance(layer, RepeatedConfig) else (tree,))
    return tuple(one for tree, layer in zip(trees, cfg.pattern, strict=True) for one in cut(tree, layer))


def two_calls(bound, params, ids):
    """(logits of the second of two calls, carry of all layers)."""
    _, state, _ = bound.run(params, bound.init_state(params, 2), ids[:, :7])
    logits, state, _ = bound.run(params, state, ids[:, 7:])
    return logits, state.layers


def both(remat: str):
    """(repeated model, flat model, parameters of the first, those of the second, tokens)."""
    cfg = replace(MODELS["repeated"], remat=remat)
    ours = bind(cfg)
    params = ours.init(jax.random.key(0))
    return ours, bind(in_a_row(cfg)), params, of_row(params, cfg), jax.random.randint(jax.random.key(1), (2, 10), 0, cfg.vocabulary)


def of_row(params, cfg):
    """The parameters of the flat model."""
    return params | {"layers": apart(params["layers"], cfg)}


def test_it_is_the_layers_in_a_row():
    """Logits and carry of two calls, with prefix tokens and shared keys."""
    ours, flat, params, same, ids = both("pointwise")
    (logits, carry), expected = (jax.jit(partial(two_calls, bound))(p, ids) for bound, p in ((ours, params), (flat, same)))
    assert_close((logits, apart(carry, ours.cfg)), expected, 1e-5)


@pytest.mark.parametrize("remat", ["pointwise", "block"])
def test_so_are_its_gradients(remat):
    ours, flat, params, same, ids = both(remat)
    gradient = lambda bound, p: jax.jit(jax.grad(lambda p: jnp.square(two_calls(bound, p, ids)[0]).sum()))(p)
    assert_close(of_row(gradient(ours, params), ours.cfg), gradient(flat, same), 2e-5)


def test_the_program_holds_them_once():
    """The number of operations does not depend on how often the layers come."""
    def operations(times):
        bound = bind(model(RepeatedConfig((WINDOW,), times), layers=times, segment=0))
        params = jax.eval_shape(bound.init, jax.random.key(0))
        ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        run = lambda params, ids: bound.run(params, bound.init_state(params, 1), ids)[0]
        return str(jax.make_jaxpr(run)(params, ids)).count(" = ")

    assert operations(2) == operations(7)


@pytest.mark.parametrize("make, says", [
    (lambda: RepeatedConfig(()), "at least one mixer"),
    (lambda: RepeatedConfig((RepeatedConfig((WINDOW,), 2),), 2), "no LayerConfig"),
    (lambda: RepeatedConfig((WINDOW,), 0), "times"),
    (lambda: model(HYMBA, RepeatedConfig((SHARED,), 2), layers=3, segment=0, kv_heads=1, value_dim=8), "same repeat"),
    (lambda: model(RepeatedConfig((WINDOW,), 2), layers=3, segment=0), "layers=3 is not a multiple of the 2 layers"),
])
def test_bad_options(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_it_counts_its_layers():
    """A token sees as far as through layers in a row, and the config's differences name the layer inside."""
    repeated, flat = (model(*pattern, layers=4, segment=0) for pattern in ((LMM, RepeatedConfig((WINDOW,), 3)),
                                                                         (LMM, WINDOW, WINDOW, WINDOW)))
    assert (repeated.reach, repeated.repeats, repeated.call_tokens) == (flat.reach, flat.repeats, flat.call_tokens)
    wider = replace(repeated, pattern=(LMM, RepeatedConfig((WindowConfig(9),), 3)))
    assert differences(repeated, wider)[0][0] == "config.pattern.1.layers.0.window"
