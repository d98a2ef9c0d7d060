"""Sinks and gates without a token: explicit logits, values and every gradient; how they meet; how sinks are measured."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, cast, jit, random_params

from memtok_jax import params as P
from memtok_jax.analysis.attention import sink_rate
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import window
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TITANS, Backbone

H, G, K, V, D, T, M = 4, 2, 4, 6, 8, 9, 2
CFG = WindowConfig(3, sinks=2)
T_IDS, S_IDS = np.indices((T, T))
VISIBLE = (S_IDS <= T_IDS) & ((S_IDS < 2) | (T_IDS - S_IDS < 3))


def backbone(sink: str = "none", gate: str = "none") -> Backbone:
    return Backbone(replace(TITANS, positions="none", sink=sink, gate=gate), width=D, layers=1, heads=H, head_dim=K, hidden=8,
                    prefix=M, kv_heads=G, value_dim=V)


def inputs(b: Backbone):
    """(parameters, prefix [M, D], tokens [1, T, D])."""
    params = random_params(window.specs(CFG, b), 1, np.float64)
    rng = np.random.default_rng(2)
    return params, jnp.asarray(rng.standard_normal((M, D))), jnp.asarray(rng.standard_normal((1, T, D)))


def ours(params, prefix, u, b: Backbone):
    """Prefix and tokens through the mixer: (branch of the prefix [M, D], of the tokens [1, T, D])."""
    y, state, _ = window.begin(params, prefix, CFG, b, 1, {})
    return y, window.run(params, cast(state, u.dtype), u, CFG, b, Call(P.full_length(u)), {})[0]


def explicit(params, prefix, u, b: Backbone):
    """The same from all logits of a row: prefix, tokens, and last the column of the sink; no softmax function, keys repeated."""
    x = jnp.concatenate([prefix, u[0]])
    q, k, v = (jnp.einsum("td,dhk->htk", x, params[name]["w"]) for name in "qkv")
    k, v = (jnp.repeat(part, H // G, axis=0) for part in (k, v))
    seen = np.ones((M + T, M + T), bool)
    seen[:M] = np.tri(M, M + T)
    seen[M:, M:] = VISIBLE
    e = jnp.where(seen[None], jnp.exp(jnp.einsum("htk,hsk->hts", q, k) / np.sqrt(K)), 0)
    extra, value = jnp.zeros((H, M + T)), jnp.zeros((H, V))
    if b.style.sink == "zero":
        extra = extra + 1
    if b.style.sink == "logit":
        extra = extra + jnp.exp(params["sink"])[:, None]
    if b.style.sink == "kv":
        extra = jnp.exp(jnp.einsum("htk,hk->ht", q, jnp.repeat(params["sink_k"], H // G, axis=0)) / np.sqrt(K))
        value = jnp.repeat(params["sink_v"], H // G, axis=0)
    y = (jnp.einsum("hts,hsv->htv", e, v) + extra[..., None] * value[:, None]) / (e.sum(-1) + extra)[..., None]
    y = jnp.moveaxis(y, 0, 1)
    if b.style.gate == "elementwise":
        y = y / (1 + jnp.exp(-jnp.einsum("td,dhv->thv", x, params["gate"]["w"])))
    if b.style.gate == "head":
        y = y / (1 + jnp.exp(-x @ params["gate"]["w"]))[..., None]
    y = y.reshape(M + T, H * V) @ params["o"]["w"]
    return y[:M], y[None, M:]


@pytest.mark.parametrize("sink, gate", [("zero", "none"), ("logit", "elementwise"), ("kv", "head")], ids=lambda s: s)
def test_values_and_gradients_equal_explicit_logits(sink, gate):
    """Of queries, keys and values too, which a rescaled softmax gets wrong; the prefix goes through the same sink and gate."""
    with jax.enable_x64(True):
        b = backbone(sink, gate)
        args, rng = inputs(b), np.random.default_rng(3)
        w = [jnp.asarray(rng.standard_normal(shape)) for shape in ((M, D), (1, T, D))]

        def total(f):
            def loss(args):
                y = f(*args, b)
                return sum((part * weight).sum() for part, weight in zip(y, w, strict=True)), y

            return jit(jax.value_and_grad(loss, has_aux=True))(args)

        got, want = total(ours), total(explicit)
    assert_close(got, want, 1e-12)
    grads = got[1][0]
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(grads)), "every parameter matters"


@cache
def program(sink: str, gate: str = "none"):
    b = backbone(sink, gate)
    return jit(lambda *args: ours(*args, b))


def test_sinks_meet_at_special_values():
    """zero = logit at 0; logit at minus infinity = none; a key and value of zeros = zero; and they are four functions otherwise."""
    with jax.enable_x64(True):
        shared, prefix, u = inputs(backbone())
        rng = np.random.default_rng(4)
        zeros = {"sink_k": jnp.zeros((G, K)), "sink_v": jnp.zeros((G, V))}
        run = lambda sink, own: program(sink)(shared | own, prefix, u)
        none, zero = run("none", {}), run("zero", {})
        assert_close(run("logit", {"sink": jnp.zeros(H)}), zero, 1e-14)
        assert_close(run("logit", {"sink": jnp.full(H, -1e9)}), none, 1e-14)
        assert_close(run("kv", zeros), zero, 1e-14)
        others = [zero, run("logit", {"sink": jnp.asarray(rng.standard_normal(H))}),
                  run("kv", {name: jnp.asarray(rng.standard_normal(x.shape)) for name, x in zeros.items()})]
        assert all(np.abs(np.asarray(y[1]) - np.asarray(none[1])).max() > 0.01 for y in others)
        assert np.abs(np.asarray(others[0][1]) - np.asarray(others[1][1])).max() > 0.01


def test_gates_of_zero_halve_the_branch():
    with jax.enable_x64(True):
        shared, prefix, u = inputs(backbone())
        half = jax.tree.map(lambda y: y / 2, program("none")(shared, prefix, u))
        for gate, shape in (("elementwise", (D, H, V)), ("head", (D, H))):
            assert_close(program("none", gate)(shared | {"gate": {"w": jnp.zeros(shape)}}, prefix, u), half, 1e-14)


def test_parameters_have_a_name_and_a_shape():
    shapes = lambda *style: {name: s.shape for name, s in window.specs(CFG, backbone(*style)).items() if name not in "qkvo"}
    assert shapes("zero") == {} and shapes("logit") == {"sink": (H,)}
    assert shapes("kv") == {"sink_k": (G, K), "sink_v": (G, V)}


# ---------------------------------------------------------------------------------------------------------- how it is measured

def test_the_rate_of_sinks_of_a_known_attention():
    """One head of two looks at token 0 from everywhere, but for half of its weight; the other spreads over what it sees."""
    n = 8
    spread = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    looks = spread / 2 + 0.5 * (np.arange(n) == 0)
    attention = np.stack([[looks, spread], [spread, spread]])
    means = 0.5 + spread[:, 0].mean() / 2, spread[:, 0].mean()           # .67 and .34 on token 0
    for eps, want in ((0.3, 1.0), (0.5, 0.25), (0.7, 0.0)):
        assert sink_rate(attention, eps) == want == np.mean([means[0] > eps, *[means[1] > eps] * 3])
    # Queries before token 2 do not count: the mean of 1/3 ... 1/8 is .203, and half of it in the first head.
    assert [sink_rate(attention, eps, key=2) for eps in (0.1, 0.2, 0.21)] == [1.0, 0.75, 0.0]
