"""The neural memory written down from the equations, for one row and one head, with nothing of the package in it.

A token loop over explicit W and S (Titans, arXiv 2501.00663, equations 10 to 15), one `jax.grad` with respect to the
weights for each token. Names follow the paper; b is the chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Gates(NamedTuple):
    """Per token [T]: step size, momentum, forgetting."""

    theta: jax.Array
    eta: jax.Array
    alpha: jax.Array


class Start(NamedTuple):
    """Where a stream stands: gradient point, weights, surprise (absolute weights), and tokens in the open chunk."""

    anchor: dict
    weights: dict
    surprise: dict
    phase: int


def linear(w: dict, x):
    """One dense layer."""
    return x @ w["w0"]


def residual_mlp(gamma, beta) -> Callable:
    """x + LayerNorm(gelu(x W0) W1) gamma + beta, the default memory."""

    def net(w, x):
        h = x @ w["w0"]
        h = 0.5 * h * (1 + jax.scipy.special.erf(h / jnp.sqrt(2.0))) @ w["w1"]
        h = (h - h.mean()) / jnp.sqrt(((h - h.mean()) ** 2).mean() + 1e-5)
        return x + h * gamma + beta

    return net


def memory(net: Callable, w_init: dict, start: Start, k, v, q, gates: Gates, b: int, target: str, read: str):
    """Run T tokens: k, v, q [T, K]. target: "init" or "zero". read: "after" or "before". Returns (y [T, K], Start)."""

    @jax.jit
    def token(anchor, w, s, k, v, q, theta, eta, alpha):
        g = jax.grad(lambda w: ((net(w, k) - v) ** 2).sum())(anchor)
        s = {n: eta * s[n] - theta * g[n] for n in w}
        to = w_init if target == "init" else {n: 0 * w_init[n] for n in w}
        after = {n: (1 - alpha) * w[n] + alpha * to[n] + s[n] for n in w}
        return after, s, net(after if read == "after" else w, q)

    anchor, w, s, phase = start
    ys = []
    for t in range(k.shape[0]):
        if phase % b == 0:
            anchor = w
        w, s, y = token(anchor, w, s, k[t], v[t], q[t], gates.theta[t], gates.eta[t], gates.alpha[t])
        ys.append(y)
        phase += 1
    return jnp.stack(ys), Start(w if phase % b == 0 else anchor, w, s, phase % b)


def features(x, w, kernel, tail, normalise: bool):
    """SiLU of a causal depthwise convolution over the projected tokens: x [T, D], w [D, K], kernel [width, K]."""
    stream = jnp.concatenate([tail, x @ w])
    width = kernel.shape[0]
    y = jnp.stack([(stream[t:t + width] * kernel).sum(0) for t in range(x.shape[0])])
    y = y / (1 + jnp.exp(-y))
    return y / jnp.sqrt((y ** 2).sum(-1, keepdims=True) + 1e-6) if normalise else y


def layer(params: dict, head: int, x, step_max: float, b: int):
    """The default memory with its features and gates over one row x [T, D] from the start of a stream: y [T, K]."""
    tail = jnp.zeros((params["conv_k"].shape[0] - 1, params["wk"].shape[2]), x.dtype)
    k, v, q = (features(x, params[f"w{n}"][:, head], params[f"conv_{n}"][:, head], tail, n != "v") for n in "kvq")
    z = jnp.einsum("td,dg->tg", x, params["w_gates"][:, head]) + params["b_gates"][None, head]
    sigmoid = 1 / (1 + jnp.exp(-z))
    w_init = {n: w[head] for n, w in params["init"].items()}
    nothing = {n: jnp.zeros_like(w) for n, w in w_init.items()}
    net = residual_mlp(params["slow"]["gamma"][head], params["slow"]["beta"][head])
    gates = Gates(step_max * sigmoid[:, 0], sigmoid[:, 1], sigmoid[:, 2])
    return memory(net, w_init, Start(w_init, w_init, nothing, 0), k, v, q, gates, b, "init", "after")


def scalar_coefficients(theta, eta, a, real, target: str):
    """The recursions behind the coefficients, token by token in Python numbers: dict of arrays with rows 0..C."""
    c = len(theta)
    keep, past, pushed = [1.0], [1.0], [0.0]
    moving, written = np.zeros((c + 1, c)), np.zeros((c + 1, c))
    for t in range(c):
        e, d, th = (eta[t], a[t], theta[t]) if real[t] else (1.0, 1.0, 0.0)
        keep.append(keep[-1] * d)
        past.append(past[-1] * e)
        pushed.append(d * pushed[-1] + (past[-1] if real[t] else 0.0))
        moving[t + 1] = e * moving[t]
        moving[t + 1, t] = th
        written[t + 1] = d * written[t] + (moving[t + 1] if real[t] else 0.0)
    initial = np.ones(c + 1) if target == "init" else np.array(keep)
    return {"keep": np.array(keep), "initial": initial, "past": np.array(past), "pushed": np.array(pushed),
            "moving": moving, "written": written}
