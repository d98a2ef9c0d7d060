"""The contract of every model; the other half of the models stands in `test_contract_recurrent.py`, for another worker."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import B, Checks, T, model_case, whole
from model_cases import MODELS, in_bfloat16, some_ids
from neural_cases import assert_close, jit

from memtok_jax import params as P
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import bind

NAMES = [name for name in MODELS if "rmt" not in name and "memory_transformer" not in name and "xl" not in name
         and "compressive" not in name]
# A bias of all keys adds the same number to all scores of a query, but for the prefix, which has its own.
KEY_BIAS = ".k.b"


def dead_of(cfg) -> tuple[str, ...]:
    """Biases of keys, which softmax ignores."""
    specs = jax.tree.leaves_with_path(P.abstract(bind(cfg).specs()))
    return tuple(name for path, _ in specs if "['k']['b']" in (name := jax.tree_util.keystr(path)))


@cache
def checks(name: str) -> Checks:
    return Checks(model_case(bind(MODELS[name]), dead=dead_of(MODELS[name])))


def check_whole(name: str) -> None:
    """`whole` is a faster path of the same function: values, carry and statistics."""
    own, model = checks(name), bind(MODELS[name])
    run = jit(lambda p, s, x, length, whole: model.run(p, s, x, Call(length=length, whole=whole)), static_argnums=4)
    want = run(own.params, own.initial, own.x, whole(), False)
    got = run(own.params, own.initial, own.x, None, True)
    # Stability is that of a chunk so far; where memory tokens come in calls of their own, it is taken in the midst of chunks too.
    for _, _, stats in (got, want):
        for key in [key for key in stats if "stability" in key and name == "rmt_around_mag"]:
            del stats[key]
    assert_close(got, want, 5e-5)
    assert all(v.shape == () and np.isfinite(v) for v in got[2].values())


def check_protocol(name: str) -> None:
    """All facts are stated, layers apart are the same model, and dtypes are never promoted by accident."""
    own, model = checks(name), bind(MODELS[name])
    assert model.call_tokens >= 1 and model.reach >= 1 and model.segment >= 0 and T % model.call_tokens == 0
    assert hash(model) == hash(bind(MODELS[name])) and model == bind(MODELS[name])
    apart, params, state = model.unstack(own.params, own.state)
    y, after = jit(apart.apply)(params, state, own.x[:, :1])
    assert_close((y, model.restack(after)), own.run(own.state, own.x[:, :1]), 1e-5)
    for cfg in (MODELS[name], in_bfloat16(MODELS[name])):
        with jax.numpy_dtype_promotion("strict"):
            check_shapes(bind(cfg))


def check_shapes(model) -> None:
    """Logits are float32, and the carry keeps its shapes and dtypes; nothing is computed."""
    params = P.abstract(model.specs())
    start = jax.eval_shape(lambda p: model.init_state(p, B), params)
    logits, end = jax.eval_shape(model.apply, params, start, jax.ShapeDtypeStruct((B, T), jnp.int32))
    assert logits.shape == (B, T, model.vocabulary) and logits.dtype == np.float32
    signature = lambda tree: jax.tree.map(lambda s: (s.shape, jnp.dtype(s.dtype)), tree)
    assert signature(end) == signature(start) == signature(P.abstract(model.state_specs(B)))


every_model = pytest.mark.parametrize("name", NAMES)


@every_model
def test_1_any_split_gives_the_same(name):
    checks(name).any_split()


@every_model
def test_1_whole_segments_are_the_same_function(name):
    check_whole(name)


@every_model
def test_2_causal(name):
    checks(name).causal()


@every_model
def test_3_state_keeps_its_structure(name):
    checks(name).structure()


@every_model
def test_3_protocol(name):
    check_protocol(name)


@every_model
def test_4_rows_are_independent(name):
    checks(name).independent_rows()


@every_model
def test_5_gradients_reach_every_parameter(name):
    checks(name).gradients()


@pytest.mark.parametrize("name", ["mac", "mag"])
def test_7_sharded_equals_unsharded(name):
    checks(name).sharded()


def test_every_split_of_a_long_stream_in_float64():
    """Every cut point of two segments and a half, for the model with most kinds of units, to rounding of float64."""
    with jax.enable_x64(True):
        model = bind(MODELS["mac"])
        params = jax.tree.map(lambda w: w.astype(jnp.float64), checks("mac").params)
        apply, ids = jit(model.apply), some_ids(1, 10)
        state = model.init_state(params, 1)
        y, end = apply(params, state, ids, whole(10)[:1])
        for cut in range(1, 10):
            first, middle = apply(params, state, jnp.pad(ids[:, :cut], ((0, 0), (0, 10 - cut))), jnp.array([cut]))
            rest, last = apply(params, middle, jnp.pad(ids[:, cut:], ((0, 0), (0, cut))), jnp.array([10 - cut]))
            np.testing.assert_allclose(jnp.concatenate([first[:, :cut], rest[:, :10 - cut]], 1), y, rtol=0, atol=1e-12)
            assert_close(last, end, 1e-11)
