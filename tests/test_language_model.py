"""The language model: causal, its prefix a parameter like others, its options without effect, its mistakes named."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import LMM, MAC, MAG, MEMORY, PLAIN, WINDOW, XL, model, some_ids
from neural_cases import assert_close, assert_equal, jit, random_params

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.models import attention
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.style import GPT2, TITANS


def setup(cfg, batch: int):
    """(model, params, first carry)."""
    own = bind(cfg)
    params = random_params(own.specs(), 0, np.float32)
    return own, params, own.init_state(params, batch)


@cache
def with_prefix():
    """(model, params, first carry of two rows, the carry after seven tokens)."""
    own, params, state = setup(model(MAC, MAG, prefix=2), 2)
    apply = jit(own.apply)
    return own, params, state, apply(params, state, some_ids(2, 7, 7))[1]


def test_logits_do_not_depend_on_later_tokens():
    """Each token of three segments changed in turn, one a row: all logits before it stay bit for bit, its own change."""
    own, params, _, _ = with_prefix()
    rows = own.init_state(params, 13)
    ids = jnp.broadcast_to(some_ids(1, 12), (13, 12))
    changed = jnp.where(jnp.eye(13, 12, dtype=bool), (ids + 1) % 16, ids)
    logits = np.asarray(jit(own.apply)(params, rows, changed)[0])
    for t in range(12):
        np.testing.assert_array_equal(logits[t, :t], logits[12, :t])
        assert np.abs(logits[t, t] - logits[12, t]).max() > 1e-6


@pytest.mark.slow
def test_whole_calls_and_recomputation_change_no_gradient():
    """A whole call, recomputed layers and unrolled ones: the same loss and gradients."""
    own, params, state = setup(model(MAC, layers=2, prefix=2), 2)
    ids = some_ids(2, 8)

    def gradients(own, whole):
        def loss(params):
            carry = P.renew(state, own.init_state(params, 2), own.state_specs(2))
            logits, end = own.apply(params, carry, ids, whole=whole)
            return -jax.nn.log_softmax(logits)[:, :-1].mean() + sum(
                jnp.square(x).sum() for x in jax.tree.leaves(end.layers[0]["mac"].memory) if x.dtype == jnp.float32) / 1e3, logits
        return jit(jax.value_and_grad(loss, has_aux=True))(params)

    # All at once: a difference in any of them would show.
    faster = bind(replace(own.cfg, remat="block", unroll=2))
    assert_close(gradients(faster, True), gradients(own, False), 2e-4)


def test_a_call_that_is_not_whole_names_both_numbers():
    own, params, state = setup(model(MAC), 1)
    with pytest.raises(UserError, match=r"a training call of 6 tokens is not a multiple of the model's 4 \(segment=4"):
        own.apply(params, state, some_ids(1, 6), whole=True)
    with pytest.raises(UserError, match="5 tokens does not fit into a segment of 4"):
        own.run(params, state, some_ids(1, 5), Call(closes=jnp.ones((1,), bool)))


def test_a_chunk_longer_than_the_segment_of_mac():
    """Its anchor is that of an open chunk at most borders; a whole call holds whole chunks, and says the same."""
    own, params, state = setup(model(MacConfig(memory=replace(MEMORY, chunk=8))), 1)
    assert own.call_tokens == 8
    ids = some_ids(1, 16)
    logits, end = jit(own.apply)(params, state, ids)
    got = jit(lambda p, s, ids: own.apply(p, s, ids, whole=True))(params, state, ids)
    assert_close(got, (logits, end), 1e-5)


# ---------------------------------------------------------------------------------------------------------- the prefix

def test_no_prefix_tokens_is_the_model_without_prefix(monkeypatch):
    """M = 0 gives exactly what attention gives that has never heard of a prefix."""
    own, params, state = setup(model(MAC, WINDOW), 2)
    ids = some_ids(2, 9)
    run = lambda: jit(lambda p, s, ids: own.apply(p, s, ids)[0])(params, state, ids)

    def attend(q, k, v, visible, *, bias, fronts, sink, cap):
        assert bias is None and fronts == () and sink is None and cap == 0
        score = jnp.where(jnp.expand_dims(visible, -3), jnp.einsum("...thk,...shk->...hts", q, k), -1e30) * own.cfg.head_dim ** -0.5
        weight = jnp.exp(score - score.max(-1, keepdims=True))
        weight = weight / weight.sum(-1, keepdims=True)
        return jnp.einsum("...hts,...shk->...thk", weight, v), weight

    y = run()
    monkeypatch.setattr(attention, "attend", attend)
    assert_close(run(), y, 1e-5)


def test_prefix_is_never_written_into_the_memory():
    """A new stream has an empty memory whatever its prefix, and renewing the prefix leaves memories alone."""
    own, params, state, later = with_prefix()
    layers = lambda state: (state.layers[0]["mac"], state.layers[1]["mag"])
    for layer in layers(state):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(layer.memory))
    renewed = P.renew(later, own.init_state(jax.tree.map(lambda p: p * 1.5, params), 2), own.state_specs(2))
    for old, new in zip(layers(later), layers(renewed), strict=True):
        assert_equal(new._replace(prefix=old.prefix), old)
        assert np.any(np.asarray(new.prefix.k) != np.asarray(old.prefix.k))
    # With the same parameters nothing changes.
    assert_equal(P.renew(later, own.init_state(params, 2), own.state_specs(2)), later)


@pytest.mark.slow
def test_prefix_tokens_learn_through_renew():
    """With a carry that comes from the batch before, only a renewed prefix has a gradient."""
    own, params, _, later = with_prefix()
    ids = some_ids(2, 6, 1)

    def loss(tokens, renewed):
        new = params | {"prefix": {"tokens": tokens}}
        carry = P.renew(later, own.init_state(new, 2), own.state_specs(2))
        carry = jax.tree.map(lambda a, b: jnp.where(renewed, a, b), carry, later)
        return jnp.sin(own.apply(new, carry, ids)[0]).sum()

    gradient = jit(jax.grad(loss))
    assert np.all(np.abs(gradient(params["prefix"]["tokens"], True)).max(axis=1) > 1e-5)
    assert not np.any(gradient(params["prefix"]["tokens"], False))


# ---------------------------------------------------------------------------------------------------- other behaviour

def test_statistics_name_the_layer_and_the_memory():
    own, params, state, _ = with_prefix()
    stats = jit(own.run)(params, state, some_ids(2, 7))[2]
    for layer in ("0.mac.", "1.mag."):
        found = {name.removeprefix(layer): value for name, value in stats.items() if name.startswith(layer)}
        assert {"step_size", "momentum", "forget", "inner_loss", "stability_max", "weight_change"} <= found.keys()
        assert all(v.shape == () and v.dtype == np.float32 and np.isfinite(v) for v in found.values())
        assert 0 < float(found["step_size"]) < 0.1 and 0.5 < float(found["momentum"]) < 1
        assert found["stability_max"] >= found["stability"]
    assert {name.partition(".")[0] for name in stats} == {"0", "1"}


def test_an_output_layer_of_its_own():
    """Where it is tied, it is the embedding."""
    ids = jax.ShapeDtypeStruct((3, 5), jnp.int32)
    for embedding in ("tied", "matrix"):
        own = bind(model(WINDOW, style=replace(TITANS, embedding=embedding)))
        params = P.abstract(own.specs())
        state = jax.eval_shape(lambda p, own=own: own.init_state(p, 3), params)
        assert jax.eval_shape(own.apply, params, state, ids)[0].shape == (3, 5, 16)
        assert ("output" in params["words"]) == (embedding == "matrix")


@pytest.mark.parametrize("options, message", [
    (dict(pattern=()), "layers=2 is not a multiple of the 0 layers in model.pattern"),
    (dict(layers=3), "layers=3 is not a multiple of the 2 layers"),
    (dict(width=10), "width=10 is not a multiple of head_dim=4"),
    (dict(head_dim=1), "head_dim=1 must be even"),
    (dict(segment=3), "segment=3 and memory.chunk=4: one must divide the other"),
    (dict(segment=0), "mac layers need segments; set model.segment"),
    (dict(dtype="float16"), "model.dtype is 'float16'"),
    (dict(remat="blocks"), "did you mean 'block'"),
    (dict(prefix=-1), "model.prefix is -1"),
    (dict(pattern=(LMM, LMM), prefix=2), "prefix=2 has no reader"),
    (dict(heads=3), "mac joins attention of 3 heads of 4 with a memory as wide as the model, 8"),
    (dict(style=replace(TITANS, positions="relative"), pattern=(PLAIN, PLAIN), width=9, heads=2), "width=9 must be even"),
    (dict(style=GPT2, pattern=(PLAIN, PLAIN), positions=3), "positions=3 is less than the 4 places of a segment"),
    (dict(style=GPT2, pattern=(WINDOW, WINDOW), segment=0), "set model.segment"),
    (dict(style=GPT2, pattern=(XL, PLAIN)), "no row for earlier segments; set 'relative' or 'rope'"),
    (dict(style=replace(TITANS, gate="head"), pattern=(LMM, LMM)), "nothing in model.pattern attends"),
    (dict(cutoffs=(4,)), "cutoffs=(4,) need style.embedding='adaptive'"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(UserError) as error:
        replace(model(MAC, WINDOW), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("make, message", [
    (lambda: MacConfig(combine="product"), "mac.combine is 'product'"),
    (lambda: MacConfig(retrieved=-1), "mac.retrieved is -1"),
    (lambda: MagConfig(window=0), "mag.window is 0"),
    (lambda: replace(WINDOW, window=0), "window.window is 0"),
    (lambda: MagConfig(sinks=-1), "mag.sinks is -1"),
    (lambda: replace(TITANS, sink="logits"), "did you mean 'logit'"),
    (lambda: CachedConfig(MEMORY), "cached.memory is"),
    (lambda: replace(TITANS, norm="rsm"), "did you mean 'rms'"),
])
def test_options_of_a_layer_name_the_mistake(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
