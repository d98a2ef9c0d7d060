"""RMT with a cache beside its memory: equal to its equations as loops, to one long causal pass, and what its options do."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_rmt as reference
from neural_cases import assert_close, jit
from rmt_cases import (
    LENGTHS,
    RELATIVE,
    TABLE,
    T,
    cached,
    call,
    closing,
    mixer_state,
    model,
    scan_segments,
    setup,
    some_ids,
    some_segments,
)
from test_rmt import check_gradient

from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.models import rmt
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.training import losses


@pytest.mark.parametrize("form, see, size, keep", [
    ("paper", False, 3, False), pytest.param("causal", True, 5, False, marks=pytest.mark.slow), ("paper", True, 9, True)])
def test_equals_the_loops(form, see, size, keep):
    """Logits, memory, cache, and every gradient by differences of loops whose caches are held: none flows into them."""
    with jax.enable_x64(True):
        cfg = cached(size, form=form, see=see, keep=keep)
        params, _ = setup(cfg, 2, np.float64)
        ids, r, r_memory, lengths, _ = some_segments()

        def ours(params):
            logits, state = scan_segments(params, cfg, ids, lengths)
            return (logits * r).sum() + (state.memory.tokens * r_memory).sum(), (logits, state)

        gradient, (logits, state) = jit(jax.grad(ours, has_aux=True))(params)
        plain = jax.tree.map(np.asarray, params)

        def loop(params, b, held=None):
            parts = [ids[b, n, :size] for n, size in enumerate(LENGTHS[b])]
            return reference.recurrent(params, parts, form, cfg.model.embedding_scale, size, see, held, keep)

        at_first = [loop(plain, b) for b in range(2)]

        def total(params):
            out = 0.0
            for b in range(2):
                got, m, _ = loop(params, b, at_first[b][2])
                full = [n for n, size in enumerate(LENGTHS[b]) if size]
                out += sum((y * r[b, n, :len(y)]).sum() for n, y in zip(full, got, strict=True)) + (m * r_memory[b]).sum()
            return out

        for b, (got, m, held) in enumerate(at_first):
            np.testing.assert_allclose(state.memory.tokens[b], m, rtol=0, atol=1e-11)
            np.testing.assert_allclose(mixer_state(state).memory.vectors[:, b], held[-1], rtol=0, atol=1e-11)
            for n, y in zip([n for n, size in enumerate(LENGTHS[b]) if size], got, strict=True):
                np.testing.assert_allclose(logits[b, n, :len(y)], y, rtol=0, atol=1e-11)
        check_gradient(gradient, plain, total)


def with_cache(state, change):
    """The carry with the cache of every layer changed."""
    (layer,) = state.stack.layers
    inside = layer["cached"]
    return state._replace(stack=state.stack._replace(layers=({"cached": inside._replace(memory=change(inside.memory))},)))


def test_without_memory_segments_of_any_length_are_one_causal_pass():
    """M = 0 and a cache that holds all: Transformer-XL; distances, order and what is real must be right for this."""
    cfg = cached(3 * T, tokens=0)
    params, state = setup(cfg, 2)
    ids, outs, first = some_ids(2, 3 * T), [], 0
    for size in (1, 4, 3, 4):
        padded = jnp.pad(ids[:, first:first + size], ((0, 0), (0, T - size)))
        y, state = closing(params, state, padded, cfg, np.full(2, size))
        outs, first = [*outs, y[:, :size]], first + size
    one = cached(0, tokens=0, segment=3 * T)
    expected, _ = closing(params, rmt.init_state(params, one, 2), ids, one)
    assert_close(jnp.concatenate(outs, 1), expected, 1e-5)


def test_an_empty_cache_is_hidden():
    """Rows that are there but not counted change nothing: plain RMT, segment by segment."""
    cfg, plain = cached(form="paper", see=True), model(form="paper", style=RELATIVE)
    params, state = setup(cfg, 2)
    (layer,) = params["model"]["layers"]
    attention = {name: w for name, w in layer["cached"].items() if name != "memory"}
    same = params | {"model": params["model"] | {"layers": ({"segment": attention, "feed_forward": layer["feed_forward"]},)}}
    bare = rmt.init_state(same, plain, 2)
    for n in range(3):
        ids = some_ids(2, T, n)
        want, bare = closing(same, bare, ids, plain)
        y, state = closing(params, with_cache(state, lambda m: m._replace(vectors=m.vectors + 1, count=m.count * 0)), ids, cfg)
        assert_close(y, want, 1e-5)
    assert_close(state.memory, bare.memory, 1e-5)


def test_no_gradient_enters_the_cache():
    """A memory that is never written leaves the cache as the only way: values pass, their gradient is exactly zero.

    Segment n holds tokens of its own, and another matrix is the output layer, so embeddings get gradient as inputs only.
    """
    cfg = cached(form="prefix", see=True, style=replace(RELATIVE, embedding="matrix"))
    params, start = setup(cfg, 2)
    ids = jnp.asarray(np.random.default_rng(4).integers(T, size=(2, 2 * T)) + np.repeat([0, T], T)[None], jnp.int32)

    def second(params, first):
        _, state, _ = rmt.run(params, start, first, cfg, Call(whole=True))
        return jnp.sin(rmt.run(params, state, ids[:, T:], cfg, Call(whole=True))[0]).sum()

    run = jit(jax.value_and_grad(second))
    value, gradient = run(params, ids[:, :T])
    size = np.abs(gradient["model"]["words"]["embedding"]).max(1)
    assert not size[:T].any() and size[np.unique(ids[:, T:])].min() > 1e-5
    assert abs(run(params, ids[:, :T][:, ::-1])[0] - value) > 1e-3


@pytest.mark.parametrize("see", [False, True])
def test_memory_sees_the_cache_only_if_asked(see):
    """One layer, whose tokens have nothing of the cache to hand on: other rows change logits, the memory only with the option."""
    cfg = cached(layers=1, see=see)
    params, state = setup(cfg, 2)
    _, state = closing(params, state, some_ids(2, T), cfg)
    noise = jnp.asarray(np.random.default_rng(6).standard_normal(mixer_state(state).memory.vectors.shape), jnp.float32)
    other = with_cache(state, lambda m: m._replace(vectors=m.vectors + noise))
    (y, one), (z, two) = (closing(params, s, some_ids(2, T, 1), cfg) for s in (state, other))
    assert np.abs(y - z).max() > 1e-3
    assert bool(np.any(one.memory.tokens != two.memory.tokens)) is see


@pytest.mark.parametrize("keep", [False, True])
def test_what_the_cache_counts(keep):
    """T rows of a segment, or its memory tokens too; none before the segment ends."""
    cfg = cached(32, keep=keep)
    params, state = setup(cfg, 2)
    _, state = call(params, state, some_ids(2, 2 * T + 1), cfg, np.array([2 * T + 1, T - 1]))
    rows = T + 4 if keep else T
    np.testing.assert_array_equal(mixer_state(state).memory.count, [[2 * rows, 0]] * 2)


def test_the_loss_of_a_compression_is_the_same_on_both_paths():
    """It arises where the segment's write tokens are fed; a stream that no segment ends in has none."""
    compression = CachedConfig(CompressiveConfig(T, 2, 2, "conv"))
    cfg = model(style=RELATIVE, pattern=(compression,))
    params, state = setup(cfg, 2)
    ids = some_ids(2, 3 * T)
    stats = jit(lambda n: rmt.run(params, state, ids, cfg, Call(length=n))[2])
    wanted = jit(lambda: rmt.run(params, state, ids, cfg, Call(whole=True))[2])()
    found = stats(jnp.full((2,), 3 * T))
    (name,) = (name for name in wanted if name.endswith("auxiliary_loss"))
    assert wanted[name] > 1e-3 and losses.auxiliary_loss(wanted) == wanted[name]
    assert_close(found, wanted, 1e-5)
    assert stats(jnp.full((2,), T - 1))[name] == 0


@pytest.mark.parametrize("options, message", [
    (dict(size=-1), "memory.length is -1; it must be at least 0"),
    (dict(style=TABLE), "style.positions is 'table', .* set 'relative' or 'rope'"),
    (dict(segment=0), "set model.segment"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(ValueError, match=message):
        cached(**options)
