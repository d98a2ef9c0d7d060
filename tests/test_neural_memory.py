"""The neural memory: chunked = token by token = the equations, in values and all gradients; causal; any split."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import reference_titans as ref
from neural_cases import (
    assert_close,
    assert_equal,
    cast,
    config,
    jit,
    random_params,
    random_state,
    split_float,
    tokens,
)

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.memory import neural
from memtok_jax.memory.neural import channels, features, networks, rule
from memtok_jax.memory.neural import coefficients as C

F64 = np.float64


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def setup(cfg, batch=2, length=17, seed=0):
    params = random_params(neural.specs(cfg), seed, F64)
    return params, random_state(cfg, batch, seed + 5, F64), tokens(cfg, batch, length, seed + 9, F64)


def fresh(params, cfg, batch):
    """The start of a stream, in float64."""
    return cast(neural.init_state(params, cfg, batch), F64)


def value_and_gradients(view, cfg, length_B):
    """jit of (params, floating state, x) -> outputs, end state, and gradients of a loss that weighs all of them."""

    def function(params, state, x):
        values, rebuild = split_float(state)

        def loss(params, values, x):
            y, end = view(params, rebuild(values), x, cfg, length_B)
            real = jnp.arange(x.shape[1])[None] < length_B[:, None]
            y = jnp.where(real[:, :, None], y, 0)
            outputs = [y, *split_float(end)[0]]
            weigh = lambda i, o: (o * jnp.sin(jnp.arange(o.size, dtype=o.dtype) + i).reshape(o.shape)).sum()
            return sum(weigh(i, o) for i, o in enumerate(outputs)), (y, end)

        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, values, x)
        return out, grads

    return jit(function)


# Each network once; every pair of the other choices occurs.
THREE_VIEWS = {
    "linear-init-after": dict(depth=1, norm=False, residual=False),
    "linear-zero-before-clip": dict(depth=1, norm=False, residual=False, forget_to="zero", read="before",
                                    surprise_clip=1.0),
    "depth1-norm-zero-before": dict(depth=1, forget_to="zero", read="before"),
    "depth2-default": dict(),
    "depth2-plain-clip-no-momentum": dict(norm=False, residual=False, surprise_clip=0.5, momentum=False, read="before"),
    "depth3-norm-zero-no-momentum": dict(depth=3, residual=False, forget_to="zero", momentum=False),
    "depth4-residual-before-no-forget": dict(depth=4, norm=False, read="before", forget=False, surprise_clip=2.0,
                                             step_max=0.02),
    "swiglu-zero-clip": dict(network="swiglu", forget_to="zero", surprise_clip=1.0),
    "gated-no-momentum-no-forget": dict(network="gated", momentum=False, forget=False, activation="gelu_tanh"),
    "low_rank-before": dict(network="low_rank", read="before", activation="silu"),
    "fast_norm-zero-clip-before": dict(fast_norm=True, forget_to="zero", surprise_clip=1.0, read="before"),
    "per_layer-clip-zero": dict(gates="per_layer", surprise_clip=1.0, forget_to="zero"),
    "per_layer-swiglu-before": dict(gates="per_layer", network="swiglu", read="before"),
    "per_layer-depth3-plain-no-momentum": dict(gates="per_layer", depth=3, norm=False, residual=False, momentum=False),
    "per_layer-gated-fast_bias-fast_norm": dict(gates="per_layer", network="gated", fast_bias=True, fast_norm=True),
    "per_layer-low_rank-no-forget": dict(gates="per_layer", network="low_rank", forget=False),
    "channel-clip-zero": dict(forget_by="channel", forget_rank=2, surprise_clip=1.0, forget_to="zero"),
    "channel-per_layer-swiglu-before": dict(forget_by="channel", gates="per_layer", network="swiglu", read="before"),
    "channel-blocks-per_layer": dict(forget_by="channel", gates="per_layer", chunk=20),
    "channel-blocks-before-zero-linear": dict(forget_by="channel", chunk=40, depth=1, norm=False, residual=False,
                                              forget_to="zero", read="before"),
    "channel-depth3-plain-no-momentum": dict(forget_by="channel", depth=3, norm=False, residual=False, momentum=False),
    "channel-per_layer-gated": dict(forget_by="channel", gates="per_layer", network="gated"),
    "channel-low_rank": dict(forget_by="channel", network="low_rank", forget_rank=2),
    "fast_bias-plain-zero": dict(fast_bias=True, norm=False, forget_to="zero", surprise_clip=0.7, conv=1),
}


# The others run with --run_slow: each is a compilation of ten seconds and more.
ALWAYS = ("depth2-default", "swiglu-zero-clip", "low_rank-before", "depth4-residual-before-no-forget", "depth1-norm-zero-before",
          "per_layer-clip-zero", "channel-clip-zero", "channel-blocks-per_layer")


@pytest.mark.parametrize("options", [pytest.param(o, id=name, marks=() if name in ALWAYS else pytest.mark.slow)
                                     for name, o in THREE_VIEWS.items()])
def test_chunks_equal_tokens_one_by_one(options):
    """Outputs, end state and gradients with respect to all parameters, the tokens and the incoming state."""
    cfg = config(**options)
    tokens = 17 if cfg.chunk < 17 else 37  # blocks of 16 tokens: more than one of them inside a chunk
    params, state, x = setup(cfg, length=tokens)
    length_B = jnp.array([tokens, 11], jnp.int32)
    out, grads = value_and_gradients(neural.apply, cfg, length_B)(params, state, x)
    expected, expected_grads = value_and_gradients(neural.apply_literal, cfg, length_B)(params, state, x)
    assert_close(out, expected, 1e-12)
    assert_close(grads, expected_grads, 1e-10)
    assert np.abs(expected_grads[0]["wv"]).max() > 1e-3


def reference_memory(net, cfg, params, state, inputs, row, head):
    """The loop of `reference_titans` for one row and head of a package state."""
    w_init = {n: w[head] for n, w in params["init"].items()}
    absolute = lambda tree: {n: w_init[n] + v[row, head] for n, v in tree.items()}
    surprise = {n: v[row, head] for n, v in state.surprise.items()}
    start = ref.Start(absolute(state.anchor), absolute(state.weights), surprise, int(state.phase[row]))
    pick = lambda x: x[row, :, head]
    gates = ref.Gates(pick(inputs.step), jnp.exp(pick(inputs.log_momentum)), -jnp.expm1(pick(inputs.log_keep)))
    return ref.memory(net, w_init, start, pick(inputs.k), pick(inputs.v), pick(inputs.q), gates, cfg.chunk,
                      cfg.forget_to, cfg.read)


LINEAR = dict(depth=1, norm=False, residual=False, forget_to="zero", read="before")


@pytest.mark.parametrize("options", [dict(), LINEAR], ids=["default", "linear"])
def test_chunks_equal_the_equations(options):
    """Against a loop that shares no code with the package, from the middle of a chunk."""
    cfg = config(**options)
    params, state, x = setup(cfg)
    inputs, _ = neural._inputs(params, state, x, cfg, P.full_length(x))
    y, end = jit(neural.apply, static_argnums=3)(params, state, x, cfg)
    for row, head in ((0, 0), (1, 1)):
        slow = {n: w[head] for n, w in params["slow"].items()}
        net = ref.residual_mlp(slow["gamma"], slow["beta"]) if slow else ref.linear
        expected, after = reference_memory(net, cfg, params, state, inputs, row, head)
        np.testing.assert_allclose(y.reshape(2, 17, 2, 6)[row, :, head], expected, rtol=0, atol=1e-12)
        w_init = {n: w[head] for n, w in params["init"].items()}
        for got, want in ((end.weights, after.weights), (end.anchor, after.anchor)):
            assert_close({n: w_init[n] + v[row, head] for n, v in got.items()}, want, 1e-12)
        assert_close({n: v[row, head] for n, v in end.surprise.items()}, after.surprise, 1e-12)
        assert int(end.phase[row]) == after.phase


def test_whole_layer_and_its_gradients_equal_the_equations():
    """Projections, convolutions, normalisation, gates and memory, from tokens to reads, with the gradient of each."""
    cfg = config(width=8, head_dim=4, chunk=3)
    params = random_params(neural.specs(cfg), 3, F64)
    x = tokens(cfg, 1, 7, 4, F64)

    def ours(params, x):
        return neural.apply(params, fresh(params, cfg, 1), x, cfg)[0][0]

    def equations(params, x):
        return jnp.concatenate([ref.layer(params, h, x[0], cfg.largest_step, cfg.chunk)[0] for h in range(2)], axis=-1)

    score = lambda f: lambda params, x: jnp.sum(f(params, x) * jnp.sin(jnp.arange(56.0).reshape(7, 8)))
    got = jit(jax.value_and_grad(score(ours), argnums=(0, 1)))(params, x)
    assert_close(got, jax.value_and_grad(score(equations), argnums=(0, 1))(params, x), 1e-10)


def tiny():
    cfg = config(width=4, head_dim=4, chunk=3, expansion=1, conv=2)
    state = random_state(cfg, 1, 1, F64)
    state = state._replace(anchor=state.weights, phase=jnp.zeros_like(state.phase))
    return cfg, random_params(neural.specs(cfg), 0, F64), state, tokens(cfg, 1, 6, 2, F64)


def scalar_loss(cfg, state):
    """Through two chunks: outputs and end weights count."""

    def loss(params, x):
        y, end = neural.apply(params, state, x, cfg, whole=True)
        return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum() + sum(
            (w ** 2).sum() for w in end.weights.values())

    return loss


def test_gradients_of_first_and_second_order_equal_finite_differences():
    """Along random directions: the gradient of the loss, and the gradient of a directional derivative of the loss."""
    cfg, params, state, x = tiny()
    point, unravel = jax.flatten_util.ravel_pytree((params, x))
    loss = scalar_loss(cfg, state)
    first = jax.value_and_grad(lambda p: loss(*unravel(p)))
    u, v = np.random.default_rng(0).standard_normal((2, point.size))

    @jit
    def orders(p):
        (value, gradient), pull = jax.vjp(first, p)
        return value, gradient, pull((jnp.zeros_like(value), u))[0]

    eps = 1e-5
    (up, gradient_up, _), (down, gradient_down, _) = orders(point + eps * v), orders(point - eps * v)
    _, gradient, second = orders(point)
    np.testing.assert_allclose(gradient @ v, (up - down) / (2 * eps), rtol=1e-6)
    np.testing.assert_allclose(second @ v, (gradient_up - gradient_down) @ u / (2 * eps), rtol=1e-6)


def test_value_projection_learns_only_through_the_inner_gradient(monkeypatch):
    """Stopping the inner gradient kills what learns through it: W_V, its convolution and the write path of W_K."""
    cfg, params, state, x = tiny()
    gradient = lambda: jit(jax.grad(scalar_loss(cfg, state)))(params, x)
    writers = ("wv", "conv_v", "wk", "conv_k")
    full = gradient()
    assert all(np.abs(full[name]).max() > 1e-3 for name in writers)
    original = rule.gradients
    stop = jax.lax.stop_gradient
    monkeypatch.setattr(rule, "gradients", lambda *a: (lambda t: t._replace(delta=stop(t.delta)))(original(*a)))
    delta_stopped = gradient()
    assert not any(np.any(delta_stopped[name]) for name in ("wv", "conv_v"))
    assert np.abs(delta_stopped["wk"]).max() > 1e-6
    monkeypatch.setattr(rule, "gradients", lambda *a: stop(original(*a)))
    both_stopped = gradient()
    assert not any(np.any(both_stopped[name]) for name in writers)
    assert np.abs(both_stopped["wq"]).max() > 1e-6


# ---------------------------------------------------------------------------------------------------- coefficients

def log_of(p):
    """Logarithm as the gates hand it over: a very negative number for zero."""
    return np.log(p) if p > 0 else features.LOG_ZERO


@pytest.mark.parametrize("size", [1, 7, 512])
@pytest.mark.parametrize("target", ["init", "zero"])
def test_coefficients_equal_scalar_recursions(size, target):
    """Momentum and forgetting at and near their limits, with and without padding, in float64 and float32."""
    rng = np.random.default_rng(size)
    values = (0.0, 1e-6, 0.5, 1 - 1e-6)
    compute = jit(C.coefficients, static_argnums=4)
    for eta, alpha in [(e, a) for e in values for a in values]:
        theta = rng.uniform(0, 1, size)
        real = rng.uniform(size=size) < 0.8 if eta in (0.0, 0.5) else np.ones(size, bool)
        want = ref.scalar_coefficients(theta, np.full(size, eta), np.full(size, 1 - alpha), real, target)
        logs = np.full(size, log_of(eta)), np.full(size, log_of(1 - alpha))
        got = compute(theta, *logs, real, target)
        narrow = compute(*(np.float32(a) for a in (theta, *logs)), real, target)
        for name, value in want.items():
            value = value[1:]
            what = f"{name} {eta} {alpha}"
            np.testing.assert_allclose(getattr(got, name), value, rtol=1e-9, atol=1e-12, err_msg=what)
            scale = max(1.0, np.abs(value).max())
            np.testing.assert_allclose(getattr(narrow, name) / scale, value / scale, rtol=0, atol=5e-5, err_msg=name)


def test_coefficients_of_varying_gates():
    """A different gate for each token, padding in between; after each token, and before it."""
    rng = np.random.default_rng(3)
    theta, eta, a = rng.uniform(0, 1, (3, 33))
    real = rng.uniform(size=33) < 0.7
    want = ref.scalar_coefficients(theta, eta, a, real, "zero")
    got = C.coefficients(jnp.array(theta), jnp.log(eta), jnp.log(a), jnp.array(real), "zero")
    before = C.before(got)
    for name, value in want.items():
        np.testing.assert_allclose(getattr(got, name), value[1:], rtol=1e-12, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(getattr(before, name), value[:-1], rtol=1e-12, atol=1e-14, err_msg=name)


def test_coefficients_of_channels_equal_scalar_recursions():
    """Each channel has the coefficients of its own forgetting: gates open, shut and between, padding, after and before tokens."""
    rng = np.random.default_rng(4)
    theta, eta = rng.uniform(0, 1, (2, 16))
    keep = rng.uniform(0, 1, (16, 5))
    keep[:, 3:] = 1e-12, 1 - 1e-9
    real = rng.uniform(size=16) < 0.7
    arguments = (jnp.array(theta), jnp.log(eta), jnp.log(keep), jnp.array(real))
    got, end = channels.coefficients(*arguments, "zero"), channels.shares_at_end(*arguments)
    before = C.before(got)
    for k in range(5):
        want = ref.scalar_coefficients(theta, eta, keep[:, k], real, "zero")
        for name, value in want.items():
            channel = ... if name in ("past", "moving") else (..., k)
            np.testing.assert_allclose(getattr(got, name)[channel], value[1:], rtol=1e-12, atol=1e-14, err_msg=name)
            np.testing.assert_allclose(getattr(before, name)[channel], value[:-1], rtol=1e-12, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(end[:, k], want["written"][-1], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("size", [5, 64, 65, 200, 512])
def test_products_of_extreme_gates_keep_their_digits(size):
    """Float32 against products in float64: gates near 1 between gates near 0, whose logarithms sum up to thousands."""
    rng = np.random.default_rng(size)
    gates = np.where(rng.uniform(size=size) < 0.1, np.exp(-rng.uniform(20, 200, size)), 1 - 1e-3 * rng.uniform(size=size))
    logs = np.log(gates).astype(np.float32)
    with jax.enable_x64(False):
        total, between = C.decay(jnp.asarray(logs))
    exact = np.exp(np.float64(logs))
    for j in range(size):
        want = np.concatenate([[1], np.cumprod(exact[j + 1:])])
        got = np.asarray(between[j:, j], np.float64)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-30)
    np.testing.assert_allclose(total, np.cumprod(exact), rtol=2e-5, atol=1e-30)
    assert not np.any(np.triu(between, 1))


@pytest.mark.parametrize("sign", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_gradients_are_finite_at_saturated_gates(sign):
    """Float32 gate logits of +-40: neither the coefficients nor their gradients overflow."""
    with jax.enable_x64(False):
        logits = jnp.stack([jnp.zeros(64), jnp.full(64, 40.0 * sign[0]), jnp.full(64, 40.0 * sign[1])])
        real = jnp.arange(64) % 5 != 0

        def total(z):
            c = C.coefficients(jax.nn.sigmoid(z[0]), jax.nn.log_sigmoid(z[1]), jax.nn.log_sigmoid(-z[2]), real, "zero")
            return sum(x.sum() for x in c)

        value, grad = jit(jax.value_and_grad(total))(logits)
    assert value.dtype == np.float32 and np.isfinite(value) and np.isfinite(grad).all()


# ------------------------------------------------------------------------------------------------- any cut of a stream

jit_apply = jit(neural.apply, static_argnums=3)
jit_masked = jit(P.masked(neural.apply), static_argnums=4)


@pytest.mark.parametrize("splits", [[1] * 17, [4, 13], [13, 4], [1, 3, 4, 4, 4, 1]], ids=str)
def test_any_split_gives_the_same(splits):
    cfg = config()
    params, state, x = setup(cfg)
    whole, end = jit_apply(params, state, x, cfg)
    parts, done = [], 0
    for n in splits:
        y, state = jit_apply(params, state, x[:, done:done + n], cfg)
        parts.append(y)
        done += n
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=0, atol=1e-12)
    assert_close(state, end, 1e-12)


def test_padding_anywhere_gives_the_same():
    """Rows padded on the left, on the right and in between, through `params.masked`; 11 real tokens among 17."""
    cfg = config()
    params, state, x = setup(cfg, batch=3, length=17)
    between = np.random.default_rng(1).permutation(17) < 11
    valid = np.stack([np.arange(17) >= 6, np.arange(17) < 11, between])
    spread = np.full(x.shape, np.pi)
    spread[valid] = np.asarray(x[:, :11]).reshape(33, -1)
    y, end = jit_masked(params, state, jnp.asarray(spread), jnp.asarray(valid), cfg)
    expected, expected_end = jit_apply(params, state, x, cfg, jnp.full(3, 11, jnp.int32))
    np.testing.assert_allclose(np.asarray(y)[valid].reshape(3, 11, -1), expected[:, :11], rtol=0, atol=1e-12)
    assert not np.any(np.asarray(y)[~valid])
    assert_close(end, expected_end, 1e-12)


@pytest.mark.parametrize("forget_to", ["init", "zero"])
def test_padding_alone_changes_no_bit_of_the_state(forget_to):
    """Also with a surprise that waits to be pushed into the weights, and with one row real."""
    cfg = config(forget_to=forget_to)
    params, state, x = setup(cfg)
    _, end = jit_apply(params, state, x, cfg, jnp.array([0, 17], jnp.int32))
    first = lambda s: jax.tree.map(lambda v: v[0], s)
    assert_equal(first(end), first(state))
    assert np.any(np.asarray(end.weights["w0"][1]) != np.asarray(state.weights["w0"][1]))


def test_whole_calls_and_recomputation_change_nothing():
    """The fast path of training, and every grouping of recomputed chunks, give the same values and gradients."""
    cfg = config(chunk=4)
    params, _, x = setup(cfg, length=24)
    state = fresh(params, cfg, 2)

    def gradients(cfg, whole):
        def loss(params, x):
            y, end = neural.apply(params, state, x, cfg, whole=whole)
            return jnp.sin(y).sum() + sum((w ** 2).sum() for w in end.surprise.values()), (y, end)
        return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    general = gradients(cfg, False)
    for group in (-1, 1, 3):
        assert_close(gradients(replace(cfg, remat_group=group), True), general, 1e-11)


def test_a_whole_call_refuses_what_it_cannot_do():
    cfg = config(chunk=4)
    params, state, x = setup(cfg, length=18)
    with pytest.raises(ValueError, match="multiple of 4 tokens, got 18"):
        neural.apply(params, state, x, cfg, whole=True)
    with pytest.raises(ValueError, match="length was given"):
        neural.apply(params, state, x[:, :16], cfg, jnp.array([3, 3]), whole=True)


def test_chunk_is_part_of_the_model():
    """The same parameters with another chunk are another function."""
    cfg = config(chunk=4)
    params, _, x = setup(cfg)
    start = fresh(params, cfg, 2)
    small, large = (jit_apply(params, start, x, replace(cfg, chunk=c))[0] for c in (4, 8))
    assert np.abs(small - large).max() > 1e-3
    np.testing.assert_allclose(small[:, :4], large[:, :4], atol=1e-6)


# ------------------------------------------------------------------------------------------------------ statistics

jit_run = jit(neural.run, static_argnums=3, static_argnames="whole")
CLIPPED = dict(chunk=4, norm=False, residual=False, surprise_clip=2.0)


@pytest.mark.parametrize("options", [dict(chunk=4), CLIPPED], ids=["default", "clipped"])
def test_statistics_depend_neither_on_the_path_nor_on_padding(options):
    """A whole call, the same call in the general form, behind padding, and beside a stream without tokens."""
    cfg = config(**options)
    params, _, x = setup(cfg, length=24)
    state, full = fresh(params, cfg, 2), jnp.full(2, 24)
    _, _, want = jit_run(params, state, x, cfg, whole=True)
    assert want["inner_loss"] > 0 and want["stability_max"] >= want["stability"] > 0
    assert not cfg.clip or 0 < want["clip_rate"] < 1
    assert_close(jit_run(params, state, x, cfg)[2], want, 1e-6)
    assert_close(jit_run(params, state, jnp.pad(x, ((0, 0), (0, 9), (0, 0)), constant_values=9.0), cfg, full)[2], want, 1e-6)
    beside = jnp.concatenate([x, 9 + x])
    got = jit_run(params, fresh(params, cfg, 4), beside, cfg, jnp.array([24, 24, 0, 0]))[2]
    of_tokens = lambda stats: {k: v for k, v in stats.items() if k not in neural.stats.AFTERWARDS}
    assert_close(of_tokens(got), of_tokens(want), 1e-6)
    _, state, first = jit_run(params, state, x[:, :8], cfg)
    calls = [first, jit_run(params, state, x[:, 8:], cfg)[2]]
    assert_close(neural.stats.merge({k: jnp.stack([c[k] for c in calls]) for k in want}, jnp.array([16, 32])), want, 1e-6)


def test_statistics_of_no_tokens_are_zero():
    cfg = config()
    params, state, x = setup(cfg)
    stats = jit_run(params, state, x, cfg, jnp.zeros(2, jnp.int32))[2]
    assert all((value == 0) == (name not in neural.stats.AFTERWARDS) for name, value in stats.items())


def test_the_gradient_at_a_perfect_memory_is_finite():
    """A token without surprise has a gradient of norm 0, whose root must not reach the backward pass."""
    cfg = config(chunk=4, conv=1, feature_activation=False)
    params, _, x = setup(cfg, length=8)
    state = fresh(params, cfg, 2)

    def loss(x):
        y, _, stats = neural.run(params, state, x, cfg)
        return jnp.square(y).sum() + sum(stats.values())

    assert np.isfinite(jit(jax.grad(loss))(jnp.zeros_like(x))).all()


# ------------------------------------------------------------------------------------------ gates of layers and channels

def as_separate_gates(params, cfg):
    """Parameters of the config `cfg` in which all layers and channels have the gates of the head in `params`."""
    shapes = networks.dense_shapes(cfg)
    repeat = lambda w: jnp.repeat(w[..., None, :], len(shapes), axis=-2) if cfg.gates == "per_layer" else w
    w, b = params["w_gates"], params["b_gates"]
    if cfg.forget_by == "head":
        return params | {"w_gates": repeat(w), "b_gates": repeat(b)}
    # rank D: the first matrix is the identity, the second the gate's own vector for each channel
    of_channels = lambda gate, d_in: jnp.repeat(gate[..., 2:], d_in, axis=-1)
    forget = {name: {"down": jnp.eye(cfg.width), "up": of_channels(w, d_in), "bias": of_channels(b, d_in)}
              for name, (d_in, _) in shapes.items()}
    return params | {"w_gates": repeat(w[..., :2]), "b_gates": repeat(b[..., :2]), "forget": forget}


SEPARATE = {
    "per_layer": (dict(), dict(gates="per_layer")),
    "per_layer-gated": (dict(network="gated", fast_bias=True, forget_to="zero"), dict(gates="per_layer")),
    "channel": (dict(forget_to="zero", surprise_clip=1.0), dict(forget_by="channel", forget_rank=12)),
    "both-blocks": (dict(chunk=20), dict(gates="per_layer", forget_by="channel", forget_rank=12)),
}


@pytest.mark.parametrize("options, separate", SEPARATE.values(), ids=SEPARATE)
def test_equal_gates_are_the_gates_of_the_head(options, separate):
    """Values, end state and statistics; and the gradients of the separate gates add up to that of the head's gates."""
    shared, cfg = config(**options), config(**options, **separate)
    params, state, x = setup(shared, length=37 if shared.chunk > 16 else 17)

    def scored(params, cfg):
        y, end, stats = neural.run(params, state, x, cfg)
        return jnp.sin(y).sum(), (y, end, stats)

    run = jit(jax.value_and_grad(lambda p, cfg: scored(p if cfg == shared else as_separate_gates(p, cfg), cfg), has_aux=True),
              static_argnums=1)
    ((_, want), gradient), ((_, got), summed) = run(params, shared), run(params, cfg)
    assert_close(got[:2], want[:2], 1e-12)
    assert_close({name: got[2][name] for name in want[2]}, want[2], 1e-12)
    assert_close(summed, gradient, 1e-10)


