"""The ring and the window on top of it: a list that drops its oldest key, however the stream is cut, far out, and in place."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_ring as ref
from neural_cases import assert_close, assert_equal, cast, jit, random_params

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.memory import ring
from memtok_jax.memory.ring import RingConfig
from memtok_jax.models import attention as A
from memtok_jax.models import language_model as lm
from memtok_jax.models import positions
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import window
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TITANS, Backbone

B, T, D, H, G, K, V = 3, 70, 8, 4, 2, 4, 6


# ----------------------------------------------------------------------------------------------------- integers, exactly

@pytest.mark.parametrize("sinks, size", [(0, 1), (0, 5), (1, 5), (4, 1), (4, 5), (4, 12)])
def test_slots_hold_what_a_list_would(sinks, size):
    """Token by token: which tokens are kept, in which order, at which places, and what a query sees of them."""
    cfg, kept, slots = RingConfig(size, sinks), [], [-1] * (sinks + size)
    for t in range(5 * cfg.slots):
        kept.append(t)
        if len(kept) > cfg.slots:
            del kept[sinks]
        slots[int(ring.slots_of(np.int32(t), cfg))] = t
        np.testing.assert_array_equal(ring.tokens_of(np.int32(t + 1), cfg), slots)
        assert sorted(s for s in slots if s >= 0) == kept
        every = np.arange(t + 3)
        np.testing.assert_array_equal(ring.visible(t, every, cfg), np.isin(every, kept))
        places = len(kept) - 1 - np.arange(len(kept))
        np.testing.assert_array_equal(ring.distance(t, np.array(kept), cfg), places)
        np.testing.assert_array_equal(ring.distance(t, np.array(kept), replace(cfg, positions="absolute")), t - np.array(kept))


def test_a_block_is_written_like_its_tokens():
    """Blocks shorter and much longer than the ring, padding and rows without tokens: each slot holds its token, empty ones zero,
    and single tokens leave the same bits."""
    cfg, rng = RingConfig(5, 2, kv_heads=1, key_dim=2, value_dim=3), np.random.default_rng(0)
    one, block, kept = ring.init_state({}, cfg, 3), ring.init_state({}, cfg, 3), [[], [], []]
    write = jit(partial(ring.write, cfg=cfg))
    for lengths in ([1, 0, 30], [3, 1, 0], [30, 7, 6], [2, 2, 2]):
        k, v = (jnp.asarray(rng.standard_normal((3, 30, 1, n)), jnp.float32) for n in (2, 3))
        for row in np.asarray(ring.targets(block.count, jnp.array(lengths), 30, cfg)):
            slots = row[row != cfg.slots]
            assert len(set(slots)) == len(slots) and np.all((slots >= 0) & (slots < cfg.slots))
        block = write(block, k, v, jnp.array(lengths))
        for t in range(30):
            one = write(one, k[:, t:t + 1], v[:, t:t + 1], (jnp.array(lengths) > t).astype(jnp.int32))
        assert_equal(block, one)
        for b, n in enumerate(lengths):
            kept[b] += list(np.asarray(k[b, :n]))
            tokens = np.asarray(ring.tokens_of(block.count, cfg))[b]
            np.testing.assert_array_equal(block.k[b], [kept[b][t] if t >= 0 else np.zeros((1, 2)) for t in tokens])
    assert block.count.tolist() == [len(row) for row in kept]


def test_the_counter_never_overflows():
    """Past 2**30 a multiple of W is taken away: the same slots, the same window, and the first tokens stay in sight."""
    cfg = RingConfig(5, 4)
    count = jnp.array([2 ** 30 - 1, 2 ** 30, 3], jnp.int32)
    after = ring.advance(count, jnp.array([1000, 1000, 0]), cfg)
    assert np.all(np.asarray(after) < 2 ** 30) and after[2] == 3 and after.dtype == jnp.int32
    np.testing.assert_array_equal((np.asarray(after[:2], np.int64) - np.asarray(count[:2])) % 5, 0)
    np.testing.assert_array_equal(ring.slots_of(after, cfg), ring.slots_of(count + jnp.array([1000, 1000, 0]), cfg))
    assert int(ring.place(after[0], cfg)) == cfg.slots - 1


@pytest.mark.parametrize("options, message", [
    (dict(window=0), "window.window is 0"), (dict(sinks=-1), "window.sinks is -1"),
    (dict(positions="stream"), "window.positions is 'stream'")])
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        WindowConfig(**options)
    assert WindowConfig(2, sinks=4).sinks == 4


# ----------------------------------------------------------------------------------------------- list = ring = any cut

class Layer:
    """One window attention with a prefix of two tokens; programs for one token and for blocks of T with padding."""

    def __init__(self, kind: str, sinks: int, size: int, where: str = "cache", dtype=np.float64):
        self.cfg = WindowConfig(size, sinks, where)
        self.b = Backbone(replace(TITANS, positions=kind), width=D, layers=1, heads=H, head_dim=K, hidden=8, prefix=2, kv_heads=G,
                          value_dim=V)
        self.params = random_params(window.specs(self.cfg, self.b), 1, dtype)
        rng = np.random.default_rng(2)
        self.prefix = [rng.standard_normal((2, G, n)).astype(dtype) for n in (K, V)]
        self.u = jnp.asarray(rng.standard_normal((B, T, D)), dtype)
        self.block, self.one = jit(self._run), jit(self._tokens)

    def start(self):
        state = P.zero_state(window.state_specs(self.cfg, self.b, B))
        prefix = A.Prefix(*(jnp.broadcast_to(jnp.asarray(p), (B, *p.shape)) for p in self.prefix))
        return cast(state._replace(prefix=prefix), self.u.dtype)

    def _run(self, params, state, u, length):
        return window.run(params, state, u, self.cfg, self.b, Call(length), {})[:2]

    def _tokens(self, params, state, u):
        def step(state, u):
            y, state = self._run(params, state, u[:, None], jnp.ones((len(u),), jnp.int32))
            return state, y[:, 0]

        state, y = jax.lax.scan(step, state, jnp.moveaxis(u, 1, 0))
        return jnp.moveaxis(y, 0, 1), state

    def cut(self, lengths, state, u):
        """Calls in which row b brings lengths[n][b] tokens; padding is the tokens that come next, or the last ones again."""
        place, out = np.zeros(B, int), np.zeros((B, T, D), u.dtype)
        for n in np.array(lengths):
            index = np.minimum(place[:, None] + np.arange(T), T - 1)
            y, state = self.block(self.params, state, P.take_rows(u, jnp.asarray(index)), jnp.asarray(n, jnp.int32))
            for b in range(B):
                out[b, place[b]:place[b] + n[b]] = y[b, :n[b]]
            place = place + n
        assert np.all(place == T)
        return out, state

    def literal(self):
        params, base = jax.tree.map(np.asarray, self.params), self.b.style.rope_base
        return np.array([ref.attention(params, self.prefix, np.asarray(u), self.cfg.window, self.cfg.sinks, self.b.style.positions,
                                       base, self.cfg.positions == "absolute") for u in self.u])


# A prompt shorter than the sinks, one longer than the cache, and rows that wait.
CUTS = [[2, 9, 40], [1, 0, 1], [50, 1, 0], [17, 60, 29]]
LAYERS = [("rope", 4, 5), ("rope", 0, 12), ("rope", 4, 1), ("alibi", 4, 5), ("alibi", 1, 12), ("none", 1, 1), ("relative", 4, 5),
          ("relative", 1, 1), ("rope", 4, 5, "absolute"), ("alibi", 1, 5, "absolute"), ("relative", 4, 5, "absolute")]
SLOW = {("alibi", 1, 12), ("rope", 4, 1), ("relative", 1, 1), ("alibi", 1, 5, "absolute")}


@cache
def layer(*options) -> Layer:
    return Layer(*options)


@pytest.mark.parametrize("options", [pytest.param(o, id="-".join(map(str, o)), marks=pytest.mark.slow if o in SLOW else ())
                                     for o in LAYERS])
def test_the_ring_is_a_list_that_drops_its_oldest_key(options):
    """In one call, token by token, and in ragged calls; more than four times around, in float64, with a prefix and shared keys."""
    with jax.enable_x64(True):
        own = layer(*options)
        want = own.literal()
        y, end = own.block(own.params, own.start(), own.u, jnp.full((B,), T, jnp.int32))
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)
        y, single = own.one(own.params, own.start(), own.u)
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)
        y, ragged = own.cut(CUTS, own.start(), own.u)
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)
        assert_close((single, ragged), (end, end), 1e-12)


def test_in_float32():
    own = Layer("rope", 4, 5, dtype=np.float32)
    y, _ = own.one(own.params, own.start(), own.u)
    with jax.enable_x64(True):
        np.testing.assert_allclose(y, layer("rope", 4, 5).literal(), rtol=0, atol=1e-5)


def test_absolute_is_the_cache_until_it_is_full():
    """The same parameters: equal while no key has left, different afterwards."""
    with jax.enable_x64(True):
        there, here = layer("rope", 4, 5).literal(), layer("rope", 4, 5, "absolute").literal()
    np.testing.assert_allclose(there[:, :9], here[:, :9], atol=1e-12)
    assert np.abs(there[:, 9:] - here[:, 9:]).max() > 1e-3


def test_a_query_depends_on_what_it_sees_and_nothing_else():
    """The zero pattern of the derivative of one call is the mask, in the middle of a stream too."""
    own, n = Layer("rope", 2, 3, dtype=np.float32), 14
    state, direction = jax.tree.map(lambda x: x[:1], own.start()), jnp.arange(1.0, D + 1)
    run = lambda u: own._run(own.params, state, u, jnp.array([n]))[0][0] @ direction
    slopes = np.abs(jit(jax.jacrev(run))(own.u[:1, :n])).max(axis=(1, 3))
    t, s = np.indices((n, n))
    np.testing.assert_array_equal(slopes > 0, (s <= t) & ((s < 2) | (t - s < 3)))


# -------------------------------------------------------------------------------------------------------------- far out

def test_what_a_stream_says_does_not_depend_on_how_long_it_has_run():
    """The same ring at 4,000,000 tokens, and where the counter is set back: the same bits, in one token and in a block."""
    own = Layer("rope", 4, 5, dtype=np.float32)
    params, u = own.params, own.u
    state = own.block(params, own.start(), u, jnp.full((B,), 33, jnp.int32))[1]
    near = own.one(params, state, u[:, :20])[0], own.block(params, state, u, jnp.full((B,), T, jnp.int32))[0]
    for more in (4_000_000, 2 ** 30 - 45):
        far = state._replace(past=state.past._replace(count=state.past.count + more // 5 * 5))
        got = own.one(params, far, u[:, :20])
        assert_equal((got[0], own.block(params, far, u, jnp.full((B,), T, jnp.int32))[0]), near)
        assert np.all(got[1].past.count < 2 ** 30 + 1)


def test_rotations_are_exact_far_out():
    """At 4 million tokens and at the last integer, cosines are as good as at the start; those of float(t) f are not."""
    frequency = 10000.0 ** (-np.arange(32) / 32)
    for t in (0, 255, 256, 4_000_003, 2 ** 30 + 12345, 2 ** 31 - 1):
        cos, sin = positions.looked_up(jnp.array([t], jnp.int32), frequency, jnp.float32)
        exact = np.array([np.longdouble(t) * np.longdouble(f) for f in frequency])
        np.testing.assert_allclose(cos[0], np.cos(exact).astype(np.float64), atol=1e-6)
        np.testing.assert_allclose(sin[0], np.sin(exact).astype(np.float64), atol=1e-6)
    t = 4_000_000 + np.arange(64)[:, None]
    assert np.abs(np.cos(t.astype(np.float32) * frequency.astype(np.float32)) - np.cos(t * frequency)).max() > 0.05


@pytest.mark.slow
def test_thousands_of_evictions_and_one_program():
    """5,000 steps of one compiled function with a donated state against the list; float64."""
    with jax.enable_x64(True):
        own = Layer("rope", 4, 12)
        own.u = jnp.asarray(np.random.default_rng(4).standard_normal((1, 5000, D)))
        state = jax.tree.map(lambda x: x[:1] + 0, own.start())
        step = jax.jit(own._run, donate_argnums=1)
        out, length = [], jnp.ones((1,), jnp.int32)
        for t in range(5000):
            y, state = step(own.params, state, own.u[:, t:t + 1], length)
            out.append(y[:, 0])
        assert step._cache_size() == 1
        np.testing.assert_allclose(np.stack(out, 1), own.literal(), rtol=0, atol=1e-11)


# ------------------------------------------------------------------------------------------------------------- in place

def copies(text: str, shape: tuple[int, ...]) -> list[str]:
    """Instructions of a compiled program that copy an array of this shape, or join it with others along the slots.

    A rotation joins the two halves of features, which is no copy of the cache.
    """
    rows, slots, *rest = shape
    big = re.compile(r"= f32\[(?:1,)?" + f"{rows},(\\d+),{rest[0]},{rest[1]}" + r"\]\S* (copy|concatenate|gather|pad)\(.*")
    found = [line for line in map(big.search, text.splitlines()) if line and int(line[1]) >= slots]
    return [line[0] for line in found if "concatenate" not in line[0] or "dimensions={1}" in line[0]]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("whole", ["layer", "model"])
def test_a_step_writes_in_place(rows, whole):
    """The compiled step of a donated state aliases keys and values, and neither copies nor joins them. So does that of a model
    of two layers, each with arrays of its own. One row is a case of its own: XLA simplifies the write of one entry."""
    cfg, b = WindowConfig(509, 3), Layer("rope", 0, 1, dtype=np.float32).b
    if whole == "layer":
        params, specs = P.abstract(window.specs(cfg, b)), P.abstract(window.state_specs(cfg, b, rows))
        step = lambda params, state, u: window.run(params, state, u, cfg, b, Call(jnp.ones(rows, jnp.int32)), {})[:2]
        new = jax.ShapeDtypeStruct((rows, 1, D), jnp.float32)
    else:
        model = lm.LanguageModelConfig(11, D, 2, (cfg,), K, H, kv_heads=G, value_dim=V, unroll=2)
        params, specs = jax.eval_shape(lambda p, s: lm.unstack(p, s, model)[:2], P.abstract(lm.specs(model)),
                                       P.abstract(lm.state_specs(model, rows)))
        step = lambda params, state, ids: lm.run(params, state, ids, lm.unstacked(model))[:2]
        new = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    program = jax.jit(step, donate_argnums=1).lower(params, specs, new).compile()
    assert program.memory_analysis().alias_size_in_bytes >= P.size_bytes(window.state_specs(cfg, b, rows).past)
    for size in (K, V):
        assert not copies(program.as_text(), (rows, 509, G, size))
    kept = jax.jit(step).lower(params, specs, new).compile()
    assert copies(kept.as_text(), (rows, 509, G, K)), "without donation the search must find the copy"
