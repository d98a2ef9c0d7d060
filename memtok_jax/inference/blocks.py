"""A prompt of any length in blocks of a few lengths, so that few programs serve all prompts."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

BLOCKS = (16, 128, 512)   # block lengths for a model without segments and chunks
_DISPATCH_TOKENS = 32     # one more call costs about as much as this many tokens of padding


def blocks_for(call_tokens: int) -> tuple[int, ...]:
    """Block lengths for a model whose whole calls are multiples of `call_tokens`.

    Blocks longer than a whole call are rounded up to a multiple of it, so that long prompts take the faster path; shorter ones
    serve short prompts and the end of long ones.
    """
    rounded = {n if n < call_tokens else -(-n // call_tokens) * call_tokens for n in BLOCKS}
    return tuple(sorted(rounded | ({call_tokens} if max(rounded) < call_tokens else set())))


@functools.lru_cache(maxsize=4096)
def plan_blocks(tokens: int, blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Block lengths, longest first, that hold `tokens` tokens with the least padding and calls.

    Only the last block is padded. One more call counts as much as a few tokens of padding.
    """
    longest = max(blocks)
    whole, rest = divmod(tokens, longest)
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for n in range(1, rest + 1):
        best.append(min((best[max(n - b, 0)][0] + b + _DISPATCH_TOKENS, (*best[max(n - b, 0)][1], b)) for b in blocks))
    return (longest,) * whole + tuple(sorted(best[rest][1], reverse=True))


def cut_blocks(ids_BT: np.ndarray, length: np.ndarray,
               blocks: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut host tokens into blocks to append one after the other.

    ids_BT: int[B, T]. length: int[B], the real tokens of each row, which stand first.
    Yields (ids i32[B, block], length i32[B]) with block taken from `blocks`.
    """
    first = 0
    for size in plan_blocks(int(length.max(initial=0)), blocks):
        piece = np.zeros((ids_BT.shape[0], size), np.int32)
        real = ids_BT[:, first:first + size]
        piece[:, :real.shape[1]] = real
        yield piece, np.clip(length - first, 0, size).astype(np.int32)
        first += size
