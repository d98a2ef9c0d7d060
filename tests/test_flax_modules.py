"""The Flax adapters are the pure functions: values, gradients, trees and logical axes."""

from __future__ import annotations

import re
from pathlib import Path

import flax.linen as nn
import inference_toys as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inference_models import MODELS
from jax.sharding import PartitionSpec as P

from memtok_jax.flax_modules import as_linen, as_nnx
from memtok_jax.memory import neural
from memtok_jax.models.protocol import Memory
from memtok_jax.params import is_axes, logical_axes

KEY = jax.random.key(0)


CASES = {"toy memory": Memory(toys.ema, toys.EmaConfig()), "toy language model": MODELS["toy"],
         "neural memory": Memory(neural, neural.NeuralMemoryConfig(width=4, head_dim=2, chunk=3, expansion=1))}
LENGTHS = (None, np.array([7, 4], np.int32))


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """(model, params, state, x) of one memory or model."""
    model = CASES[request.param]
    params, key = model.init(KEY), jax.random.key(1)
    x = jax.random.normal(key, (2, 7, 4)) if "memory" in request.param else jax.random.randint(key, (2, 7), 0, 11)
    return model, params, model.init_state(params, 2), x


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def specs_of_axes(model):
    return jax.tree.map(lambda names: P(*names), logical_axes(model.specs()), is_leaf=is_axes)


def pure_call(case, length):
    model, params, state, x = case
    return jax.jit(lambda p, s, x, n: model.apply(p, s, x, n))(params, state, x, length)


def loss_of(y):
    return jnp.sum(jnp.sin(y))


def nnx_with(model, params):
    """An NNX module that holds the given parameters."""
    module = as_nnx(model, rngs=nnx.Rngs(params=5))
    leaves = jax.tree.leaves(module.pure, is_leaf=lambda node: isinstance(node, nnx.Variable))
    for variable, value in zip(leaves, jax.tree.leaves(params), strict=True):
        variable[...] = value
    return module


@pytest.mark.parametrize("length", LENGTHS, ids=["whole", "ragged"])
def test_linen_call_is_the_pure_call(case, length):
    model, params, state, x = case
    module = as_linen(model)
    variables = {"params": {"pure": params}}
    assert_equal(jax.jit(module.apply)(variables, state, x, length), pure_call(case, length))
    assert_equal(module.apply(variables, 2, method="initial_state"), state)


@pytest.mark.parametrize("length", LENGTHS, ids=["whole", "ragged"])
def test_nnx_call_is_the_pure_call(case, length):
    model, params, state, x = case
    module = nnx_with(model, params)
    assert_equal(nnx.jit(lambda m, *args: m(*args))(module, state, x, length), pure_call(case, length))
    assert_equal(module.initial_state(2), state)
    assert_equal(module.pure_params(), params)


def test_linen_init_boxes_the_pure_tree_with_its_axes(case):
    model, params, state, x = case
    variables = as_linen(model).init(KEY, state, x)
    assert set(variables) == {"params"} and set(variables["params"]) == {"pure"}
    plain = nn.unbox(variables)["params"]["pure"]
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, params)
    assert nn.get_partition_spec(variables)["params"]["pure"] == specs_of_axes(model)


def test_nnx_init_is_the_pure_init_with_its_axes(case):
    model, _, _, _ = case
    rngs = nnx.Rngs(params=3)
    module = as_nnx(model, rngs=nnx.Rngs(params=3))
    assert_equal(module.pure_params(), model.init(rngs.params()))
    found = [v.get_metadata()["out_sharding"] for v in jax.tree.leaves(
        module.pure, is_leaf=lambda node: isinstance(node, nnx.Variable))]
    assert found == jax.tree.leaves(logical_axes(model.specs()), is_leaf=is_axes)
    arrived = jax.tree.leaves(nnx.get_partition_spec(nnx.state(module)), is_leaf=lambda node: isinstance(node, P))
    assert sorted(map(str, arrived)) == sorted(map(str, jax.tree.leaves(
        specs_of_axes(model), is_leaf=lambda node: isinstance(node, P))))


