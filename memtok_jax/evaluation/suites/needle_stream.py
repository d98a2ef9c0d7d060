"""Needles in streams without an end: one needle in each, asked for from copies of the carry, with loss and memory on the way.

All streams are read side by side in equal blocks by one program, in constant memory. Because a carry is a value, a question is
answered by a copy of it and the stream does not notice: each needle is asked for at its end, and before at distances that double.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memtok_jax import params as P
from memtok_jax.analysis import figures
from memtok_jax.config import choose
from memtok_jax.data.tasks import haystack, needles
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.options import NeedleStreamConfig
from memtok_jax.evaluation.suites import ACCURACY, of_tasks
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Model
from memtok_jax.numerics import target_nats
from memtok_jax.training.machine import begin_peak, peak_megabytes

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = ACCURACY
PARTS = 8   # of the streams, reported one by one


class Streams(NamedTuple):
    """R endless texts with a needle in each.

    text: int[N], cyclic. offset, place: int[R], where each stream begins in the text, and where its needle stands in the stream.
    needle: int[R, n], its tokens, NEEDLE k1 .. k4 IS v1 .. vD END.
    """

    text: np.ndarray
    offset: np.ndarray
    place: np.ndarray
    needle: np.ndarray

    def tokens(self, first: int, last: int) -> np.ndarray:
        """int32[R, last - first]: tokens of these positions."""
        at, size = np.arange(first, last)[None], self.needle.shape[1]
        inside = at - self.place[:, None]
        hay = self.text[(self.offset[:, None] + at - size * (inside >= size)) % len(self.text)]
        planted = np.take_along_axis(self.needle, np.clip(inside, 0, size - 1), axis=1)
        return np.where((inside >= 0) & (inside < size), planted, hay).astype(np.int32)

    def question(self) -> np.ndarray:
        """int32[R, n - 1]: ASK k1 .. k4 IS v1 .. vD, the inputs of a question and its answer."""
        return np.concatenate([np.full((len(self.needle), 1), needles.ASK), self.needle[:, 1:-1]], axis=1).astype(np.int32)


def planted(cfg: needles.NeedlesConfig, options: NeedleStreamConfig, tokens: int, split: str) -> Streams:
    """Streams of `tokens` tokens, `options.repeats` for each depth; equal settings give equal streams."""
    rng, rows = np.random.default_rng(0), len(options.depths) * options.repeats
    text = needles.encode(needles.SENTENCE if options.kind == "passkey" else haystack.text(cfg.text, split))
    one = [np.array([needles.NEEDLE, *key, needles.IS, *needles.value(options.kind, rng), needles.END])
           for key in needles.keys(rows, rng)]
    room = tokens - needles.needle_tokens(options.kind)
    place = np.repeat([round(depth * room) for depth in options.depths], options.repeats)
    return Streams(text, rng.integers(len(text), size=rows), place, np.stack(one))


# ------------------------------------------------------------------------------------------------------------------- reading

@partial(jax.jit, static_argnames=("call_tokens", "model"), donate_argnames="carry")
def read_block(params: P.Tree, carry: P.Tree, inputs: jax.Array, targets: jax.Array, *, call_tokens: int,
               model: Model) -> tuple[P.Tree, jax.Array]:
    """Read a block i32[R, N call_tokens] of all streams: (carry, nats f32[R] of the targets)."""
    cut = lambda ids: jnp.moveaxis(ids.reshape(len(ids), -1, call_tokens), 1, 0)

    def call(carry, x):
        logits, carry, _ = model.run(params, carry, x[0], Call(whole=True))
        return carry, target_nats(logits, x[1])[0].astype(jnp.float32).sum(1)

    carry, nats = jax.lax.scan(call, carry, (cut(inputs), cut(targets)))
    return carry, nats.sum(0)


def asked(params: P.Tree, carry: P.Tree, streams: Streams, block: int, model: Model) -> np.ndarray:
    """bool[R, D + 1]: symbols of each value, and END, that a copy of the carry writes."""
    question, key = streams.question(), needles.KEY + 2
    said, carry = greedy.read_on(params, carry, question[:, :key], block=block, model=model)
    back = np.ones(question.shape[1] - key, bool)
    rest = greedy.written(params, carry, said[:, -1], question[:, key:], back, model=model)
    return np.concatenate([said[:, -1:], rest], axis=1) == streams.needle[:, key:]


def askings(tokens: int, block: int) -> list[int]:
    """Numbers of blocks after which all needles so far are asked for: 1, 2, 4, ... and the last."""
    blocks = tokens // block
    return sorted({2 ** n for n in range(blocks.bit_length()) if 2 ** n < blocks} | {blocks})


def streamed(params: P.Tree, streams: Streams, tokens: int, block: int, call_tokens: int, model: Model,
             say: Callable[[str], None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(points, parts): a record for each needle and time that it was asked for, and one for each part of the streams."""
    points, parts, rows = [], [], len(streams.place)
    blocks, when = tokens // block, askings(tokens, block)
    begin = lambda: greedy.fresh(params, rows=rows, model=model)
    read = lambda carry, ids: read_block(params, carry, ids[:, :-1], ids[:, 1:], call_tokens=call_tokens, model=model)
    # Compile everything first: what that takes in time and memory is not what streaming takes.
    asked(params, read(begin(), streams.tokens(0, block + 1))[0], streams, call_tokens, model)
    carry = begin()
    nats, begun, reported = np.zeros(rows), time.perf_counter(), 0
    begin_peak()
    for n in range(1, blocks + 1):
        carry, more = read(carry, streams.tokens((n - 1) * block, n * block + 1))
        nats += np.asarray(more, np.float64)
        if n * PARTS // blocks > (n - 1) * PARTS // blocks:
            seconds, new = time.perf_counter() - begun, (n - reported) * block
            parts.append({"tokens": n * block, "bits_per_token": float(nats.mean() / new / math.log(2)),
                          "tokens_per_second": rows * new / seconds, "peak_mb": peak_megabytes()})
            say(f"{n * block:,} tokens of {rows} streams: {parts[-1]['bits_per_token']:.3f} bits per token, "
                f"{parts[-1]['tokens_per_second']:,.0f} tokens/s, peak memory {parts[-1]['peak_mb']:.1f} MB")
            nats, begun, reported = np.zeros(rows), time.perf_counter(), n
            begin_peak()
        if n in when:
            paused = time.perf_counter()
            points += points_of(asked(params, carry, streams, call_tokens, model), streams, n * block)
            begun += time.perf_counter() - paused
    return points, parts


