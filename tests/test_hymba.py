"""Hymba: equal to its equations token by token, shared keys, and what each branch and each meta token does."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import HYMBA, WINDOW, model, some_ids
from neural_cases import assert_close, cast, jit, random_params

from memtok_jax import config
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import hymba, options
from memtok_jax.models.protocol import bind

D, H, G, K, V, N, M, W, T = 8, 2, 1, 4, 8, 3, 2, 3, 9
CFG = model(HYMBA, prefix=M, segment=0, kv_heads=G, value_dim=V)
FOLLOWS = replace(HYMBA, keys="before")
BACKBONE = CFG.backbone()


def rms(x, scale, eps=1e-6):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def turned(x, place):
    """x[..., K] with its pairs turned by place times frequency."""
    angle = place * 10000.0 ** (-np.arange(K // 2) / (K // 2))
    a, c = x[..., :K // 2], x[..., K // 2:]
    return jnp.concatenate([a * np.cos(angle) - c * np.sin(angle), c * np.cos(angle) + a * np.sin(angle)], -1)


def scan_loop(p, u):
    """The scan of u[n, D] from nothing, one token after the other: [n, E]."""
    inner, z, conv = u @ p["x"]["w"], u @ p["z"]["w"], p["scan"]["conv"]
    size = conv["w"].shape[0]
    h, out = 0.0, []
    for t in range(len(u)):
        taps = [inner[t - size + 1 + j] * conv["w"][j] for j in range(size) if t - size + 1 + j >= 0]
        c = jax.nn.silu(sum(taps) + conv["b"])
        s = p["scan"]
        parts = c @ s["selection"]
        r, write, read = (rms(parts[a:b], s["norms"][name]) for (a, b), name in
                          zip(((0, 2), (2, 2 + N), (2 + N, 2 + 2 * N)), ("step", "write", "read"), strict=True))
        step = jax.nn.softplus(r @ s["step"]["w"] + s["step"]["b"])
        h = jnp.exp(-step * jnp.exp(s["log_rate"])) * h + (step * c)[None] * write[:, None]
        out.append((read @ h + s["skip"] * c) * jax.nn.silu(z[t]))
    return jnp.stack(out)


def literal(p, x, keys=None):
    """The layer on [prefix ; tokens] x[M+T, D]: (branch [M+T, D], (keys, values)). keys: those of another layer."""
    u = rms(x, p["norm"]["scale"])
    q = jnp.einsum("td,dhk->thk", u, p["q"]["w"])
    k, v = keys or tuple(jnp.einsum("td,dgk->tgk", u, p[name]["w"])[:, 0] for name in "kv")
    rows = []
    for t in range(len(u)):
        seen = [s for s in range(t + 1) if s < M or t - s < W]
        for h in range(H):  # prefix tokens have no positions
            scores = jnp.stack([turned(q[t, h], t) @ turned(k[s], s) if s >= M else q[t, h] @ k[s] for s in seen]) / K ** 0.5
            rows.append(jax.nn.softmax(scores) @ v[jnp.array(seen)])
    y = jnp.stack(rows).reshape(len(u), H * V)
    both = rms(y, p["norm_attention"]) + rms(scan_loop(p, u), p["norm_scan"])
    return both / 2 @ p["o"]["w"], (k, v)


def layer_params(cfg, seed=0):
    specs = hymba.specs(cfg, BACKBONE) | {"norm": {"scale": P.ParamSpec((D,), (None,), P.ones)}}
    return cast(random_params(specs, seed, np.float32), np.float64)


def ours(p, x, cfg=HYMBA, side=None):
    """The same through the mixer: (branch [M+T, D], side)."""
    y0, state, begun = hymba.begin(p, x[:M], cfg, BACKBONE, 1, (side or {}).get("begin", {}))
    state = cast(state, np.float64)
    call = Call(length=jnp.array([len(x) - M]), slot=jnp.zeros(1, jnp.int32))
    y, _, _, after = hymba.run(p, state, x[None, M:], cfg, BACKBONE, call, (side or {}).get("run", {}))
    return jnp.concatenate([y0, y[0]]), {"begin": begun, "run": after}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


def tokens(seed=3):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((M + T, D)))


def test_equals_the_equations():
    p, x = layer_params(HYMBA), tokens()
    np.testing.assert_allclose(ours(p, x)[0], literal(p, x)[0], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_gradients_equal_those_of_the_equations():
    p, x, way = layer_params(HYMBA), tokens(), np.random.default_rng(4).standard_normal((M + T, D))
    got = jit(jax.value_and_grad(lambda p, x: (ours(p, x)[0] * way).sum(), (0, 1)))(p, x)
    want = jax.value_and_grad(lambda p, x: (literal(p, x)[0] * way).sum(), (0, 1))(p, x)
    assert_close(got, want, 1e-9)


def test_keys_of_the_layer_before_and_the_gradient_that_reaches_it():
    first, second, x = layer_params(HYMBA), layer_params(FOLLOWS, 1), tokens()
    way = np.random.default_rng(4).standard_normal((M + T, D))

    def through(layer):
        def loss(first, second):
            y, shared = layer(first, x, HYMBA, None)
            return (layer(second, x + y, FOLLOWS, shared)[0] * way).sum()
        return jax.value_and_grad(loss, (0, 1))(first, second)

    got = through(ours)
    want = through(lambda p, x, cfg, keys: literal(p, x, keys))
    assert_close(got, want, 1e-9)
    assert set(second) == set(first) - {"k", "v"}
    assert all(np.abs(got[1][0][name]["w"]).max() > 1e-6 for name in "kv")
    assert hymba.state_specs(FOLLOWS, BACKBONE, 1).attention == ()


def test_each_branch_alone_is_half_of_it():
    p, x = layer_params(HYMBA), tokens()
    both = {name: ours(p | {name: 0 * p[name]}, x)[0] for name in ("norm_attention", "norm_scan")}
    np.testing.assert_allclose(both["norm_attention"] + both["norm_scan"], ours(p, x)[0], atol=1e-12)
    u = rms(x, p["norm"]["scale"])
    np.testing.assert_allclose(both["norm_attention"], rms(scan_loop(p, u), p["norm_scan"]) / 2 @ p["o"]["w"], atol=1e-12)


def test_without_the_scan_a_token_sees_meta_tokens_and_its_window():
    p, x = layer_params(HYMBA), tokens()
    p = p | {"norm_scan": jnp.zeros_like(p["norm_scan"])}
    jacobian = jax.jacobian(lambda x: ours(p, x)[0])(x)
    seen = np.abs(jacobian).max((1, 3)) > 0
    want = [[s <= t and (s < M or t - s < W) for s in range(M + T)] for t in range(M + T)]
    np.testing.assert_array_equal(seen, want)


def test_every_meta_token_gets_a_gradient_through_each_branch():
    cfg = replace(CFG, layers=2, pattern=(HYMBA, FOLLOWS))
    bound = bind(cfg)
    params = cast(random_params(bound.specs(), 0, np.float32), np.float64)
    for off in ("norm_attention", "norm_scan"):
        def loss(prefix, off=off):
            mine = params | {"prefix": prefix, "layers": tuple(
                layer | {"hymba": layer["hymba"] | {off: 0 * layer["hymba"][off]}} for layer in params["layers"])}
            return (bound.apply(mine, bound.init_state(mine, 1), some_ids(1, T))[0] ** 2).sum()
        gradient = jax.tree.leaves(jax.grad(loss)(params["prefix"]))[0]
        assert (np.abs(gradient).max(-1) > 1e-9).all()


@pytest.mark.parametrize("pattern, options_, words", [
    ((FOLLOWS, HYMBA), {}, "before it, in the same repeat"),
    ((HYMBA, replace(FOLLOWS, window=4)), {}, "needs a hymba layer with window=4"),
    ((WINDOW, FOLLOWS), {}, "before it, in the same repeat"),
    ((HYMBA,), {"value_dim": 4}, "set model.value_dim=8, or memory.inner=8")])
def test_what_does_not_fit_is_refused(pattern, options_, words):
    with pytest.raises(UserError, match=words):
        bound = bind(model(*pattern, **{"segment": 0, "kv_heads": G, "value_dim": V, "prefix": M} | options_))
        jax.eval_shape(lambda p: bound.init_state(p, 1), P.abstract(bound.specs()))


def test_options_reach_the_scan():
    assert options(HYMBA.memory, BACKBONE).channels == 2 * D


@pytest.mark.parametrize("preset, millions", [("125m", 130.3), ("350m", 353.7), ("1.5b", 1522.8)])
def test_paper_sizes(preset, millions):
    """Parameters as derived from table 11 of the paper, whose largest model is named 1.52 B."""
    assert P.count(bind(config.load(f"hymba:{preset}").model).specs()) / 1e6 == pytest.approx(millions, rel=0.004)


def test_a_stream_of_the_largest_size_takes_what_the_paper_says():
    """79 MiB at 8,192 tokens (tables 1 and 2), with all of it in two bytes as in the paper; here the scan's state is float32."""
    model = config.load("hymba:1.5b").model
    longer = lambda layer: replace(layer, window=8192) if isinstance(layer, hymba.HymbaConfig) and layer.window == 2048 else layer
    whole = replace(model, pattern=tuple(map(longer, model.pattern)))
    state = bind(whole).state_specs(1)
    floats = [spec for spec in jax.tree.leaves(state, is_leaf=P.is_spec) if jnp.issubdtype(spec.dtype, jnp.floating)]
    assert 2 * sum(np.prod(spec.shape) for spec in floats) / 2 ** 20 == pytest.approx(79, rel=0.01)
    assert P.size_bytes(state) / 2 ** 20 == pytest.approx(83.1, rel=0.01)
