"""How far the gradient flows back through segments: exact zeros at each cut, rolling spans, recomputation, plans."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, jit
from rmt_cases import TABLE, T, V, model, setup, some_ids

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.recall import RecallConfig
from memtok_jax.models import rmt
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import bind
from memtok_jax.training import backpropagation, losses, step
from memtok_jax.training.experiment import Experiment, OptimizerConfig, TrainingConfig


def experiment(gradient: str, segments: int = 4, remat: str = "nothing", **options) -> Experiment:
    return Experiment(model(**options), TaskConfig(RecallConfig(), sequence=segments * T),
                      OptimizerConfig(learning_rate=0.01, steps=20, warmup_steps=2),
                      TrainingConfig(batch=2, call_tokens=T, gradient=gradient, remat=remat))


def batch_of(segments: int, scored: int | None = None) -> step.Batch:
    """Segment s holds the tokens 4 s .. 4 s + 3 only; targets in one segment, or everywhere."""
    rng = np.random.default_rng(4)
    own = np.repeat(np.arange(segments) * T, T)[None] + rng.integers(T, size=(2, segments * T))
    targets = rng.integers(V, size=own.shape)
    if scored is not None:
        targets = np.where(np.arange(segments * T)[None] // T == scored, targets, losses.IGNORE)
    return step.Batch(jnp.asarray(own, jnp.int32), jnp.asarray(targets, jnp.int32), jnp.ones(2, bool))


def update(exp: Experiment) -> step.Update:
    return step.update_of(exp, bind(exp.model))


def gradients(exp, params, carry):
    return jit(lambda batch: step.batch_gradient(params, carry, batch, update(exp))[0])


def whole(params, state, ids, cfg):
    return rmt.run(params, state, ids, cfg, Call(whole=True))[:2]


REACH = {  # (scored segment n, segment s <= n) -> whether a gradient arrives
    "full": lambda n, s: True,
    "every:2": lambda n, s: s >= n // 2 * 2,
    "every:3": lambda n, s: s >= n // 3 * 3,
    "last:2": lambda n, s: n < 2 or s >= 2,
    "rolling:1": lambda n, s: s >= n - 1,
}


@pytest.mark.parametrize("policy", REACH)
def test_gradient_ends_exactly_at_the_cut(policy):
    """The Jacobian's zero pattern: which segment's embeddings the loss of each segment reaches; never a later one.

    The output layer is another matrix here, so embeddings get their gradient from the input alone.
    """
    exp = experiment(policy, style=replace(TABLE, embedding="matrix"))
    run = gradients(exp, *setup(exp.model, 2))
    for n in range(4):
        rows = np.abs(run(batch_of(4, n))["model"]["words"]["embedding"]).max(1).reshape(4, T).max(1)
        expected = [s <= n and REACH[policy](n, s) for s in range(4)]
        assert all((size > 1e-6) if arrives else (size == 0) for size, arrives in zip(rows, expected, strict=True)), (n, rows)


def test_rolling_is_the_sum_of_each_segments_own_gradient():
    """By brute force; and with k = N - 1 it is the whole gradient."""
    k, n_segments = 1, 3
    exp = experiment(f"rolling:{k}", n_segments)
    params, carry = setup(exp.model, 2)
    batch = batch_of(n_segments)
    cfg = exp.model
    total = step.scored_positions(batch)

    def loss_of(params, n):
        state, first = rmt.init_state(params, cfg, 2), max(0, n - k)
        for s in range(n + 1):
            if s == first and s > 0:
                state = jax.lax.stop_gradient(state)
            logits, state = whole(params, state, batch.inputs[:, s * T:s * T + T], cfg)
        return losses.totals(logits, batch.targets[:, n * T:n * T + T]).nats / total

    brute = jit(lambda p: [jax.grad(loss_of)(p, n) for n in range(n_segments)])(params)
    got = gradients(exp, params, carry)(batch)
    assert_close(got, jax.tree.map(lambda *g: sum(g), *brute), 1e-4)
    full = gradients(experiment("full", n_segments), params, carry)(batch)
    assert_close(gradients(experiment(f"rolling:{n_segments + 3}", n_segments), params, carry)(batch), full, 1e-4)
    assert max(np.abs(a - b).max(initial=0) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(full), strict=True)) > 1e-3


def test_recomputed_segments_give_the_same_gradient_as_a_plain_loop():
    """Scan = Python loop, `remat` = none, in gradients and in the carry."""
    exp = experiment("full", 3, "call")
    params, carry = setup(exp.model, 2)
    batch = batch_of(3)

    def loop(params):
        state, nats = rmt.init_state(params, exp.model, 2), 0.0
        for s in range(3):
            logits, state = whole(params, state, batch.inputs[:, s * T:s * T + T], exp.model)
            nats += losses.totals(logits, batch.targets[:, s * T:s * T + T]).nats
        return nats / step.scored_positions(batch), state

    expected, end = jit(jax.grad(loop, has_aux=True))(params)
    run = jit(lambda params: step.batch_gradient(params, carry, batch, update(exp))[:2])
    got, after = run(params)
    assert_close(got, expected, 2e-5)
    assert_close(after, end, 2e-5)
    assert_close(gradients(replace(exp, training=replace(exp.training, remat="nothing")), params, carry)(batch), expected, 2e-5)


def test_one_compilation_for_every_rule_and_for_many_steps():
    """Where the gradient is cut is data: one program for full, every and last; and one for a hundred segments."""
    exp = experiment("full")
    params, carry = setup(exp.model, 2)
    batch = batch_of(4)
    ids, targets = (step.split_time(x, 4) for x in (batch.inputs, batch.targets))
    starts = step.starts(batch.start, 4)
    run = jit(lambda cut: jax.grad(step.group_loss, has_aux=True)(params, carry, None, starts, ids, targets, jnp.ones(4, bool),
                                                                  cut, 1.0, 0.25, update(exp))[0])
    found = [run(jnp.asarray(backpropagation.cuts(rule, 4))) for rule in ("full", "every:1", "every:2", "last:1", "last:3")]
    assert run._cache_size() == 1
    sizes = [np.abs(g["memory"]["tokens"]).max() for g in found]
    assert len({round(float(s), 7) for s in sizes}) == len(sizes) - 1  # every:2 and last:2 differ, last:3 = every:... in nothing
    advance = jit(lambda params, state, ids: whole(params, state, ids, exp.model)[1])
    state = carry
    for n in range(100):
        state = advance(params, state, some_ids(2, T, n))
    assert advance._cache_size() == 1 and np.isfinite(state.memory.tokens).all()


@pytest.mark.parametrize("rule, expected", [
    ("full", "0000"), ("every:1", "0111"), ("every:2", "0010"), ("every:3", "0001"), ("last:1", "0001"), ("last:3", "0100"),
    ("last:4", "0000"), ("last:9", "0000")])
def test_rules_as_booleans(rule, expected):
    assert "".join(str(int(c)) for c in backpropagation.cuts(rule, 4)) == expected


def test_even_cuts_become_groups_of_their_own():
    """Only one group at a time is stored; every segment is scored once in every plan."""
    assert backpropagation.plan("every:2", 6).index.shape == (3, 2) and not backpropagation.plan("every:2", 6).cut.any()
    assert backpropagation.plan("every:4", 6).index.shape == (1, 6)
    for rule in ("full", "every:2", "every:4", "last:2", "rolling:2", "rolling:9"):
        plan = backpropagation.plan(rule, 6)
        assert sorted(plan.index[plan.scored]) == list(range(6))
