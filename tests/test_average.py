"""The average of parameters: its mathematics, on any mesh, through kills, and where it is used."""

from __future__ import annotations

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_run import experiment

from memtok_jax import config, data
from memtok_jax.config import UserError
from memtok_jax.evaluation import saved_model
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.models.protocol import bind
from memtok_jax.training import average, metrics, step
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.run import make_mesh, train

EMA = ("optimizer.ema=0.8", "optimizer.steps=8", "training.eval_every=0", "training.checkpoint_every=4", "training.log_every=1")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path, chance = tmp_path_factory.mktemp("data") / "words.txt", random.Random(0)
    path.write_text(" ".join(chance.choice(["one", "two", "three", "four"]) for _ in range(1200)))
    return str(path)


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """A run of 8 updates with an average, and checkpoints at 4 and 8: (workdir, experiment)."""
    exp, workdir = experiment(text, *EMA), tmp_path_factory.mktemp("average") / "run"
    assert train(exp, workdir) == 0
    return workdir, exp


def state_of(workdir, exp) -> step.TrainState:
    with Checkpoints(workdir, 2) as checkpoints:
        return jax.device_get(checkpoints.restore(step.abstract_state(step.update_of(exp, bind(exp.model)), make_mesh(exp)))[0])


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_it_is_the_weighted_mean_of_all_parameters_so_far(decay):
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    mean = average.begin(decay, {"w": jnp.full(3, 100.0)})
    for n, value in enumerate(values, 1):
        mean = average.advance(mean, {"w": jnp.asarray(value)}, decay, jnp.int32(n))
        weights = decay ** np.arange(n - 1, -1, -1, dtype=np.float64)
        np.testing.assert_allclose(mean["w"], weights @ values[:n] / weights.sum(), rtol=1e-4, atol=1e-6)


def test_nothing_is_kept_without_one(text):
    update = step.update_of(experiment(text), bind(experiment(text).model))
    with_one = dataclasses.replace(update, optimizer=dataclasses.replace(update.optimizer, ema=0.9))
    states = [jax.eval_shape(lambda key, u=u: step.init_train_state(u, key), jax.random.key(0)) for u in (update, with_one)]
    assert not jax.tree.leaves(states[0].average)
    assert jax.tree.structure(states[1].average) == jax.tree.structure(states[1].params)


def test_an_update_counts_its_parameters(run):
    """The average of a state is that of the parameters after each of its updates; one that is left out counts the same again."""
    _, exp = run
    update, mesh = step.update_of(exp, bind(exp.model)), make_mesh(exp)
    batches, seen = data.open_train(exp.data, exp.training.batch), []
    with jax.set_mesh(mesh):
        one = step.compile_step(update, mesh)
        state = jax.jit(lambda key: step.init_train_state(update, key), out_shardings=step.state_shardings(update, mesh))(
            jax.random.key(0))
        for n in range(5):
            if n == 3:
                state = state._replace(carry=jax.tree.map(lambda x: x * jnp.nan, state.carry))
            batch = step.Batch(*(jnp.asarray(next(batches)[name]) for name in step.Batch._fields))
            state, numbers = one(state, batch._replace(start=jnp.full(batch.start.shape, n == 0)))
            seen.append(np.asarray(state.params["embed"]))
            assert numbers["skipped"] == (n == 3)
            if n == 3:
                state = state._replace(carry=update.model.init_state(state.params, update.batch))
    np.testing.assert_array_equal(seen[3], seen[2])
    weights = 0.8 ** np.arange(4, -1, -1.0)
    wanted = np.tensordot(weights / weights.sum(), np.stack(seen), 1)
    np.testing.assert_allclose(state.average["embed"], wanted, rtol=1e-5, atol=1e-7)


def test_evaluations_see_it(run):
    workdir, _ = run
    said = metrics.column(metrics.read(workdir), "eval/loss")[1][-1]
    mean, plain = (evaluate_run(workdir, ("evaluation.streams=2", f"optimizer.ema={d}"), print)["eval/loss"] for d in (0.8, 0))
    assert mean == pytest.approx(said, rel=1e-6) and plain != pytest.approx(said, rel=1e-4)


def test_commands_read_it_and_can_leave_it(run):
    workdir, exp = run
    state, mesh, model = state_of(workdir, exp), make_mesh(exp), bind(exp.model)
    found = saved_model.load(workdir, exp, model, mesh)
    equal(jax.device_get(found.params), state.average)
    assert "averaged over updates" in found.origin
    plain = saved_model.load(workdir, config.override(exp, ("optimizer.ema=0",)), model, mesh)
    equal(jax.device_get(plain.params), state.params)
    assert plain.fingerprint != found.fingerprint and "averaged" not in plain.origin


@pytest.mark.slow
def test_a_continued_run_has_the_same_average(run, text, tmp_path):
    constant = ("optimizer.schedule=constant",)
    whole, half = experiment(text, *EMA, *constant), experiment(text, *EMA, *constant, "optimizer.steps=4")
    train(whole, tmp_path / "whole")
    train(half, tmp_path / "cut")
    train(whole, tmp_path / "cut")
    equal(state_of(tmp_path / "cut", whole), state_of(tmp_path / "whole", whole))


def test_a_run_that_had_none_begins_with_its_parameters_and_one_that_had_one_can_drop_it(run, text, tmp_path):
    plain = experiment(text, *EMA, "optimizer.ema=0", "optimizer.steps=4")
    train(plain, tmp_path / "run")
    state = state_of(tmp_path / "run", config.override(plain, ("optimizer.ema=0.8",)))
    equal(state.average, state.params)
    workdir, exp = run
    assert not jax.tree.leaves(state_of(workdir, config.override(exp, ("optimizer.ema=0",))).average)


def test_it_is_sharded_as_the_parameters(run):
    workdir, exp = run
    other = config.override(exp, ("training.data=2", "training.fsdp=2", "training.tensor=2"))
    with Checkpoints(workdir, 2) as checkpoints:
        state, _ = checkpoints.restore(step.abstract_state(step.update_of(other, bind(other.model)), make_mesh(other)))
    equal(jax.tree.map(lambda x: x.sharding, state.average), jax.tree.map(lambda x: x.sharding, state.params))
    equal(jax.device_get(state.average), state_of(workdir, exp).average)


def test_a_decay_that_is_none():
    with pytest.raises(UserError, match="optimizer.ema is 1.0; it must be below 1"):
        experiment("stdlib", "optimizer.ema=1.0")
