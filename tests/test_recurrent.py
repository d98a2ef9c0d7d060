"""RMT: equal to its equations written as loops, masks as drawn, no leak between segments, streaming equal to training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_recurrent as reference
from neural_cases import assert_close, assert_equal, jit
from recurrent_cases import LENGTHS, M, T, V, call, model, setup, some_ids, some_segments

from memtok_jax import config, data
from memtok_jax import params as P
from memtok_jax.data import splitting
from memtok_jax.models import decoder, masks, recurrent, segments
from memtok_jax.training import losses

# ---------------------------------------------------------------------------------------- the equations, in float64


@pytest.mark.parametrize("form, position", [("causal", "learned"), ("paper", "relative"), ("encoder", "learned"),
                                            ("prefix", "relative")])
def test_equals_the_loops(form, position):
    """Logits, memory, and the gradient of every parameter by differences of the loops, through all segments."""
    with jax.enable_x64(True):
        cfg = model(form=form, position=position, ends="call", scaled=form != "encoder", tied=form != "paper")
        params, state = setup(cfg, 2, np.float64)
        ids, r, r_memory, lengths, real = some_segments()

        def ours(params):
            state = recurrent.init_state(params, cfg, 2)
            xs = (jnp.moveaxis(jnp.asarray(ids), 1, 0), jnp.asarray(lengths.T, jnp.int32))

            def one(state, x):
                logits, state = recurrent.apply(params, state, x[0], cfg, x[1])
                return state, logits

            state, logits = jax.lax.scan(one, state, xs)
            logits = jnp.where(real[..., None], jnp.moveaxis(logits, 0, 1), 0.0)
            return (logits * r).sum() + (state.memory.tokens * r_memory).sum(), (logits, state.memory.tokens)

        gradient, (logits, memory) = jit(jax.grad(ours, has_aux=True))(params)
        scale = segments.scale(cfg)

        def loops(params):
            total, outs = 0.0, []
            for b in range(2):
                parts = [ids[b, n, :size] for n, size in enumerate(LENGTHS[b])]
                got, m, _ = reference.recurrent(params, parts, form, scale)
                full = [n for n, size in enumerate(LENGTHS[b]) if size]
                total += sum((y * r[b, n, :len(y)]).sum() for n, y in zip(full, got, strict=True)) + (m * r_memory[b]).sum()
                outs.append((full, got, m))
            return total, outs

        plain = jax.tree.map(np.asarray, params)
        _, outs = loops(plain)
        for b, (full, got, m) in enumerate(outs):
            np.testing.assert_allclose(memory[b], m, rtol=0, atol=1e-11)
            for n, y in zip(full, got, strict=True):
                np.testing.assert_allclose(logits[b, n, :len(y)], y, rtol=0, atol=1e-11)
        check_gradient(gradient, plain, lambda p: loops(p)[0])


def check_gradient(gradient, params, function, step_size=1e-5):
    """Each array's gradient along a random direction equals the central difference of `function`."""
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(3)
    for i, (path, g) in enumerate(jax.tree.leaves_with_path(gradient)):
        direction = rng.standard_normal(leaves[i].shape)
        at = lambda h, i=i, direction=direction: function(
            treedef.unflatten([w + h * direction if j == i else w for j, w in enumerate(leaves)]))
        difference = (at(step_size) - at(-step_size)) / (2 * step_size)
        np.testing.assert_allclose((np.asarray(g) * direction).sum(), difference, rtol=1e-6, atol=1e-6,
                                   err_msg=jax.tree_util.keystr(path))


# ------------------------------------------------------------------------------------------------------------- masks

def drawn(mask) -> str:
    return "\n".join("".join("1" if x else "." for x in row) for row in np.asarray(mask))


def test_masks_are_those_of_the_table():
    paper = "11.....\n11.....\n111....\n1111...\n11111..\n1111111\n1111111"
    assert drawn(masks.segment_mask("paper", 2, 3, 2)) == paper
    assert drawn(masks.segment_mask("causal", 2, 3, 2)) == drawn(np.tri(7))
    assert drawn(masks.segment_mask("prefix", 2, 3, 0)) == drawn(np.tri(5))
    assert masks.segment_mask("encoder", 2, 3, 0).all()


