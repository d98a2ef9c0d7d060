"""Answers that a model writes by itself: fed back by the rules, scored by symbol and by sample."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import data, sharding
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.data.task import TaskConfig, answer_right, answers
from memtok_jax.data.tasks import copy, mqar, settings_named
from memtok_jax.evaluation import greedy
from memtok_jax.evaluation.score import score
from memtok_jax.inference.compiles import compile_count
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.protocol import Model, bind
from memtok_jax.models.rmt import RmtConfig

COPY = copy.CopyConfig(length=3, symbols=5, repeats=2)
ANSWERS = copy.answers(COPY, 9)


@dataclass(frozen=True)
class Oracle:
    """Remembers the symbols before the start sign and writes them again and again, but after a wrong input only zeros."""

    length: int = 3
    wrong_at: int = -1  # the position whose prediction is wrong
    call_tokens: int = 1


def init_state(params, cfg: Oracle, batch: int):
    return jnp.zeros((batch, cfg.length), jnp.int32), jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), bool)


def token(state, token, cfg: Oracle):
    """One token: (state, what comes next)."""
    symbols, place, lost = state
    answer_at = place - cfg.length
    symbols = jnp.where(place[:, None] == jnp.arange(cfg.length)[None], token[:, None], symbols)
    right = jnp.take_along_axis(symbols, (answer_at % cfg.length)[:, None], 1)[:, 0]
    expected = jnp.take_along_axis(symbols, ((answer_at - 1) % cfg.length)[:, None], 1)[:, 0]
    lost = lost | ((answer_at > 0) & (token != expected))
    said = jnp.where(lost | (place == cfg.wrong_at), 0, right)
    return (symbols, place + 1, lost), jax.nn.one_hot(said, 8)


def specs(cfg: Oracle):
    return {}


def state_specs(cfg: Oracle, batch: int):
    return {}


@dataclass(frozen=True)
class OracleModel(Model):
    """Without the checks of parameters and carry."""

    def run(self, params, state, x, call):
        def step(before, given):
            after, logits = token(before, given[0], self.cfg)
            return P.select_rows(given[1], after, before, of_rows), logits

        of_rows = jax.tree.map(lambda leaf: P.StateSpec(leaf.shape, ("batch",) + (None,) * (leaf.ndim - 1), leaf.dtype), state)
        real = P.full_length(x) if call.length is None else call.length
        state, logits = jax.lax.scan(step, state, (x.T, jnp.arange(x.shape[1])[:, None] < real[None]))
        return jnp.moveaxis(logits, 0, 1), state, {}


def oracle(**options) -> Model:
    return OracleModel(sys.modules[__name__], Oracle(**options))


def batch(samples: int = 4):
    ids, labels = copy.sample(COPY, 9, samples, 0)
    return {"inputs": ids, "targets": labels, "length": np.full(samples, 9, np.int32)}


@pytest.mark.parametrize("wrong_at, rule, accuracy, exact", [
    (-1, "strict", 1.0, 1.0), (-1, "published", 1.0, 1.0),
    # The prediction at 4 is wrong and is the input at 5: positions 4 to 8 are lost of 3 to 8, unless 5 is shown.
    (4, "strict", 1 / 6, 0.0), (4, "published", 5 / 6, 0.0),
    (8, "strict", 5 / 6, 0.0), (5, "published", 2 / 6, 0.0), (5, "shown", 5 / 6, 0.0)])
def test_a_mistake_is_fed_back_unless_the_segment_begins_there(wrong_at, rule, accuracy, exact):
    found = greedy.generated({}, [batch()], ANSWERS, 5, rule, model=oracle(wrong_at=wrong_at))
    assert found == {"accuracy": pytest.approx(accuracy), "exact_match": exact}


def test_share_of_right_answers_if_the_task_names_one():
    """The answer is the last two symbols; one sample's first symbol and another's last one come out wrong."""
    def right(said, labels):
        return (said[:, -2:] == labels[:, -2:]).all(1)

    one = batch(4)
    one["targets"] = one["targets"].copy()
    one["targets"][0, 3] += 1
    one["targets"][1, 8] += 1
    found = greedy.generated({}, [one], ANSWERS, 5, "strict", model=oracle(), answer_right=right)
    assert found["answers"] == 0.75 and found["exact_match"] == 0.5
    assert answer_right(TaskConfig(COPY, 9)) is None and answer_right(TaskConfig(settings_named("equations"), 180))


def test_inputs_that_are_replaced():
    """The task says which inputs are answers."""
    for rule, places in (("strict", [4, 5, 6, 7, 8]), ("published", [4, 6, 7, 8]), ("shown", [])):
        np.testing.assert_array_equal(np.flatnonzero(greedy.fed_back(ANSWERS, 5, rule)), places)
    assert not mqar.answers(mqar.MqarConfig(pairs=2, tokens=32), 16).any(), "what follows a question is not its answer"
    with pytest.raises(UserError, match="rule is 'loose'; it must be one of strict, published, shown"):
        greedy.fed_back(ANSWERS, 4, "loose")


def test_rows_that_only_fill_a_batch_do_not_count():
    cfg = TaskConfig(COPY, sequence=9, eval_samples=3)
    found = greedy.generated({}, data.open_eval(cfg, 2), answers(cfg), 9, "strict", model=oracle())
    assert found == {"accuracy": 1.0, "exact_match": 1.0}


def test_whole_batches_are_scored_like_ragged_ones():
    """An empty row sends a batch down the general path; the numbers are the same."""
    model, mesh = bind(MODELS["mac"]), sharding.make_mesh(1, 1, 1)
    params, ids = model.init(jax.random.key(3)), np.random.default_rng(0).integers(10, size=(4, 9), dtype=np.int32)
    full = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "start": np.ones(4, bool), "length": np.array([8, 8, 8, 0], np.int32)}
    full["targets"] = np.where(full["length"][:, None] > 0, full["targets"], -100).astype(np.int32)
    three = {name: rows[:3] for name, rows in full.items()}
    with jax.set_mesh(mesh):
        general, whole = (score(params, [one], mesh, model=model, call_tokens=4) for one in (full, three))
    assert whole.nats == pytest.approx(general.nats, rel=1e-5) and whole[1:3] == general[1:3] and whole.count == 24


SHAPE = dict(vocabulary=10, width=16, head_dim=8, segment=4)
MODELS = {
    "mac": LanguageModelConfig(**SHAPE, layers=2, pattern=(MacConfig(memory=NeuralMemoryConfig(head_dim=8, chunk=4)),)),
    "xl": LanguageModelConfig(**SHAPE, layers=2, pattern=(CachedConfig(XlConfig(4)),)),
    "rmt": RmtConfig(LanguageModelConfig(**SHAPE, layers=1, pattern=(SegmentConfig(),)), tokens=2),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_writes_without_a_mistake_is_its_teacher_forced_prediction(name):
    """Taught with what it writes by itself, a model makes no mistake; and then what it writes is scored without one."""
    model, mesh = bind(MODELS[name]), sharding.make_mesh(1, 1, 1)
    params = model.init(jax.random.key(3))
    inputs = np.random.default_rng(0).integers(10, size=(3, 12), dtype=np.int32)
    back = np.arange(12) > 5
    said = greedy.answer(params, inputs, back, 4, model=model)
    taught = np.where(back, np.roll(said, 1, axis=1), inputs)
    targets = np.where(np.arange(12) >= 5, said, -100).astype(np.int32)
    one = {"inputs": taught, "targets": targets, "start": np.ones(3, bool), "length": np.full(3, 12, np.int32)}
    with jax.set_mesh(mesh):
        result = score(params, [one], mesh, model=model, call_tokens=4)
        assert (result.correct, result.count) == (21, 21)
        found = greedy.generated(params, [one], back, 4, "strict", model=model)
    assert found == {"accuracy": 1.0, "exact_match": 1.0}
    one["targets"] = np.where(np.arange(12) == 7, (said + 1) % 10, targets)
    assert greedy.generated(params, [one], back, 4, "strict", model=model)["exact_match"] == 0


@pytest.mark.parametrize("name", ["xl", "mac"])
def test_prompts_and_answers_of_all_lengths_share_their_programs(name, monkeypatch):
    """Three pieces or a part of one, with and without a rest: what one call says, and nothing is compiled after the first time."""
    monkeypatch.setattr(greedy, "PIECE", 8)
    monkeypatch.setattr(greedy, "WRITTEN", 3)
    model, rng = bind(MODELS[name]), np.random.default_rng(1)
    params = model.init(jax.random.key(3))
    whole = jax.jit(lambda ids, length: model.run(params, model.init_state(params, 2), ids, Call(length=length))[0].argmax(-1))
    counts = []
    for tokens, prompt in ((13, 7), (32, 25), (20, 8), (11, 2), (27, 26)):
        inputs, back = rng.integers(10, size=(2, tokens), dtype=np.int32), np.arange(tokens) >= prompt
        said = greedy.answer(params, inputs, back, 4, model=model)
        assert not counts or compile_count() == counts[-1]
        taught = np.zeros((2, 32), np.int32)
        taught[:, :tokens] = np.where(back, np.roll(said, 1, axis=1), inputs)
        np.testing.assert_array_equal(np.asarray(whole(taught, np.full(2, tokens, np.int32)))[:, :tokens], said)
        counts.append(compile_count())
