"""Execution along diagonals gives what one segment after the other gives: values, states, statistics, gradients."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, jit, random_params, split_float

from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import associative, language_model, transformer_xl, wavefront
from memtok_jax.models.associative import AssociativeConfig
from memtok_jax.models.config import LanguageModelConfig
from memtok_jax.models.transformer_xl import TransformerXlConfig


@pytest.mark.parametrize("layers, segments", [(1, 3), (3, 1), (3, 2), (3, 3), (2, 5)])
def test_every_layer_sees_every_segment_in_order(layers, segments):
    """A layer that writes down what it does: y = 2 x + state + l, state <- state + x."""
    numbers = jnp.arange(1.0, layers + 1)
    states = 10 * numbers.reshape(-1, 1, 1, 1)
    x = jnp.arange(1.0, segments + 1).reshape(-1, 1, 1, 1)
    step = lambda l, state, x: (2 * x + state + l, state + x, {"seen": x.sum()})
    y, end, seen = wavefront.run(step, numbers, states, x)
    want, state, total = [], [float(10 * l) for l in numbers], [0.0] * layers
    for value in range(1, segments + 1):
        for l in range(layers):
            total[l] += value
            value, state[l] = 2 * value + state[l] + l + 1, state[l] + value
        want.append(value)
    np.testing.assert_array_equal(y.ravel(), want)
    np.testing.assert_array_equal(end.ravel(), state)
    np.testing.assert_array_equal(seen["seen"], total)


@pytest.mark.parametrize("memory, segments", [pytest.param(XlConfig(5), 2, id="xl-2", marks=pytest.mark.slow),
                                              pytest.param(CompressiveConfig(4, 3, 2), 5, id="compressive-5")])
def test_diagonals_equal_a_scan_over_segments(memory, segments):
    """Three layers, fewer and more segments, from a state in the middle of a stream."""
    cfg = TransformerXlConfig(vocabulary=16, width=8, layers=3, heads=2, head_dim=3, hidden=6, memory=memory)
    params = jax.tree.map(lambda p: 3 * p if p.ndim > 1 else p, random_params(transformer_xl.specs(cfg), 0, np.float32))
    ids = jnp.asarray(np.random.default_rng(0).integers(16, size=(segments + 1, 2, 4)), jnp.int32)
    state = transformer_xl.apply(params, transformer_xl.init_state(params, cfg, 2), ids[-1], cfg)[1]

    def scanned(params, state):
        def one(state, ids):
            logits, state, seen = transformer_xl.run(params, state, ids, cfg)
            return state, (logits, seen)

        end, (logits, seen) = jax.lax.scan(one, state, ids[:-1])
        return logits, end, jax.tree.map(lambda s: s.sum(0), seen)

    rows, rebuild = split_float(state)

    def total(function):
        def loss(params, rows):
            logits, end, seen = function(params, rebuild(rows))
            return jnp.sin(logits).sum() + sum(v.sum() for v in seen.values()), (logits, end, seen)

        return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, rows)

    diagonal = lambda params, state: transformer_xl.run_segments(params, state, ids[:-1], cfg)
    assert_close(total(diagonal), total(scanned), 2e-5)


MEMORY = NeuralMemoryConfig(head_dim=4, expansion=1, chunk=2)
TITANS = LanguageModelConfig(vocabulary=16, width=8, head_dim=4, hidden=8, window=4, segment=4, prefix=2, memory=MEMORY)
PER_LAYER = {
    "armt": (associative, AssociativeConfig(vocabulary=16, width=8, layers=3, head_dim=4, hidden=8, segment=4, tokens=2,
                                            key_dim=3)),
    "mag": (language_model, replace(TITANS, layers=2, pattern=("mag",))),
}


@pytest.mark.parametrize("name, segments", [("armt", 3), *(pytest.param(name, n, marks=pytest.mark.slow)
                                                          for name, n in (("armt", 1), ("armt", 2), ("mag", 3)))])
def test_diagonals_of_a_memory_in_each_layer(name, segments):
    """Values, carry and gradient equal those of one segment after the other, from the middle of a stream."""
    functions, cfg = PER_LAYER[name]
    params = random_params(functions.specs(cfg), 0, np.float32)
    ids = jnp.asarray(np.random.default_rng(0).integers(16, size=(segments + 1, 2, 4)), jnp.int32)
    state = functions.apply(params, functions.init_state(params, cfg, 2), ids[-1], cfg)[1]

    def scanned(params):
        end, logits = jax.lax.scan(lambda s, x: functions.apply(params, s, x, cfg)[::-1], state, ids[:-1])
        return logits, end

    def total(walk):
        def loss(params):
            logits, end = walk(params)[:2]
            return jnp.sin(logits).sum(), (logits, end.layers)

        return jit(jax.value_and_grad(loss, has_aux=True))(params)

    # Divisions by small normalisers amplify rounding in ARMT.
    assert_close(total(lambda params: functions.run_segments(params, state, ids[:-1], cfg)), total(scanned), 2e-4)
