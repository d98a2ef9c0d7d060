"""Kinds of targets: numbers to predict are trained and scored through the same losses as classes; suites are found by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import config, data, sharding
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.data.text import TextConfig
from memtok_jax.evaluation import score as scoring
from memtok_jax.evaluation.suites import names, suite_named
from memtok_jax.models.protocol import Model
from memtok_jax.training import losses

# ------------------------------------------------------------------------------ a source of numbers, as a user would write it

@dataclass(frozen=True)
class SeriesConfig:
    """Two numbers from three, by a fixed matrix."""

    source: str = "series"
    sequence: int = 4
    lengths: tuple[int, ...] = ()


MATRIX = np.array([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]], np.float32)
SUITE, UNIT = "images", "points"


class Batches(Sequence):
    def __init__(self, cfg, batch):
        self._shape = (batch, cfg.sequence, 3)

    def __len__(self):
        return 2

    def __getitem__(self, step):
        if step >= 2:
            raise IndexError(step)
        x = np.random.default_rng(step).normal(size=self._shape).astype(np.float32)
        targets = x @ MATRIX
        targets[0, -1] = np.nan        # one point is not scored
        ones = np.ones(len(x), np.int32)
        return {"inputs": x, "targets": targets, "start": ones > 0, "length": ones * x.shape[1], "document": ones}


def open_train(cfg, batch, process_index, process_count):
    return iter(Batches(cfg, batch))


def open_eval(cfg, batch, process_index, process_count):
    return Batches(cfg, batch)


def targets(cfg):
    return "values"


# ------------------------------------------------------------------------------------------------- a model without a memory

@dataclass(frozen=True)
class LinearConfig:
    call_tokens: int = 1


def specs(cfg):
    return {"w": P.ParamSpec((3, 2), (None, None), P.fan_in())}


def state_specs(cfg, batch):
    return {}


def init_state(params, cfg, batch):
    return {}


def run(params, state, x, cfg, call):
    return x @ params["w"], state, {}


HERE, MODEL = sys.modules[__name__], Model(sys.modules[__name__], LinearConfig())


def test_numbers_are_trained_and_scored():
    """Gradient descent through `losses.totals` finds the matrix, and the score is the mean squared error of scored points."""
    cfg = SeriesConfig()
    assert data.source_of(cfg) is HERE and data.targets(cfg) == "values" and data.unit(cfg) == "points"
    batches = data.open_eval(cfg, 4)

    @jax.jit
    def step(params, batch):
        def mean(params):
            y, _, _ = MODEL.run(params, {}, batch["inputs"])
            sums = losses.totals(y, batch["targets"], "squared")
            return sums.nats / sums.count
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(mean)(params))

    params = {"w": jnp.zeros((3, 2))}
    mesh = sharding.make_mesh(1, 1, 1)
    scored = lambda params: scoring.score(params, batches, mesh, model=MODEL, call_tokens=2, loss="squared")  # noqa: E731
    with jax.set_mesh(mesh):
        before = scored(params)
        for n in range(100):
            params = step(params, batches[n % 2])
        after = scored(params)
    expected = np.nanmean([np.square(b["targets"]) for b in batches])
    assert before.loss == pytest.approx(expected, rel=1e-5) and before.count == 2 * 15 and before.correct == 0
    np.testing.assert_allclose(params["w"], MATRIX, atol=1e-3)
    assert after.loss < 1e-6


@pytest.mark.parametrize("call_tokens, expected", [(1, [True, True, False, False, True]), (3, [False] * 5)])
def test_full_batches_are_whole_calls_until_a_row_ends(monkeypatch, call_tokens, expected):
    """A row that has ended early stands at no border until it starts again; calls of two tokens fit no unit of three."""
    found = []

    def recorded(*args, whole, **options):
        found.append(whole)
        return scoring.score_batch(*args, whole=whole, **options)

    monkeypatch.setattr(scoring, "_compiled", lambda platform: recorded)
    full, new = np.full(4, 4), np.ones(4, bool)
    lengths, starts = (full, full, full - np.eye(4, dtype=int)[0], full, full), (new, ~new, ~new, ~new, new)
    batches = [{**Batches(SeriesConfig(), 4)[0], "length": n.astype(np.int32), "start": s}
               for n, s in zip(lengths, starts, strict=True)]
    mesh, model = sharding.make_mesh(1, 1, 1), Model(HERE, LinearConfig(call_tokens))
    with jax.set_mesh(mesh):
        scoring.score(model.init(jax.random.key(0)), batches, mesh, model=model, call_tokens=2, loss="squared")
    assert found == expected


def test_squared_error_of_numbers_that_are_not_all_there():
    outputs = jnp.array([[[1.0, 2.0, 9.0], [0.0, 0.0, 9.0]]])
    sums = losses.totals(outputs, jnp.array([[[0.0, 4.0], [jnp.nan, 1.0]]]), "squared")
    assert (float(sums.nats), float(sums.count), float(sums.correct)) == (2.5, 1.0, 0.0)
    gradient = jax.grad(lambda y: losses.totals(y, jnp.full((1, 2, 2), jnp.nan), "squared").nats)(outputs)
    assert (gradient == 0).all(), "what is not scored has no gradient, and no NaN"


def test_the_loss_must_suit_the_targets():
    with pytest.raises(UserError, match="training.loss is 'squared', which is for values; the targets of task:recall are tokens"):
        config.load("recall", ("training.loss=squared",))


def test_stages_hold_out_the_same_text():
    """With another fraction, an early stage would train on what a later one holds out."""
    with pytest.raises(UserError, match="a stage cannot change training.curriculum or training.start_from or data.held_out"):
        config.load("titans_mac", ("training.curriculum=data.held_out=0.01",))


def test_suites_are_found_by_their_files():
    assert {"dynamic", "images", "needles", "positions", "task", "text"} <= set(names())
    for name in names():
        assert suite_named(name).HEADLINE.name.startswith("eval/") and callable(suite_named(name).run)
    assert data.suite(TextConfig()) == "text"
    with pytest.raises(UserError, match="suite is 'taks'; it must be one of .*images.* task, text; did you mean 'task'"):
        suite_named("taks")