def points_of(right: np.ndarray, streams: Streams, at: int) -> list[dict[str, Any]]:
    """A record for each needle that stands in the first `at` tokens. right: bool[R, D + 1]; distance: tokens behind the needle."""
    behind = streams.place + streams.needle.shape[1]
    return [{"place": int(place), "distance": int(at - end), "at": at, "exact": bool(row.all()), "symbols": float(row.mean())}
            for place, end, row in zip(streams.place, behind, right, strict=True) if end <= at]


# --------------------------------------------------------------------------------------------------------------------- suite

def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Whole values by depth at the end of the streams and by distance on the way, bits per token, speed and memory by part.

    Options: `evaluation.needle_stream`. Raises UserError for a run on another task, and for a kind of needle it does not have.
    """
    of_tasks(experiment, "needle_stream", ("needles",))
    options, cfg, call_tokens = experiment.evaluation.needle_stream, experiment.data.task, experiment.call_tokens
    choose("evaluation.needle_stream.kind", options.kind, needles.KINDS)
    block = max(options.block // call_tokens, 1) * call_tokens
    tokens = max(options.tokens // block, 1) * block
    streams = planted(cfg, options, tokens, experiment.data.eval_split)
    say(f"{len(streams.place)} streams of {tokens:,} tokens in blocks of {block:,}, a needle of kind {options.kind} in each")
    points, parts = streamed(params, streams, tokens, block, call_tokens, model, say)
    ends = [point for point in points if point["at"] == tokens]
    by_depth = [[depth, *means(ends[n * options.repeats:(n + 1) * options.repeats])] for n, depth in enumerate(options.depths)]
    say("whole values (symbols) at the end, by depth: "
        + ", ".join(f"{depth:g}: {whole:.2f} ({symbols:.2f})" for depth, whole, symbols in by_depth))
    free = {"chance": needles.exact_chance(options.kind), "symbols": float(np.mean(needles.guesses(options.kind)))}
    yield "eval/exact", means(ends)[0]
    yield HEADLINE.name, means(ends)[1]
    yield "eval/bits_per_token", float(np.mean([part["bits_per_token"] for part in parts]))
    yield "eval/tokens_per_second", float(np.median([part["tokens_per_second"] for part in parts]))
    yield "eval/peak_mb", parts[-1]["peak_mb"]
    yield "eval/peak_growth", parts[-1]["peak_mb"] / parts[0]["peak_mb"] - 1
    yield "eval/carry_bytes", P.size_bytes(model.state_specs(1))
    yield from ((f"baseline/{name}", value) for name, value in free.items())
    yield "by_depth", by_depth
    yield "by_distance", by_distance(points)
    yield "parts", parts
    if figures.available():
        figures.panels(workdir / "needle_stream.png", {
            "whole values": {"model": list(zip(*[(depth, whole) for depth, whole, _ in by_depth], strict=True))},
            "symbols": {"model": list(zip(*[(depth, symbols) for depth, _, symbols in by_depth], strict=True))}},
            "depth of the needle", "share right", f"{workdir.name}: needles in streams of {tokens:,} tokens")


def means(points: list[dict[str, Any]]) -> tuple[float, float]:
    """(share of whole values, share of symbols)."""
    return float(np.mean([point["exact"] for point in points])), float(np.mean([point["symbols"] for point in points]))


def by_distance(points: list[dict[str, Any]]) -> list[tuple[int, float, float, int]]:
    """(distance, share of whole values, share of symbols, count) of bins that double; distance: the least of a bin, 2^n."""
    bins: dict[int, list[dict[str, Any]]] = {}
    for point in points:
        bins.setdefault(2 ** max(point["distance"], 1).bit_length() // 2, []).append(point)
    return [(distance, *means(found), len(found)) for distance, found in sorted(bins.items())]