def test_padding_is_hidden_from_every_row_and_the_past_from_the_read_block():
    """Two real tokens of three, after one earlier token of four slots; a row of another batch is empty."""
    visible = masks.visible("paper", 2, 3, 2, jnp.array([2, 0]), jnp.array([1, 3]), 4)
    assert drawn(visible[0]) == "....11.....\n....11.....\n1...111....\n1...1111...\n1...1111...\n1...1111.11\n1...1111.11"
    assert not np.asarray(visible)[1, :, 6:9].any() and not np.asarray(visible)[:, :2, :4].any()
    query, key = masks.positions(2, 3, 2, jnp.array([2, 0]), jnp.array([1, 3]), 4)
    np.testing.assert_array_equal(query, [[0, 1, 3, 4, 4, 5, 6], [0, 1, 5, 5, 5, 5, 6]])
    np.testing.assert_array_equal(key[0], [2, 3, 4, 5, *query[0]])


# ------------------------------------------------------------------------------------------------- special cases, leaks

def test_no_memory_is_independent_segments():
    """M = 0, two segments in a row: each exactly what it is alone, and what the bare decoder makes of it."""
    cfg = replace(model(tokens=0), aligned=True)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 2 * T)
    _, later = call(params, state, ids[:, :T], cfg)
    second, _ = call(params, later, ids[:, T:], cfg)
    assert_equal(second, call(params, state, ids[:, T:], cfg)[0])
    place = jnp.broadcast_to(jnp.arange(T)[None], (2, T))
    view = decoder.View(jnp.broadcast_to(jnp.tri(T, dtype=bool)[None], (2, T, T)), place, place)

    def bare(params, ids):
        x = decoder.embed(params, ids, cfg.decoder)
        h, _ = decoder.run(params, x, segments.no_past(cfg.decoder, 2), view, cfg.decoder)
        return decoder.output(params, h, cfg.decoder)

    assert_close(second, jit(bare)(params["decoder"], ids[:, T:]), 1e-6)


@pytest.mark.parametrize("form", ["causal", "paper"])
def test_write_rows_act_on_the_next_segment_only(form, monkeypatch):
    """Other vectors at the end of the input: the same logits, bit for bit, and another memory."""
    cfg = replace(model(form=form), aligned=True)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 2 * T)
    read = recurrent.memory_tokens.read

    def two(params, noise):
        with monkeypatch.context() as patch:
            patch.setattr(recurrent.memory_tokens, "read", lambda *a: read(*a).at[:, -M:].add(noise))
            first, later = recurrent.apply(params, state, ids[:, :T], cfg)
            return first, later.memory.tokens, recurrent.apply(params, later, ids[:, T:], cfg)[0]

    run = jit(two)
    # Not the same number in every coordinate: LayerNorm would take that out again.
    noise = jnp.asarray(np.random.default_rng(6).standard_normal((2, M, 8)), jnp.float32)
    plain, other = run(params, 0 * noise), run(params, noise)
    assert_equal(other[0], plain[0])
    assert np.abs(other[1] - plain[1]).max() > 1e-2 and np.abs(other[2] - plain[2]).max() > 1e-3


# --------------------------------------------------------------------------------------------- segments, short and empty

def test_empty_segments_change_nothing():
    """In front or behind: the same memory, bit for bit, and the same loss."""
    cfg = model(ends="call")
    params, state = setup(cfg, 2)
    ids, targets = some_ids(2, T), some_ids(2, T, 1)
    empty = np.zeros(2)
    first, after = call(params, state, ids, cfg)
    _, padded = call(params, state, some_ids(2, T, 2), cfg, empty)
    again, after_padded = call(params, padded, ids, cfg)
    _, behind = call(params, after_padded, some_ids(2, T, 3), cfg, empty)
    assert_equal(again, first)
    assert_equal(behind, after)
    assert losses.totals(again, targets * 0 + losses.IGNORE).nats == 0
    mixed, one = call(params, state, ids, cfg, np.array([T, 0]))
    assert_equal((mixed[0], one.memory.tokens[0], one.memory.tokens[1]),
                 (first[0], after.memory.tokens[0], state.memory.tokens[1]))


