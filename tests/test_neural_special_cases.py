"""What the neural memory becomes in special cases, each against a few independent lines of numpy (float64).

The row-vector convention is the package's: W maps a key row to a value row, and the inner loss has no factor 1/2, so a
step size theta is a delta-rule beta of 2 theta.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_equal, cast, config, jit, random_params

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.memory.neural import features, networks, scan
from memtok_jax.memory.neural.rule import Carry, Inputs

T, K = 9, 4


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def stream(seed=0):
    """Unit keys, values, queries [T, K] and gates [T]."""
    rng = np.random.default_rng(seed)
    k, v, q = rng.standard_normal((3, T, K))
    return k / np.linalg.norm(k, axis=1, keepdims=True), v, q, rng.uniform(0.05, 0.4, T), rng.uniform(0.6, 0.99, T)


def linear(chunk: int, **options):
    return config(width=K, head_dim=K, chunk=chunk, depth=1, norm=False, residual=False, **options)


def log(p):
    return np.where(p > 0, np.log(np.maximum(p, 1e-300)), features.LOG_ZERO)


def run(cfg, k, v, q, theta, eta, keep, w_init=None, slow=None):
    """Reads [T, K] and end weights of one memory that starts at `w_init` (zeros where left out)."""
    start = {n: jnp.zeros(s.shape) for n, s in networks.fast_specs(cfg).items()} if w_init is None else w_init
    start = {n: jnp.asarray(w, np.float64) for n, w in start.items()}
    nothing = {n: jnp.zeros_like(w)[None] for n, w in start.items()}
    gates = [jnp.asarray(np.broadcast_to(g, (T,)), np.float64) for g in (theta, log(eta), log(keep))]
    inputs = [jnp.asarray(x) for x in (k, v, q)] + gates
    call = jit(lambda s, sl, c, i: scan.run(s, sl, c, jnp.zeros(1, jnp.int32), jnp.full((1,), T, jnp.int32),
                                            Inputs(*(x[None, :, None] for x in i), None), cfg))
    y, end, _, _ = call(start, slow or {}, Carry(nothing, nothing, nothing), inputs)
    return np.asarray(y[0, :, 0]), {n: np.asarray(start[n][0] + w[0, 0]) for n, w in end.weights.items()}


def test_delta_rule():
    """Linear, one token a chunk, no momentum, no forgetting: W <- (I - beta k k^T) W + beta k^T v."""
    k, v, q, theta, _ = stream()
    y, end = run(linear(1), k, v, q, theta, np.zeros(T), np.ones(T))
    w = np.zeros((K, K))
    for t in range(T):
        w = w + 2 * theta[t] * np.outer(k[t], v[t] - k[t] @ w)
        np.testing.assert_allclose(y[t], q[t] @ w, atol=1e-12)
    np.testing.assert_allclose(end["w0"], w, atol=1e-12)


def test_gated_delta_rule_with_rescaled_gates():
    """With forgetting a: W <- a (I - beta k k^T) W + beta k^T v when 2 theta = a beta and v / a stands for v."""
    k, v, q, beta, a = stream(1)
    y, _ = run(linear(1, forget_to="zero"), k, v / a[:, None], q, a * beta / 2, np.zeros(T), a)
    w = np.zeros((K, K))
    for t in range(T):
        w = a[t] * (w - beta[t] * np.outer(k[t], k[t] @ w)) + beta[t] * np.outer(k[t], v[t])
        np.testing.assert_allclose(y[t], q[t] @ w, atol=1e-12)


def test_gated_delta_rule_with_the_gradient_at_the_decayed_weights():
    """The same rule without rescaling (2 theta = beta) when the gradient is taken at a W; taken at W it differs."""
    k, v, q, beta, a = stream(2)
    cfg = linear(1, forget_to="zero")
    start = {"w0": jnp.zeros((1, K, K))}
    zero = {"w0": jnp.zeros((1, 1, K, K))}
    one = jit(lambda carry, x: scan.run(start, {}, carry, jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32), x, cfg)[:2])

    def reads(decayed):
        weights, ys = zero, []
        for t in range(T):
            row = [jnp.asarray(x[t])[None, None, None] for x in (k, v, q)]
            gates = [jnp.asarray(g)[None, None, None] for g in (beta[t] / 2, features.LOG_ZERO, np.log(a[t]))]
            anchor = {"w0": (a[t] if decayed else 1.0) * weights["w0"]}
            y, carry = one(Carry(anchor, weights, zero), Inputs(*row, *gates, None))
            weights = carry.weights
            ys.append(y[0, 0, 0])
        return np.stack(ys)

    w, expected = np.zeros((K, K)), []
    for t in range(T):
        w = a[t] * (w - beta[t] * np.outer(k[t], k[t] @ w)) + beta[t] * np.outer(k[t], v[t])
        expected.append(q[t] @ w)
    np.testing.assert_allclose(reads(True), expected, atol=1e-12)
    assert np.abs(reads(False) - expected).max() > 1e-3


def test_gated_linear_attention():
    """One chunk, linear memory from zero, no momentum: y_t = sum_i (b_t / b_i) 2 theta_i (q_t . k_i) v_i."""
    k, v, q, theta, a = stream(3)
    y, _ = run(linear(T, forget_to="zero"), k, v, q, theta, np.zeros(T), a)
    b = np.cumprod(a)
    expected = [sum(b[t] / b[i] * 2 * theta[i] * (q[t] @ k[i]) * v[i] for i in range(t + 1)) for t in range(T)]
    np.testing.assert_allclose(y, expected, atol=1e-12)
    y, _ = run(linear(T), k, v, q, theta, np.zeros(T), np.ones(T))
    np.testing.assert_allclose(y, np.tril(q @ k.T * 2 * theta) @ v, atol=1e-12)


def network(seed=5, **options):
    """A two-layer memory with its initial weights and slow parameters: (cfg, w_init [1, ...], slow [1, K], net)."""
    cfg = config(width=K, head_dim=K, **options)
    params = random_params(neural.specs(cfg), seed, np.float64)
    one = {n: w[0] for n, w in params["slow"].items()}
    net = lambda w, x: networks.forward(one, x[None], networks.plain(w, "float32"), cfg)[0]
    return cfg, params["init"], params["slow"], net


def test_ttt_with_mini_batches():
    """Without momentum and forgetting: test-time training with mini-batches of C tokens, read at the running sum."""
    cfg, w_init, slow, net = network(chunk=4)
    k, v, q, theta, _ = stream(4)
    y, end = run(cfg, k, v, q, theta, np.zeros(T), np.ones(T), w_init, slow)
    gradient = jit(jax.grad(lambda w, k, v: ((net(w, k) - v) ** 2).sum()))
    w = anchor = {n: x[0] for n, x in w_init.items()}
    for t in range(T):
        anchor = w if t % 4 == 0 else anchor
        g = gradient(anchor, k[t], v[t])
        w = {n: w[n] - theta[t] * g[n] for n in w}
        np.testing.assert_allclose(y[t], net(w, jnp.asarray(q[t])), atol=1e-12)
    for n in w:
        np.testing.assert_allclose(end[n], w[n], atol=1e-12)


def test_chunk_of_one_is_the_online_rule():
    """Gradient at W_{t-1} for every token, with momentum and forgetting."""
    cfg, w_init, slow, net = network(chunk=1, forget_to="zero")
    k, v, q, theta, a = stream(6)
    eta = np.linspace(0.2, 0.9, T)
    y, _ = run(cfg, k, v, q, theta / 4, eta, a, w_init, slow)
    gradient = jit(jax.grad(lambda w, k, v: ((net(w, k) - v) ** 2).sum()))
    w = {n: x[0] for n, x in w_init.items()}
    s = {n: 0 * x for n, x in w.items()}
    for t in range(T):
        g = gradient(w, k[t], v[t])
        s = {n: eta[t] * s[n] - theta[t] / 4 * g[n] for n in w}
        w = {n: a[t] * w[n] + s[n] for n in w}
        np.testing.assert_allclose(y[t], net(w, jnp.asarray(q[t])), atol=1e-12)


def test_no_step_is_a_static_network():
    """A closed step gate: the memory is the initial network, its state stays exactly zero, W_init has a gradient."""
    cfg = config(width=K, head_dim=K, chunk=4)
    params = random_params(neural.specs(cfg), 7, np.float64)
    params["w_gates"] = params["w_gates"].at[..., 0].set(0.0)
    params["b_gates"] = params["b_gates"].at[..., 0].set(-1e4)
    x = jnp.asarray(np.random.default_rng(8).standard_normal((2, T, K)))
    zero = cast(neural.init_state(params, cfg, 2), np.float64)
    y, end = jit(neural.apply, static_argnums=3)(params, zero, x, cfg)
    query = lambda params: neural.query(params, x, zero.conv[:, :, 2], cfg)[0]
    static = lambda params: neural.reads_at(params, zero.weights, query(params), cfg)
    np.testing.assert_allclose(y, jit(static)(params).reshape(2, T, K), rtol=0, atol=1e-14)
    assert_equal(end._replace(phase=zero.phase, conv=zero.conv), zero)
    loss = lambda params: jnp.sin(neural.apply(params, zero, x, cfg)[0]).sum()
    gradient = jit(jax.grad(loss))(params)
    assert all(np.abs(g).max() > 1e-3 for g in gradient["init"].values())


def test_no_forgetting_and_no_momentum_switches():
    """The ablations of the paper are the limits of the gates."""
    gates = features.gates({"w_gates": jnp.ones((K, 1, 3)), "b_gates": jnp.zeros((1, 3))}, jnp.ones((1, 2, K)),
                           config(width=K, head_dim=K, momentum=False, forget=False))
    assert np.all(np.exp(gates.log_momentum) == 0) and np.all(np.exp(gates.log_keep) == 1)


def test_gate_biases_start_as_described():
    """Step .12 of its maximum, momentum .88, forgetting log-spaced over the heads."""
    cfg = config(width=24, head_dim=6, step_bias=-2.0, momentum_bias=2.0, forget_range=(1e-2, 1e-4))
    bias = P.init_params(neural.specs(cfg), jax.random.key(0))["b_gates"]
    sigmoid = 1 / (1 + np.exp(-np.asarray(bias, np.float64)))
    np.testing.assert_allclose(sigmoid[:, 0], 0.1192, atol=1e-4)
    np.testing.assert_allclose(sigmoid[:, 1], 0.8808, atol=1e-4)
    np.testing.assert_allclose(np.log10(sigmoid[:, 2]), [-2, -8 / 3, -10 / 3, -4], atol=1e-4)
