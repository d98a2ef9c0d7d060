"""A selective scan as a layer: its prefix is the beginning of the stream, in values and in the gradients of a training step."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_cases import LMM, MAMBA, MAMBA2, model, some_ids
from neural_cases import assert_close, assert_equal, cast, jit, random_params

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.memory.ssm import MambaConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import language_model as lm
from memtok_jax.models import stack
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.ssm import SsmConfig
from memtok_jax.models.protocol import bind
from memtok_jax.training import losses, step
from memtok_jax.training.experiment import OptimizerConfig

PREFIXED = model(MAMBA, prefix=2, segment=0)
PLAIN = replace(PREFIXED, prefix=0)


def logits_behind_prefix(params, ids):
    """By hand: the prefix as the first two tokens of a stream of a model that knows no prefix, cut off before the output."""
    x = lm.embed(params, ids, PLAIN)
    first = jnp.broadcast_to(params["prefix"]["tokens"][None].astype(x.dtype), (len(x), 2, x.shape[2]))
    empty = cast(stack.init_state(params["layers"], first[0, :0], PLAIN.stack(), len(x), {}), x.dtype)
    h, _, _ = stack.run(params["layers"], empty, jnp.concatenate([first, x], 1), PLAIN.stack(), Call(), {})
    return lm.logits(params, lm.finish(params, h[:, 2:], PLAIN), PLAIN)


def test_the_prefix_is_the_beginning_of_the_stream():
    """Logits and all gradients, in float64."""
    with jax.enable_x64(True):
        own, ids = bind(PREFIXED), some_ids(2, 7)
        params = random_params(own.specs(), 0, np.float64)
        weights = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 16)))

        def gradient(logits_of):
            def loss(params):
                logits = logits_of(params, ids)
                return (weights * jnp.sin(logits)).sum(), logits
            return jit(jax.grad(loss, has_aux=True))(params)

        ours, by_hand = (gradient(f) for f in (lambda p, ids: own.apply(p, own.init_state(p, 2), ids)[0], logits_behind_prefix))
    assert_close(ours[1], by_hand[1], 1e-12)
    assert_close(ours[0], by_hand[0], 1e-9)
    assert np.abs(ours[0]["prefix"]["tokens"]).max() > 1e-3


@pytest.mark.parametrize("gradient", ["full", "every:1"])
def test_a_training_step_sends_gradient_to_the_prefix(gradient):
    """Two calls of two rows, of which one begins: its prefix has the gradient of the calls up to the first cut, by hand."""
    own = bind(PREFIXED)
    params = random_params(own.specs(), 0, np.float32)
    ids, start = some_ids(2, 9, 1), jnp.array([True, False])
    carry = jax.tree.map(lambda s: s + jnp.asarray(0.1, s.dtype), own.init_state(params, 2))._replace(slot=jnp.zeros(2, jnp.int32))
    how = step.Update(own, OptimizerConfig(learning_rate=0.01, steps=1, warmup_steps=0), "softmax", 2, 1, 4, gradient, False)
    batch = step.Batch(ids[:, :-1], ids[:, 1:], start)
    found, after, _ = jit(lambda p, c, b: step.batch_gradient(p, c, b, how))(params, carry, batch)

    def loss(params):
        state, total = P.reset(carry, start, own.init_state(params, 2), own.state_specs(2)), 0.0
        for n in (0, 4):
            logits, state = own.apply(params, state, ids[:, n:n + 4], whole=True)
            total += losses.totals(logits, ids[:, n + 1:n + 5]).nats
            state = jax.lax.stop_gradient(state) if gradient == "every:1" else state
        return total / 16, state

    want, end = jit(jax.grad(loss, has_aux=True))(params)
    assert_close(found, want, 1e-4)
    assert_close(after, end, 1e-5)
    assert np.abs(found["prefix"]["tokens"]).max() > 1e-4


def test_without_prefix_the_start_is_zero():
    """And costs nothing: no operation of a scan is traced. With one, all rows begin alike, and not at zero."""
    for cfg in (PLAIN, model(MAMBA2, segment=0)):
        own = bind(cfg)
        params = P.abstract(own.specs())
        assert "exp" not in str(jax.make_jaxpr(lambda p, own=own: own.init_state(p, 3))(params))
    own = bind(PREFIXED)
    state = jit(own.init_state, static_argnums=1)(random_params(own.specs(), 0, np.float32), 3)
    rows = state.layers[0]["ssm"].h
    assert_equal(rows[:, 0], rows[:, 2])
    assert np.abs(rows).max() > 1e-3


def test_configs_name_the_mistake():
    assert bind(model(LMM, MAMBA, prefix=2, segment=0)).cfg.prefix == 2, "a scan reads the prefix"
    with pytest.raises(UserError, match="ssm.memory is XlConfig.*; it must be one of MambaConfig, Mamba2Config"):
        SsmConfig(XlConfig(3))
    with pytest.raises(UserError, match="16 inner channels are not whole heads of head_dim=5"):
        model(replace(MAMBA2, memory=replace(MAMBA2.memory, head_dim=5)), segment=0)


# ---------------------------------------------------------------------------------------------------------------- learning

SYMBOLS, GAP = 8, 60
LEARNER = model(SsmConfig(MambaConfig(state=4)), vocabulary=SYMBOLS + 2, width=16, head_dim=16, hidden=32, segment=0)


def remember(samples: int, seed: int):
    """(ids [samples, 62], symbols [samples]): a symbol, 60 blanks, a question; the answer is the symbol, at all of them."""
    symbols = np.random.default_rng(seed).integers(2, SYMBOLS + 2, samples)
    ids = np.column_stack([symbols, np.zeros((samples, GAP), int), np.ones(samples, int)])
    return jnp.asarray(ids, jnp.int32), jnp.asarray(symbols)


@cache
def learned():
    """(model, parameters) after 400 steps of AdamW."""
    own = bind(LEARNER)
    params, optimizer = own.init(jax.random.key(0)), optax.adamw(5e-3, mask=P.decay_mask(own.specs()))

    def update(carry, batch):
        params, moments = carry

        def loss(params):
            logits = own.apply(params, own.init_state(params, len(batch[0])), batch[0], whole=True)[0]
            answers = jnp.broadcast_to(batch[1][:, None], logits.shape[:2])
            return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()

        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    run = jax.jit(lambda carry, batches: jax.lax.scan(update, carry, batches)[0])
    carry = (params, optimizer.init(params))
    for n in range(8):
        ids, symbols = remember(50 * 16, n)
        carry = run(carry, (ids.reshape(50, 16, -1), symbols.reshape(50, 16)))
    return own, carry[0]


@pytest.mark.slow
def test_only_the_state_carries_a_symbol_over_blanks():
    """Eight symbols, 60 blanks: all are remembered. With the state cut half-way, the answer is a guess, one in eight."""
    own, params = learned()
    ids, symbols = remember(256, 10 ** 6)
    apply = jax.jit(own.apply)
    empty = own.init_state(params, len(ids))
    y, middle = apply(params, empty, ids[:, :31])
    answers = lambda state: float((apply(params, state, ids[:, 31:])[0][:, -1].argmax(-1) == symbols).mean())
    assert answers(middle) >= 0.95
    assert answers(empty) < 0.3