def test_sizes_of_segments():
    assert splitting.sizes(10, 4, "left") == (4, 4, 2)
    assert splitting.sizes(10, 4, "right") == (2, 4, 4)
    assert splitting.sizes(10, 4, "center") == (4, 4, 2)
    assert splitting.sizes(9, 4, "center") == (3, 3, 3) and splitting.sizes(8, 4, "right") == (4, 4)
    assert splitting.sizes(10, 3, "center") == (3, 3, 3, 1)
    with pytest.raises(ValueError, match="did you mean 'left'"):
        splitting.sizes(4, 2, "lefft")


@pytest.mark.parametrize("align", splitting.ALIGNMENTS)
def test_labels_cross_the_borders_of_segments(align):
    """The loss over segments is that of one flat shift: no prediction is lost at a border."""
    rng = np.random.default_rng(0)
    ids, table = rng.integers(V, size=(2, 10)).astype(np.int32), rng.standard_normal((V, V)).astype(np.float32)
    cut = splitting.split(ids, splitting.next_labels(ids), 4, align)
    flat = losses.totals(jnp.asarray(table[ids[:, :-1]]), jnp.asarray(ids[:, 1:]))
    parts = losses.totals(jnp.asarray(table[cut.ids]).reshape(2, -1, V), jnp.asarray(cut.labels).reshape(2, -1))
    np.testing.assert_allclose(parts.nats, flat.nats, rtol=1e-6)
    assert parts.count == flat.count == 18
    assert cut.length.sum(1).tolist() == [10, 10]


# ------------------------------------------------------------------------------------------------------------ generation

@cache
def streamed(form: str, position: str):
    """(cfg, params, ids, logits of training segment by segment, memory after them)."""
    cfg = model(form=form, position=position, positions=M + 2 * T + M)
    params, state = setup(cfg, 2)
    ids, outs = some_ids(2, 3 * T), []
    for n in range(3):
        y, state = call(params, state, ids[:, n * T:(n + 1) * T], replace(cfg, aligned=True))
        outs.append(y)
    return cfg, params, ids, jnp.concatenate(outs, 1), state.memory


@pytest.mark.parametrize("form, position", [("causal", "learned"), ("paper", "relative")])
def test_token_by_token_equals_the_training_computation(form, position):
    """`roll`: three segments, one token at a time; memory, cache and fill count in one carry of constant size."""
    cfg, params, ids, expected, memory = streamed(form, position)
    state, outs = recurrent.init_state(params, cfg, 2), []
    for t in range(3 * T):
        y, state = call(params, state, ids[:, t:t + 1], cfg)
        outs.append(y)
        np.testing.assert_array_equal(state.open.phase, (t + 1) % T)
    assert_close(jnp.concatenate(outs, 1), expected, 1e-5)
    assert_close(state.memory, memory, 1e-5)


def test_extended_segment_needs_no_write_block():
    """`extend`: the last segment goes on; its logits are those of one longer segment, and equal without write rows."""
    cfg, params, ids, expected, _ = streamed("causal", "learned")
    _, state = call(params, recurrent.init_state(params, cfg, 2), ids[:, :2 * T - 1], cfg)
    state, longer = recurrent.extend(state, cfg, T)
    assert longer.tail == 0 and longer.decoder.positions == cfg.decoder.positions
    outs = []
    for t in range(2 * T - 1, 3 * T):
        y, state = call(params, state, ids[:, t:t + 1], longer)
        outs.append(y)
    assert_close(outs[0], expected[:, 2 * T - 1:2 * T], 1e-5)
    # One segment of 2 T tokens after the first, in one piece.
    whole = replace(cfg, segment=2 * T, aligned=True)
    _, first = call(params, recurrent.init_state(params, cfg, 2), ids[:, :T], replace(cfg, aligned=True))
    y, _ = call(params, recurrent.init_state(params, whole, 2)._replace(memory=first.memory), ids[:, T:], whole)
    assert_close(jnp.concatenate(outs, 1), y[:, T - 1:], 1e-5)
    with pytest.raises(ValueError, match="8 more .* need 14 positions, the table has 12; set model.positions=14"):
        recurrent.extend(state, cfg, 8)
    with pytest.raises(ValueError, match="no open segment"):
        recurrent.extend(state, replace(cfg, ends="call"), 1)


