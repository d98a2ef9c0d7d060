"""Which tokens of a stream repeat an identifier or a name, and how far back it stood before.

A memory can only help where the same thing came before and attention does not see it any more. Such tokens are few, and a mean
over all tokens hides them (arXiv 2109.09115 scores copies of tokens and of contexts apart).
"""

from __future__ import annotations

import re

import numpy as np

OTHER, NEW, NEAR, FAR = range(4)
NAMES = {NEW: "new words", NEAR: "near copies", FAR: "far copies"}
WORD = re.compile(rb"[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]{3,}")  # four bytes or more; UTF-8 letters are bytes above 0x7f


def of_bytes(targets_n: np.ndarray, far: int) -> np.ndarray:
    """Class of each byte of a stream, i8[n]: OTHER outside words, else that of its word.

    A word is an identifier or a word of four bytes or more. It is NEW if it did not stand in this stream before, FAR if its last
    byte before was more than `far` bytes back from its first byte now, else NEAR. A word that is cut by the front or the end of the
    stream is a word as it stands. targets: i32[n]; a value outside 0 .. 255 belongs to no word.
    """
    text = np.where((targets_n >= 0) & (targets_n < 256), targets_n, 0x20).astype(np.uint8).tobytes()
    out, last = np.full(len(text), OTHER, np.int8), {}
    for match in WORD.finditer(text):
        begin, end = match.span()
        out[begin:end] = _kind(begin, last.get(match[0]), far)
        last[match[0]] = end - 1
    return out


def of_tokens(targets_n: np.ndarray, far: int) -> np.ndarray:
    """As `of_bytes` where a token is a piece of a word: every token is a word of its own, i8[n]."""
    out, last = np.full(len(targets_n), OTHER, np.int8), {}
    for place, token in enumerate(map(int, targets_n)):
        if token >= 0:
            out[place] = _kind(place, last.get(token), far)
            last[token] = place
    return out


def _kind(place: int, before: int | None, far: int) -> int:
    """before: where the same word ended last, None if nowhere."""
    if before is None:
        return NEW
    return FAR if place - before > far else NEAR
