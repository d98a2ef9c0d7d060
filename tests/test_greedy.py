"""Answers that a model writes by itself: what is fed back, and what comes of one mistake."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import data
from memtok_jax.data.config import DataConfig
from memtok_jax.data.tasks import copy, mqar
from memtok_jax.evaluation import greedy

COPY = copy.CopyConfig(length=3, symbols=5, repeats=2)


@dataclass(frozen=True)
class Oracle:
    """Remembers the symbols before the start sign and writes them again and again, but after a wrong input only zeros."""

    length: int = 3
    wrong_at: int = -1  # the position whose prediction is wrong


def init_state(params, cfg: Oracle, batch: int):
    return jnp.zeros((batch, cfg.length), jnp.int32), jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), bool)


def apply(params, state, ids, cfg: Oracle):
    """One token a call."""
    symbols, place, lost = state
    token, answer_at = ids[:, 0], place - cfg.length
    symbols = jnp.where(place[:, None] == jnp.arange(cfg.length)[None], token[:, None], symbols)
    right = jnp.take_along_axis(symbols, (answer_at % cfg.length)[:, None], 1)[:, 0]
    expected = jnp.take_along_axis(symbols, ((answer_at - 1) % cfg.length)[:, None], 1)[:, 0]
    lost = lost | ((answer_at > 0) & (token != expected))
    said = jnp.where(lost | (place == cfg.wrong_at), 0, right)
    return jax.nn.one_hot(said, 8)[:, None], (symbols, place + 1, lost)


FUNCTIONS = sys.modules[__name__]


def batch(samples: int = 4):
    ids, labels, _ = copy.sample(COPY, 9, samples, 0)
    return {"inputs": ids, "targets": labels, "length": np.full(samples, 9, np.int32)}


@pytest.mark.parametrize("wrong_at, rule, accuracy, exact", [
    (-1, "strict", 1.0, 1.0), (-1, "published", 1.0, 1.0),
    # The prediction at 4 is wrong and is the input at 5: positions 4 to 8 are lost of 3 to 8, unless 5 is shown.
    (4, "strict", 1 / 6, 0.0), (4, "published", 5 / 6, 0.0),
    (8, "strict", 5 / 6, 0.0), (5, "published", 2 / 6, 0.0), (5, "shown", 5 / 6, 0.0)])
def test_a_mistake_is_fed_back_unless_the_segment_begins_there(wrong_at, rule, accuracy, exact):
    found = greedy.generated({}, [batch()], 5, rule, functions=FUNCTIONS, model=Oracle(wrong_at=wrong_at))
    assert found == {"accuracy": pytest.approx(accuracy), "exact_match": exact}


def test_share_of_right_answers_where_the_task_names_one():
    """The answer is the last two symbols; one sample's first symbol and another's last one come out wrong."""
    right = lambda said, labels: (said[:, -2:] == labels[:, -2:]).all(1)
    one = batch(4)
    one["targets"] = one["targets"].copy()
    one["targets"][0, 3] += 1
    one["targets"][1, 8] += 1
    found = greedy.generated({}, [one], 5, "strict", functions=FUNCTIONS, model=Oracle(), answer_right=right)
    assert found["answers"] == 0.75 and found["exact_match"] == 0.5
    assert data.answer_right(DataConfig("task:copy")) is None and data.answer_right(DataConfig("task:equations", sequence=180))


def test_inputs_that_are_replaced():
    ids, labels, _ = copy.sample(COPY, 9, 2, 0)
    places = lambda rule: np.flatnonzero(greedy.fed_back(ids, labels, 5, rule).all(0))
    np.testing.assert_array_equal(places("strict"), [4, 5, 6, 7, 8])
    np.testing.assert_array_equal(places("published"), [4, 6, 7, 8])
    np.testing.assert_array_equal(places("shown"), [])
    ids, labels, _ = mqar.sample(mqar.MqarConfig(pairs=2, tokens=32), 16, 50, 0)
    assert not greedy.fed_back(ids, labels, 4, "strict").any(), "what follows a question is not its answer"
    with pytest.raises(ValueError, match="rule='loose' must be one of 'strict', 'published', 'shown'"):
        greedy.fed_back(ids, labels, 4, "loose")


def test_rows_that_only_fill_a_batch_do_not_count():
    held_out = data.open_eval(DataConfig("task:copy", sequence=9, copy=COPY, eval_samples=3), 2)
    found = greedy.generated({}, held_out, 9, "strict", functions=FUNCTIONS, model=Oracle())
    assert found == {"accuracy": 1.0, "exact_match": 1.0}