@pytest.mark.parametrize("chunk", [3, 20])
def test_no_token_sees_a_later_one(chunk):
    """The Jacobian of reads by tokens is zero above the diagonal and not on it: with chunks, and with blocks inside a chunk."""
    cfg = config(width=4, head_dim=4, chunk=chunk, expansion=1, conv=1, gates="per_layer", forget_by="channel", forget_rank=2)
    params, state, x = setup(cfg, batch=1, length=19)
    jacobian = jit(jax.jacrev(lambda x: neural.apply(params, state, x, cfg)[0][0]))(x)[:, :, 0]
    by_token = np.abs(jacobian).max(axis=(1, 3))
    assert not np.any(np.triu(by_token, 1)) and by_token[np.tril_indices(19)].min() > 0


@pytest.mark.parametrize("splits", [[1, 18, 17, 1], [16, 21]], ids=str)
def test_any_split_gives_the_same_with_blocks_inside_a_chunk(splits):
    cfg = config(chunk=20, gates="per_layer", forget_by="channel", forget_rank=2)
    params, state, x = setup(cfg, length=37)
    whole, end = jit_apply(params, state, x, cfg)
    parts = []
    for part in jnp.split(x, np.cumsum(splits)[:-1], axis=1):
        y, state = jit_apply(params, state, part, cfg)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=0, atol=1e-12)
    assert_close(state, end, 1e-12)


