"""The update: microbatches, segments, carries, cut gradients, skipped updates, and the same result on any mesh."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_model as toy
from model_cases import MODELS
from neural_cases import QUICK, assert_close

from memtok_jax import params as pr
from memtok_jax import sharding
from memtok_jax.config import UserError
from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.recall import RecallConfig
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training import losses, step
from memtok_jax.training.experiment import Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.optimizer import schedule


def experiment(batch=8, sequence=12, **training) -> Experiment:
    return Experiment(toy.ToyConfig(vocabulary=16), TaskConfig(RecallConfig(), sequence=sequence),
                      OptimizerConfig(learning_rate=0.01, steps=20, warmup_steps=2),
                      TrainingConfig(batch=batch, **training))


def make_batch(exp: Experiment, seed=0, start=True) -> step.Batch:
    rng = np.random.default_rng(seed)
    shape = (exp.training.batch, exp.data.sequence)
    ids = rng.integers(0, 16, (shape[0], shape[1] + 1)).astype(np.int32)
    targets = np.where(rng.random(shape) < 0.2, losses.IGNORE, ids[:, 1:]).astype(np.int32)
    return step.Batch(jnp.asarray(ids[:, :-1]), jnp.asarray(targets), jnp.full(shape[0], start))


def close(a, b, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), a, b)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def update(exp: Experiment) -> step.Update:
    return step.update_of(exp, bind(exp.model))


def gradient(exp, params, carry, batch):
    return jax.jit(lambda p, c, b: step.batch_gradient(p, c, b, update(exp)))(params, carry, batch)


def setup(exp):
    state = fresh_state(exp)
    return state.params, state.carry


def fresh_state(exp):
    return jax.jit(lambda: step.init_train_state(update(exp), jax.random.key(1)))()


def test_cross_entropy_ignores_what_is_not_scored():
    logits = jnp.log(jnp.array([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]]))
    sums = losses.totals(logits, jnp.array([[0, 2, losses.IGNORE]]))
    np.testing.assert_allclose(sums.nats, -np.log(0.7) - np.log(0.1), rtol=1e-6)
    assert (sums.correct, sums.count) == (1, 2)


def test_correct_is_what_argmax_says():
    """Of equal logits the first counts, so that constant logits score one in V; and what is no number is never right."""
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 3, (64, 1, 4)), jnp.float32)
    targets = jnp.asarray(np.random.default_rng(1).integers(0, 4, (64, 1)), jnp.int32)
    np.testing.assert_array_equal(losses.token_scores(logits, targets)[1], logits.argmax(-1) == targets)
    assert losses.totals(jnp.zeros((1, 4, 4)), jnp.arange(4)[None]).correct == 1
    assert losses.totals(jnp.full((1, 4, 4), jnp.nan), jnp.arange(4)[None]).correct == 0


def test_gradient_is_that_of_the_mean_loss():
    exp = experiment()
    params, carry = setup(exp)
    batch = make_batch(exp)

    def mean_loss(p):
        logits, _ = toy.apply(p, toy.init_state(p, exp.model, 8), batch.inputs, exp.model)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch.targets, 0))
        scored = batch.targets != losses.IGNORE
        return (each * scored).sum() / scored.sum()

    grads, _, sums = gradient(exp, params, carry, batch)
    close(grads, jax.jit(jax.grad(mean_loss))(params), 1e-6)
    np.testing.assert_allclose(sums.nats / sums.count, mean_loss(params), rtol=1e-6)


@pytest.mark.parametrize("cut", [{"microbatches": 8}, {"call_tokens": 3}, {"call_tokens": 4, "microbatches": 4}])
def test_parts_of_a_batch_equal_the_whole(cut):
    whole, parts = experiment(), experiment(**cut)
    params, carry = setup(whole)
    carry = jax.tree.map(lambda x: x + 0.3, carry)
    for start in (True, False):
        batch = make_batch(whole, start=start)
        a, b = gradient(whole, params, carry, batch), gradient(parts, params, carry, batch)
        close(a[0], b[0], 2e-6)
        close(a[1], b[1], 1e-5)
        assert a[2].count == b[2].count


@pytest.mark.parametrize("cut, sizes", [({}, None), ({"microbatches": 4}, None), ({"microbatches": 2}, (4, 1, 1))], ids=str)
def test_the_models_own_loss_is_added_and_told_apart(cut, sizes):
    """Its mean over rows and segments joins the gradient; the loss that is reported is without it."""
    with_own, without = ({"model": toy.ToyConfig(vocabulary=16, auxiliary=a)} for a in (0.3, 0.0))
    exp, plain = (dataclasses.replace(experiment(call_tokens=4, **cut), **m) for m in (with_own, without))
    params, carry = setup(exp)
    batch = make_batch(exp)

    def own(params):
        state, total = toy.init_state(params, exp.model, 8), 0.0
        for ids in jnp.split(batch.inputs, 3, axis=1):
            _, state = toy.apply(params, state, ids, exp.model)
            total += 0.3 * jnp.square(state.sum).mean() / 3
        return total

    def run(exp):
        if sizes is None:
            return gradient(exp, params, carry, batch)
        mesh = sharding.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            state = jax.device_put(fresh_state(exp), step.state_shardings(update(exp), mesh))
            return jax.device_get(gradient(exp, state.params, state.carry, jax.device_put(batch, sharding.rows(mesh))))

    (grads, _, sums), (plain_grads, _, plain_sums) = run(exp), run(plain)
    value, expected = jax.jit(jax.value_and_grad(own))(params)
    np.testing.assert_allclose(sums.auxiliary, value, rtol=1e-5)
    np.testing.assert_allclose(sums.nats, plain_sums.nats, rtol=1e-6)
    assert plain_sums.auxiliary == 0 and value > 1e-2
    close(grads, jax.tree.map(jnp.add, plain_grads, expected), 2e-6)


def test_rows_return_to_their_place():
    x = jnp.arange(24).reshape(2, 6, 2)
    parts = step.split_rows(x, 3, 1)
    assert parts.shape == (3, 2, 2, 2)
    equal(step.join_rows(parts, 1), x)
    nothing = jnp.zeros((6, 0, 2))  # the prefix of a model without one
    assert step.join_rows(step.split_rows(nothing, 3, 0), 0).shape == nothing.shape
    equal(parts[1], x[:, 1::3])


def test_detach_cuts_the_gradient_and_nothing_else():
    """With the gradient cut at every segment, a token of segment 0 gets no gradient from later targets."""
    free, cut = experiment(call_tokens=4), experiment(call_tokens=4, gradient="every:1")
    params, carry = setup(free)
    batch = make_batch(free)
    # Token 15 stands in segment 0 only; only the last segment is scored.
    ids = jnp.where(batch.inputs == 15, 0, batch.inputs).at[:, 0].set(15)
    batch = batch._replace(inputs=ids, targets=batch.targets.at[:, :8].set(losses.IGNORE))
    (g_free, c_free, s_free), (g_cut, c_cut, s_cut) = (gradient(e, params, carry, batch) for e in (free, cut))
    assert np.abs(g_free["embed"][15]).max() > 1e-6 and np.all(g_cut["embed"][15] == 0)
    close(c_free, c_cut, 1e-6)
    np.testing.assert_allclose(s_free.nats, s_cut.nats, rtol=1e-6)
    assert np.abs(g_cut["prefix"]).max() > 1e-6, "a value made from parameters keeps its gradient in every segment"


def test_no_gradient_enters_the_batch_before_but_the_prefix_learns():
    exp = experiment()
    params, carry = setup(exp)
    stale = carry._replace(prefix=carry.prefix * 0 + 7.0)
    batch = make_batch(exp, start=False)
    grads, new, _ = gradient(exp, params, stale, batch)
    equal(new.prefix[0], params["prefix"])
    assert np.abs(grads["prefix"]).max() > 1e-6
    through = jax.grad(lambda c: step.batch_gradient(params, c, batch, update(exp))[2].nats)(carry)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(through))


def test_only_rows_that_start_are_reset():
    exp = experiment()
    params, carry = setup(exp)
    old = jax.tree.map(lambda x: x + 1.5, carry)
    batch = make_batch(exp)
    mixed = batch._replace(start=jnp.arange(8) % 2 == 0)
    _, kept, _ = gradient(exp, params, old, batch._replace(start=jnp.zeros(8, bool)))
    _, fresh, _ = gradient(exp, params, old, batch)
    _, both, _ = gradient(exp, params, old, mixed)
    equal(both, pr.select_rows(mixed.start, fresh, kept, toy.state_specs(exp.model, 8)))
    assert np.abs(kept.sum - fresh.sum).max() > 0.1


class ByRow(Model):
    """The toy model, but the first carry of a row depends on its number, and on a parameter."""

    def init_state(self, params, batch):
        state = super().init_state(params, batch)
        return state._replace(sum=jnp.arange(batch, dtype=jnp.float32)[:, None] * 0.1 + 0.2 * params["prefix"][None])


@pytest.mark.parametrize("cut, sizes", [({"microbatches": 4}, None), ({"gradient": "rolling:2", "microbatches": 2}, None),
                                        ({"microbatches": 2}, (4, 1, 1))], ids=str)
def test_a_first_carry_may_depend_on_its_row(cut, sizes):
    """Microbatches and parts of a mesh hold some of the rows; each of them begins with the first carry of its own number."""
    exp = experiment(call_tokens=4, **cut)
    bound = lambda exp: dataclasses.replace(update(exp), model=ByRow(toy, exp.model))
    whole = bound(experiment(call_tokens=4, gradient=exp.training.gradient))
    params, carry = setup(exp)
    carry = jax.tree.map(lambda x: x + 0.3, carry)
    batch = make_batch(exp)._replace(start=jnp.arange(8) % 3 > 0)
    run = lambda how: jax.jit(lambda p, c, b: step.batch_gradient(p, c, b, how))
    if sizes:
        mesh = sharding.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            state = jax.device_put(fresh_state(exp)._replace(carry=carry), step.state_shardings(update(exp), mesh))
            parts = jax.device_get(run(bound(exp))(state.params, state.carry, jax.device_put(batch, sharding.rows(mesh))))
    else:
        parts = run(bound(exp))(params, carry, batch)
    want = run(whole)(params, carry, batch)
    close(parts[:2], want[:2], 1e-5)
    # By hand: the gradient of the first carry counts too, in the rows that begin.
    if exp.training.gradient == "full":
        def mean_loss(params):
            initial = whole.model.init_state(params, 8)
            begun = pr.reset(jax.lax.stop_gradient(carry), batch.start, initial, toy.state_specs(exp.model, 8))
            state = begun._replace(prefix=toy.init_state(params, exp.model, 8).prefix)
            logits, _ = toy.apply(params, state, batch.inputs, exp.model)
            sums = losses.totals(logits, batch.targets)
            return sums.nats / sums.count

        close(want[0], jax.jit(jax.grad(mean_loss))(params), 2e-6)


def test_an_update_that_is_not_finite_is_left_out():
    exp = experiment()
    state = fresh_state(exp)
    bad = state._replace(params=dict(state.params, embed=state.params["embed"].at[3, 0].set(jnp.nan)))
    run = jax.jit(lambda s, b: step.train_step(s, b, update(exp)))
    after, metrics = run(bad, make_batch(exp))
    equal(after.params, bad.params)
    equal(after.carry, bad.carry)
    assert (after.step, after.skipped, metrics["skipped"]) == (1, 1, 1) and not np.isfinite(metrics["loss"])
    good, metrics = run(state._replace(skipped=jnp.int32(2)), make_batch(exp))
    assert good.skipped == 0 and np.isfinite(metrics["loss"])
    assert np.abs(good.params["embed"] - state.params["embed"]).max() > 0


class Poisoned(Model):
    """The toy model, but the carry of rows whose last token is 15 is not finite."""

    def run(self, params, state, x, call):
        logits, after, stats = super().run(params, state, x, call)
        bad = jnp.where(x[:, -1:] == 15, jnp.inf, 0.0)
        return logits, after._replace(sum=after.sum + bad), stats


@pytest.mark.parametrize("sizes", [None, (4, 2, 1)], ids=str)
def test_streams_whose_carry_is_not_finite_begin_anew(sizes):
    """The update counts; two of eight rows get the initial carry of the new parameters, the others keep theirs."""
    exp = experiment()
    plain = update(exp)
    poisoned = dataclasses.replace(plain, model=Poisoned(toy, exp.model))
    state, batch = fresh_state(exp), make_batch(exp)
    ids = jnp.where(batch.inputs == 15, 0, batch.inputs).at[jnp.array([1, 6]), -1].set(15)
    batch = batch._replace(inputs=ids)
    good, _ = jax.jit(lambda s, b: step.train_step(s, b, plain))(state, batch)
    if sizes:
        mesh = sharding.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            placed = jax.device_put((state, batch), (step.state_shardings(plain, mesh), sharding.rows(mesh)))
            after, metrics = step.compile_step(poisoned, mesh)(*placed)
    else:
        after, metrics = jax.jit(lambda s, b: step.train_step(s, b, poisoned))(state, batch)
    assert metrics["restarted"] == 2 and metrics["skipped"] == 0 and after.skipped == 0
    close(jax.device_get(after.params), good.params, 1e-6)
    bad = jnp.zeros(8, bool).at[jnp.array([1, 6])].set(True)
    expected = pr.reset(good.carry, bad, toy.init_state(good.params, exp.model, 8), toy.state_specs(exp.model, 8))
    close(jax.device_get(after.carry), expected, 1e-5)


def test_decay_only_where_the_spec_says():
    exp = experiment()
    exp = dataclasses.replace(exp, optimizer=dataclasses.replace(exp.optimizer, weight_decay=0.5))
    plain = dataclasses.replace(exp, optimizer=dataclasses.replace(exp.optimizer, weight_decay=0.0))
    state = fresh_state(exp)
    run = jax.jit(step.train_step, static_argnums=2)
    decayed, free = (run(state, make_batch(exp), update(e))[0] for e in (exp, plain))
    rate = schedule(exp.optimizer)(0)
    equal(decayed.params["prefix"], free.params["prefix"])
    np.testing.assert_allclose(free.params["out"] - decayed.params["out"], rate * 0.5 * state.params["out"], atol=1e-7)


def test_schedule_rises_and_falls():
    cfg = OptimizerConfig(learning_rate=0.1, steps=100, warmup_steps=10, final_fraction=0.2)
    rates = np.array([schedule(cfg)(n) for n in range(101)])
    np.testing.assert_allclose(rates[[0, 10, 100]], [0.01, 0.1, 0.02], rtol=1e-5)
    assert np.all(np.diff(rates[:11]) > 0) and np.all(np.diff(rates[10:]) < 0)


def test_schedules_that_stay_at_the_peak():
    constant = OptimizerConfig(learning_rate=0.1, steps=100, warmup_steps=10, schedule="constant")
    wsd = dataclasses.replace(constant, schedule="wsd", decay_steps=20, final_fraction=0.25)
    flat, falling = (np.array([schedule(cfg)(n) for n in range(101)]) for cfg in (constant, wsd))
    np.testing.assert_allclose(flat, np.minimum(0.01 + 0.009 * np.arange(101), 0.1), rtol=1e-5)
    np.testing.assert_allclose(falling[:81], flat[:81], rtol=0)
    np.testing.assert_allclose(falling[80:], np.linspace(0.1, 0.025, 21), rtol=1e-5)
    longer = dataclasses.replace(wsd, steps=500)
    np.testing.assert_array_equal([schedule(longer)(n) for n in range(81)], falling[:81])


@pytest.mark.parametrize("fields, message", [
    (dict(schedule="linear"), "optimizer.schedule is 'linear'"), (dict(schedule="wsd"), "'wsd' needs at least 1"),
    (dict(decay_steps=5), "'wsd' needs at least 1, the others 0"),
    (dict(schedule="wsd", decay_steps=91), "warmup_steps 10 and optimizer.decay_steps 91 are more than optimizer.steps 100")])
def test_schedules_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        OptimizerConfig(learning_rate=0.1, steps=100, warmup_steps=10, **fields)


def run_steps(exp, mesh, count=3):
    with jax.set_mesh(mesh):
        where = step.state_shardings(update(exp), mesh)
        state = jax.jit(lambda k: step.init_train_state(update(exp), k), out_shardings=where)(jax.random.key(0))
        run = step.compile_step(update(exp), mesh)
        for n in range(count):
            batch = jax.device_put(make_batch(exp, n, start=n == 0), sharding.rows(mesh))
            before = state
            state, metrics = run(state, batch)
        assert run._cache_size() == 1, "the second update must not compile again"
    assert all(x.is_deleted() for x in jax.tree.leaves(before.params)), "the old parameters are donated"
    return state, metrics


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_sharded_equals_one_device(sizes):
    exp = experiment(batch=16, microbatches=2, call_tokens=4, gradient="every:1")
    one, one_metrics = run_steps(exp, sharding.make_mesh(1, 1, 1))
    many, many_metrics = run_steps(exp, sharding.make_mesh(*sizes))
    close(jax.device_get(one), jax.device_get(many), 1e-5)
    np.testing.assert_allclose(one_metrics["loss"], many_metrics["loss"], atol=1e-6)
    if sizes == (2, 2, 2):
        spec = many.params["embed"].sharding.spec
        assert spec == jax.sharding.PartitionSpec("tensor", "fsdp")
        moments = [x for x in jax.tree.leaves(many.optimizer) if x.shape == many.params["embed"].shape]
        assert len(moments) == 2 and all(x.sharding.spec == spec for x in moments)
        assert many.carry.sum.sharding.spec[0] == ("data", "fsdp")


@pytest.mark.parametrize("training, message", [
    ({"microbatches": 3}, "training.batch 8 does not divide into 3 microbatches"),
    ({"call_tokens": 5}, "data.sequence 12 does not divide into calls of 5"),
    ({"gradient": "evry:2"}, "training.gradient is 'evry:2'; .* did you mean 'every'"),
    ({"gradient": "last"}, "training.gradient is 'last'; .* one of at least 1"),
    ({"remat": "block"}, "training.remat is 'block'"),
])
def test_cuts_that_do_not_fit_name_both_numbers(training, message):
    with pytest.raises(ValueError, match=message):
        experiment(**training)


# ------------------------------------------------------------------------------------------------- the models of the package

def two_updates(exp, state, batches, mesh):
    """(parameters, carry, losses) after updates on a mesh, on the host."""
    with jax.set_mesh(mesh):
        state, found = jax.device_put(state, step.state_shardings(update(exp), mesh)), []
        run = step.compile_step(update(exp), mesh)
        for batch in batches:
            state, metrics = run(state, jax.device_put(batch, sharding.rows(mesh)))
            found.append(float(metrics["loss"]))
    return *jax.device_get((state.params, state.carry)), found


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "rmt" else pytest.mark.slow)
                                  for name in ("mac", "transformer_xl", "rmt", "armt")])
def test_models_on_a_mesh_equal_one_device(name, monkeypatch):
    """Eight rows on four parts of the data axis and heads on two of the tensor axis, in two microbatches of two calls.

    The second batch goes on with half of the streams. A large epsilon makes Adam's step a multiple of the gradient: with the usual
    one it would blow up gradients that are zero but for rounding.
    """
    monkeypatch.setattr(step, "options", lambda platform: QUICK)
    model = bind(MODELS[name])
    tokens = model.call_tokens
    exp = dataclasses.replace(experiment(batch=16, sequence=2 * tokens, microbatches=2, call_tokens=tokens), model=MODELS[name],
                              optimizer=OptimizerConfig(learning_rate=0.5, steps=20, warmup_steps=0, epsilon=1.0))
    state = jax.device_get(fresh_state(exp))
    batches = [make_batch(exp, 0), make_batch(exp, 1)._replace(start=jnp.arange(16) % 4 < 2)]
    one = two_updates(exp, state, batches, sharding.make_mesh(1, 1, 1))
    many = two_updates(exp, state, batches, sharding.make_mesh(4, 1, 2))
    moved = max(np.abs(a - b).max(initial=0) for a, b in zip(*map(jax.tree.leaves, (one[0], state.params)), strict=True))
    assert moved > 1e-2, "the updates are large beside the tolerance"
    close(one[0], many[0], 1e-5)
    np.testing.assert_allclose(one[2], many[2], rtol=0, atol=1e-6)
    assert_close(many[1], one[1], 1e-3)  # float32 sums in another order, through two updates and the recurrence of the carry
