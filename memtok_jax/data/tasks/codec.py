"""Text tasks as tokens: bytes, or the pieces of a tokenizer, with a sign that ends an answer and one that fills a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from memtok_jax.data import tokenizers


class Codec(NamedTuple):
    """vocabulary: number of tokens. end: id behind an answer. fill: id in front of a short row. ask: id in front of an answer.

    encode: str -> int32[n]. decode: ids -> str.
    """

    vocabulary: int
    end: int
    fill: int
    ask: int
    encode: Callable[[str], np.ndarray]
    decode: Callable[[Any], str]


def codec(tokenizer: str) -> Codec:
    """The codec of a tokenizer file; "": bytes, of which 0 ends an answer, 1 asks for one, and a line end fills.

    A tokenizer asks by the first token of "GEN", ends by its end of a text, and fills with its beginning of one.
    """
    if tokenizer:
        t = tokenizers.load(tokenizer)
        return Codec(t.vocabulary, t.last, t.first, int(t.encode("GEN")[0]), t.encode, t.decode)
    encode = lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32)   # noqa: E731
    decode = lambda ids: bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")   # noqa: E731
    return Codec(256, 0, 10, 1, encode, decode)


def names(tokenizer: str) -> tuple[str, ...]:
    """A readable name of each token."""
    c = codec(tokenizer)
    return tuple(c.decode([i]) or f"<{i}>" for i in range(c.vocabulary))
