"""RMT with a cache beside its memory: equal to its equations as loops, to any cut of a stream, to one long causal pass."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_recurrent as reference
from neural_cases import assert_close, cast, jit
from recurrent_cases import LENGTHS, T, V, call, model, setup, some_ids, some_segments
from test_recurrent import check_gradient, drawn

from memtok_jax.models import decoder, masks, recurrent, segments


def cached(**options):
    return model(**(dict(position="relative", cache=5) | options))


@pytest.mark.parametrize("form, by_memory, size, whole", [
    ("paper", False, 3, False), pytest.param("causal", True, 5, False, marks=pytest.mark.slow), ("paper", True, 9, True)])
def test_equals_the_loops(form, by_memory, size, whole):
    """Logits, memory, cache, and every gradient by differences of loops whose caches are held: none flows into them."""
    with jax.enable_x64(True):
        cfg = cached(form=form, cache=size, read_mem_from_cache=by_memory, cache_memory=whole, ends="call")
        params, _ = setup(cfg, 2, np.float64)
        ids, r, r_memory, lengths, real = some_segments()

        def ours(params):
            state = cast(recurrent.init_state(params, cfg, 2), np.float64)
            xs = (jnp.moveaxis(jnp.asarray(ids), 1, 0), jnp.asarray(lengths.T, jnp.int32))
            state, logits = jax.lax.scan(lambda s, x: recurrent.apply(params, s, x[0], cfg, x[1])[::-1], state, xs)
            logits = jnp.where(real[..., None], jnp.moveaxis(logits, 0, 1), 0.0)
            return (logits * r).sum() + (state.memory.tokens * r_memory).sum(), (logits, state)

        gradient, (logits, state) = jit(jax.grad(ours, has_aux=True))(params)
        plain = jax.tree.map(np.asarray, params)

        def loop(params, b, held=None):
            parts = [ids[b, n, :size] for n, size in enumerate(LENGTHS[b])]
            return reference.recurrent(params, parts, form, segments.scale(cfg), size, by_memory, held, whole)

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
            np.testing.assert_allclose(state.cache.rows[:, b], held[-1], rtol=0, atol=1e-11)
            for n, y in zip([n for n, size in enumerate(LENGTHS[b]) if size], got, strict=True):
                np.testing.assert_allclose(logits[b, n, :len(y)], y, rtol=0, atol=1e-11)
        check_gradient(gradient, plain, total)


def test_a_stream_gives_what_whole_segments_give():
    """One call across all borders against the form of the loops above (a call is a segment); other cuts: test_contract.py."""
    cfg = cached(form="paper", read_mem_from_cache=True)
    params, start = setup(cfg, 2)
    ids, whole = some_ids(2, 3 * T), replace(cfg, ends="call")
    state, outs = recurrent.init_state(params, whole, 2), []
    for n in range(3):
        y, state = call(params, state, ids[:, n * T:(n + 1) * T], whole)
        outs.append(y)
    y, now = call(params, start, ids, cfg)
    assert_close(y, jnp.concatenate(outs, 1), 1e-5)
    assert_close(now.memory, state.memory, 1e-5)
    assert_close(now.cache.rows[:, :, T:], state.cache.rows, 1e-5)


def test_without_memory_segments_of_any_length_are_one_causal_pass():
    """M = 0 and a cache that holds all: Transformer-XL; distances, order and what is real must be right for this."""
    cfg = cached(tokens=0, cache=3 * T, ends="call")
    params, state = setup(cfg, 2)
    ids, outs, first = some_ids(2, 3 * T), [], 0
    for size in (1, 4, 3, 4):
        y, state = call(params, state, ids[:, first:first + size], cfg)
        outs, first = [*outs, y], first + size
    one = replace(cfg, segment=3 * T, cache=0)
    expected, _ = call(params, recurrent.init_state(params, one, 2), ids, one)
    assert_close(jnp.concatenate(outs, 1), expected, 1e-5)


def test_an_empty_cache_is_hidden():
    """Rows that are there but not counted change nothing: plain RMT, segment by segment."""
    cfg, plain = cached(form="paper", read_mem_from_cache=True, ends="call"), model(form="paper", position="relative", ends="call")
    params, state = setup(cfg, 2)
    bare = recurrent.init_state(params, plain, 2)
    for n in range(3):
        ids = some_ids(2, T, n)
        want, bare = call(params, bare, ids, plain)
        emptied = state.cache._replace(rows=state.cache.rows + 1, count=state.cache.count * 0)
        y, state = call(params, state._replace(cache=emptied), ids, cfg)
        assert_close(y, want, 1e-5)
    assert_close(state.memory, bare.memory, 1e-5)
    assert bare.cache == ()


def test_no_gradient_enters_the_cache(monkeypatch):
    """A memory that is never written leaves the cache as the only way: values pass, their gradient is exactly zero.

    Segment n holds tokens of its own, and another table is the output layer, so embeddings get gradient as inputs only.
    """
    table = jnp.asarray(np.random.default_rng(5).standard_normal((8, V)), jnp.float32)
    monkeypatch.setattr(decoder, "output", lambda params, h, cfg: h @ table)
    cfg = replace(cached(form="prefix", read_mem_from_cache=True), aligned=True)
    params, start = setup(cfg, 2)
    ids = jnp.asarray(np.random.default_rng(4).integers(T, size=(2, 2 * T)) + np.repeat([0, T], T)[None], jnp.int32)

    def second(params, first):
        _, state = recurrent.apply(params, start, first, cfg)
        return jnp.sin(recurrent.apply(params, state, ids[:, T:], cfg)[0]).sum()

    run = jit(jax.value_and_grad(second))
    value, gradient = run(params, ids[:, :T])
    size = np.abs(gradient["decoder"]["embedding"]).max(1)
    assert not size[:T].any() and size[np.unique(ids[:, T:])].min() > 1e-5
    assert abs(run(params, ids[:, :T][:, ::-1])[0] - value) > 1e-3


@pytest.mark.parametrize("by_memory", [False, True])
def test_memory_sees_the_cache_only_if_asked(by_memory):
    """One layer, whose tokens have nothing of the cache to hand on: other rows change logits, the memory only with the flag."""
    cfg = cached(layers=1, read_mem_from_cache=by_memory, ends="call")
    params, state = setup(cfg, 2)
    _, state = call(params, state, some_ids(2, T), cfg)
    noise = jnp.asarray(np.random.default_rng(6).standard_normal(state.cache.rows.shape), jnp.float32)
    other = state._replace(cache=state.cache._replace(rows=state.cache.rows + noise))
    (y, one), (z, two) = (call(params, s, some_ids(2, T, 1), cfg) for s in (state, other))
    assert np.abs(y - z).max() > 1e-3
    assert bool(np.any(one.memory.tokens != two.memory.tokens)) is by_memory


def test_columns_of_the_cache():
    real = jnp.array([[False, True]])
    assert drawn(masks.visible_cache(real, 1, 2, 1, False)[0]) == "..\n.1\n.1\n.."
    assert drawn(masks.visible_cache(real, 1, 2, 1, True)[0]) == ".1\n.1\n.1\n.1"


def test_an_extended_segment_keeps_its_cache():
    """`extend` inside the second segment: what one segment of twice the length says after the same first one."""
    cfg = cached()
    params, start = setup(cfg, 2)
    ids = some_ids(2, 3 * T)
    _, state = call(params, start, ids[:, :T + 1], cfg)
    state, longer = recurrent.extend(state, cfg, T)
    outs = []
    for part in (ids[:, T + 1:2 * T - 1], ids[:, 2 * T - 1:]):
        y, state = call(params, state, part, longer)
        outs.append(y)
    _, whole = call(params, recurrent.init_state(params, replace(cfg, ends="call"), 2), ids[:, :T], replace(cfg, ends="call"))
    expected, _ = call(params, whole, ids[:, T:], replace(cfg, segment=2 * T, ends="call"))
    assert_close(jnp.concatenate(outs, 1), expected[:, 1:], 1e-5)


def test_tokens_in_a_cache_that_holds_memory_too():
    """Counted in the rows [m x m][m x m]... that the cache keeps, behind which stands a segment."""
    row = ([False] * 2 + [True] * T + [False] * 2) * 3
    for size in range(1, len(row)):
        cfg = cached(tokens=2, cache=size, cache_memory=True, ends="call")
        assert cfg.window == sum(row[-size:]) + T


@pytest.mark.parametrize("options, message", [
    (dict(cache=-1), "cache=-1 must not be negative"),
    (dict(position="learned"), "position='learned': .* with cache=5 set position='relative'"),
    (dict(form="encoder", ends="call"), "form='encoder' has none"),
    (dict(cache_memory=True), "cache_memory=True with cache=5, ends='full': .* set cache to its rows and ends='call'"),
    (dict(cache_memory=True, cache=0, ends="call"), "cache_memory=True with cache=0"),
    (dict(positions=12), "positions=12 is less than the 13 rows"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(ValueError, match=message):
        cached(**options)
