"""Random weights of decoders that both sides of a comparison draw for themselves, so that files hold results only.

Needs NumPy only.

"default" is what a new model has: small matrices, norms and biases that do nothing. It shows the epsilon of norms. "redrawn" has
nothing at its initial value: it shows everything else, because attention is far from uniform.
"""

from __future__ import annotations

import zlib

import numpy as np

INITS = ("default", "redrawn")


def weights(shapes: dict[str, tuple[int, ...]], init: str, offset: bool, seed: int) -> dict[str, np.ndarray]:
    """Name -> float32 array, each from a generator of its own. offset: whether norms multiply by 1 + their weight."""
    return {name: _one(name, tuple(shape), init == "redrawn", offset, np.random.RandomState([seed, zlib.crc32(name.encode())]))
            for name, shape in sorted(shapes.items())}


def _one(name: str, shape: tuple[int, ...], redrawn: bool, offset: bool, random: np.random.RandomState) -> np.ndarray:
    noise = random.standard_normal(shape)
    if len(shape) == 1:
        begin = 0.0 if name.endswith("bias") or offset else 1.0
        return (begin + 0.3 * redrawn * noise).astype(np.float32)
    words = "embed_tokens" in name or name.endswith(("wte.weight", "wpe.weight", "embed_in.weight", "word_embeddings.weight"))
    size = 0.02 if not redrawn else 1.2 if words else 1.2 / shape[1] ** 0.5
    return (size * noise).astype(np.float32)


def ids(batch: int, tokens: int, vocabulary: int, seed: int) -> np.ndarray:
    """int64[batch, tokens]."""
    return np.random.RandomState([seed, tokens]).randint(0, vocabulary, (batch, tokens))
