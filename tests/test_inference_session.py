"""Streams: any split gives the same carry, rows are independent, nothing is copied or compiled twice."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import inference_toys as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference_models import MODELS, ROWS, SEGMENT, TOLERANCE, K, fresh, load, session, tokens, whole

from memtok_jax.config import UserError
from memtok_jax.inference import host
from memtok_jax.inference import session as S
from memtok_jax.inference import stream as F
from memtok_jax.inference.blocks import blocks_for, cut_blocks, plan_blocks
from memtok_jax.inference.compiles import compile_count
from memtok_jax.inference.filters import Sampling
from memtok_jax.models.protocol import Model
from memtok_jax.params import StateSpec, abstract, map_rows, size_bytes, zero_state

# Each row its own options, and each option in some row.
MIXED = Sampling(temperature=[1.0, 0.5, 0.0], top_k=[0, 4, 2], top_p=[0.9, 1.0, 0.5], min_p=[0.0, 0.1, 0.0],
                 repetition_penalty=[1.5, 1.0, 2.0], repetition_window=[3, 0, 0])


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def assert_close(name, a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    close = functools.partial(np.testing.assert_allclose, rtol=TOLERANCE[name], atol=TOLERANCE[name])
    jax.tree.map(close, a, b)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@dataclass(frozen=True)
class CountingConfig:
    vocabulary: int = 3
    call_tokens: int = 4


def count_run(params, state, ids, cfg, call):
    length = jnp.full(len(ids), ids.shape[1]) if call.length is None else call.length
    state = {"phase": (state["phase"] + length) % cfg.call_tokens, "whole": state["whole"] + int(call.whole)}
    return jnp.zeros((*ids.shape, cfg.vocabulary)), state, {}


def count_state(cfg, batch):
    spec = StateSpec((batch,), ("batch",), jnp.int32)
    return {"phase": replace(spec, phase=True), "whole": spec}


counting = toys.Functions(specs=lambda cfg: {}, state_specs=count_state, run=count_run,
                          init_state=lambda params, cfg, batch: zero_state(count_state(cfg, batch)))


def take(name, stream, *rows):
    model, _ = load(name)
    return F.gather(model, stream, jnp.array(rows))


# ----------------------------------------------------------------------------------------------------- splits, blocks

def test_blocks_hold_the_tokens_with_little_padding():
    for tokens_ in (0, 1, 5, 16, 17, 60, 128, 129, 700, 5000):
        plan = plan_blocks(tokens_, (1, 16, 128, 512))
        assert sum(plan) >= tokens_ and (not plan or sum(plan) - min(plan) < tokens_)
    assert plan_blocks(700, (1, 16, 128, 512)) == (512, 128, 128)
    assert plan_blocks(3, (16, 128)) == (16,)


def test_cut_blocks_give_every_real_token_once():
    ids = np.arange(3 * 41).reshape(3, 41)
    length = np.array([41, 7, 0])
    rows = [[], [], []]
    for piece, real in cut_blocks(ids, length, (4, 16)):
        assert piece.shape[1] in (4, 16) and piece.dtype == real.dtype == np.int32
        for row in range(3):
            rows[row].extend(piece[row, :real[row]])
    for row in range(3):
        np.testing.assert_array_equal(rows[row], ids[row, :length[row]])


@pytest.mark.parametrize("split", [[1] * 41, [7] * 5 + [6], [3, 20, 1, 17]], ids=["ones", "sevens", "ragged"])
def test_any_split_equals_one_call(split):
    name = "toy"
    model, params = load(name)
    ids = tokens(name)
    logits, end = whole(name, ids)
    ones = jnp.ones(ROWS, jnp.int32)
    run = jax.jit(lambda p, s, i: F.append(model, p, s, i, ones * i.shape[1]))
    stream, pieces, first = fresh(name), [], 0
    for n in split:
        piece, stream = run(params, stream, ids[:, first:first + n])
        pieces.append(piece)
        first += n
    assert_close(name, jnp.concatenate(pieces, 1), logits)
    assert_close(name, stream, end)


def test_padded_blocks_equal_one_call(name):
    _, params = load(name)
    assert_close(name, session(name).feed(params, fresh(name), tokens(name)), whole(name, tokens(name))[1])


def test_feeding_from_inside_a_segment_equals_one_call(name):
    """Blocks that are full and yet not whole: they begin behind the first token of a segment."""
    _, params = load(name)
    run, ids = session(name), tokens(name)
    stream = run.feed(params, run.step(params, fresh(name), ids[:, 0])[1], ids[:, 1:])
    assert_close(name, stream, whole(name, ids)[1])


def whole_calls(length, prompt=(), active=(True, True), tokens_=8):
    """How often the counting model is promised whole units while 2 rows feed `tokens_` tokens after `prompt`."""
    model = Model(counting, CountingConfig())
    stream = F.start(model, {}, F.row_keys(jax.random.key(0), 2))._replace(active=jnp.array(active))
    for n in prompt:
        stream = F.feed(model, {}, stream, jnp.zeros((2, n), jnp.int32), jnp.full(2, n))
    stream = F.feed(model, {}, stream, jnp.zeros((2, tokens_), jnp.int32), jnp.array(length))
    return int(stream.state["whole"][0])


def test_whole_units_are_promised_only_where_it_is_true():
    assert whole_calls([8, 8]) == 1
    assert whole_calls([8, 8], prompt=(4, 4)) == 3
    assert whole_calls([8, 7]) == 0, "padding"
    assert whole_calls([8, 8], prompt=(3,)) == 0, "inside a unit"
    assert whole_calls([8, 8], prompt=(3, 1)) == 1, "at the next border"
    assert whole_calls([8, 8], active=(True, False)) == 0, "a row that is left alone"
    assert whole_calls([6, 6], tokens_=6) == 0, "not a multiple of the unit"


def test_blocks_for_a_model_are_whole_calls_where_they_can_be():
    assert blocks_for(1) == (16, 128, 512)
    assert blocks_for(48) == (16, 144, 528)
    assert blocks_for(512) == (16, 128, 512)
    assert blocks_for(1000) == (16, 128, 512, 1000)


def test_append_gives_the_parallel_logits():
    ids, (_, params) = tokens("toy"), load("toy")
    some, stream = session("toy").append(params, fresh("toy"), ids[:, :4])
    assert_close("toy", some, whole("toy", ids)[0][:, :4])
    np.testing.assert_array_equal(stream.t, [4] * ROWS)


def test_steps_give_the_parallel_logits(name):
    ids, (_, params) = tokens(name), load(name)
    stream = session(name).feed(params, fresh(name), ids[:, :9])
    for t in range(9, 16):
        logits, stream = session(name).step(params, stream, ids[:, t])
        assert_close(name, logits, whole(name, ids)[0][:, t])


def test_rows_of_different_length_equal_solo_runs(name):
    _, params = load(name)
    ids = tokens(name)
    together = session(name).feed(params, fresh(name), ids, [41, 10, 1])
    for row, n in enumerate((41, 10, 1)):
        solo = session(name).feed(params, fresh(name), ids[:, :n])
        assert_close(name, take(name, together, row), take(name, solo, row))


def test_padding_is_never_read(name):
    _, params = load(name)
    ids = tokens(name)
    other = ids.copy()
    other[0, 10:], other[2, 1:] = 0, 1
    a, b = (session(name).feed(params, fresh(name), i, [10, 41, 1]) for i in (ids, other))
    assert_equal(a, b)


def test_inactive_rows_do_not_change_by_a_bit(name):
    _, params = load(name)
    ids, run = tokens(name), session(name)
    before = run.set_active(run.feed(params, fresh(name), ids[:, :10]), [True, False, True], False)
    kept = F.fork(before)
    after = run.feed(params, before, ids[:, 10:])
    _, last, after = run.decode(params, after, [1, 2, 3], 1.0)
    _, after = run.step(params, after, last)
    assert_equal(take(name, after, 0, 2), take(name, kept, 0, 2))
    assert int(last[0]) == 1 and int(last[2]) == 3
    assert int(after.t[1]) == 41 + K + 1


# ------------------------------------------------------------------------------------------------------------- decoding

def decode_by(k, total, stop=()):
    """Tokens [B, total] and the end of the stream, k per call, for the toy model."""
    model, params = load("toy")
    run = jax.jit(lambda p, s, last: F.decode(model, p, s, last, k, jnp.ones(ROWS), jnp.array(stop, jnp.int32)))
    stream = session("toy").feed(params, fresh("toy"), tokens("toy")[:, :9])
    last, pieces = jnp.array([1, 2, 3]), []
    for _ in range(total // k):
        ids, last, stream = run(params, stream, last)
        pieces.append(ids)
    return np.concatenate(pieces, 1), stream


def test_k_tokens_per_call_say_the_same():
    single, end = decode_by(1, 80)
    assert len(np.unique(single)) > 2
    for k in (5, 16):
        ids, stream = decode_by(k, 80)
        np.testing.assert_array_equal(ids, single)
        assert_close("toy", stream, end)


def test_decoding_is_stepping_and_sampling(name):
    _, params = load(name)
    run, ids = session(name), tokens(name)
    start, options, last = fresh(name), host.sampling(MIXED, ROWS), jnp.array([1, 2, 3])
    said, newest, end = run.decode(params, run.feed(params, F.fork(start), ids[:, :9]), last, MIXED)
    stream = run.feed(params, start, ids[:, :9])
    for i in range(K):
        logits, stream = run.step(params, stream, last)
        last = F.sample(logits, stream, options)
        np.testing.assert_array_equal(last, said[:, i])
    np.testing.assert_array_equal(last, newest)
    assert_close(name, stream._replace(said=end.said), end)


def test_rows_that_have_said_their_share_wait(name):
    """Two calls that share k tokens out in any way are one call; the stream is the same bit for bit."""
    _, params = load(name)
    run, ids = session(name), tokens(name)
    stream = run.feed(params, fresh(name), ids[:, :9])
    said, newest, end = run.decode(params, F.fork(stream), [1, 2, 3], MIXED)
    first, last, half = run.decode(params, stream, [1, 2, 3], MIXED, [2, 0, K])
    np.testing.assert_array_equal(np.asarray(first)[0], [*np.asarray(said)[0, :2], *[F.NO_TOKEN] * (K - 2)])
    assert (np.asarray(first)[1] == F.NO_TOKEN).all() and int(last[1]) == 2 and int(half.t[1]) == 9 and bool(half.active[1])
    rest, last, whole_ = run.decode(params, half, last, MIXED, [K - 2, K, 0])
    np.testing.assert_array_equal(np.asarray(rest)[0, :K - 2], np.asarray(said)[0, 2:])
    np.testing.assert_array_equal(np.asarray(rest)[1], np.asarray(said)[1])
    np.testing.assert_array_equal(last, newest)
    assert_close(name, whole_, end)


def test_greedy_is_the_argmax_of_the_parallel_logits(name):
    _, params = load(name)
    prompt, run = tokens(name)[:, :9], session(name)
    stream, last, pieces = run.feed(params, fresh(name), prompt), np.array([1, 2, 3]), [prompt, [[1], [2], [3]]]
    for _ in range(4):
        ids, last, stream = run.decode(params, stream, last, 0.0)
        pieces.append(ids)
    sequence = np.concatenate(pieces, 1)
    logits, _ = whole(name, sequence[:, :-1])
    np.testing.assert_array_equal(np.argmax(logits, -1)[:, 9:], sequence[:, 10:])


def test_samples_depend_on_neither_slot_nor_neighbours(name):
    _, params = load(name)
    ids, run = tokens(name), session(name)
    stream = run.feed(params, fresh(name), ids, [30, 12, 5])
    moved = run.gather(stream, [2, 0, 0])
    said, _, _ = run.decode(params, stream, [1, 2, 3], [1.0, 1.0, 0.7])
    moved_said, _, _ = run.decode(params, moved, [3, 1, 1], [0.7, 1.0, 1.0])
    np.testing.assert_array_equal(moved_said, np.asarray(said)[[2, 0, 0]])


def test_key_of_a_row_does_not_depend_on_the_batch_size():
    few, many = (jax.random.key_data(F.row_keys(jax.random.key(3), n)) for n in (2, 7))
    np.testing.assert_array_equal(few, many[:2])


def test_samples_follow_the_softmax():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2, 0.0]))
    n = 4000
    empty = zero_state(F.stream_specs(MODELS["toy"], n)._replace(state=()))
    stream = empty._replace(key=jax.random.key_data(F.row_keys(jax.random.key(0), n)), seen=jnp.zeros((n, 4), jnp.int32))
    for temperature in (1.0, 0.5):
        drawn = F.sample(jnp.tile(logits[None], (n, 1)), stream, jnp.full(n, temperature))
        wanted = jax.nn.softmax(logits / temperature)
        np.testing.assert_allclose(np.bincount(drawn, minlength=4) / n, wanted, atol=0.03)


def test_a_row_stops_at_its_stop_token_and_stays():
    free, _ = decode_by(1, 80)
    stop = int(free[0, 7])
    ids, stream = decode_by(16, 80, stop=(stop,))
    for row in range(ROWS):
        hits = np.flatnonzero(free[row] == stop)
        end = hits[0] + 1 if hits.size else 80
        np.testing.assert_array_equal(ids[row, :end], free[row, :end])
        assert (ids[row, end:] == F.NO_TOKEN).all()
        # 9 tokens of prompt, the token given, and all emitted ones but the last have been consumed.
        assert int(stream.t[row]) == 9 + end and bool(stream.active[row]) == (hits.size == 0)
    assert (ids == F.NO_TOKEN).any()


# ----------------------------------------------------------------------------------------------------------------- rows

def test_rows_move_bit_for_bit(name):
    _, params = load(name)
    run = session(name)
    stream = run.feed(params, fresh(name), tokens(name), [30, 12, 5])
    row = run.take(stream, 1)
    assert row.t.shape == (1,)
    both = run.insert(F.fork(stream), 2, row)
    assert_equal(take(name, both, 0, 1, 2), take(name, stream, 0, 1, 1))
    assert_equal(run.gather(stream, [2, 2, 0]), take(name, stream, 2, 2, 0))


def test_restart_goes_back_to_the_initial_carry(name):
    model, params = load(name)
    run = session(name)
    stream = run.feed(params, fresh(name), tokens(name))
    kept = F.fork(stream)
    stopped = run.set_active(stream, [False, True, False], False)
    new = run.restart(params, stopped, [False, True, False], jax.random.key(1))
    assert_equal(take(name, new, 0, 2), take(name, kept, 0, 2))
    assert_equal(take(name, new, 1), take(name, fresh(name), 1))


def test_random_traffic_equals_solo_streams(name):
    """Feed, restart, move and park rows in random order; a dictionary of the tokens each row has seen is the model."""
    _, params = load(name)
    run, random = session(name), np.random.RandomState(3)
    stream, seen = fresh(name), {row: [] for row in range(ROWS)}
    parked = []
    for _ in range(25):
        action, row = random.randint(5), random.randint(ROWS)
        if action <= 1:
            length = random.randint(0, 9, ROWS)
            ids = random.randint(0, run.vocabulary, (ROWS, 9))
            stream = run.feed(params, stream, ids, length)
            for r in range(ROWS):
                seen[r] = seen[r] + list(ids[r, :length[r]])
        elif action == 2:
            stream, seen[row] = run.restart(params, stream, np.arange(ROWS) == row, jax.random.key(5)), []
        elif action == 3:
            parked.append((jax.device_get(run.take(stream, row)), seen[row]))
        elif parked:
            one, seen[row] = parked[random.randint(len(parked))]
            stream = run.insert(stream, row, one)
    longest = max(map(len, seen.values()))
    ids = np.zeros((ROWS, longest), int)
    for r, past in seen.items():
        ids[r, :len(past)] = past
    solo = run.feed(params, fresh(name), ids, [len(seen[r]) for r in range(ROWS)])
    assert_close(name, stream.state, solo.state)
    np.testing.assert_array_equal(stream.t, solo.t)


# ------------------------------------------------------------------------------------------ shapes, donation, compiles

def test_stream_has_the_declared_shapes_for_ever(name):
    model, params = load(name)
    declared = abstract(F.stream_specs(model, ROWS))
    start, later = fresh(name), session(name).feed(params, fresh(name), tokens(name))
    for stream in (start, later):
        assert jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stream) == declared
    assert F.stream_bytes(model, ROWS) == sum(leaf.nbytes for leaf in jax.tree.leaves(later))
    assert F.stream_bytes(model, ROWS) == size_bytes(F.stream_specs(model, ROWS))
    sizes = map_rows(lambda leaf, axis: leaf.shape[axis], F.stream_specs(model, ROWS), later)
    assert set(jax.tree.leaves(sizes)) == {ROWS}


def test_every_leaf_is_donated_and_no_parameter(name):
    _, params = load(name)
    run, ids = session(name), tokens(name)
    calls = [lambda s: run.feed(params, s, ids), lambda s: run.restart(params, s, [True] * ROWS, jax.random.key(0)),
             lambda s: run.step(params, s, ids[:, 0])[1], lambda s: run.decode(params, s, ids[:, 0], 1.0)[2],
             lambda s: run.set_active(s, [True] * ROWS, True)]
    calls += [lambda s, n=n: run.append(params, s, ids[:, :n])[1] for n in run.append_blocks]
    for call in calls:
        old = fresh(name)
        new = call(old)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old) if leaf.size), "an array without entries has no buffer"
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, new)))
    kept = fresh(name)
    run.take(kept, 0), run.gather(kept, [0, 0, 0]), F.fork(kept)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


def test_nothing_compiles_after_opening(name):
    _, params = load(name)
    run, ids, random = session(name), tokens(name), np.random.RandomState(0)
    stream, key = fresh(name), jax.random.key(8)
    before = compile_count()
    for i in range(20):
        n = random.randint(0, 41)
        stream = run.feed(params, stream, ids[:, :n], list(random.randint(0, n + 1, ROWS)))
        stream = run.feed(params, stream, ids[:, :4].astype(np.int64), np.array([1, 2, 3], np.int8))
        _, stream = run.step(params, stream, [1, 2, 3])
        _, last, stream = run.decode(params, stream, [1, 2, 3], i % 2)
        _, stream = run.step(params, stream, last)
        stream = run.insert(stream, i % ROWS, run.take(stream, 0))
        stream = run.restart(params, run.gather(stream, [2, 1, 0]), [i % 3 == 0, False, False], key)
    assert compile_count() == before
    jax.jit(lambda x: x + i)(1)
    assert compile_count() == before + 1   # the counter counts


def test_memory_is_flat(name):
    _, params = load(name)
    run = session(name)
    stream, last = fresh(name), np.zeros(ROWS, np.int32)
    sizes = []
    for _ in range(4):
        for _ in range(25):
            _, last, stream = run.decode(params, stream, last, 1.0)
        sizes.append(sum(a.nbytes for a in jax.live_arrays()))
    assert sizes[0] == sizes[-1]
    assert bool(F.is_finite(stream))


def test_sharded_rows_equal_one_device():
    """Rows over the devices of a mesh: same tokens, and the stream stays where it was put."""
    name, rows = "toy", 8
    model, params = load(name)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(names):
        spec = jax.sharding.PartitionSpec(*("data" if axis == "batch" else None for axis in names))
        return jax.sharding.NamedSharding(mesh, spec)

    stream, ids = fresh(name, rows), np.random.RandomState(0).randint(0, 11, (rows, 20))
    leaves, tree = jax.tree.flatten(stream)
    axes = [spec.axes for spec in jax.tree.leaves(F.stream_specs(model, rows))]
    spread = tree.unflatten([jax.device_put(leaf, place(a)) for leaf, a in zip(leaves, axes, strict=True)])
    everywhere = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    results = []
    for p, s in ((params, stream), (everywhere, spread)):
        run = S.open_session(model, p, s, feed_blocks=(16,), k=4)
        s = run.feed(p, s, ids)
        for _ in range(3):
            out, last, s = run.decode(p, s, ids[:, 0], 1.0)
        s = run.restart(p, run.insert(s, 1, run.take(s, 5)), np.arange(rows) == 3, jax.random.key(0))
        results.append((np.asarray(out), jax.device_get(run.gather(s, np.arange(rows)[::-1]))))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert_close(name, results[0][1], results[1][1])


# --------------------------------------------------------------------------------------------------------------- errors

MISTAKES = {
    "block": (lambda r, p, s: r.append(p, s, np.zeros((ROWS, 5), int)), "5 tokens is not one of"),
    "rows": (lambda r, p, s: r.append(p, s, np.zeros((2, 4), int)), r"\[3, T\] is needed"),
    "flat": (lambda r, p, s: r.feed(p, s, [1, 2, 3]), r"\[3, T\] is needed"),
    "fed token": (lambda r, p, s: r.feed(p, s, np.full((ROWS, 4), 11)), "token 11 is outside the vocabulary 0 to 10"),
    "fed negative": (lambda r, p, s: r.feed(p, s, np.full((ROWS, 4), -2)), "token -2 is outside"),
    "appended token": (lambda r, p, s: r.append(p, s, np.full((ROWS, 4), 11)), "token 11 is outside"),
    "stepped token": (lambda r, p, s: r.step(p, s, [11, 1, 2]), "token 11 is outside"),
    "stepped negative": (lambda r, p, s: r.step(p, s, [-2, 1, 2]), "token -2 is outside"),
    "decoded token": (lambda r, p, s: r.decode(p, s, [999, 1, 2], 0.0), "token 999 is outside"),
    "no token": (lambda r, p, s: r.decode(p, s, [1, F.NO_TOKEN, 2], 0.0), "NO_TOKEN, .* feed back the second result"),
    "fed floats": (lambda r, p, s: r.feed(p, s, np.full((ROWS, 4), 1.5)), "tokens must be integers, got float64"),
    "stepped floats": (lambda r, p, s: r.step(p, s, [1.0, 1.0, 2.0]), "tokens must be integers"),
    "floats on the device": (lambda r, p, s: r.step(p, s, jnp.ones(3)), "tokens must be integers, got float32"),
    "decoded booleans": (lambda r, p, s: r.decode(p, s, [True, False, True], 0.0), "tokens must be integers, got bool"),
    "step": (lambda r, p, s: r.step(p, s, [1, 2]), "one for each of the 3 rows"),
    "decode": (lambda r, p, s: r.decode(p, s, 1, 0.0), "one for each of the 3 rows"),
    "long length": (lambda r, p, s: r.feed(p, s, np.zeros((ROWS, 4), int), [1, 2, 5]), "numbers from 0 to 4"),
    "negative length": (lambda r, p, s: r.append(p, s, np.zeros((ROWS, 4), int), [1, 2, -1]), "numbers from 0 to 4"),
    "one length": (lambda r, p, s: r.feed(p, s, np.zeros((ROWS, 4), int), [4]), "3 numbers"),
    "float length": (lambda r, p, s: r.feed(p, s, np.zeros((ROWS, 4), int), [2.7, 1.0, 1.0]), "length must be integers"),
    "mask as length": (lambda r, p, s: r.feed(p, s, np.zeros((ROWS, 3), int), [True, False, True]), "integers, got bool"),
    "slot": (lambda r, p, s: r.take(s, 3), "slot 3 is not one of the 3 slots 0 to 2"),
    "float slot": (lambda r, p, s: r.insert(s, 1.9, r.take(s, 0)), "slots must be integers"),
    "slots": (lambda r, p, s: r.take(s, [0, 1]), "one number is needed"),
    "float slots": (lambda r, p, s: r.gather(s, [0.9, 1.9, 2.0]), "slots must be integers"),
    "few slots": (lambda r, p, s: r.gather(s, [0, 1]), r"\(3,\) is needed"),
    "slots as a mask": (lambda r, p, s: r.set_active(s, [0, 1, 2], False), r"booleans, .* np.isin\(np.arange\(3\), slots\)"),
    "slots to restart": (lambda r, p, s: r.restart(p, s, [0, 2, 1], jax.random.key(0)), "mask of 3 booleans"),
    "short mask": (lambda r, p, s: r.set_active(s, [True], False), "mask of 3 booleans"),
    "flag": (lambda r, p, s: r.set_active(s, [True] * ROWS, 2), "active=2 must be True or False"),
    "negative temperature": (lambda r, p, s: r.decode(p, s, [1, 2, 3], -1), "temperature -1 must be finite and at least 0"),
    "no temperature": (lambda r, p, s: r.decode(p, s, [1, 2, 3], [0.0, np.nan, 1.0]), "at least 0"),
    "temperatures": (lambda r, p, s: r.decode(p, s, [1, 2, 3], [0.0, 1.0]), "one for each of the 3 rows"),
    "words": (lambda r, p, s: r.decode(p, s, [1, 2, 3], "hot"), "temperature hot must be one number"),
    "negative top_k": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(top_k=-1)), "top_k -1 must be finite and at least 0"),
    "float top_k": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(top_k=2.5)), "top_k 2.5 must be one whole number"),
    "huge top_k": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(top_k=2**31)), "top_k 2147483648 must be at most"),
    "no top_p": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(top_p=0.0)), "top_p 0.0 must be finite and above 0"),
    "large top_p": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(top_p=[1, 1, 1.5])), "at most 1; 1 is off"),
    "nan min_p": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(min_p=np.nan)), "min_p nan must be finite"),
    "no penalty": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(repetition_penalty=0)), "above 0; 1 is off"),
    "penalties": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(repetition_penalty=[1.0, 1.0])), "one for each of the 3 rows"),
    "window": (lambda r, p, s: r.decode(p, s, [1, 2, 3], Sampling(repetition_window=-2)), "repetition_window -2"),
    "most": (lambda r, p, s: r.decode(p, s, [1, 2, 3], 1.0, [1, 2, K + 1]), f"numbers from 0 to {K}"),
    "nothing to score with": (lambda r, p, s: r.score(p, s, np.zeros((ROWS, 4), int), np.zeros((ROWS, 4), int)), "score_blocks"),
    "fewer next": (lambda r, p, s: r.score(p, s, np.zeros((ROWS, 4), int), np.zeros((ROWS, 3), int), [1] * 3), "one for each of"),
    "row of another model": (lambda r, p, s: r.insert(s, 0, other_row()), r"row\.state.* float32\[2, 1, 4\], got .*5\]"),
    "many rows": (lambda r, p, s: r.insert(s, 0, fresh("toy")), "row.* must be"),
    "stream of another batch": (lambda r, p, s: r.step(p, fresh("toy", rows=2), [1, 2, 3]), r"stream.* must be .*3.*, got .*2"),
    "params of another model": (lambda r, p, s: r.step({**p, "head": p["head"].T}, s, [1, 2, 3]), "params.*head.* opened with"),
}


def other_row():
    model = Model(toys.language_model, toys.LanguageModelConfig(width=5))
    return S.new_stream(model, model.init(jax.random.key(0)), 1, jax.random.key(0))


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case):
    call, words = MISTAKES[case]
    _, params = load("toy")
    stream = fresh("toy")
    with pytest.raises(UserError, match=words):
        call(session("toy"), params, stream)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(stream)), "a refused call leaves the stream alive"


def test_padding_may_hold_anything():
    _, params = load("toy")
    ids = tokens("toy")[:, :6]
    padded = np.concatenate([ids, np.full((ROWS, 3), F.NO_TOKEN)], 1)
    assert_equal(session("toy").feed(params, fresh("toy"), padded, [6] * ROWS), session("toy").feed(params, fresh("toy"), ids))


def test_calls_without_tokens_change_nothing(name):
    model, params = load(name)
    run = session(name)
    stream = run.feed(params, fresh(name), tokens(name)[:, :5])
    kept, none = F.fork(stream), np.zeros((ROWS, 0), int)
    logits, stream = run.append(params, run.feed(params, stream, none), none)
    assert logits.shape == (ROWS, 0, model.vocabulary)
    logits, stream = F.append(model, params, stream, jnp.asarray(none), jnp.zeros(ROWS, jnp.int32))
    assert logits.shape == (ROWS, 0, model.vocabulary)
    assert_equal(run.feed(params, stream, np.full((ROWS, 1), -1), [0] * ROWS), kept)


def test_streams_without_rows(name):
    model, params = load(name)
    stream = S.new_stream(model, params, 0, jax.random.key(0))
    logits, after = F.append(model, params, stream, jnp.zeros((0, SEGMENT), jnp.int32), jnp.zeros(0, jnp.int32))
    assert logits.shape == (0, SEGMENT, model.vocabulary)
    assert_equal(after, stream)


@pytest.mark.parametrize("options, words", [
    (dict(feed_blocks=(0, 4), k=1), "at least 1"), (dict(feed_blocks=(), k=1), "must not be empty"), (dict(k=0), "k=0"),
    (dict(k=1, stop=[11]), "token 11 is outside"),
], ids=["blocks", "none", "k", "stop"])
def test_opening_needs_sensible_options(options, words):
    model, params = load("toy")
    with pytest.raises(UserError, match=words):
        S.open_session(model, params, fresh("toy"), **options)


def test_opening_needs_what_belongs_together():
    model, params = load("toy")
    with pytest.raises(UserError, match="at least one row"):
        S.open_session(model, params, fresh("toy", rows=0), k=1)
    with pytest.raises(UserError, match="params.*head.* must be"):
        S.open_session(model, {**params, "head": params["head"].T}, fresh("toy"), k=1)
    with pytest.raises(UserError, match="stream.* must"):
        S.open_session(model, params, fresh("rmt"), k=1)
