"""Transformer-XL and the Compressive Transformer, literally: one stream, token by token, memories that are Python lists.

Written from the papers' equations, not from the package: no buffers, no counts, no masks. Distances are counted by hand, and a
gradient is stopped where the papers stop it. Run it in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STOP = jax.lax.stop_gradient


class Options(NamedTuple):
    """What the two papers leave to choose; names as in the configs."""

    heads: int
    head_dim: int
    length: int
    compressed: int = 0
    rate: int = 1
    unit: int = 1
    compression: str = "mean"
    objective: str = "none"
    norm: str = "post"
    clamp: int = 0
    reach: float = float("inf")


class Memory:
    """The rows of one layer, oldest first."""

    def __init__(self):
        self.recent, self.compressed = [], []


def layer_norm(p, x):
    centred = x - x.mean()
    return centred / jnp.sqrt((centred ** 2).mean() + 1e-5) * p["scale"] + p["bias"]


def position(distance: int, width: int):
    angle = [distance * 10000 ** (-2 * i / width) for i in range(width // 2)]
    return jnp.array([np.sin(a) for a in angle] + [np.cos(a) for a in angle])


def project(x, w):
    return jnp.einsum("d,dhk->hk", x, w)


def compress(p, old, usage, o: Options):
    """The slots of one block of rows."""
    groups = [old[i:i + o.rate] for i in range(0, len(old), o.rate)]
    if o.compression == "mean":
        return [sum(g) / o.rate for g in groups]
    if o.compression == "max":
        return [jnp.stack(g).max(0) for g in groups]
    if o.compression == "most_used":
        order = jnp.argsort(-jnp.stack(usage), stable=True)[:len(groups)]
        return list(jnp.stack(old)[jnp.sort(order)])
    if o.compression == "dilated":
        for layer, d in zip(p["dilated"], (1, 2), strict=True):
            at = lambda i, rows=old: rows[i] if 0 <= i < len(rows) else jnp.zeros_like(rows[0])
            taps = [jnp.concatenate([at(i - d), at(i), at(i + d)]) for i in range(len(old))]
            old = [x + jax.nn.relu(t @ layer["kernel"] + layer["bias"]) for x, t in zip(old, taps, strict=True)]
        groups = [old[i:i + o.rate] for i in range(0, len(old), o.rate)]
    return [jnp.concatenate(g) @ p["kernel"] + p["bias"] for g in groups]


def content_attention(p, h, rows, o: Options):
    """attn(h, rows) of algorithm 2: no positions, no mask, no biases; heads side by side."""
    q, k, v = (jnp.stack([project(x, p[name]) for x in xs]) for name, xs in (("wq", h), ("wk", rows), ("wv", rows)))
    weight = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k) / np.sqrt(o.head_dim), axis=-1)
    return jnp.einsum("hts,shk->thk", weight, v)


def write(p, memory: Memory, h, usage, norm, o: Options):
    """The layer's input goes into the memory; returns the auxiliary loss. usage: of each row of [m ; h]."""
    rows, usage = memory.recent + [STOP(x) for x in h], list(usage)
    old, new = [], []
    while len(rows) - o.length >= o.unit and o.compressed:
        new += compress(p["memory"], rows[:o.unit], usage[:o.unit], o)
        old, rows, usage = old + rows[:o.unit], rows[o.unit:], usage[o.unit:]
    memory.recent = rows if o.compressed else rows[max(len(rows) - o.length, 0):]
    kept = memory.compressed + (new if o.objective == "bptt" else [STOP(x) for x in new])
    memory.compressed = kept[max(len(kept) - o.compressed, 0):]
    if not old or o.objective in ("none", "bptt"):
        return 0.0
    if o.objective == "autoencoding":
        decoder = p["memory"]["decoder"]
        decoded = jnp.concatenate([x @ decoder["kernel"] + decoder["bias"] for x in new]).reshape(len(old), -1)
        return ((decoded - jnp.stack(old)) ** 2).mean()
    fixed, seen = STOP(p["attention"]), [norm(STOP(x)) for x in h]
    before, after = (content_attention(fixed, seen, [norm(x) for x in rows], o) for rows in (old, new))
    return ((before - after) ** 2).mean()


def attention(p, position_bias, memory: Memory, h, norm, o: Options):
    """(outputs of the tokens h, mean weight that each row of [m ; h] received)."""
    past = memory.compressed + memory.recent
    columns = [norm(x) for x in past + list(h)]
    k, v = (jnp.stack([project(x, p[name]) for x in columns]) for name in ("wk", "wv"))
    out, received = [], [0.0] * len(columns)
    for i in range(len(h)):
        here = len(past) + i
        sees = [j for j in range(here + 1) if here - j <= o.reach]
        q = project(columns[here], p["wq"])
        far = [min(here - j, o.clamp) if o.clamp else here - j for j in sees]
        r = jnp.stack([project(position(d, h[0].size), p["wr"]) for d in far])
        index = np.array(sees)
        score = jnp.einsum("hk,shk->hs", q + position_bias["u"], k[index]) + jnp.einsum("hk,shk->hs", q + position_bias["w"], r)
        weight = jax.nn.softmax(score / np.sqrt(o.head_dim), axis=-1)
        out.append(jnp.einsum("hs,shk->hk", weight, v[index]).reshape(-1) @ p["wo"])
        for s, j in enumerate(sees):
            received[j] = received[j] + STOP(weight[:, s].mean()) / len(h)
    return out, received[len(memory.compressed):]


def layer(p, position_bias, memory: Memory, h, o: Options):
    """One layer on a segment: (outputs, auxiliary loss)."""
    of = lambda name: (lambda x: layer_norm(p[name], x))
    pre = o.norm == "pre"
    a, usage = attention(p["attention"], position_bias, memory, h, of("norm_attention") if pre else lambda x: x, o)
    fixed = STOP(p["norm_attention"])
    loss = write(p, memory, h, usage, (lambda x: layer_norm(fixed, x)) if pre else (lambda x: x), o)
    mlp = lambda x: jax.nn.relu(x @ p["mlp"]["w1"] + p["mlp"]["b1"]) @ p["mlp"]["w2"] + p["mlp"]["b2"]
    h = [x + y for x, y in zip(h, a, strict=True)]
    if pre:
        return [x + mlp(of("norm_mlp")(x)) for x in h], loss
    h = [of("norm_attention")(x) for x in h]
    return [of("norm_mlp")(x + mlp(x)) for x in h], loss


def stream(params, segments, o: Options):
    """Segments of one stream, lists of ids, read in order: (logits [T, V] of all tokens, sum of the auxiliary losses, memories)."""
    layers = jax.tree.leaves(params["layers"])[0].shape[0]
    memories, logits, loss = [Memory() for _ in range(layers)], [], 0.0
    for ids in segments:
        h = [params["embedding"][i] * np.sqrt(params["embedding"].shape[1]) for i in ids]
        for n, memory in enumerate(memories):
            p = jax.tree.map(lambda w, n=n: w[n], params["layers"])
            h, more = layer(p, p.get("position", params.get("position")), memory, h, o)
            loss = loss + more
        logits += [x @ params["embedding"].T + params["output_bias"] for x in h]
    return jnp.stack(logits), loss, memories
