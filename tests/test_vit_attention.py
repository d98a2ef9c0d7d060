"""Alternatives to softmax attention: each is another one at a special value, and gradients go through the extra column."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import jit
from vit_cases import config, scrambled

from memtok_jax.models.vision import attention, rope

T = 7


def setup(kind: str, **changes):
    """(config, attention parameters with `changes`, u [2, T, 32]); the shared parameters are equal for all kinds."""
    cfg = config(attention=kind)
    params = {name: leaf for name, leaf in scrambled(attention.specs(config())).items()}
    own = {name: leaf for name, leaf in scrambled(attention.specs(cfg)).items() if name not in params}
    u = jnp.asarray(np.random.default_rng(5).standard_normal((2, T, 32)), jnp.float32)
    return cfg, params | own | changes, u


run = jit(attention.run, static_argnums=3)


def output(kind: str, **changes) -> np.ndarray:
    cfg, params, u = setup(kind, **changes)
    return np.asarray(run(params, u, rope.NONE, cfg)[0])


def test_alternatives_meet_at_special_values():
    h, k = 4, 8
    zero, softmax = output("zero"), output("softmax")
    np.testing.assert_allclose(output("kv", sink_k=jnp.zeros((h, k)), sink_v=jnp.zeros((h, k))), zero, atol=1e-6)
    np.testing.assert_allclose(output("logit", sink=jnp.zeros(h)), zero, atol=1e-6)
    np.testing.assert_allclose(output("logit", sink=jnp.full(h, -1e9)), softmax, atol=1e-6)
    for kind in ("zero", "kv", "logit", "gate"):
        assert np.abs(output(kind) - softmax).max() > 0.05, kind


def test_a_gate_of_zero_halves_every_head():
    """Before the output projection, so its bias is not halved."""
    _, params, _ = setup("softmax")
    bias = np.asarray(params["o"]["b"])
    half = output("gate", gate={"w": jnp.zeros((32, 4, 8))})
    np.testing.assert_allclose(half - bias, (output("softmax") - bias) / 2, atol=1e-6)


def test_logit_is_softmax_times_a_sigmoid_of_the_log_sum():
    """softmax(s) * sigmoid(log sum e^s - r), in the weights."""
    cfg, params, u = setup("logit")
    _, seen = run(params, u, rope.NONE, cfg)
    _, plain = run(params, u, rope.NONE, config())
    score = np.einsum("bthk,bshk->bhts", seen["q"], seen["k"]).astype(np.float64) / 8 ** 0.5
    total = np.log(np.exp(score).sum(-1, keepdims=True))
    sink = np.asarray(params["sink"], np.float64)[None, :, None, None]
    np.testing.assert_allclose(seen["attention"], plain["attention"] / (1 + np.exp(sink - total)), atol=1e-6)
    assert np.asarray(seen["attention"].sum(-1)).max() < 1


def literal(params, u, kind: str) -> np.ndarray:
    """Query by query and head by head in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    out = np.zeros((len(u), 4, 8))
    for h in range(4):
        q, k, v = (np.asarray(u, np.float64) @ params[name]["w"][:, h] + params[name]["b"][h] for name in "qkv")
        for t in range(len(u)):
            score = np.exp(k @ q[t] / 8 ** 0.5)
            none = np.zeros((4, 8))
            extra_score = params.get("sink_k", none)[h] @ q[t] / 8 ** 0.5 + params.get("sink", np.zeros(4))[h]
            sink = np.exp(extra_score) if kind in ("zero", "logit", "kv") else 0.0
            out[t, h] = (score @ v + sink * params.get("sink_v", none)[h]) / (score.sum() + sink)
            if kind == "gate":
                out[t, h] /= 1 + np.exp(-(np.asarray(u[t], np.float64) @ params["gate"]["w"][:, h]))
    return out.reshape(len(u), 32) @ params["o"]["w"] + params["o"]["b"]


@pytest.mark.parametrize("kind", ["softmax", "zero", "logit", "kv", "gate"])
def test_equals_a_loop_over_queries_and_heads(kind):
    _, params, u = setup(kind)
    for b in range(2):
        np.testing.assert_allclose(output(kind)[b], literal(params, np.asarray(u[b]), kind), atol=2e-5)


@pytest.mark.parametrize("kind", ["logit", "kv", "gate"])
def test_the_gradient_of_what_an_alternative_learns_equals_finite_differences(kind):
    cfg, params, u = setup(kind)
    names = {"logit": ["sink"], "kv": ["sink_k", "sink_v"], "gate": ["gate"]}[kind]
    with jax.enable_x64(True):
        params, u = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, u))
        r = jnp.asarray(np.random.default_rng(0).standard_normal(u.shape))
        scalar = jit(lambda own: (attention.run(params | own, u, rope.NONE, cfg)[0] * r).sum())
        own = {name: params[name] for name in names}
        found = jax.grad(lambda own: (attention.run(params | own, u, rope.NONE, cfg)[0] * r).sum())(own)
        direction = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(1).standard_normal(leaf.shape)), own)
        shifted = lambda step: jax.tree.map(lambda leaf, d: leaf + step * d, own, direction)
        numeric = (scalar(shifted(1e-5)) - scalar(shifted(-1e-5))) / 2e-5
        exact = sum((a * b).sum() for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(direction), strict=True))
        assert abs(numeric - exact) < 1e-7 * max(1, abs(exact)) and abs(exact) > 1e-3
