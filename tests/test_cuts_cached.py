"""Models with a cache do not depend on how a stream is cut into calls, and a promise of whole calls changes nothing.

In float64, from a carry in the middle of a stream: logits, statistics, carry, and the gradient of a loss that has the memory's own
loss in it.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, jit, random_params

from memtok_jax import params as P
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.style import COMPRESSIVE, TRANSFORMER_XL

B, T = 3, 12
BASE = dict(vocabulary=16, width=8, layers=2, head_dim=4, hidden=8, segment=4)
NEURAL = NeuralMemoryConfig(head_dim=4, chunk=4, expansion=1, step_max=0.1)
MODELS = {
    "xl": LanguageModelConfig(**BASE, pattern=(CachedConfig(XlConfig(5)),), style=TRANSFORMER_XL),
    "compressive": LanguageModelConfig(**BASE, pattern=(CachedConfig(CompressiveConfig(4, 3, 2)),), style=COMPRESSIVE),
    "most_used": LanguageModelConfig(**BASE, pattern=(CachedConfig(CompressiveConfig(4, 4, 2, "most_used", block=4)),),
                                     style=COMPRESSIVE),
    # Blocks that no segment fills: rows wait at every border, in whole calls too.
    "waiting": LanguageModelConfig(**BASE, pattern=(CachedConfig(CompressiveConfig(3, 3, 3, "conv", "autoencoding")),),
                                   style=COMPRESSIVE, prefix=2),
    # In no paper: Transformer-XL below MAG, in one backbone.
    "xl below mag": LanguageModelConfig(**BASE, pattern=(CachedConfig(XlConfig(5)), MagConfig(window=3, memory=NEURAL)), prefix=2),
}


class Case:
    """A model, its parameters, a carry after one segment, tokens, and two compiled functions."""

    def __init__(self, name: str):
        self.model = bind(MODELS[name])
        params = random_params(self.model.specs(), 0, np.float64)
        self.params = jax.tree.map(lambda p: 2 * p if p.ndim > 1 else p, params)
        rng = np.random.default_rng(1)
        self.ids = jnp.asarray(rng.integers(16, size=(B, T)), jnp.int32)
        self.weights = jnp.asarray(rng.standard_normal((B, T, 16)))
        self.apply = jit(lambda params, state, ids, length: self.model.run(params, state, ids, Call(length=length)))
        self.gradient = jit(jax.grad(self.loss, has_aux=True), static_argnums=3)
        fresh = self.model.init_state(self.params, B)
        first = jnp.roll(self.ids, 5, axis=1)
        self.state = self.apply(self.params, fresh, first, jnp.full((B,), 8))[1]

    def loss(self, params, state, length, whole: bool):
        """Of one call; derived leaves of the carry are made of the parameters, so that they have their gradient too."""
        state = P.renew(state, self.model.init_state(params, B), self.model.state_specs(B))
        call = Call(whole=True) if whole else Call(length=length)
        logits, state, stats = self.model.run(params, state, self.ids, call)
        own = sum((v for name, v in stats.items() if name.endswith("auxiliary_loss")), jnp.zeros(()))
        return (jnp.sin(logits) * self.weights).sum() + 3 * own, (logits, state, stats)


@cache
def case(name: str) -> Case:
    return Case(name)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_call_is_the_same_call(name):
    """Values, carry, statistics and every gradient, the memory's own loss and its gradient among them."""
    c = case(name)
    full = jnp.full((B,), T)
    (general, (logits, state, stats)), (whole, (whole_logits, whole_state, whole_stats)) = (
        c.gradient(c.params, c.state, full, how) for how in (False, True))
    assert_close((whole_logits, whole_state), (logits, state), 1e-12)
    assert_close(whole, general, 1e-11)
    assert stats.keys() == whole_stats.keys()
    for key, value in stats.items():
        np.testing.assert_allclose(whole_stats[key], value, rtol=1e-5, err_msg=key)  # statistics may be float32
    losses = [v for key, v in stats.items() if key.endswith("auxiliary_loss")]
    assert bool(losses) == ("xl" not in name) and all(v > 1e-3 for v in losses)


@pytest.mark.parametrize("name", MODELS)
def test_any_cut_gives_the_same(name):
    """Rows that stop at different places, calls without a token for a row, and token by token."""
    c = case(name)
    want, end, _ = c.apply(c.params, c.state, c.ids, jnp.full((B,), T))
    for stops in ([[3, 7, 0], [4, 7, 11], [12, 12, 12]], [[n] * B for n in range(1, T + 1)]):
        got, state, place = np.zeros(want.shape), c.state, np.zeros(B, int)
        for stop in np.array(stops):
            index = np.minimum(place[:, None] + np.arange(T), T - 1)
            part, state, _ = c.apply(c.params, state, jnp.take_along_axis(c.ids, jnp.asarray(index), 1),
                                     jnp.asarray(stop - place, jnp.int32))
            for row in range(B):
                got[row, place[row]:stop[row]] = part[row, :stop[row] - place[row]]
            place = stop
        assert_close((jnp.asarray(got), state), (want, end), 1e-12)


@pytest.mark.parametrize("name", ["xl", "most_used"])
def test_calls_of_one_token_give_the_same(name):
    """Their shapes take another way through the code than a call that may hold a border in its middle."""
    c = case(name)
    want, end, _ = c.apply(c.params, c.state, c.ids, jnp.full((B,), T))
    out, state = [], c.state
    for t in range(T):
        part, state, _ = c.apply(c.params, state, c.ids[:, t:t + 1], jnp.ones((B,), jnp.int32))
        out.append(part)
    assert_close((jnp.concatenate(out, 1), state), (want, end), 1e-12)


def test_the_own_loss_of_all_calls_adds_up():
    """The losses of calls of a segment each have the mean that one call of them all reports."""
    c = case("compressive")
    key = "0.cached.auxiliary_loss"
    want, state, own = c.apply(c.params, c.state, c.ids, jnp.full((B,), T))[2][key], c.state, []
    for part in jnp.split(c.ids, T // 4, axis=1):
        _, state, stats = c.apply(c.params, state, part, jnp.full((B,), 4))
        own.append(stats[key])
    assert len(set(map(float, own))) == len(own)
    np.testing.assert_allclose(np.mean(own), want, rtol=1e-12)
