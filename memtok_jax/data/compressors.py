"""Text baselines that need no training run: compressors and a count model on the bytes that a network is scored on.

A network that does not beat these lines has shown nothing. All text numbers are bits per byte.
"""

from __future__ import annotations

import bz2
import lzma
import zlib

import numpy as np

COUNT_MODEL_BYTES = 32_000_000  # training bytes the count model reads at most: it sorts them, which takes memory


def zlib_bits_per_byte(text: bytes) -> float:
    """Size under zlib, level 9."""
    return _rate(zlib.compress(text, 9), text)


def bz2_bits_per_byte(text: bytes) -> float:
    """Size under bz2, level 9."""
    return _rate(bz2.compress(text, 9), text)


def xz_bits_per_byte(text: bytes) -> float:
    """Size under xz, level 9 with the extreme preset: never larger than plain `xz -9` by more than its header."""
    return _rate(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME), text)


def _rate(packed: bytes, text: bytes) -> float:
    if not text:
        raise ValueError("there are no bits per byte of an empty text")
    return 8 * len(packed) / len(text)


# ---------------------------------------------------------------------------------------------------- count model

def count_model_bits_per_byte(train: bytes, test: bytes, order: int = 3) -> float:
    """Code length of `test` under byte counts of `train`, contexts of up to `order` bytes.

    Witten and Bell's smoothing: a context h seen n(h) times with d(h) different successors predicts
    p(c | h) = (n(h c) + d(h) p(c | shorter h)) / (n(h) + d(h)); the shortest context backs off to 1/256. The model is
    not updated on `test`. Both texts are read behind `order` newlines, so that every byte is scored.
    order: 0 to 7.
    """
    if not 0 <= order <= 7:
        raise ValueError(f"the order of the count model must lie in 0 .. 7, got {order}")
    if not test:
        raise ValueError("there are no bits per byte of an empty text")
    p = np.full(len(test), 1 / 256)
    for k in range(order + 1):
        grams, counts = np.unique(_grams(train, order, k), return_counts=True)
        contexts, first = np.unique(grams >> np.uint8(8), return_index=True)
        totals = np.add.reduceat(counts, first) if len(first) else counts
        kinds = np.diff(np.append(first, len(grams)))
        wanted = _grams(test, order, k)
        n_hc = _look_up(grams, counts, wanted)
        n_h, d_h = (_look_up(contexts, values, wanted >> np.uint8(8)) for values in (totals, kinds))
        known = n_h > 0
        p[known] = ((n_hc + d_h * p) / np.maximum(n_h + d_h, 1))[known]
    return float(-np.log2(p).mean())


def _grams(text: bytes, order: int, k: int) -> np.ndarray:
    """For each byte of the text: that byte and the k before it as one number, the byte itself lowest."""
    data = np.frombuffer(b"\n" * order + text, np.uint8)
    out = np.zeros(len(text), np.uint32 if k < 4 else np.uint64)
    for back in range(k, -1, -1):
        out = (out << np.uint8(8)) | data[order - back:len(data) - back]
    return out


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] == wanted, 0 where there is no such key. keys are sorted."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def text_baselines(train: bytes, test: bytes, order: int = 3) -> dict[str, float]:
    """Bits per byte of the held-out bytes by name.

    The count model reads at most COUNT_MODEL_BYTES of `train`; its name says how many megabytes where it read less
    than all.
    """
    used = train[:COUNT_MODEL_BYTES]
    name = f"order-{order} counts" + (f" ({len(used) / 1e6:.0f} MB of train)" if len(used) < len(train) else "")
    return {
        "zlib-9": zlib_bits_per_byte(test),
        "bz2-9": bz2_bits_per_byte(test),
        "xz-9e": xz_bits_per_byte(test),
        name: count_model_bits_per_byte(used, test, order),
    }
