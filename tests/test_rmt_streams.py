"""Memory tokens around any layers, in float64: any cut of a stream, whole segments, causality, statistics, cost of a token."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_rmt as reference
from neural_cases import assert_close, assert_equal, jit
from rmt_cases import RELATIVE, D, T, V, associative, cached, model, setup, some_ids

from memtok_jax import params as P
from memtok_jax.memory.neural import NeuralMemoryConfig
from memtok_jax.models import rmt
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.style import TITANS

B, N = 2, 3  # rows, segments


def neural(chunk: int) -> NeuralMemoryConfig:
    return NeuralMemoryConfig(head_dim=4, chunk=chunk, expansion=2, conv=2, step_max=0.1)


CASES = {
    "table": model(),
    "paper": model(form="paper", style=RELATIVE),
    "prefix": model(form="prefix", style=RELATIVE),
    "cached": cached(6, form="paper", see=True, keep=True),
    "armt": associative(),
    # A segment with its memory tokens is no multiple of the chunk, so that chunks run over borders and whole segments cut them.
    "mag": model(pattern=(MagConfig(window=3, memory=neural(3)),), style=TITANS, prefix=1),
    "mac": model(pattern=(MacConfig(memory=neural(2)),), style=TITANS, prefix=1),
}
NEURAL = ("mag", "mac")
STEPS = ((3, 9), (1, 0), (8, 3))  # tokens of each row in three calls that cut segments anywhere


class Ran(NamedTuple):
    """What one case gives."""

    params: Any
    ids: jax.Array
    stream: Any        # function (params, carry, fresh bool[B], ids, length) -> (logits, carry, stats), gradient
    general: tuple     # of all tokens at once
    gradient: Any
    whole: tuple       # of all tokens as whole segments
    whole_gradient: Any


def _weighed(logits, state) -> jax.Array:
    """A scalar that every logit and every number of the carry acts on."""
    rng = np.random.default_rng(5)
    floating = [x for x in [logits, *jax.tree.leaves(state)] if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum((x * rng.standard_normal(x.shape)).sum() for x in floating)


@cache
def ran(name: str) -> Ran:
    """Two programs for each case: with lengths, and whole; each with the gradient of all parameters.

    Neural memories go without the gradient, which has a test of its own.
    """
    cfg = CASES[name]

    def of(params, state, fresh, ids, call):
        state = P.reset(state, fresh, rmt.init_state(params, cfg, B), rmt.state_specs(cfg, B))
        logits, state, stats = rmt.run(params, state, ids, cfg, call)
        return _weighed(logits, state), (logits, state, stats)

    grad = jax.grad(of, has_aux=True) if name not in NEURAL else lambda *args: ((), of(*args)[1])
    stream = jit(lambda params, state, fresh, ids, n: grad(params, state, fresh, ids, Call(length=n))[::-1])
    at_once = jit(lambda params, state, fresh, ids: grad(params, state, fresh, ids, Call(whole=True))[::-1])
    with jax.enable_x64(True):
        params, state = setup(cfg, B, np.float64)
        ids, fresh = some_ids(B, N * T), jnp.ones(B, bool)
        return Ran(params, ids, stream, *stream(params, state, fresh, ids, jnp.full((B,), N * T, jnp.int32)),
                   *at_once(params, state, fresh, ids))


@pytest.mark.parametrize("name", CASES)
def test_whole_segments_equal_the_general_computation(name):
    """In logits, carry, statistics, and the gradient of every parameter through all segments."""
    case = ran(name)
    (y, state, stats), (y_whole, state_whole, stats_whole) = case.general, case.whole
    assert_close((y, state), (y_whole, state_whole), 1e-12)
    assert_close(case.gradient, case.whole_gradient, 1e-10)
    cut = lambda stats: {key: value for key, value in stats.items() if name != "mag" or "stability" not in key}
    assert stats.keys() == stats_whole.keys() and (name == "prefix" or stats)
    assert_close(cut(stats), cut(stats_whole), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEURAL)
def test_gradients_through_a_neural_memory(name):
    """Of every parameter, over two segments: whole segments equal the general computation, and the slope along a line."""
    cfg, tokens = CASES[name], 2 * T

    def scalar(params, ids, call):
        logits, state, _ = rmt.run(params, rmt.init_state(params, cfg, B), ids, cfg, call)
        return _weighed(logits, state)

    with jax.enable_x64(True):
        params, _ = setup(cfg, B, np.float64)
        ids = some_ids(B, tokens)
        whole = jit(jax.value_and_grad(lambda p: scalar(p, ids, Call(whole=True))))
        general = jit(jax.grad(lambda p, n: scalar(p, ids, Call(length=n))))
        (_, gradient), other = whole(params), general(params, jnp.full((B,), tokens, jnp.int32))
        assert_close(gradient, other, 1e-9)
        rng = np.random.default_rng(6)
        line = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params)
        at = lambda step: float(whole(jax.tree.map(lambda p, d: p + step * d, params, line))[0])
        slope = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (gradient, line)), strict=True))
        assert (at(1e-7) - at(-1e-7)) / 2e-7 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_any_cut_of_a_stream_gives_the_same(name):
    """Rows at different places, short and empty calls; then token by token, the way of decoding. All of it is float64."""
    case, cfg = ran(name), CASES[name]
    y, end, _ = case.general
    with jax.enable_x64(True):
        start = state = rmt.init_state(case.params, cfg, B)
        place, got = np.zeros(B, int), np.zeros(y.shape)
        for step in np.array(STEPS):
            index = np.minimum(place[:, None] + np.arange(N * T), N * T - 1)
            part = jnp.take_along_axis(case.ids, jnp.asarray(index), 1)
            (logits, state, _), _ = case.stream(case.params, state, jnp.zeros(B, bool), part, jnp.asarray(step, jnp.int32))
            for b in range(B):
                got[b, place[b]:place[b] + step[b]] = logits[b, :step[b]]
            place += step
        assert place.tolist() == [N * T, N * T]
        assert_close((jnp.asarray(got), state), (y, end), 1e-12)

        one = jit(lambda params, state, ids: rmt.run(params, state, ids, cfg, Call(length=jnp.ones(B, jnp.int32)))[:2])
        state, outs = start, []
        for t in range(N * T):
            logits, state = one(case.params, state, case.ids[:, t:t + 1])
            outs.append(logits)
            np.testing.assert_array_equal(state.stack.slot, (cfg.head + (t + 1) % T) if (t + 1) % T else 0)
        assert_close((jnp.concatenate(outs, 1), state), (y, end), 1e-12)
    assert {x.dtype for x in jax.tree.leaves((y, state)) if jnp.issubdtype(x.dtype, jnp.floating)} == {np.dtype(np.float64)}


@pytest.mark.parametrize("name", ["table", "paper", "prefix", "cached", "armt"])
def test_a_stream_equals_the_loops_to_the_last_digits(name):
    """Nothing on the way is rounded to float32, keys and values of the open segment included."""
    case, cfg = ran(name), CASES[name]
    plain = jax.tree.map(np.asarray, case.params)
    for b in range(B):
        segments = np.asarray(case.ids[b]).reshape(N, T)
        if name == "armt":
            expected, A, z = reference.associative(plain, segments, 3, cfg.model.embedding_scale)
            (layer,) = case.general[1].stack.layers
            np.testing.assert_allclose(layer.memory.matrix[:, b], A, rtol=0, atol=1e-12)
            np.testing.assert_allclose(layer.memory.normaliser[:, b], z, rtol=0, atol=1e-12)
        else:
            cache = dict(size=6, by_memory=True, whole=True) if name == "cached" else {}
            expected, m, _ = reference.recurrent(plain, segments, cfg.form, cfg.model.embedding_scale, **cache)
            np.testing.assert_allclose(case.general[1].memory.tokens[b], m, rtol=0, atol=1e-12)
        np.testing.assert_allclose(case.general[0][b], np.concatenate(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_token_acts_on_later_ones_only(name):
    """Another token in the middle of the second segment: the same logits before it, bit for bit; other ones from there on, and
    behind the border wherever something crosses it."""
    case, t = ran(name), T + 2
    with jax.enable_x64(True):
        other = case.ids.at[:, t].set((case.ids[:, t] + 1) % V)
        state = rmt.init_state(case.params, CASES[name], B)
        changed = case.stream(case.params, state, jnp.ones(B, bool), other, jnp.full((B,), N * T, jnp.int32))[0][0]
    y = case.general[0]
    assert_equal(changed[:, :t], y[:, :t])
    difference = np.abs(changed - y).max((0, 2))
    assert (difference[t:2 * T] > 1e-6).all()
    assert (difference[2 * T:] > 1e-9).all() if name != "prefix" else not difference[2 * T:].any()


# ---------------------------------------------------------------------------------------------------- the cost of a token

def products(jaxpr, branches: bool = False) -> int:
    """Multiplications and additions of all matrix products, those of conditional branches only if asked."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [getattr(j, "jaxpr", j) for value in eqn.params.values() for j in (value if isinstance(value, tuple) else (value,))
                 if hasattr(j, "eqns") or hasattr(j, "jaxpr")]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod([left[axis] for axis in contracted]))
        elif branches or eqn.primitive.name != "cond":
            total += eqn.params.get("length", 1) * sum(products(j, branches) for j in inner)
    return total


def test_a_token_costs_one_token():
    """Beside memory tokens a decoded token costs what it costs without, and the product with their keys and values: they go through
    the layers in the two calls alone where a segment begins and where it ends, each a branch that is skipped otherwise."""
    tokens, layers = 6, 2

    def of_one_token(memory: int):
        cfg = model(tokens=memory, layers=layers)
        params, state = P.abstract(rmt.specs(cfg)), P.abstract(rmt.state_specs(cfg, B))
        step = lambda params, state, ids: rmt.run(params, state, ids, cfg)[:2]
        return jax.make_jaxpr(step)(params, state, jnp.zeros((B, 1), jnp.int32)).jaxpr

    bare, beside = of_one_token(0), of_one_token(tokens)
    keys_and_values = layers * 2 * (2 * B * D * 2 * tokens)
    assert products(beside) == products(bare) + keys_and_values
    assert products(beside, branches=True) > tokens * products(bare)
    assert products(bare) > 0
