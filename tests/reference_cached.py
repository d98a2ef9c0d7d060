"""Transformer-XL and the Compressive Transformer, literally: one stream, memories that are Python lists of rows.

Written from the papers' equations, not from the package: no buffers, no counts, no shift; distances are counted pair by pair,
and a gradient is stopped where the papers stop it. Run it in float64.
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
    order: str = "post"
    clamp: int = 0
    reach: float = float("inf")


class Memory:
    """The rows of one layer, oldest first."""

    def __init__(self):
        self.recent, self.compressed = [], []


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5) * p["scale"][None] + p["bias"][None]


def position(distance: int, width: int) -> np.ndarray:
    angle = [distance * 10000 ** (-2 * i / width) for i in range(width // 2)]
    return np.array([np.sin(a) for a in angle] + [np.cos(a) for a in angle])


def project(x, w):
    return jnp.einsum("td,dhk->thk", x, w)


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
    q, k, v = project(h, p["q"]["w"]), project(rows, p["k"]["w"]), project(rows, p["v"]["w"])
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
    fixed, seen = STOP(p), norm(STOP(h))
    before, after = (content_attention(fixed, seen, norm(jnp.stack(rows)), o) for rows in (old, new))
    return ((before - after) ** 2).mean()


def attention(p, bias, memory: Memory, h, norm, o: Options):
    """(outputs of the tokens h, mean weight that each row of [m ; h] received)."""
    past = memory.compressed + memory.recent
    columns, here = norm(jnp.stack(past + list(h))), np.arange(len(h)) + len(past)
    q, k, v = project(columns, p["q"]["w"])[len(past):], project(columns, p["k"]["w"]), project(columns, p["v"]["w"])
    distance = [[i - j for j in range(len(columns))] for i in here]
    r = np.array([[position(min(d, o.clamp) if o.clamp else d, h.shape[1]) for d in row] for row in distance])
    r = jnp.einsum("tsd,dhk->tshk", r, p["position"]["w"])
    by_content, by_distance = q + bias["content"][None], q + bias["distance"][None]
    score = jnp.einsum("thk,shk->hts", by_content, k) + jnp.einsum("thk,tshk->hts", by_distance, r)
    sees = np.array([[0 <= d <= o.reach for d in row] for row in distance])
    weight = jax.nn.softmax(jnp.where(sees[None], score / np.sqrt(o.head_dim), -jnp.inf), axis=-1)
    y = jnp.einsum("hts,shk->thk", weight, v).reshape(len(h), -1) @ p["o"]["w"]
    return y, STOP(weight.mean((0, 1)))[len(memory.compressed):]


def feed_forward(p, x):
    return jax.nn.relu(x @ p["up"]["w"] + p["up"]["b"][None]) @ p["down"]["w"] + p["down"]["b"][None]


def layer(p, bias, memory: Memory, h, o: Options):
    """One layer on a segment [T, D]: (outputs, auxiliary loss)."""
    own, units, pre = p["cached"], p["feed_forward"], o.order == "pre"
    enter = lambda norm: lambda x: layer_norm(norm, x) if pre else x
    leave = lambda norm, x: x if pre else layer_norm(norm, x)
    a, usage = attention(own, bias, memory, h, enter(own["norm"]), o)
    loss = write(own, memory, h, usage, enter(STOP(own["norm"])), o)
    h = leave(own["norm"], h + a)
    return leave(units["norm"], h + feed_forward(units, enter(units["norm"])(h))), loss


def stream(params, segments, o: Options):
    """Segments of one stream, lists of ids, read in order: (logits [T, V] of all tokens, sum of the auxiliary losses)."""
    layers, words = params["layers"][0], params["words"]
    memories, logits, loss = [Memory() for _ in layers["cached"]["o"]["w"]], [], 0.0
    for ids in segments:
        h = words["embedding"][np.array(ids)] * np.sqrt(words["embedding"].shape[1])
        for n, memory in enumerate(memories):
            p = jax.tree.map(lambda w, n=n: w[n], layers)
            h, more = layer(p, p["cached"]["position"] | params.get("position", {}), memory, h, o)
            loss = loss + more
        logits.append(h @ words["embedding"].T + words["output_bias"][None])
    return jnp.concatenate(logits), loss