# ---------------------------------------------------------------------------------------------------------------- options

def test_a_memory_that_is_only_read_learns_through_refresh():
    """Form "prefix" with a carry from before: memory from the parameters; the other forms keep what was written."""
    cfg = model(form="prefix")
    params, state = setup(cfg, 2)
    stale = state._replace(memory=state.memory._replace(tokens=state.memory.tokens + 1))
    assert_equal(recurrent.refresh(params, stale, cfg), state)
    assert recurrent.refresh(params, stale, model()) is stale
    loss = lambda p: jnp.sin(recurrent.apply(p, recurrent.refresh(p, stale, cfg), some_ids(2, T), cfg)[0]).sum()
    assert np.all(np.abs(jit(jax.grad(loss))(params)["memory"]["tokens"]).max(1) > 1e-5)


def test_initial_memories():
    draw = lambda init: P.init_params(recurrent.specs(model(width=64, head_dim=8, tokens=50, init=init)), jax.random.key(0))
    shared, scaled, small = (np.asarray(draw(init)["memory"]["tokens"]) for init in ("shared", "scaled", "small"))
    assert np.ptp(shared, axis=0).max() == 0 and 0.7 < shared.std() < 1.3
    word = np.asarray(draw("scaled")["decoder"]["embedding"]) * 8
    assert abs(scaled.std() / word.std() - 1) < 0.1 and scaled.std(0).min() > 0.3 and abs(small.std() - 0.02) < 0.002


def test_carry_in_bfloat16_keeps_the_compute_dtype():
    cfg = model(dtype="bfloat16")
    params = P.abstract(recurrent.specs(cfg))
    state = jax.eval_shape(lambda p: recurrent.init_state(p, cfg, 3), params)
    logits, end = jax.eval_shape(lambda p, s, i: recurrent.apply(p, s, i, cfg), params, state,
                                 jax.ShapeDtypeStruct((3, 5), jnp.int32))
    assert logits.dtype == np.float32 and end.memory.tokens.dtype == jnp.bfloat16
    assert jax.tree.map(lambda s: (s.shape, s.dtype), end) == jax.tree.map(lambda s: (s.shape, s.dtype), state)


@pytest.mark.parametrize("task", ["copy", "reverse", "retrieval", "equations"])
@pytest.mark.parametrize("kind", ["", "_none", "_prefix", "_paper", "_cached"])
def test_presets_fit_their_tasks(task, kind):
    """Each segment of a task's row is one of the model, whose words are those of the task."""
    experiment = config.load(f"rmt:{task}{kind}")
    assert recurrent.for_training(experiment.model, experiment.call_tokens).aligned
    assert experiment.model.vocabulary == data.vocabulary(experiment.data)
    assert (kind == "_none") == (experiment.model.tokens == 0) and (kind == "_cached") == (experiment.model.cache > 0)


@pytest.mark.parametrize("options, message", [
    (dict(form="papr"), "form='papr' must be one of .* did you mean 'paper'"),
    (dict(form="encoder"), "ends='full': a token of an encoder"),
    (dict(width=10), "width=10 is not a multiple of head_dim=4"),
    (dict(positions=7), "positions=7 is less than the 8 rows"),
    (dict(tokens=-1), "tokens=-1 must not be negative"),
    (dict(init="unit"), "init is 'unit'; it must be one of scaled, shared, small"),
    (dict(layers=0), "layers=0 must be at least 1"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_calls_that_are_no_segments_are_refused():
    with pytest.raises(ValueError, match="6 tokens is not a multiple of model.segment=4"):
        recurrent.for_training(model(), 6)
    assert recurrent.for_training(model(), 4).aligned and not recurrent.for_training(model(), 8).aligned
    with pytest.raises(ValueError, match="5 tokens is not one segment of model.segment=4"):
        recurrent.for_training(model(ends="call"), 5)
