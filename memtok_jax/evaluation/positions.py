"""Loss by position in streams of equal length, and differences between two ways to score the same streams.

A mean over a whole text hides what a memory does: it cannot help before it has read something. So the same streams, all of n
tokens, are scored at every position. Differences are taken within a stream and then summed, and intervals come from drawing
streams, because the tokens of one stream are not independent.

Letters: S streams, n tokens of each, J bins of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.data.tasks.scoring import IGNORED
from memtok_jax.evaluation.score import BINS_PER_OCTAVE, score_batches, unchanged
from memtok_jax.models.protocol import Model


class Streams(NamedTuple):
    """S streams of n tokens. inputs, targets: i32[S, n]; a target of -100 is not scored."""

    inputs: np.ndarray
    targets: np.ndarray


def held_out_streams(cfg: Any, tokens: int, most: int = 0, seed: int = 0) -> Streams:
    """Streams of `tokens` tokens out of the held-out texts, none of which overlap.

    Each text gives as many streams as it holds. What is left of a text is divided at random between its front and its end, so that
    streams do not all begin where a text does. most: streams at most, spread over all; 0: all.
    Raises UserError if no text is that long.
    """
    inputs, targets, rng = [], [], np.random.default_rng(seed)
    for read, wanted in _texts(cfg):
        count, left = divmod(len(wanted), tokens)
        first = int(rng.integers(left + 1))
        for part, out in ((read, inputs), (wanted, targets)):
            out += list(part[first:first + count * tokens].reshape(count, tokens))
    if not inputs:
        raise UserError(f"no held-out text has {tokens:,} tokens (evaluation.positions.tokens); lower it, or raise data.eval_bytes")
    chosen = np.linspace(0, len(inputs) - 1, most or len(inputs)).round().astype(int) if most < len(inputs) else ...
    return Streams(np.stack(inputs)[chosen], np.stack(targets)[chosen])


def _texts(cfg: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) of each held-out text, i32[tokens]."""
    parts: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in data.open_eval(cfg, 1):
        length = int(batch["length"][0])
        parts.setdefault(int(batch["document"][0]), []).append((batch["inputs"][0, :length], batch["targets"][0, :length]))
    for pieces in parts.values():
        yield tuple(np.concatenate(both) for both in zip(*pieces, strict=True))


def cut(streams: Streams, tokens: int) -> Streams:
    """Each stream in pieces of `tokens` tokens, which are streams of their own: what is scored when the carry is reset.

    The last piece of a stream may be filled up with targets that are not scored.
    """
    missing = -streams.inputs.shape[1] % tokens
    pad = lambda x, value: np.pad(x, ((0, 0), (0, missing)), constant_values=value).reshape(-1, tokens)
    return Streams(pad(streams.inputs, 0), pad(streams.targets, IGNORED))


def losses(params: P.Tree, streams: Streams, mesh: Mesh, *, model: Model, call_tokens: int, batch_tokens: int, rows: int,
           reset: int = 0, between: Callable[[P.Tree], P.Tree] = unchanged) -> np.ndarray:
    """Loss of each token in nats, f32[S, n]; 0 where nothing is scored.

    call_tokens: tokens of a call. batch_tokens: tokens that are scored at once. rows: streams side by side. reset: the carry is
    reset every this many tokens; 0: never inside a stream. between: what becomes of the carry every `batch_tokens` tokens.
    """
    if reset:
        own = losses(params, cut(streams, reset), mesh, model=model, call_tokens=min(call_tokens, reset), batch_tokens=reset,
                     rows=rows)
        return own.reshape(len(streams.inputs), -1)[:, :streams.inputs.shape[1]]
    # A batch holds whole calls; the rest of the last one is padding.
    batch_tokens = -(-min(batch_tokens, streams.inputs.shape[1]) // call_tokens) * call_tokens
    rows = min(rows, len(streams.inputs))
    batches = _batches(streams, rows, batch_tokens)
    found = [one.nats for one in score_batches(params, batches, mesh, model=model, call_tokens=call_tokens, between=between)]
    steps = -(-streams.inputs.shape[1] // batch_tokens)
    groups = [np.concatenate(found[first:first + steps], axis=1) for first in range(0, len(found), steps)]
    return np.concatenate(groups)[:len(streams.inputs), :streams.inputs.shape[1]]


def _batches(streams: Streams, rows: int, tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches as `data.open_eval` gives them: `rows` streams from their first to their last token, then the next ones."""
    count, total = streams.inputs.shape
    for first in range(0, count, rows):
        # Rows that only fill a batch repeat others, unscored, so that all are full and take the faster path.
        number = first + np.arange(rows)
        inputs, targets = (x[number % count] for x in streams)
        targets = np.where(number[:, None] < count, targets, IGNORED)
        for begin in range(0, total, tokens):
            size = min(tokens, total - begin)
            fill = lambda x, value: np.pad(x[:, begin:begin + tokens], ((0, 0), (0, tokens - size)),  # noqa: B023
                                           constant_values=value)
            yield {"inputs": fill(inputs, 0), "targets": fill(targets, IGNORED), "start": np.full(rows, begin == 0),
                   "length": np.full(rows, size, np.int32)}


# ------------------------------------------------------------------------------------------------------------------- statistics

class Mean(NamedTuple):
    """A mean over tokens, and the interval that holds the middle 95 % of the means over drawn streams."""

    value: float
    low: float
    high: float


def edges(tokens: int, first: int) -> list[int]:
    """Borders of bins: 0, `first`, then growing by a factor of sqrt(2), then `tokens`."""
    out = [0, min(first, tokens)]
    while out[-1] < tokens:
        out.append(min(max(round(out[-1] * 2 ** (1 / BINS_PER_OCTAVE)), out[-1] + 1), tokens))
    return out


def draw_streams(streams: int, draws: int, seed: int = 0) -> np.ndarray:
    """How often each stream is drawn, i64[draws, S]: S times with replacement in each draw."""
    return np.random.default_rng(seed).multinomial(streams, np.full(streams, 1 / streams), size=draws)


def mean_of(values_Sn: np.ndarray, counted_Sn: np.ndarray, drawn: np.ndarray) -> Mean:
    """Mean of the counted values over all streams together, with a bootstrap interval over streams.

    counted: bool[S, n]. drawn: of `draw_streams`. The interval is NaN if only one stream has anything counted.
    """
    sums = np.where(counted_Sn, values_Sn, 0).sum(1, dtype=np.float64)
    counts = counted_Sn.sum(1)
    if (counts > 0).sum() < 2:
        return Mean(float(sums.sum() / max(counts.sum(), 1)), float("nan"), float("nan"))
    of = drawn @ counts
    means = (drawn @ sums)[of > 0] / of[of > 0]
    return Mean(float(sums.sum() / counts.sum()), *map(float, np.percentile(means, (2.5, 97.5))))