def test_each_channel_forgets_by_its_own_gate():
    """With steps shut and no surprise, row k of the weights shrinks by its own gates and by no other."""
    cfg = config(forget_by="channel", forget_rank=2)
    params, state, x = setup(cfg)
    state = state._replace(surprise=jax.tree.map(jnp.zeros_like, state.surprise))
    params["w_gates"], params["b_gates"] = params["w_gates"].at[..., 0].set(0.0), params["b_gates"].at[..., 0].set(-1e4)
    params["forget"]["w1"]["bias"] = params["forget"]["w1"]["bias"].at[0, 7].add(-50.0)  # head 0, channel 7: keeps
    kept = jit_apply(params, state, x, cfg)[1].weights["w1"] / state.weights["w1"]
    logs = neural._inputs(params, state, x, cfg, P.full_length(x))[0].log_keep["w1"]
    want = jnp.exp(logs.sum(1))
    np.testing.assert_allclose(kept, jnp.broadcast_to(want[..., None], kept.shape), rtol=1e-10)
    assert np.all(want[:, 0, 7] > 0.999) and np.all(want[:, 0, :7] < 0.9)


def test_statistics_of_layers():
    """Of each dense layer, and the mean over layers under the plain name; padding does not count."""
    cfg = config(gates="per_layer", forget_by="channel", forget_rank=2)
    params, state, x = setup(cfg)
    stats = jit_run(params, state, x, cfg, jnp.array([17, 0]))[2]
    gates = neural._inputs(params, state, x, cfg, P.full_length(x))[0]
    for name, gate, value in (("step_size", gates.step, lambda z: z), ("momentum", gates.log_momentum, jnp.exp),
                              ("forget", gates.log_keep, lambda z: 1 - jnp.exp(z))):
        want = {layer: value(z)[0].mean() for layer, z in gate.items()}
        for layer in ("w0", "w1"):
            np.testing.assert_allclose(stats[f"{name}_{layer}"], want[layer], rtol=1e-12)
        np.testing.assert_allclose(stats[name], (want["w0"] + want["w1"]) / 2, rtol=1e-12)


