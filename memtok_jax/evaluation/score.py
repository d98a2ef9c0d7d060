"""Score held-out data in one pass: the carry runs from batch to batch, and every target counts once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memtok_jax import data, sharding
from memtok_jax import params as P
from memtok_jax.compiler import options
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Model
from memtok_jax.training import losses

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

BINS_PER_OCTAVE = 2


class Score(NamedTuple):
    """The result of one pass over held-out data; sums are Python floats (float64).

    nats: sum of the loss, in nats if it is a cross-entropy. correct, count: right and scored targets.
    positions: (first, last, mean nats, count) of scored targets by their distance from the start of their stream, in
    bins that grow by a factor of sqrt(2); a bin without targets is left out.
    bytes: of the text that the scored targets stand for; for other data as `count`.
    """

    nats: float
    correct: int
    count: int
    positions: tuple[tuple[int, int, float, int], ...]
    bytes: int

    @property
    def loss(self) -> float:
        """Mean loss of a scored target."""
        return self.nats / max(self.count, 1)

    @property
    def accuracy(self) -> float:
        """Share of scored targets that have the highest logit."""
        return self.correct / max(self.count, 1)


def score_data(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, cfg: Any, rows: int, most: int = 0) -> Score:
    """Score held-out data in batches of `rows` rows, in calls as long as those of training, by the loss of training.

    cfg: the data, such as that of the experiment with another `sequence`. most: number of batches to score at most; 0 for all.
    """
    return score(params, islice(data.open_eval(cfg, rows), most or None), mesh, model=model, call_tokens=experiment.call_tokens,
                 loss=experiment.training.loss)


def score_batch(params: P.Tree, carry: P.Tree, inputs: jax.Array, targets: jax.Array, start_B: jax.Array, length_B: jax.Array,
                *, model: Model, call_tokens: int, loss: str, whole: bool):
    """Score one batch, `call_tokens` tokens per call.

    inputs: [B, T, ...]. start_B: bool[B], rows that begin a stream. length_B: i32[B], real tokens. loss: one of `losses.LOSSES`.
    whole: promise that all rows are full and stand at a border, see `Call`.
    Returns (carry, loss f32[B, T], correct bool[B, T]); positions that are not scored give 0 and False.
    """
    rows, total = targets.shape[:2]
    carry = P.reset(carry, start_B, model.init_state(params, rows), model.state_specs(rows))

    def one(carry, x):
        some, targets, begin = x
        call = Call(whole=True) if whole else Call(length=jnp.clip(length_B - begin, 0, call_tokens))
        outputs, carry, _ = model.run(params, carry, some, call)
        return carry, losses.scores(outputs, targets, loss)[:2]

    def cut(x):
        return jnp.moveaxis(x.reshape(rows, total // call_tokens, call_tokens, *x.shape[2:]), 1, 0)

    def join(x):
        return sharding.everywhere(jnp.moveaxis(x, 0, 1).reshape(rows, total))

    carry, scores = jax.lax.scan(one, carry, (cut(inputs), cut(targets), jnp.arange(0, total, call_tokens)))
    return carry, *map(join, scores)


@cache
def _compiled(platform: str):
    """`score_batch` with a donated carry. Made on first use, because asking for the platform at import would fix it too early."""
    return jax.jit(score_batch, static_argnames=("model", "call_tokens", "loss", "whole"), donate_argnames=("carry",),
                   compiler_options=options(platform))


class Scored(NamedTuple):
    """One batch with the loss of each position.

    batch: as `data.open_eval` gives it. nats: f32[B, T] and correct: bool[B, T], 0 and False where nothing is scored.
    age: i64[B], tokens of its stream that each row has read before.
    """

    batch: dict[str, np.ndarray]
    nats: np.ndarray
    correct: np.ndarray
    age: np.ndarray


def unchanged(carry: P.Tree) -> P.Tree:
    """The carry itself."""
    return carry


def score_batches(params: P.Tree, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, *, model: Model, call_tokens: int,
                  loss: str = "softmax", between: Callable[[P.Tree], P.Tree] = unchanged) -> Iterator[Scored]:
    """Score all batches, one after the other; the carry runs from batch to batch.

    batches: as `data.open_eval` gives them, all rows on every process; the first batch starts every row that it uses.
    mesh: where the parameters lie; the rows of a batch must divide over it. call_tokens: tokens per call of the model,
    which must divide the length of the batches. loss: one of `losses.LOSSES`. between: what becomes of the carry before each batch;
    rows that start a stream have a fresh one whatever it gives.
    A batch takes the faster path of whole calls if all its rows are full and have been full since their streams began.
    """
    carry, age, ragged, run = None, None, None, _compiled(jax.default_backend())
    for batch in batches:
        rows, total = batch["targets"].shape[:2]
        if carry is None:
            carry, age, ragged = _fresh_carry(params, model=model, rows=rows), np.zeros(rows, np.int64), np.zeros(rows, bool)
        age, ragged = np.where(batch["start"], 0, age), np.where(batch["start"], False, ragged) | (batch["length"] != total)
        whole = not ragged.any() and call_tokens % model.call_tokens == 0
        arrays = [sharding.place_rows(mesh, batch[name]) for name in ("inputs", "targets", "start", "length")]
        carry, nats_BT, correct_BT = run(params, between(carry), *arrays, model=model, call_tokens=call_tokens, loss=loss,
                                         whole=whole)
        yield Scored(batch, np.asarray(nats_BT), np.asarray(correct_BT), age)
        age = age + total


def score(params: P.Tree, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, *, model: Model, call_tokens: int,
          loss: str = "softmax") -> Score:
    """Totals over all batches; see `score_batches`."""
    tallies = _Tallies()
    for batch, nats, correct, age in score_batches(params, batches, mesh, model=model, call_tokens=call_tokens, loss=loss):
        scored = np.asarray(losses.is_scored(batch["targets"]))
        tallies.add(scored, nats, correct, age, int(batch["bytes"].sum()) if "bytes" in batch else int(scored.sum()))
    return tallies.result()


@partial(jax.jit, static_argnames=("model", "rows"))
def _fresh_carry(params: P.Tree, *, model: Model, rows: int) -> P.Tree:
    return sharding.constrain_tree(model.init_state(params, rows), model.state_specs(rows))


@partial(jax.jit, static_argnames=("model", "whole"))
def memory_statistics(params: P.Tree, inputs: jax.Array, length_B: jax.Array, *, model: Model,
                      whole: bool) -> dict[str, jax.Array]:
    """Statistics of the memories in one call from a fresh carry: name -> f32[], such as step sizes and forgetting.

    inputs: [B, T, ...]. length_B: i32[B], real tokens. whole: promise that all rows are full, see `Call`.
    """
    call = Call(whole=True) if whole else Call(length=length_B)
    return model.run(params, model.init_state(params, inputs.shape[0]), inputs, call)[2]


class _Tallies:
    """Running totals on the host in float64, because float32 sums over a million tokens lose digits."""

    def __init__(self):
        self._nats, self._correct, self._count, self._bytes = 0.0, 0, 0, 0
        self._by_bin: dict[int, list[float]] = {}

    def add(self, scored: np.ndarray, nats: np.ndarray, correct: np.ndarray, age: np.ndarray, size: int) -> None:
        """Add one batch.

        scored, correct: bool[B, T]. nats: f32[B, T]. age: i64[B], tokens that each row has read before. size: bytes of the scored.
        """
        self._bytes += size
        self._nats += float(nats.sum(dtype=np.float64))
        self._correct += int(correct.sum())
        self._count += int(scored.sum())
        places = (age[:, None] + np.arange(scored.shape[1])[None])[scored]
        bins = _bin(places)
        sums = np.bincount(bins, weights=nats[scored].astype(np.float64))
        for index, count in enumerate(np.bincount(bins)):
            if count:
                entry = self._by_bin.setdefault(index, [0.0, 0])
                entry[0], entry[1] = entry[0] + float(sums[index]), entry[1] + int(count)

    def result(self) -> Score:
        """The totals so far."""
        positions = tuple((*_edges(b), nats / count, count) for b, (nats, count) in sorted(self._by_bin.items()))
        return Score(self._nats, self._correct, self._count, positions, self._bytes)


def _bin(places: np.ndarray) -> np.ndarray:
    """Bin of a distance from the start of the stream (0, 1, ...): two bins for each doubling."""
    return np.floor(BINS_PER_OCTAVE * np.log2(places + 1)).astype(np.int64)


def _edges(index: int) -> tuple[int, int]:
    """First and last distance of a bin."""
    return math.ceil(2 ** (index / BINS_PER_OCTAVE)) - 1, math.ceil(2 ** ((index + 1) / BINS_PER_OCTAVE)) - 2
