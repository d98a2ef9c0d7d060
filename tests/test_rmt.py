"""RMT: equal to its equations written as loops, masks as drawn, no leak between segments, and what its options do.

Every cut of a stream into calls, for all memories inside: test_rmt_streams.py.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_rmt as reference
from neural_cases import assert_close, assert_equal, jit
from rmt_cases import LENGTHS, RELATIVE, TABLE, M, T, call, closing, model, scan_segments, setup, some_ids, some_segments, whole

from memtok_jax import config, data
from memtok_jax import params as P
from memtok_jax.models import borders, rmt
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import bind
from memtok_jax.training import losses

# ---------------------------------------------------------------------------------------- the equations, in float64


@pytest.mark.parametrize("form, style", [
    ("causal", TABLE), ("paper", replace(RELATIVE, embedding="matrix")), ("encoder", replace(TABLE, scale_embedding=False)),
    ("prefix", RELATIVE)], ids=["causal", "paper", "encoder", "prefix"])
def test_equals_the_loops(form, style):
    """Logits, memory, and the gradient of every parameter by differences of the loops, through all segments."""
    with jax.enable_x64(True):
        cfg = model(form=form, style=style)
        params, _ = setup(cfg, 2, np.float64)
        ids, r, r_memory, lengths, _ = some_segments()

        def ours(params):
            logits, state = scan_segments(params, cfg, ids, lengths)
            return (logits * r).sum() + (state.memory.tokens * r_memory).sum(), (logits, state.memory.tokens)

        gradient, (logits, memory) = jit(jax.grad(ours, has_aux=True))(params)

        def loops(params):
            total, outs = 0.0, []
            for b in range(2):
                parts = [ids[b, n, :size] for n, size in enumerate(LENGTHS[b])]
                got, m, _ = reference.recurrent(params, parts, form, cfg.model.embedding_scale)
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


def sees(form: str) -> str:
    return model(form=form).sees


def test_masks_are_those_of_the_table():
    """Two memory tokens, three tokens, two memory tokens."""
    paper = "11.....\n11.....\n111....\n1111...\n11111..\n1111111\n1111111"
    around = lambda form: borders.visible_tokens(Call(head=2, tail=2, sees=sees(form)), 7)
    assert drawn(around("paper")) == paper
    assert drawn(around("causal")) == drawn(np.tri(7))
    front = lambda form: borders.visible_tokens(Call(head=2, sees=sees(form)), 5)
    assert drawn(front("prefix")) == drawn(np.tri(5))
    assert np.asarray(front("encoder")).all()


def test_tokens_see_the_open_segment_and_no_padding():
    """Batch row 0 has one earlier token in an open segment of seven places, row 1 three; row 0 feeds two tokens, row 1 one."""
    call = Call(length=jnp.array([2, 1]), slot=jnp.array([3, 5]))
    assert drawn(borders.visible_slots(call, 2, 7)[0]) == "1111...\n11111.."
    assert drawn(borders.visible_slots(call, 2, 7)[1, :1]) == "111111."
    read = Call(length=jnp.array([2, 0]), slot=jnp.array([0, 5]), head=2, sees="memory")
    assert drawn(borders.visible_slots(read, 2, 7)[0]) == "11.....\n11....."
    write = Call(length=jnp.array([2, 2]), slot=jnp.array([5, 4]), tail=2, sees="memory")
    assert drawn(borders.visible_slots(write, 2, 7)[0]) == "1111111\n1111111"
    assert drawn(borders.visible_slots(write, 2, 7)[1]) == "111111.\n111111."
    buffer = borders.store(jnp.zeros((2, 7)), jnp.ones((2, 2)), call)
    np.testing.assert_array_equal(buffer, [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0]])


# ------------------------------------------------------------------------------------------------- special cases, leaks

def test_no_memory_is_independent_segments():
    """M = 0, two segments in a row: each exactly what it is alone, and exactly what the bare decoder makes of it."""
    cfg = model(tokens=0)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 2 * T)
    _, later = whole(params, state, ids[:, :T], cfg)
    second, _ = whole(params, later, ids[:, T:], cfg)
    assert_equal(second, whole(params, state, ids[:, T:], cfg)[0])
    bare, inside = bind(cfg.model), params["model"]
    alone = jit(lambda params, ids: bare.apply(params, bare.init_state(params, 2), ids, whole=True)[0])
    assert_equal(second, alone(inside, ids[:, T:]))
    streamed, _ = call(params, state, ids, cfg)
    assert_close(streamed[:, T:], second, 1e-6)


@pytest.mark.parametrize("form", ["causal", "paper"])
def test_write_tokens_act_on_the_next_segment_only(form):
    """Other vectors at the end of the input (here by the rows of the table of positions that only they have): the same logits,
    bit for bit, another memory, and other logits of the next segment."""
    cfg = model(form=form)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 2 * T)
    # Not the same number in every coordinate: LayerNorm would take that out again.
    noise = jnp.asarray(np.random.default_rng(6).standard_normal((M, 8)), jnp.float32)
    inside = params["model"]
    other = params | {"model": inside | {"positions": inside["positions"].at[-M:].add(noise)}}
    first, later = whole(params, state, ids[:, :T], cfg)
    again, changed = whole(other, state, ids[:, :T], cfg)
    assert_equal(again, first)
    assert np.abs(changed.memory.tokens - later.memory.tokens).max() > 1e-2
    second, third = (whole(params, s, ids[:, T:], cfg)[0] for s in (later, changed))
    assert np.abs(second - third).max() > 1e-3


# --------------------------------------------------------------------------------------------- segments, short and empty

def test_empty_segments_change_nothing():
    """In front or behind: the same carry, bit for bit, and the same loss. A row that is told to close an empty one does not."""
    cfg = model()
    params, state = setup(cfg, 2)
    ids, targets = some_ids(2, T), some_ids(2, T, 1)
    empty = np.zeros(2, int)
    first, after = closing(params, state, ids, cfg)
    _, padded = closing(params, state, some_ids(2, T, 2), cfg, empty)
    again, after_padded = closing(params, padded, ids, cfg)
    _, behind = closing(params, after_padded, some_ids(2, T, 3), cfg, empty, closes=True)
    assert_equal(again, first)
    assert_equal(behind.memory, after.memory)
    assert_equal(behind.stack.slot, after.stack.slot)
    assert losses.totals(again, targets * 0 + losses.IGNORE).nats == 0
    mixed, one = closing(params, state, ids, cfg, np.array([T, 0]))
    assert_equal((mixed[0], one.memory.tokens[0], one.memory.tokens[1]),
                 (first[0], after.memory.tokens[0], state.memory.tokens[1]))


def test_a_whole_segment_of_an_encoder_equals_the_general_computation():
    cfg = model(form="encoder", style=RELATIVE)
    params, state = setup(cfg, 2)
    for n in range(2):
        y, after = call(params, state, some_ids(2, T, n), cfg)
        assert_close(whole(params, state, some_ids(2, T, n), cfg), (y, after), 1e-5)
        state = after


def test_a_caller_may_end_a_segment_early_and_leave_the_next_one_open():
    """Ended after T of 2 T places, then token by token without a border: what two whole segments say."""
    cfg = model(segment=2 * T)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 3 * T)
    short = replace(cfg, model=replace(cfg.model, segment=T, positions=cfg.stack.b.slots))
    first, later = whole(params, rmt.init_state(params, short, 2), ids[:, :T], short)
    expected, _ = whole(params, state._replace(memory=later.memory), ids[:, T:], cfg)
    y, state = closing(params, state, ids[:, :T], cfg)
    assert_close(y, first, 1e-5)
    assert_close(state.memory, later.memory, 1e-5)
    outs = []
    for t in range(T, 3 * T):
        y, state = closing(params, state, ids[:, t:t + 1], cfg, closes=False)
        outs.append(y)
        np.testing.assert_array_equal(state.stack.slot, M + t + 1 - T)
    assert_close(jnp.concatenate(outs, 1), expected, 1e-5)
    assert_equal(state.memory, later.memory._replace(tokens=state.memory.tokens))


# ---------------------------------------------------------------------------------------------------------------- options

@pytest.mark.parametrize("form", ["prefix", "suffix"])
def test_a_memory_that_is_only_read_follows_the_parameters(form):
    """A carry from before an update: `renew` takes the memory from the parameters, which then get their gradient."""
    cfg = model(form=form)
    params, state = setup(cfg, 2)
    specs = rmt.state_specs(cfg, 2)
    stale = state._replace(memory=state.memory._replace(tokens=state.memory.tokens + 1))
    assert_equal(P.renew(stale, rmt.init_state(params, cfg, 2), specs), state)
    changed = params | {"memory": {"tokens": params["memory"]["tokens"] - 3}}
    now = P.renew(state, rmt.init_state(changed, cfg, 2), specs)
    assert_equal(now.memory.tokens, jnp.broadcast_to(changed["memory"]["tokens"][None], now.memory.tokens.shape))
    if form == "prefix":  # attention alone does not look at the memory tokens behind it
        loss = lambda p: jnp.sin(rmt.run(p, P.renew(stale, rmt.init_state(p, cfg, 2), specs), some_ids(2, T), cfg,
                                         Call(whole=True))[0]).sum()
        assert np.all(np.abs(jit(jax.grad(loss))(params)["memory"]["tokens"]).max(1) > 1e-5)


@pytest.mark.parametrize("form", ["causal", "paper", "encoder"])
def test_a_memory_that_is_written_stays(form):
    cfg = model(form=form)
    params, state = setup(cfg, 2)
    written = state._replace(memory=state.memory._replace(tokens=state.memory.tokens + 1))
    assert_equal(P.renew(written, state, rmt.state_specs(cfg, 2)), written)


def test_initial_memories():
    draw = lambda init: P.init_params(rmt.specs(model(width=64, head_dim=8, tokens=50, init=init)), jax.random.key(0))
    shared, scaled, small = (np.asarray(draw(init)["memory"]["tokens"]) for init in ("shared", "scaled", "small"))
    assert np.ptp(shared, axis=0).max() == 0 and 0.7 < shared.std() < 1.3
    word = np.asarray(draw("scaled")["model"]["words"]["embedding"]) * 8
    assert abs(scaled.std() / word.std() - 1) < 0.1 and scaled.std(0).min() > 0.3 and abs(small.std() - 0.02) < 0.002


def test_carry_in_bfloat16_keeps_the_compute_dtype():
    cfg = model(dtype="bfloat16")
    params = P.abstract(rmt.specs(cfg))
    state = jax.eval_shape(lambda p: rmt.init_state(p, cfg, 3), params)
    logits, end = jax.eval_shape(lambda p, s, i: rmt.run(p, s, i, cfg)[:2], params, state,
                                 jax.ShapeDtypeStruct((3, 5), jnp.int32))
    assert logits.dtype == np.float32 and end.memory.tokens.dtype == jnp.bfloat16
    assert end.stack.layers[0]["segment"].k.dtype == jnp.bfloat16
    assert jax.tree.map(lambda s: (s.shape, s.dtype), end) == jax.tree.map(lambda s: (s.shape, s.dtype), state)


@pytest.mark.parametrize("task", ["copy", "reverse", "retrieval", "equations"])
@pytest.mark.parametrize("kind", ["", "_none", "_prefix", "_paper", "_cached"])
def test_presets_fit_their_tasks(task, kind):
    """Each segment of a task's row is one of the model, whose words are those of the task."""
    experiment = config.load(f"rmt:{task}{kind}")
    cfg = experiment.model
    assert experiment.data.sequence % cfg.segment == 0 and experiment.training.call_tokens % cfg.call_tokens == 0
    assert cfg.vocabulary == data.vocabulary(experiment.data)
    (mixer,) = cfg.model.pattern
    assert (kind == "_none") == (cfg.tokens == 0) and (kind == "_cached") == (mixer.name == "cached")