@pytest.mark.parametrize("options", [dict(forget=False), dict(fast_norm=True), dict(fast_bias=True)], ids=str)
def test_forgetting_by_channel_refuses_what_has_no_channels(options):
    with pytest.raises(UserError, match=f"forget_by='channel' needs memory.{next(iter(options))}="):
        config(forget_by="channel", **options)


def test_each_layer_moves_by_its_own_gates():
    """A layer whose step is shut and that has no surprise stays at its initial weights; the other moves."""
    cfg = config(gates="per_layer")
    params, _, x = setup(cfg)
    params["w_gates"] = params["w_gates"].at[:, :, 1, 0].set(0.0)
    params["b_gates"] = params["b_gates"].at[:, 1, 0].set(-1e4)
    weights = jit_apply(params, fresh(params, cfg, 2), x, cfg)[1].weights
    assert not np.any(weights["w1"]) and np.abs(weights["w0"]).max() > 1e-2


# ------------------------------------------------------------------------------------------- between two segments

@pytest.mark.slow
def test_detached_segments():
    """Cutting the carry stops every gradient to earlier segments, but not that of the initial weights."""
    cfg = config()
    params, _, x = setup(cfg, length=15)
    segments = x.reshape(2, 3, 5, -1).swapaxes(0, 1)

    def later_loss(params, segments, keep):
        def segment(state, x):
            y, state = neural.apply(params, state if keep else jax.lax.stop_gradient(state), x, cfg)
            return state, jnp.sin(y).sum()
        return jax.lax.scan(segment, fresh(params, cfg, 2), segments)[1]

    def jacobians(keep):
        return jit(jax.jacrev(lambda p, s: later_loss(p, s, keep), argnums=(0, 1)))(params, segments)

    cut, through = jacobians(False), jacobians(True)
    by_segment = lambda jac: np.abs(jac[1]).max(axis=(2, 3, 4))  # [loss of segment n, tokens of segment m]
    assert np.all(by_segment(cut)[~np.eye(3, dtype=bool)] == 0)
    assert np.all(np.diag(by_segment(cut)) > 1e-4)
    assert np.all(by_segment(through)[np.tril_indices(3)] > 1e-6) and np.all(np.triu(by_segment(through), 1) == 0)
    for name in params["init"]:
        assert np.all(np.abs(cut[0]["init"][name]).max(axis=(1, 2, 3)) > 1e-4), name


def test_read_and_write_are_the_two_halves():
    """`write` leaves the state of `apply`; `read` changes nothing and reads the weights of its state."""
    cfg = config()
    params, state, x = setup(cfg)
    y, end = jit_apply(params, state, x[:, :1], cfg)
    assert_close(jit(neural.write, static_argnums=3)(params, state, x[:, :1], cfg), end, 1e-14)
    read = jit(neural.read, static_argnums=3)(params, state._replace(weights=end.weights), x[:, :1], cfg)
    np.testing.assert_allclose(read, y, rtol=0, atol=1e-13)


def test_a_network_may_use_a_fast_weight_once(monkeypatch):
    """Sharing a fast weight would lose one of its two gradients, so it is refused."""
    from memtok_jax.memory.neural import networks
    cfg = config(norm=False, residual=False)
    params, state, x = setup(cfg)
    twice = lambda x, hooks, cfg: hooks.dense("w1", hooks.dense("w0", x)) + hooks.dense("w1", hooks.dense("w0", x))
    monkeypatch.setitem(networks._BODIES, "mlp", twice)
    with pytest.raises(ValueError, match="'w0' twice"):
        neural.apply(params, state, x, cfg)
