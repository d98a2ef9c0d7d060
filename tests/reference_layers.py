"""Attention, LMM, MAG and MAC of Titans written as loops over tokens, for one row of a stream from its start.

Numpy only, but for the inner gradients of `reference_titans`. u [T, D]; prefix: keys and values [M, H, K].
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import reference_titans as titans


def rms(x, weight):
    """x / rms(x) * weight over the last axis."""
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6) * weight


def sigmoid(x):
    """Logistic function."""
    return 1 / (1 + np.exp(-x))


def turned(x, position, base):
    """Rotary position as a turn of complex numbers: x [K] -> complex [K/2]."""
    half = x.shape[-1] // 2
    return (x[:half] + 1j * x[half:]) * np.exp(1j * position * base ** (-np.arange(half) / half))


def attend(q, position, keys, prefix, base):
    """One query [K] of one head; keys: list of (key, value, position); prefix: list of (key, value). Returns [K]."""
    near = [(turned(q, position, base) @ np.conj(turned(k, p, base))).real for k, _, p in keys]
    scores = np.array([q @ k for k, _ in prefix] + near) / np.sqrt(len(q))
    weight = np.exp(scores - scores.max())
    values = np.array([v for _, v in prefix] + [v for _, v, _ in keys])
    return weight @ values / weight.sum()


def project(params, u):
    """Attention's q, k, v [T, H, K]."""
    return [np.einsum("td,dhk->thk", u, np.asarray(params[name]["w"])) for name in "qkv"]


def window_attention(params, prefix, u, window, base):
    """Each token sees itself, the window - 1 tokens before it, and the prefix: [T, D] before the output projection."""
    q, k, v = project(params, u)
    out = np.zeros_like(q)
    for t in range(len(u)):
        for h in range(q.shape[1]):
            keys = [(k[j, h], v[j, h], j) for j in range(max(0, t - window + 1), t + 1)]
            out[t, h] = attend(q[t, h], t, keys, [(pk[h], pv[h]) for pk, pv in zip(*prefix, strict=True)], base)
    return out.reshape(len(u), -1)


def memory(params, u, step_max, chunk):
    """Reads of the neural memory, heads side by side: [T, D]."""
    heads = [titans.layer(params, h, jnp.asarray(u), step_max, chunk)[0] for h in range(params["wk"].shape[1])]
    return np.concatenate(heads, axis=-1)


def by_head(r, weight):
    """RMSNorm of each head of r [T, D]; weight [H, K]."""
    return rms(r.reshape(len(r), *weight.shape), weight).reshape(r.shape)


def gate(params, y, r):
    """(rms(y) * sigmoid(rms(r))) W_O."""
    return rms(y, params["norm_attention"]) * sigmoid(rms(r, params["norm_memory"])) @ params["o"]["w"]


def lmm(params, u, cfg):
    """Equations 11 to 15 with norm and gate before the output."""
    z = u @ params["z"]["w"]
    r = memory(params["memory"], u, cfg.memory.largest_step, cfg.memory.chunk)
    return by_head(r, params["norm_reads"]) * (z * sigmoid(z)) @ params["o"]["w"]


def mag(params, prefix, u, cfg, base):
    """Equations 26 to 28."""
    y = window_attention(params, prefix, u, cfg.window, base)
    return gate(params, y, memory(params["memory"], u, cfg.memory.largest_step, cfg.memory.chunk))


def mac(params, prefix, u, cfg, segment, base):
    """Equations 21 to 25, segment by segment; the memory is run again from the start for each segment."""
    m, outs, written = params["memory"], [], np.zeros((0, u.shape[1]))
    heads = range(m["wk"].shape[1])
    step, chunk = cfg.memory.largest_step, cfg.memory.chunk
    tail = np.zeros((m["conv_q"].shape[0] - 1, m["wq"].shape[2]))
    queries = [titans.features(jnp.asarray(u), m["wq"][:, h], m["conv_q"][:, h], tail, True) for h in heads]
    for first in range(0, len(u), segment):
        here = u[first:first + segment]
        asked = [unit(params["questions"][:, n]) if cfg.retrieved else queries[n][first:first + segment] for n in heads]
        h = np.concatenate([_read_at(m, n, written, asked[n], step, chunk) for n in heads], axis=-1)
        h = by_head(h, params["norm_retrieved"]) @ params["h"]["w"]
        y = _segment_attention(params, prefix, h, here, base, everywhere=cfg.retrieved > 0)
        written = np.concatenate([written, rms(y, params["norm_written"])])
        outs.append(gate(params, y, memory(m, written, step, chunk)[first:]))
    return np.concatenate(outs)


def _read_at(m, head, written, q, step_max, chunk):
    """Queries [T, K] at the weights after everything written so far."""
    weights = {n: w[head] for n, w in m["init"].items()}
    if len(written):
        weights = titans.layer(m, head, jnp.asarray(written), step_max, chunk)[1].weights
    net = titans.residual_mlp(m["slow"]["gamma"][head], m["slow"]["beta"][head])
    return np.stack([net(weights, x) for x in q])


def unit(x):
    """Rows of length 1."""
    return x / np.sqrt((x ** 2).sum(-1, keepdims=True) + 1e-6)


def _segment_attention(params, prefix, h, u, base, everywhere):
    """Query i sees the prefix, tokens j <= i, and retrieved vectors j <= i, or all of them, without positions."""
    q, k, v = project(params, u)
    _, hk, hv = project(params, h)
    out = np.zeros_like(q)
    for t in range(len(u)):
        for n in range(q.shape[1]):
            keys = [(a[j, n], b[j, n], j) for a, b in (((k, v),) if everywhere else ((hk, hv), (k, v))) for j in range(t + 1)]
            front = [(pk[n], pv[n]) for pk, pv in zip(*prefix, strict=True)]
            front += [(hk[j, n], hv[j, n]) for j in range(len(h)) if everywhere]
            out[t, n] = attend(q[t, n], t, keys, front, base)
    return out.reshape(len(u), -1)