@pytest.mark.parametrize("options, message", [
    (dict(form="papr"), "form is 'papr'; it must be one of .* did you mean 'paper'"),
    (dict(width=10), "width=10 is not a multiple of head_dim=4"),
    (dict(positions=7), "positions=7 is less than the 8 places"),
    (dict(tokens=-1), "rmt.tokens is -1; it must be at least 0"),
    (dict(init="unit"), "init is 'unit'; it must be one of scaled, shared, small"),
    (dict(layers=0), "model.layers is 0; it must be at least 1"),
    (dict(segment=0), "segment"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(config.UserError, match=message):
        model(**options)


def test_calls_that_are_no_segments_are_refused():
    """Whole calls of half a segment, and what cannot be one segment."""
    def refused(cfg, tokens, call, message):
        params, state = P.abstract(rmt.specs(cfg)), P.abstract(rmt.state_specs(cfg, 2))
        with pytest.raises(config.UserError, match=message):
            jax.eval_shape(lambda p, s: rmt.run(p, s, jnp.zeros((2, tokens), jnp.int32), cfg, call)[0], params, state)

    refused(model(), 6, Call(whole=True), "6 tokens is not a multiple of model.segment=4")
    refused(model(), 5, Call(closes=jnp.ones(2, bool)), "5 tokens does not fit into a segment of 4: the call ends a segment")
    refused(model(form="encoder"), 5, Call(), "5 tokens does not fit into a segment of 4: a call of an encoder is one segment")
