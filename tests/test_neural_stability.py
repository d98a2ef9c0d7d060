"""The neural memory over long streams and in low precision: finite, bounded, and as exact as promised."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import cast, jit

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.memory.neural import features
from memtok_jax.memory.neural.config import NeuralMemoryConfig

LENGTH = 8192
DEFAULT = NeuralMemoryConfig(width=32, head_dim=16, chunk=16)


def streams(length: int, width: int, seed: int) -> np.ndarray:
    """Five rows [5, T, D]: random, words with Zipf's frequencies, one word for ever, runs of 64, two words in turn."""
    rng = np.random.default_rng(seed)
    words = rng.standard_normal((256, width))
    zipf = rng.choice(256, length, p=(1 / np.arange(1, 257)) / (1 / np.arange(1, 257)).sum())
    runs = np.repeat(rng.integers(256, size=-(-length // 64)), 64)[:length]
    turns = np.arange(length) // 256 % 2
    rows = [rng.standard_normal((length, width)), words[zipf], words[np.zeros(length, int)], words[runs], words[turns]]
    return np.stack(rows).astype(np.float32)


def weight_norms(params, state):
    """Norm of all fast weights of each row and head: [B, H]."""
    squares = [np.square(np.asarray(w)[None] + np.asarray(state.weights[name])) for name, w in params["init"].items()]
    return np.sqrt(sum(s.reshape(*s.shape[:2], -1).sum(-1) for s in squares))


def stream_through(cfg, calls: int):
    """`calls` calls of 8,192 tokens at initial parameters: (params, state, largest |read|), all of it finite."""
    params = P.init_params(neural.specs(cfg), jax.random.key(0))
    step = jax.jit(lambda state, x: neural.apply(params, state, x, cfg, whole=True))
    state, largest = neural.init_state(params, cfg, 5), 0.0
    for i in range(calls):
        y, state = step(state, streams(LENGTH, cfg.width, i))
        assert np.isfinite(y).all(), f"a read is not finite in call {i}"
        largest = max(largest, float(np.abs(y).max()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    return params, state, largest


@pytest.mark.parametrize("calls", [1, pytest.param(16, marks=pytest.mark.slow)], ids=["8k", "131k"])
def test_default_stays_finite_and_bounded(calls):
    """On all five kinds of input; the weights stay within three times their initial size."""
    params, state, largest = stream_through(DEFAULT, calls)
    start = weight_norms(params, jax.tree.map(jnp.zeros_like, state))
    assert np.all(weight_norms(params, state) <= 3 * start)
    assert largest < 20


def test_linear_memory_with_clip_stays_finite_at_a_huge_step():
    """A step of 1 is hundreds of times too large; the causal clip of each token bounds the weights all the same."""
    _, _, largest = stream_through(replace(DEFAULT, depth=1, norm=False, residual=False, step_max=1.0), 1)
    assert np.isfinite(largest)


def test_normed_memory_stays_finite_at_a_huge_step():
    """The default network at a step of 1, unclipped: the norm on its output shrinks the curvature as weights grow."""
    _, _, largest = stream_through(replace(DEFAULT, step_max=1.0), 1)
    assert np.isfinite(largest)


@pytest.mark.slow
def test_gradient_over_four_thousand_tokens_is_finite():
    """The longest span that training differentiates through, on all five kinds of input."""
    params = P.init_params(neural.specs(DEFAULT), jax.random.key(0))
    x = streams(4096, DEFAULT.width, 0)

    def loss(params, x):
        return jnp.square(neural.apply(params, neural.init_state(params, DEFAULT, 5), x, DEFAULT, whole=True)[0]).mean()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    assert all(np.isfinite(g).all() and np.abs(g).max() < 1e6 for g in jax.tree.leaves(gradient))


# -------------------------------------------------------------------------------------------------------- dead memory

def test_forgetting_to_zero_kills_a_plain_network_and_forgetting_to_init_does_not():
    """Zero is absorbing for two layers without norm: documented behaviour of the paper's equation 13."""
    base = NeuralMemoryConfig(width=8, head_dim=8, chunk=16, norm=False, residual=False, momentum=False,
                              step_max=2e-4, forget_range=(0.05, 0.05))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2000, 8)), jnp.float32)

    def end_and_gradient(forget_to):
        cfg = replace(base, forget_to=forget_to)
        params = P.init_params(neural.specs(cfg), jax.random.key(0))
        last = lambda params, state: jnp.square(neural.apply(params, state, x[:, :16], cfg, whole=True)[0]).sum()
        gradient = jit(jax.grad(last))
        size = lambda state: float(jnp.abs(gradient(params, state)["wq"]).max())
        fresh = neural.init_state(params, cfg, 1)
        state = jax.jit(partial(neural.write, whole=True), static_argnums=3)(params, fresh, x, cfg)
        return weight_norms(params, state).max(), size(state), size(fresh)

    weights, gradient, _ = end_and_gradient("zero")
    assert weights < 1e-6 and gradient < 1e-12
    weights, gradient, at_start = end_and_gradient("init")
    assert weights > 1 and gradient > 0.1 * at_start


# ---------------------------------------------------------------------------------------------------------- precision

def precision_errors(monkeypatch):
    """Error of the reads over 2,048 tokens against float64, root mean square relative to theirs: {mode: error}."""
    cfg = NeuralMemoryConfig(width=32, head_dim=16, chunk=32)
    x = np.random.default_rng(1).standard_normal((1, 2048, 32)).astype(np.float32)
    with jax.enable_x64(True):
        params = cast(P.init_params(neural.specs(cfg), jax.random.key(0)), np.float64)
        state = cast(neural.init_state(params, cfg, 1), np.float64)
        exact = np.asarray(jit(partial(neural.apply, whole=True), static_argnums=3)(params, state, x.astype(np.float64), cfg)[0])
    params = jax.tree.map(lambda p: np.asarray(p, np.float32), params)

    def error(cfg):
        y, _ = jit(lambda p, x: neural.apply(p, neural.init_state(p, cfg, 1), x, cfg, whole=True))(params, x)
        assert y.dtype == np.float32
        return float(np.linalg.norm(np.asarray(y, np.float64) - exact) / np.linalg.norm(exact))

    errors = {"float32": error(cfg), "bfloat16": error(replace(cfg, dtype="bfloat16"))}
    honest = features.gates
    rounded = lambda *a: jax.tree.map(lambda g: g.astype(jnp.bfloat16).astype(g.dtype), honest(*a))
    monkeypatch.setattr(features, "gates", rounded)
    return errors | {"float32 with bfloat16 gates": error(cfg)}


@pytest.mark.slow
def test_bfloat16_products_are_accurate_and_bfloat16_gates_are_not(monkeypatch):
    """The mixed mode rounds operands only; gates must stay in float32, which the last entry guards."""
    errors = precision_errors(monkeypatch)
    assert errors["float32"] < 1e-4
    assert errors["bfloat16"] < 1e-2
    assert errors["float32 with bfloat16 gates"] > 100 * errors["float32"], errors


def test_state_and_gates_stay_float32_under_bfloat16_inputs():
    cfg = NeuralMemoryConfig(width=8, head_dim=4, chunk=4, dtype="bfloat16")
    x = jax.ShapeDtypeStruct((2, 6, 8), jnp.bfloat16)
    params = P.abstract(neural.specs(cfg))
    gates = jax.eval_shape(lambda p, x: features.gates(p, x, cfg), params, x)
    assert all(g.dtype == np.float32 for g in gates)
    y, state = jax.eval_shape(lambda p, x: neural.apply(p, neural.init_state(p, cfg, 2), x, cfg), params, x)
    assert y.dtype == np.float32
    assert all(leaf.dtype == (np.int32 if leaf.ndim == 1 else np.float32) for leaf in jax.tree.leaves(state))
