"""Documents side by side in one training row never meet: losses, gradients and carries equal those of each document alone.

A document begins at a call of its own; the tokens behind its end in its last call are not scored.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import MODELS
from neural_cases import assert_close, jit, random_params

from memtok_jax import sharding
from memtok_jax.config import UserError
from memtok_jax.data.errors import DataError
from memtok_jax.data.shards import ShardsConfig
from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.recall import RecallConfig
from memtok_jax.models.protocol import bind
from memtok_jax.training import losses, step
from memtok_jax.training.experiment import Experiment, OptimizerConfig, TrainingConfig

CALLS = (2, 1, 3)  # of each of three documents
STARTS = np.array([True, False, True, True, False, False])


def update(name: str, gradient: str = "full", batch: int = 1, microbatches: int = 1) -> step.Update:
    cfg = MODELS[name]
    model = bind(cfg)
    tokens = -(-4 // model.call_tokens) * model.call_tokens
    exp = Experiment(cfg, TaskConfig(RecallConfig(), sequence=6 * tokens), OptimizerConfig(0.01, 20, 2),
                     TrainingConfig(batch, microbatches, call_tokens=tokens, gradient=gradient))
    return step.update_of(exp, model)


def rows(one: step.Update, count: int, seed: int = 0) -> step.Batch:
    """Rows of six calls, each with three documents; the last three tokens of each document's last call are not scored."""
    rng, tokens = np.random.default_rng(seed), one.call_tokens
    ids = rng.integers(one.model.vocabulary, size=(count, 6 * tokens))
    targets = rng.integers(one.model.vocabulary, size=ids.shape)
    for end in np.cumsum(CALLS) * tokens:
        targets[:, end - 3:end] = losses.IGNORE
    return step.Batch(jnp.asarray(ids, jnp.int32), jnp.asarray(targets, jnp.int32), jnp.tile(STARTS, (count, 1)))


def used(one: step.Update, params, seed: int = 1):
    """A carry that a stream before has left: nothing of it may reach a document."""
    initial = one.model.init_state(params, one.batch)
    ids = np.random.default_rng(seed).integers(one.model.vocabulary, size=(one.batch, one.call_tokens))
    return jax.jit(lambda carry: one.model.run(params, carry, jnp.asarray(ids, jnp.int32), step.TRAINING_CALL)[1])(initial)


def scaled(grads, batch: step.Batch):
    """Gradients of the sum over the scored positions, not of their mean."""
    return jax.tree.map(lambda g: g * step.scored_positions(batch), grads)


def alone(one: step.Update, params, carry, batch: step.Batch):
    """Summed gradients and totals of the documents, one after the other, each as a row of its own; the carry after the last."""
    grads, nats, n = None, 0.0, 0
    for calls in CALLS:
        part = slice(n * one.call_tokens, (n + calls) * one.call_tokens)
        own = step.Batch(batch.inputs[:, part], batch.targets[:, part], jnp.ones(one.batch, bool))
        more, after, sums = step.batch_gradient(params, carry, own, one)
        more = scaled(more, own)
        grads = more if grads is None else jax.tree.map(jnp.add, grads, more)
        nats, n = nats + sums.nats, n + calls
    return grads, after, nats


def packed(one: step.Update, params, carry, batch: step.Batch):
    grads, after, sums = step.batch_gradient(params, carry, batch, one)
    return scaled(grads, batch), after, sums.nats


FAST, FORGETFUL = ("transformer_xl", "rmt"), ("segment", "memory_transformer")


@pytest.mark.parametrize("name, gradient", [
    *(pytest.param(name, "full", marks=() if name in FAST else pytest.mark.slow) for name in MODELS),
    pytest.param("transformer_xl", "rolling:1", marks=pytest.mark.slow), pytest.param("mac", "rolling:2", marks=pytest.mark.slow)])
def test_a_packed_row_equals_its_documents_alone(name, gradient):
    one = update(name, gradient)
    params = random_params(one.model.specs(), 0, jnp.float32)
    carry, batch = used(one, params), rows(one, 1)
    got = jit(lambda p, c: packed(one, p, c, batch))(params, carry)
    want = jit(lambda p, c: alone(one, p, c, batch))(params, carry)
    assert_close(got[0], want[0], 1e-4)
    assert_close(got[1], want[1], 1e-4)
    np.testing.assert_allclose(got[2], want[2], rtol=1e-6)
    other = jit(lambda p, c: packed(one, p, c, batch._replace(start=batch.start.at[:, 3].set(False))))(params, carry)
    difference = abs(float(other[2] - got[2])) / float(got[2])
    assert difference < 1e-6 if name in FORGETFUL else difference > 1e-4, "a border less matters"


def test_other_documents_change_no_bit():
    """If only the second document is scored, other tokens in the first and the third change no bit of any gradient."""
    one = update("transformer_xl")
    tokens, V = one.call_tokens, one.model.vocabulary
    batch = rows(one, 1)
    inside = (np.arange(6 * tokens) // tokens == 2)[None]
    ids = jnp.where(inside, batch.inputs % (V // 2), V // 2 + batch.inputs % (V // 2))
    batch = batch._replace(inputs=ids, targets=jnp.where(inside, batch.targets % (V // 2), losses.IGNORE))
    params = random_params(one.model.specs(), 0, jnp.float32)
    changed = batch._replace(inputs=jnp.where(inside, ids, V // 2 + (ids + 1) % (V // 2)))
    grads = jit(lambda p, inputs: step.batch_gradient(p, used(one, p), batch._replace(inputs=inputs), one)[0])
    jax.tree.map(np.testing.assert_array_equal, grads(params, batch.inputs), grads(params, changed.inputs))


@pytest.mark.parametrize("microbatches, mesh", [(2, (1, 1, 1)), (1, (4, 1, 2))])
def test_microbatches_and_a_mesh_change_nothing(microbatches, mesh):
    """Eight rows with borders of their own."""
    one = update("rmt", batch=8, microbatches=1)
    params = random_params(one.model.specs(), 0, jnp.float32)
    start = jnp.asarray(np.random.default_rng(2).uniform(size=(8, 6)) < 0.4)
    carry, batch = used(one, params), rows(one, 8)._replace(start=start)
    want = jit(lambda p, c: step.batch_gradient(p, c, batch, one))(params, carry)
    with jax.set_mesh(sharding.make_mesh(*mesh)):
        got = jax.jit(lambda p, c: step.batch_gradient(p, c, batch, replace(one, microbatches=microbatches)))(params, carry)
    assert_close(jax.device_get(got[:2]), want[:2], 1e-4)


def test_borders_inside_a_call_are_refused():
    shards = ShardsConfig("corpus", 6 * 8, piece=8)
    with pytest.raises(UserError, match="every 8 tokens of a row, which does not divide into calls of 16"):
        Experiment(MODELS["mac"], shards, OptimizerConfig(0.01, 20, 2), TrainingConfig(1, call_tokens=16))
    with pytest.raises(DataError, match="data.piece=7 does not divide data.sequence=48"):
        ShardsConfig("corpus", 48, piece=7)


def test_starts_are_spread_over_calls():
    assert step.starts(jnp.array([True, False]), 3).T.tolist() == [[True, False, False], [False, False, False]]
    parts = jnp.array([[False, True], [True, True]])
    assert step.starts(parts, 4).T.tolist() == [[False, False, True, False], [True, False, True, False]]
