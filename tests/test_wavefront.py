"""Execution along diagonals gives what one segment after the other gives: values, states, statistics, gradients."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, jit, random_params, split_float

from memtok_jax.config import UserError
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import language_model, rmt, wavefront
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2_RELATIVE, TRANSFORMER_XL


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


BASE = LanguageModelConfig(vocabulary=16, width=8, layers=3, head_dim=4, hidden=8, segment=4, pattern=(CachedConfig(XlConfig(5)),))
MAG = MagConfig(window=4, memory=NeuralMemoryConfig(head_dim=4, expansion=1, chunk=2))
MODELS = {
    "xl": replace(BASE, style=TRANSFORMER_XL),
    "compressive": replace(BASE, style=TRANSFORMER_XL, pattern=(CachedConfig(CompressiveConfig(4, 3, 2)),)),
    "mag": replace(BASE, layers=2, prefix=2, pattern=(MAG,)),
    "xl below mag": replace(BASE, layers=4, prefix=2, pattern=(CachedConfig(XlConfig(5)), MAG)),
    "armt": RmtConfig(replace(BASE, style=GPT2_RELATIVE, pattern=(ArmtLayerConfig(ArmtConfig(key_dim=3)),)), tokens=2,
                      form="suffix"),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


SLOW = [("xl", 2), ("mag", 3), ("armt", 1), ("armt", 2), ("xl below mag", 3)]


@pytest.mark.parametrize("name, segments", [("compressive", 5), ("armt", 3),
                                            *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
@pytest.mark.usefixtures("float64")
def test_diagonals_equal_a_scan_over_segments(name, segments):
    """Fewer and more segments than layers, from a state in the middle of a stream: values, carry, and gradients of both inputs."""
    model = bind(MODELS[name])
    params = random_params(model.specs(), 0, np.float64)
    ids = jnp.asarray(np.random.default_rng(0).integers(16, size=(segments + 1, 2, 4)), jnp.int32)
    state = jit(lambda params, ids: model.apply(params, model.init_state(params, 2), ids, whole=True)[1])(params, ids[-1])
    rows, rebuild = split_float(state)

    def scanned(params, state):
        end, logits = jax.lax.scan(lambda s, x: model.apply(params, s, x, whole=True)[::-1], state, ids[:-1])
        return logits, end

    def total(walk):
        def loss(params, rows):
            logits, end = walk(params, rebuild(rows))
            return jnp.sin(logits).sum(), (logits, end)

        return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, rows)

    diagonals = lambda params, state: model.functions.run_segments(params, state, ids[:-1], model.cfg)
    assert_close(total(diagonals), total(scanned), 1e-10)


@pytest.mark.parametrize("functions, cfg, tokens, message", [
    (rmt, replace(MODELS["armt"], form="causal"), 4, "diagonals need form='suffix'"),
    (rmt, MODELS["armt"], 3, "calls of model.segment=4 tokens"),
    (language_model, MODELS["xl"], 6, "not a multiple of the model's 4"),
], ids=["form", "armt", "xl"])
def test_what_cannot_go_along_diagonals_is_named(functions, cfg, tokens, message):
    model = bind(cfg)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: model.init_state(p, 2), params)
    ids = jax.ShapeDtypeStruct((2, 2, tokens), jnp.int32)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda p, s, x: functions.run_segments(p, s, x, cfg), params, state, ids)
