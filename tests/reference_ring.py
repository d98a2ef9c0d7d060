"""StreamingLLM as the paper tells it: a list of keys that grows at one end and from which one is dropped behind the sinks.

Numpy and Python lists, one row of a stream, float64. Positions are places in the list ("cache") or numbers of tokens ("absolute").
"""

from __future__ import annotations

import numpy as np
from reference_layers import turned

RELATIVE_BASE = 10000.0


def slope(head: int, heads: int) -> float:
    """2^(-8 (h+1) / n) for n a power of two; the tests use no other."""
    assert heads & (heads - 1) == 0
    return 2.0 ** (-8 * (head + 1) / heads)


def score(params, q: np.ndarray, at: int, k: np.ndarray, place: int, head: int, heads: int, positions: str, base: float) -> float:
    """One query [K] at a place, one key at another, before the scale."""
    if positions == "rope":
        return (turned(q, at, base) @ np.conj(turned(k, place, base))).real
    if positions == "alibi":
        return q @ k - slope(head, heads) * (at - place) * np.sqrt(len(q))
    if positions == "relative":
        p, width = params["position"], params["q"]["w"].shape[0]
        angle = (at - place) * RELATIVE_BASE ** (-np.arange(0, width, 2) / width)
        r = np.concatenate([np.sin(angle), np.cos(angle)]) @ p["w"][:, head]
        return (q + p["content"][head]) @ k + (q + p["distance"][head]) @ r
    return q @ k


def attention(params, prefix, u: np.ndarray, window: int, sinks: int, positions: str, base: float, absolute: bool = False):
    """Tokens u[T, D] one after another, prefix (keys [M, G, K], values [M, G, V]): [T, D] behind the output projection."""
    q, k, v = (np.einsum("td,dhk->thk", u, params[name]["w"]) for name in "qkv")
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    content = params["position"]["content"] if positions == "relative" else np.zeros(q.shape[1:])
    cache, out = [], []
    for t in range(len(u)):
        cache = [*cache, (t, k[t], v[t])]
        if len(cache) > sinks + window:
            del cache[sinks]
        places = [token for token, _, _ in cache] if absolute else list(range(len(cache)))
        y = []
        for h in range(heads):
            g = h // group
            scores = [(q[t, h] + content[h]) @ key[g] for key in prefix[0]]
            scores += [score(params, q[t, h], places[-1], key[g], place, h, heads, positions, base)
                       for place, (_, key, _) in zip(places, cache, strict=True)]
            e = np.exp(np.array(scores) / np.sqrt(q.shape[2]))
            y.append(e @ np.array([value[g] for value in prefix[1]] + [value[g] for _, _, value in cache]) / e.sum())
        out.append(np.concatenate(y))
    return np.array(out) @ params["o"]["w"]
