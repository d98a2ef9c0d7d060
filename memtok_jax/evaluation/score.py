"""Score held-out data in one pass: the carry runs from batch to batch, and every target counts once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memtok_jax import params as pr
from memtok_jax import sharding
from memtok_jax.compiler import options
from memtok_jax.training import losses

BINS_PER_OCTAVE = 2


class Score(NamedTuple):
    """What one pass over held-out data gives; totals are Python floats (float64).

    positions: (first, last, mean nats, count) of scored targets by their distance from the start of their stream, in
    bins that grow by a factor of sqrt(2); a bin without targets is left out.
    """

    nats: float
    correct: int
    count: int
    positions: tuple[tuple[int, int, float, int], ...]

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats."""
        return self.nats / max(self.count, 1)

    @property
    def accuracy(self) -> float:
        """Share of scored targets that have the highest logit."""
        return self.correct / max(self.count, 1)


def score_batch(params: pr.Tree, carry: pr.Tree, inputs: jax.Array, targets_BT: jax.Array, start_B: jax.Array,
                length_B: jax.Array, *, functions: ModuleType, model: Any, segment: int):
    """Score one batch in segments. inputs: [B, T, ...].

    Returns (carry, nats[B, T], correct[B, T]); padding and targets of -100 give 0 and False.
    """
    rows, total = targets_BT.shape
    initial = functions.init_state(params, model, rows)
    carry = pr.reset(carry, start_B, initial, functions.state_specs(model, rows))
    cut = lambda x: jnp.moveaxis(x.reshape(rows, total // segment, segment, *x.shape[2:]), 1, 0)  # noqa: E731

    def one(carry, x):
        some, targets, begin = x
        logits, carry = functions.apply(params, carry, some, model, jnp.clip(length_B - begin, 0, segment))
        nats, correct, _ = losses.token_scores(logits, targets)
        return carry, (nats, correct)

    begins = jnp.arange(0, total, segment)
    carry, scores = jax.lax.scan(one, carry, (cut(inputs), cut(targets_BT), begins))
    join = lambda x: sharding.everywhere(jnp.moveaxis(x, 0, 1).reshape(rows, total))  # noqa: E731
    return carry, *map(join, scores)


@cache
def _compiled(platform: str):
    """`score_batch`, its carry donated. Made on first use: to ask for the platform at import would settle it too early."""
    return jax.jit(score_batch, static_argnames=("functions", "model", "segment"), donate_argnames=("carry",),
                   compiler_options=options(platform))


def score(params: pr.Tree, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, *, functions: ModuleType,
          model: Any, segment: int) -> Score:
    """Score all batches.

    batches: as `data.open_eval` gives them, all rows on every process; the first one starts every row that it uses.
    mesh: where the parameters lie; the rows of a batch must divide over it. segment: tokens per call of the model,
    which must divide the length of the batches.
    """
    carry, age, tallies, run = None, None, _Tallies(), _compiled(jax.default_backend())
    for batch in batches:
        rows, total = batch["targets"].shape
        if carry is None:
            carry, age = _fresh_carry(params, functions=functions, model=model, rows=rows), np.zeros(rows, np.int64)
        age = np.where(batch["start"], 0, age)
        arrays = [sharding.place_rows(mesh, batch[name]) for name in ("inputs", "targets", "start", "length")]
        carry, nats, correct = run(params, carry, *arrays, functions=functions, model=model, segment=segment)
        tallies.add(batch["targets"], np.asarray(nats), np.asarray(correct), age)
        age = age + total
    return tallies.result()


@partial(jax.jit, static_argnames=("functions", "model", "rows"))
def _fresh_carry(params: pr.Tree, *, functions: ModuleType, model: Any, rows: int) -> pr.Tree:
    return sharding.constrain_tree(functions.init_state(params, model, rows), functions.state_specs(model, rows))


@partial(jax.jit, static_argnames=("functions", "model"))
def memory_statistics(params: pr.Tree, inputs: jax.Array, length_B: jax.Array, *, functions: ModuleType,
                      model: Any) -> dict[str, jax.Array]:
    """What the memories do with one segment from a fresh carry: name -> f32[], such as step sizes and forgetting."""
    state = functions.init_state(params, model, inputs.shape[0])
    return functions.statistics(params, state, inputs, model, length_B)


class _Tallies:
    """Running totals on the host in float64: float32 sums over a million tokens lose digits."""

    def __init__(self):
        self._nats, self._correct, self._count = 0.0, 0, 0
        self._by_bin: dict[int, list[float]] = {}

    def add(self, targets: np.ndarray, nats: np.ndarray, correct: np.ndarray, age: np.ndarray) -> None:
        """Add one batch. age: i64[B], tokens of its stream that each row has seen before."""
        scored = targets != losses.IGNORE
        self._nats += float(nats.sum(dtype=np.float64))
        self._correct += int(correct.sum())
        self._count += int(scored.sum())
        places = (age[:, None] + np.arange(targets.shape[1])[None])[scored]
        bins = _bin(places)
        sums = np.bincount(bins, weights=nats[scored].astype(np.float64))
        for index, count in enumerate(np.bincount(bins)):
            if count:
                entry = self._by_bin.setdefault(index, [0.0, 0])
                entry[0], entry[1] = entry[0] + float(sums[index]), entry[1] + int(count)

    def result(self) -> Score:
        """The totals so far."""
        positions = tuple((*_edges(b), nats / count, count) for b, (nats, count) in sorted(self._by_bin.items()))
        return Score(self._nats, self._correct, self._count, positions)


def _bin(places: np.ndarray) -> np.ndarray:
    """Bin of a distance from the start of the stream (0, 1, ...): two bins for each doubling."""
    return np.floor(BINS_PER_OCTAVE * np.log2(places + 1)).astype(np.int64)


def _edges(index: int) -> tuple[int, int]:
    """First and last distance of a bin."""
    return math.ceil(2 ** (index / BINS_PER_OCTAVE)) - 1, math.ceil(2 ** ((index + 1) / BINS_PER_OCTAVE)) - 2
