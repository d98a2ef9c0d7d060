"""Frozen memories: a model that does not use its memory is not changed, one that does is, and forgetting does not undo it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import LMM, MAG, MEMORY, MODELS, model, some_ids
from toy_model import ToyConfig

from memtok_jax.evaluation.frozen import can_freeze, frozen
from memtok_jax.memory import neural
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Memory, bind

HAVE_ONE = {"lmm", "mac", "mac_questions", "mag", "mal", "xl_below_mag", "rmt_around_mag"}


def test_models_with_a_neural_memory_are_known():
    assert {name for name, cfg in MODELS.items() if can_freeze(cfg)} == HAVE_ONE
    assert not can_freeze(ToyConfig()) and frozen(MODELS["rmt"]) is not None and frozen(MODELS["rmt"]) == MODELS["rmt"]


def test_parameters_and_carry_are_those_of_the_model():
    for name in HAVE_ONE:
        ours, still = bind(MODELS[name]), bind(frozen(MODELS[name]))
        for of in (lambda m: m.specs(), lambda m: m.state_specs(2)):
            shapes = lambda m, of=of: jax.tree.map(lambda s: s.shape, of(m), is_leaf=lambda s: hasattr(s, "axes"))
            assert shapes(ours) == shapes(still)


@pytest.mark.parametrize("forget_to", ["init", "zero"])
def test_every_read_is_at_the_initial_weights(forget_to):
    """What is read after many writes is f at the learned initial weights, to the bit."""
    cfg = neural.NeuralMemoryConfig(width=4, head_dim=4, chunk=4, expansion=2, conv=2, step_max=0.3, forget_to=forget_to,
                                    forget_range=(0.5, 0.5))
    still = Memory(neural, frozen(cfg))
    params, x = still.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 12, 4))
    fresh = still.init_state(params, 2)
    y, after = still.apply(params, fresh, x)
    np.testing.assert_allclose(y, neural.read(params, fresh, x, cfg), rtol=0, atol=1e-6)
    assert max(float(jnp.abs(w).max()) for w in jax.tree.leaves((after.weights, after.surprise))) < 1e-25
    moved = Memory(neural, cfg).apply(params, fresh, x)[0]
    assert float(jnp.abs(moved - y).max()) > 1e-2, "the writes of this memory do something"


@functools.cache
def _logits(cfg, scale: float) -> np.ndarray:
    """Logits of a model whose memory's contribution is multiplied by `scale`."""
    bound = bind(cfg)
    params = bound.init(jax.random.key(0))

    def scaled(path, leaf):
        return scale * leaf if "norm_memory" in jax.tree_util.keystr(path) else leaf

    params = jax.tree_util.tree_map_with_path(scaled, params)
    return np.asarray(bound.run(params, bound.init_state(params, 2), some_ids(2, 12), Call())[0])


def test_a_memory_that_is_not_used_is_worth_nothing():
    """MAG that adds its memory, with the weight of the memory at zero: frozen and not frozen are the same numbers."""
    cfg = model(type(MAG)(window=3, combine="sum", memory=MEMORY), segment=0)
    np.testing.assert_array_equal(_logits(cfg, 0.0), _logits(frozen(cfg), 0.0))
    assert np.abs(_logits(cfg, 1.0) - _logits(frozen(cfg), 1.0)).max() > 1e-4


def test_a_tuple_of_branches_is_frozen_too():
    cfg = frozen(model((LMM,), segment=0))
    assert cfg.pattern[0][0].memory.step_max == 1e-30
