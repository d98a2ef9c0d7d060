"""The language model: causal, the same for any cut, its prefix a parameter like others, its options without effect."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, assert_equal, jit, random_like, random_params

from memtok_jax import params as P
from memtok_jax.inference.sample import generate
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.models import attention, language_model
from memtok_jax.models.config import LanguageModelConfig, for_training


def model(*pattern: str, **options) -> LanguageModelConfig:
    memory = NeuralMemoryConfig(head_dim=4, chunk=2, expansion=2, conv=2, step_max=0.1)
    base = dict(vocabulary=16, width=8, layers=len(pattern), pattern=pattern, head_dim=4, hidden=8, window=4, segment=4,
                prefix=2, memory=memory)
    return LanguageModelConfig(**(base | options))


def some_ids(batch: int, length: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(16, size=(batch, length)), jnp.int32)


def setup(cfg, batch: int, dtype=np.float32):
    params = random_params(language_model.specs(cfg), 0, dtype)
    return params, language_model.init_state(params, cfg, batch)


apply = jit(language_model.apply, static_argnums=3)


@pytest.mark.parametrize("pattern", [("mac", "attention"), ("mag", "mal")], ids="-".join)
def test_logits_do_not_depend_on_later_tokens(pattern):
    """Each token changed in turn, over three segments: all logits before it stay bit for bit, its own change."""
    cfg = model(*pattern)
    params, state = setup(cfg, 1)
    state = apply(params, state, some_ids(1, 12, 7), cfg)[1]
    ids = some_ids(1, 12)
    logits, _ = apply(params, state, ids, cfg)
    for t in range(12):
        changed, _ = apply(params, state, ids.at[0, t].add(1) % 16, cfg)
        assert_equal(changed[:, :t], logits[:, :t])
        assert np.all(np.abs(changed[0, t] - logits[0, t]).max() > 1e-6)


@pytest.mark.slow
def test_training_mode_and_recomputation_change_nothing():
    """`aligned`, recomputed blocks and unrolled layers: the same loss and gradients."""
    cfg = model("mac", layers=2)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 8)

    def gradients(cfg):
        def loss(params):
            logits, end = language_model.apply(params, language_model.refresh(params, state, cfg), ids, cfg)
            return -jax.nn.log_softmax(logits)[:, :-1].mean() + sum(
                jnp.square(x).sum() for x in jax.tree.leaves(end) if x.dtype == jnp.float32) / 1e3, logits
        return jit(jax.value_and_grad(loss, has_aux=True))(params)

    # All at once: a difference in any of them would show.
    assert_close(gradients(replace(for_training(cfg, 8), remat="block", unroll=2)), gradients(cfg), 2e-4)


def test_for_training_names_both_numbers():
    with pytest.raises(ValueError, match=r"6 tokens is not a multiple of model.segment=4"):
        for_training(model("mac"), 6)
    with pytest.raises(ValueError, match=r"5 tokens is not a multiple of model.memory.chunk=2"):
        for_training(model("mal"), 5)
    assert for_training(model("attention"), 5).aligned


def test_a_chunk_longer_than_the_segment_of_mac_trains_on_the_general_path():
    """The open chunk at the end of a segment needs its anchor, so nothing is promised."""
    cfg = model("mac")
    cfg = for_training(replace(cfg, memory=replace(cfg.memory, chunk=8)), 16)
    assert not cfg.aligned
    params, state = setup(cfg, 1)
    ids = some_ids(1, 16)
    logits, _ = apply(params, state, ids, cfg)
    first, state = apply(params, state, ids[:, :8], cfg)
    assert_close(jnp.concatenate([first, apply(params, state, ids[:, 8:], cfg)[0]], 1), logits, 1e-5)


# ---------------------------------------------------------------------------------------------------------- the prefix

@cache
def with_prefix():
    cfg = model("mac", "mag")
    return (cfg, *setup(cfg, 2))


def test_no_prefix_tokens_is_the_model_without_prefix(monkeypatch):
    """M = 0 gives exactly what attention gives that has never heard of a prefix."""
    cfg = model("mac", "attention", prefix=0)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 9)
    y, _ = apply(params, state, ids, cfg)

    def attend(q, q_position, k, v, prefix, visible, cfg):
        q = attention.rotate(q, q_position, cfg.rope_base)
        score = jnp.einsum("...thk,...shk->...hts", q, k)
        score = jnp.where(jnp.expand_dims(visible, -3), score, attention.HIDDEN) * cfg.head_dim ** -0.5
        y = jnp.einsum("...hts,...shk->...thk", jax.nn.softmax(score, axis=-1), v)
        return y.reshape(*y.shape[:-2], -1)

    monkeypatch.setattr(attention, "attend", attend)
    plain, _ = jit(lambda p, s, ids: language_model.apply(p, s, ids, cfg))(params, state, ids)
    assert_equal(y, plain)


def test_prefix_is_never_written_into_the_memory():
    """A new stream has an empty memory whatever its prefix, and renewing the prefix leaves memories alone."""
    cfg, params, state = with_prefix()
    mac_layer, mag_layer = (next(iter(layer.values())) for layer in state.layers)
    for layer in (mac_layer, mag_layer):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(layer.memory))
    _, later = apply(params, state, some_ids(2, 7), cfg)
    renewed = language_model.refresh(jax.tree.map(lambda p: p * 1.5, params), later, cfg)
    for old, new in zip(later.layers, renewed.layers, strict=True):
        (old,), (new,) = old.values(), new.values()
        assert_equal(new._replace(prefix=old.prefix), old)
        assert np.any(np.asarray(new.prefix.k) != np.asarray(old.prefix.k))


@pytest.mark.slow
def test_prefix_tokens_learn_through_refresh():
    """With a carry that comes from the batch before, only a refreshed prefix has a gradient."""
    cfg, params, state = with_prefix()
    _, later = apply(params, state, some_ids(2, 6), cfg)
    ids = some_ids(2, 6, 1)

    def gradient(renew):
        def loss(tokens):
            new = params | {"prefix": {"tokens": tokens}}
            carry = language_model.refresh(new, later, cfg) if renew else later
            return jnp.sin(language_model.apply(new, carry, ids, cfg)[0]).sum()
        return jit(jax.grad(loss))(params["prefix"]["tokens"])

    assert np.all(np.abs(gradient(True)).max(axis=1) > 1e-5)
    assert not np.any(gradient(False))


def test_a_fresh_prefix_equals_the_one_in_the_carry():
    """`refresh` with unchanged parameters changes nothing."""
    cfg, params, state = with_prefix()
    assert_equal(jit(lambda p, s: language_model.refresh(p, s, cfg))(params, state),
                 jit(lambda p: language_model.init_state(p, cfg, 2))(params))


# ---------------------------------------------------------------------------------------------------- other behaviour

def test_statistics_are_finite_scalars_of_every_memory():
    cfg = model("mac", "attention", "mal")
    params, state = setup(cfg, 2)
    seen = jit(lambda p, s, ids: language_model.statistics(p, s, ids, cfg))(params, state, some_ids(2, 9))
    assert {"step_size", "momentum", "forget", "inner_loss", "stability_max", "weight_change"} <= seen.keys()
    assert all(v.shape == () and v.dtype == np.float32 and np.isfinite(v) for v in seen.values())
    assert 0 < float(seen["step_size"]) < 0.1 and 0.5 < float(seen["momentum"]) < 1
    assert seen["stability_max"] >= seen["stability"]
    params, state = setup(model("attention"), 2)
    assert language_model.statistics(params, state, some_ids(2, 3), model("attention")) == {}


def test_layers_with_arrays_of_their_own_are_the_same_model():
    cfg = model("mac", "attention", layers=4)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 9)
    logits, after = apply(params, state, ids, cfg)
    apart_params, apart, apart_cfg = language_model.unstack(params, state, cfg)
    assert apart_cfg.repeats == 1 and jax.tree.structure(language_model.stack(apart, cfg)) == jax.tree.structure(state)
    assert_equal(language_model.stack(apart, cfg), state)
    apart_logits, apart_after = apply(apart_params, apart, ids, apart_cfg)
    assert_close(apart_logits, logits, 1e-5)
    assert_close(language_model.stack(apart_after, cfg), after, 1e-5)


def test_decoding_with_layers_apart_says_the_same():
    cfg = model("mac", "attention", layers=4)
    params, _ = setup(cfg, 2)
    said = [generate(params, one, some_ids(2, 3), 9, jax.random.key(0), 1.0) for one in (cfg, replace(cfg, unroll=2))]
    np.testing.assert_array_equal(*said)


def test_shapes_and_dtypes():
    """Logits are float32 whatever the compute dtype; an output layer of its own where it is not tied."""
    for cfg in (model("mac", "mal", dtype="bfloat16"), model("mag", tied=False)):
        params = P.abstract(language_model.specs(cfg))
        state = jax.eval_shape(lambda p, cfg=cfg: language_model.init_state(p, cfg, 3), params)
        logits, end = jax.eval_shape(lambda p, s, i, cfg=cfg: language_model.apply(p, s, i, cfg), params, state,
                                     jax.ShapeDtypeStruct((3, 5), jnp.int32))
        assert logits.shape == (3, 5, 16) and logits.dtype == np.float32
        signature = lambda tree: jax.tree.map(lambda s: (s.shape, s.dtype), tree)
        assert signature(end) == signature(state)
        assert ("output" in params) == (not cfg.tied)


@pytest.mark.parametrize("options, message", [
    (dict(pattern=("macs",)), "did you mean 'mac'"),
    (dict(pattern=("mac", "mag"), layers=3), "layers=3 is not a multiple of the 2 kinds"),
    (dict(width=10), "width=10 is not a multiple of head_dim=4"),
    (dict(head_dim=1), "head_dim=1 must be even"),
    (dict(segment=3), "segment=3 and memory.chunk=2"),
    (dict(combine="product"), "combine='product'"),
    (dict(dtype="float16"), "dtype='float16'"),
    (dict(window=0), "window=0 must be at least 1"),
    (dict(prefix=-1), "prefix=-1"),
    (dict(pattern=("lmm",), prefix=2), "prefix=2 has no reader"),
    (dict(pattern=("mag",), retrieved=2), "retrieved=2 has no reader"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(ValueError, match=message):
        replace(model("mac", "mac"), **options)


def test_rows_of_a_batch_may_have_different_lengths():
    """Ragged rows equal the same rows alone."""
    cfg, params, state = with_prefix()
    ids = some_ids(2, 9)
    lengths = jnp.array([4, 9], jnp.int32)
    logits, end = apply(params, state, ids, cfg, lengths)
    alone, alone_end = apply(params, jax.tree.map(lambda s: s[:, :1], state), ids[:1, :4], cfg)
    assert_close(logits[:1, :4], alone, 1e-5)
    assert_close(jax.tree.map(lambda s: s[:, :1], end), alone_end, 1e-5)


def test_stepwise_logits_equal_parallel_logits():
    """Three segments and five tokens, one by one, from a random carry."""
    cfg, params, state = with_prefix()
    noise = random_like(jax.tree.map(lambda s: s.astype(np.float32), state), 3, 0.02, np.float32)
    state = jax.tree.map(lambda s, n: s if s.dtype == jnp.int32 else s + n, state, noise)
    ids = some_ids(2, 17)
    logits, _ = apply(params, state, ids, cfg)
    steps = []
    for t in range(17):
        y, state = apply(params, state, ids[:, t:t + 1], cfg)
        steps.append(y)
    assert_close(jnp.concatenate(steps, 1), logits, 2e-5)