def test_gradients_are_the_pure_gradients(case):
    model, params, state, x = case
    pure = jax.jit(jax.grad(lambda p: loss_of(model.apply(p, state, x)[0])))(params)

    linen = as_linen(model)
    linen_gradient = jax.jit(jax.grad(lambda v: loss_of(linen.apply(v, state, x)[0])))({"params": {"pure": params}})
    assert_equal(linen_gradient["params"]["pure"], pure)

    nnx_gradient = nnx.jit(nnx.grad(lambda m: loss_of(m(state, x)[0])))(nnx_with(model, params))
    assert_equal(jax.tree.unflatten(jax.tree.structure(pure), jax.tree.leaves(nnx_gradient)), pure)


def test_state_flows_through_a_scan_over_segments(case):
    model, params, state, x = case
    segments = jnp.stack([x, x, x])
    linen, module = as_linen(model), nnx_with(model, params)
    graph, variables = nnx.split(module)

    def run(step):
        return jax.jit(lambda: jax.lax.scan(step, state, segments))()

    pure = run(lambda s, x: model.apply(params, s, x)[::-1])
    by_linen = run(lambda s, x: linen.apply({"params": {"pure": params}}, s, x)[::-1])
    by_nnx = run(lambda s, x: nnx.merge(graph, variables)(s, x)[::-1])
    assert_equal(by_linen, pure)
    assert_equal(by_nnx, pure)


def test_vmap_over_parameter_sets(case):
    model, params, state, x = case
    linen = as_linen(model)
    two = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    y = jax.jit(jax.vmap(lambda p: linen.apply({"params": {"pure": p}}, state, x)[0]))(two)
    halved = pure_call((model, jax.tree.map(lambda p: 0.5 * p, params), state, x), None)[0]
    np.testing.assert_allclose(y[1], halved, rtol=1e-4, atol=1e-5)


def test_equal_modules_compile_once(case):
    model, params, state, x = case
    traced = []

    def call(module, params, state, x):
        traced.append(module)
        return module.apply({"params": {"pure": params}}, state, x)

    jitted = jax.jit(call, static_argnums=0)
    jitted(as_linen(model), params, state, x)
    jitted(as_linen(model), params, state, x)
    assert len(traced) == 1

    nnx_call = nnx.jit(lambda module, state, x: traced.append(module) or module(state, x))
    nnx_call(nnx_with(model, params), state, x)
    nnx_call(nnx_with(model, params), state, x)
    assert len(traced) == 2


def examples(name: str) -> list[str]:
    """Python of a document."""
    text = (Path(__file__).parent.parent / name).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def ran(example: str, names: dict) -> dict:
    """The names that an example leaves behind."""
    exec(compile(example, "example", "exec"), names)
    return names


def test_examples_of_the_readme_do_what_they_say():
    """A memory; a training loop around two memories; the same memory in Linen and NNX, given the parameters each of them drew."""
    plain, loop, linen, in_nnx = examples("README.md")
    names = ran(plain, {"__name__": "example"})
    assert names["y"].shape == (2, 100, 256) and jax.tree.structure(names["after"]) == jax.tree.structure(names["state"])
    names = ran(loop, {"__name__": "example"})
    assert np.isfinite(names["value"]) and any(np.any(leaf) for leaf in jax.tree.leaves(names["carry"]))
    names = ran(linen, {"__name__": "example"})
    y, after = names["memory"].apply(nn.unbox(names["variables"])["params"]["pure"], names["state"], names["x"])
    np.testing.assert_array_equal(names["y"], y)
    jax.tree.map(np.testing.assert_array_equal, names["after"], after)
    drawn = as_nnx(names["memory"], rngs=nnx.Rngs(0)).pure_params()
    y, after = names["memory"].apply(drawn, names["state"], names["x"])
    np.testing.assert_array_equal(ran(in_nnx, names)["y"], y)


def test_longer_examples_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    functions, linen, trained, talk = (ran(e, {"__name__": "example"}) for e in examples("docs/use_as_functions.md"))
    assert talk["streams"].tokens[0] == talk["streams"].tokens[1] == talk["row"].stream.t[0] + 1 > 100
    assert np.isfinite(talk["streams"].said.bits).all() and (tmp_path / "talk.stream").exists()
    grown = jax.tree.map(lambda g: bool(np.abs(g).max() > 0), functions["gradient"])
    assert any(jax.tree.leaves(grown)) and jax.tree.structure(grown) == jax.tree.structure(functions["params"])
    first = linen["layer"].apply(linen["variables"], linen["x"], method="begin")[0]
    assert first.shape == linen["y"].shape and np.abs(first - linen["y"]).max() > 1e-4, "the carry of the first segment counts"
    assert np.isfinite(trained["value"]) and trained["step"] == 2
