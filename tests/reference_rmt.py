"""The Recurrent Memory Transformer and its associative sibling written as loops over rows, heads and columns.

Numpy in float64, one row of a batch, no masks as arrays: for each row of a segment a list of the columns it sees is made.
`params` are those of one model, as numpy trees: {"model": ..., "memory": ...}, its layers stacked.
"""

from __future__ import annotations

import numpy as np


def layer_norm(x, p):
    """One vector [D]."""
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * p["scale"] + p["bias"]


def gelu(x):
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def relative_score(q, k, p, h, distance, width):
    """Transformer-XL's score with a signed distance: sines first, then cosines."""
    angle = [distance * 10000.0 ** (-i / (width // 2)) for i in range(width // 2)]
    r = np.array([np.sin(a) for a in angle] + [np.cos(a) for a in angle]) @ p["w"][:, h]
    return (q + p["content"][h]) @ k + (q + p["distance"][h]) @ r


def layer(p, x, sees, position, old=()):
    """One layer: x list of [D]; old: inputs of earlier segments, columns in front of x, at positions down from -1.

    sees[i]: columns of token i of x; position[i]: of that token.
    """
    p, mlp = attention_of(p), p["feed_forward"]
    u, place, first = [layer_norm(row, p["norm"]) for row in [*old, *x]], [*range(-len(old), 0), *position], len(old)
    q, k, v = ([np.einsum("d,dhk->hk", row, p[n]["w"]) + p[n]["b"] for row in u] for n in "qkv")
    out = []
    for i, row in enumerate(x):
        heads = []
        for h in range(q[0].shape[0]):
            if "position" in p:
                score = [relative_score(q[first + i][h], k[j][h], p["position"], h, position[i] - place[j], len(row))
                         for j in sees[i]]
            else:
                score = [q[first + i][h] @ k[j][h] for j in sees[i]]
            weight = np.exp(np.array(score) / np.sqrt(q[0].shape[1]))
            heads.append(sum(w * v[j][h] for w, j in zip(weight / weight.sum(), sees[i], strict=True)))
        row = row + np.concatenate(heads) @ p["o"]["w"] + p["o"]["b"]
        hidden = gelu(layer_norm(row, mlp["norm"]) @ mlp["up"]["w"] + mlp["up"]["b"])
        out.append(row + hidden @ mlp["down"]["w"] + mlp["down"]["b"])
    return out


def attention_of(p):
    """The attention of a layer's tree."""
    (name,) = p.keys() & {"segment", "cached"}
    return p[name]


def depth(model):
    """How many layers are stacked."""
    return len(model["layers"][0]["feed_forward"]["down"]["b"])


def layer_of(params, l):
    """Layer l of the stacked trees."""
    return {n: layer_of(w, l) if isinstance(w, dict) else w[l] for n, w in params.items()}


def columns(form, i, memory, tokens):
    """Columns that row i of [R X W] sees."""
    size = memory + tokens + (memory if form in ("paper", "causal") else 0)
    if form == "encoder":
        return list(range(size))
    if form == "paper" and i < memory:
        return list(range(memory))
    if form == "paper" and i >= memory + tokens:
        return list(range(size))
    return list(range(i + 1))


def output_of(model):
    """The output layer: a matrix of its own, or the embedding."""
    words = model["words"]
    return words["output"] if "output" in words else words["embedding"].T


def segment(params, m, ids, form, scale, old, by_memory, whole=False):
    """One segment without padding: (logits [T, V], next memory [M, D], inputs of each layer at the tokens, or at all rows).

    old: rows that each layer has cached; by_memory: the memory's rows see them too. whole: return the memory's inputs too.
    """
    d = params["model"]
    tail = list(m) if form in ("paper", "causal") else []
    x = list(m) + [d["words"]["embedding"][i] * scale for i in ids] + tail
    position, token = list(range(len(x))), range(len(m), len(m) + len(ids))
    if "positions" in d:
        x = [row + d["positions"][i] for i, row in zip(position, x, strict=True)]
    inputs = []
    for l, rows in enumerate(old):
        far = [list(range(len(rows))) if by_memory or i in token else [] for i in position]
        sees = [far[i] + [len(rows) + j for j in columns(form, i, len(m), len(ids))] for i in position]
        inputs.append([x[i] for i in (position if whole else token)])
        x = layer(layer_of(d["layers"][0], l), x, sees, position, rows)
    x = [layer_norm(row, d["norm"]) for row in x]
    logits = np.array([x[i] @ output_of(d) for i in token])
    written = {"prefix": list(m), "encoder": x[:len(m)]}.get(form, x[len(m) + len(ids):])
    return logits, np.array(written).reshape(len(m), -1), inputs


def recurrent(params, segments, form, scale, size=0, by_memory=False, fixed=None, whole=False):
    """All segments of one row; an empty one leaves the memory as it is.

    size: rows that each layer caches, those of the memory too where `whole` is set. fixed: what the caches shall hold before each
    segment, instead of what was computed: they have no gradient.
    Returns (list of logits, last memory, what the caches held before each segment and at the end).
    """
    m, out, held = params["memory"]["tokens"], [], [[[] for _ in range(depth(params["model"]))]]
    for ids in (ids for ids in segments if len(ids)):
        old = (fixed or held)[len(out)]
        logits, m, inputs = segment(params, m, ids, form, scale, old, by_memory, whole)
        out.append(logits)
        held.append([(before + new)[max(len(before + new) - size, 0):] for before, new in zip(old, inputs, strict=True)])
    return out, m, held


# -------------------------------------------------------------------------------------------------------- associative

def dpfp(x, nu):
    """DPFP features of one vector: products of neighbours at distance 1 .. nu among the rectified parts."""
    u = [max(a, 0.0) for a in x] + [max(-a, 0.0) for a in x]
    n = len(u)
    return np.array([u[i] * u[(i - j) % n] for j in range(1, nu + 1) for i in range(n)])


def associate(p, x, A, z, first, nu, eps=1e-5):
    """Read for one row [D], before the layer: nothing in the first segment."""
    if first:
        return x
    phi = dpfp(x @ p["w_query"], nu)
    return x + phi @ A / (z @ phi + eps)


def remember(p, rows, A, z, first, nu, correction=True, eps=1e-5):
    """Write the memory rows [D] of a layer's output: all of them see the old A and z."""
    new_A, new_z = A.copy(), z.copy()
    for m in rows:
        k, v = dpfp(m @ p["w_key"], nu), m @ p["w_values"]
        beta = 1 / (1 + np.exp(-(m @ p["w_beta"] + p["b_beta"])))
        d = z @ k + eps
        old = np.zeros_like(v) if first else k @ A / d
        gamma = 1.0 if first or not correction else np.clip(1 - d / (k @ k + eps), 0, 1)
        new_A += beta * np.outer(k, v - old)
        new_z += gamma * k
    return new_A, new_z


def associative(params, segments, nu, scale, correction=True):
    """ARMT over the segments of one row: (list of logits, [A of each layer], [z of each layer])."""
    d, tokens = params["model"], list(params["memory"]["tokens"])
    L, D = depth(d), tokens[0].size
    size = 2 * nu * d["layers"][0]["memory"]["w_query"].shape[-1]
    A, z, out = [np.zeros((size, D)) for _ in range(L)], [np.zeros(size) for _ in range(L)], []
    first = True
    for ids in segments:
        if len(ids) == 0:
            continue
        x = [d["words"]["embedding"][i] * scale for i in ids] + tokens
        position = list(range(len(x)))
        if "positions" in d:
            x = [row + d["positions"][i] for i, row in zip(position, x, strict=True)]
        for l in range(L):
            own = layer_of(d["layers"][0], l)
            p = own["memory"]
            x = [associate(p, row, A[l], z[l], first, nu) for row in x]
            x = layer(own, x, [list(range(i + 1)) for i in position], position)
            A[l], z[l] = remember(p, x[len(ids):], A[l], z[l], first, nu, correction)
        out.append(np.array([layer_norm(row, d["norm"]) @ output_of(d) for row in x[:len(ids)]]))
        first = False
    return out, A, z
