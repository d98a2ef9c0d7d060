"""What every memory, mixer, block and model must keep, from one table. A new mechanism without an entry fails.

1 any split of a stream gives the same  2 causal  3 the state keeps its structure  4 rows are independent
5 gradients reach every parameter  6 switched off = the plain model, exactly  7 sharded = unsharded
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, assert_equal, jit, random_params

import memtok_jax
from memtok_jax import params as P
from memtok_jax import sharding
from memtok_jax.memory import armt, compressive, neural, rmt, xl
from memtok_jax.memory import tokens as learned_tokens
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.models import associative, block, decoder, language_model, masks, recurrent, relative, segments, transformer_xl
from memtok_jax.models import attention as A
from memtok_jax.models.config import LanguageModelConfig
from memtok_jax.models.mixers import attention, lmm, mac, mag
from memtok_jax.models.transformer_xl import TransformerXlConfig
from memtok_jax.numerics import affine_norm

B, T = 4, 12


def model_config(*pattern: str, **options) -> LanguageModelConfig:
    memory = NeuralMemoryConfig(head_dim=4, chunk=4, expansion=2, conv=2, step_max=0.1)
    base = dict(vocabulary=16, width=8, layers=len(pattern), pattern=pattern, head_dim=4, hidden=8, window=3, segment=4,
                prefix=0, memory=memory)
    return LanguageModelConfig(**(base | options))


def block_config(kind: str):
    return model_config(kind).block(kind)


# ------------------------------------------------------------------------- item 6: the plain model of each mechanism

def closed_steps(params):
    """The same parameters with every step gate of every memory shut, and nothing to store in an associative one."""

    def one(path, w):
        if "w_values" in jax.tree_util.keystr(path):
            return w * 0
        name = jax.tree_util.keystr(path[-1:])
        return w.at[..., 0].set(0.0 if "w_gates" in name else -1e4) if "_gates" in name else w

    return jax.tree_util.tree_map_with_path(one, params)


def static_reads(params, u, cfg):
    """The memory that never learns: a fixed network of the convolved queries."""
    start = neural.init_state(params, cfg, u.shape[0])
    return neural.read(params, start, u, cfg)


def plain_attention(params, u, cfg):
    """With a window of one token attention returns the token's own value."""
    return A.output(A.heads(u, params["wv"], cfg).reshape(u.shape), params, cfg)


def plain_lmm(params, u, cfg):
    return lmm._branch(params, u, static_reads(params["memory"], u, cfg.memory), cfg)


def plain_mag(params, u, cfg):
    y = A.heads(u, params["wv"], cfg).reshape(u.shape)
    return mag.combine(params, y, static_reads(params["memory"], u, cfg.memory), cfg)


def plain_mac(params, u, cfg):
    """Segments of one token: attention over the token and its own retrieved vector."""
    h = lmm.normed_reads(static_reads(params["memory"], u, cfg.memory), params["norm_retrieved"]) @ params["wh"]
    q, k, v = (A.heads(u, params[n], cfg) for n in ("wq", "wk", "wv"))
    keys, values = (jnp.stack([A.heads(h, params[n], cfg), own], 2) for n, own in (("wk", k), ("wv", v)))
    weight = jax.nn.softmax(jnp.einsum("bthk,btshk->bths", q, keys) * cfg.head_dim ** -0.5, axis=-1)
    y = jnp.einsum("bths,btshk->bthk", weight, values).reshape(u.shape)
    written = mac.rms_norm(y, params["norm_written"])
    return mac.combine(params, y, static_reads(params["memory"], written, cfg.memory), cfg)


def plain_block(params, x, cfg):
    """Two branches with nothing of the past in them, then the feed-forward network."""
    norms, mixers = params["norms"], params["mixers"]
    x = x + plain_lmm(mixers["0_lmm"], block.rms_norm(x, norms[0]), cfg)
    x = x + plain_attention(mixers["1_attention"], block.rms_norm(x, norms[1]), cfg)
    return x + block.feed_forward(params["mlp"], x, cfg)


def plain_model(params, ids, cfg):
    """Embedding, two layers as above without the scan, output."""
    x = params["embedding"][ids] * cfg.width ** 0.5
    for layers, b in zip(params["layers"], cfg.blocks, strict=True):
        layer = jax.tree.map(lambda w: w[0], layers)
        (name, mixer), = layer["mixers"].items()
        x = x + {"0_mac": plain_mac, "0_mag": plain_mag}[name](mixer, block.rms_norm(x, layer["norms"][0]), b)
        x = x + block.feed_forward(layer["mlp"], x, b)
    return language_model.rms_norm(x, params["norm"]) @ params["embedding"].T


def plain_transformer(params, ids, cfg):
    """Post-norm layers that see their own segment, distances looked up pair by pair."""
    x = params["embedding"][ids] * cfg.width ** 0.5
    distance = relative.distances(*(ids.shape[1],) * 2)
    for number in range(cfg.layers):
        layer = jax.tree.map(lambda w, n=number: w[n], params["layers"])
        own = layer["attention"]
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, own[name]) for name in ("wq", "wk", "wv"))
        u, w = (params["position"][name][None, None] for name in "uw")
        score = jnp.einsum("bthk,bshk->bhts", q + u, k) + relative.by_gather(q + w, own["wr"], distance, 0, "float32")
        score = jnp.where((distance >= 0)[None, None], score * cfg.head_dim ** -0.5, -jnp.inf)
        y = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(score, axis=-1), v).reshape(*ids.shape, -1) @ own["wo"]
        x = affine_norm(x + y, layer["norm_attention"])
        x = affine_norm(x + transformer_xl.feed_forward(layer["mlp"], x, cfg), layer["norm_mlp"])
    return x @ params["embedding"].T + params["output_bias"][None, None]


def plain_segments(params, ids, cfg):
    """The bare decoder on each segment alone."""
    rows, t = ids.shape[0], cfg.segment
    length, zero = jnp.full((rows,), t, jnp.int32), jnp.zeros((rows,), jnp.int32)
    view = decoder.View(masks.visible("causal", 0, t, 0, length, zero, 0), *masks.positions(0, t, 0, length, zero, 0))

    def one(ids):
        x = decoder.embed(params["decoder"], ids, cfg.decoder)
        h, _ = decoder.run(params["decoder"], x, segments.no_past(cfg.decoder, rows), view, cfg.decoder)
        return decoder.output(params["decoder"], h, cfg.decoder)

    return jnp.concatenate([one(ids[:, n:n + t]) for n in range(0, ids.shape[1], t)], axis=1)


# ------------------------------------------------------------------------------------------------------------ the table

@dataclass(frozen=True)
class Case:
    """One mechanism. off: its config when switched off. plain: (params, x, off) -> what it must then return.
    exact: whether bit for bit (else up to the order of sums). head, tail: rows in front of and behind each output.
    dead: parameters that no gradient reaches, by the mathematics."""

    module: ModuleType
    cfg: Any
    off: Any
    plain: Callable
    exact: bool = True
    head: int = 0
    tail: int = 0
    dead: tuple[str, ...] = ()


def xl_config(memory, **options) -> TransformerXlConfig:
    return TransformerXlConfig(vocabulary=16, width=8, layers=2, heads=2, head_dim=4, hidden=8, memory=memory, **options)


# A bias of all keys adds the same number to all scores of a query.
KEY_BIAS = ("['decoder']['layers']['k']['b']",)
SEGMENTED = dict(vocabulary=16, width=8, layers=2, head_dim=4, hidden=8, segment=4)
memory_config = model_config("lmm").block("lmm").memory
CASES = {
    "memory/tokens": Case(learned_tokens, learned_tokens.TokensConfig(8, 3), learned_tokens.TokensConfig(8, 0),
                          lambda params, x, cfg: x, head=3),
    "memory/xl": Case(xl, xl.XlConfig(5, 8), xl.XlConfig(0, 8), lambda params, x, cfg: x, head=5),
    "memory/compressive": Case(compressive, compressive.CompressiveConfig(4, 3, 2, "conv", "bptt", width=8),
                               compressive.CompressiveConfig(0, 0, 2, width=8), lambda params, x, cfg: x, head=8),
    "memory/neural": Case(neural, memory_config, memory_config, static_reads, exact=False),
    "memory/rmt": Case(rmt, rmt.RmtTokensConfig(8, 3),
                             rmt.RmtTokensConfig(8, 0), lambda params, x, cfg: x, head=3, tail=3),
    "memory/armt": Case(armt, armt.ArmtConfig(8, 3),
                               armt.ArmtConfig(8, 3), lambda params, x, cfg: x),
    "mixers/attention": Case(attention, block_config("attention"), replace(block_config("attention"), window=1),
                             plain_attention),
    "mixers/lmm": Case(lmm, block_config("lmm"), block_config("lmm"), plain_lmm, exact=False),
    "mixers/mac": Case(mac, block_config("mac"), replace(block_config("mac"), segment=1), plain_mac, exact=False),
    "mixers/mag": Case(mag, block_config("mag"), replace(block_config("mag"), window=1), plain_mag, exact=False),
    "models/block": Case(block, block_config("mal"), replace(block_config("mal"), window=1), plain_block, exact=False),
    "models/language_model": Case(language_model, model_config("mac", "mag", prefix=2),
                                  model_config("mac", "mag", window=1, segment=1), plain_model, exact=False),
    # Any cut of a stream gives the same where each token sees a fixed number of others, or the memory holds the stream.
    "models/transformer_xl": Case(transformer_xl, xl_config(xl.XlConfig(5), same_length="on"), xl_config(xl.XlConfig(0)),
                                  plain_transformer, exact=False),
    "models/compressive_transformer": Case(
        transformer_xl, xl_config(compressive.CompressiveConfig(24, 4, 2, "mean"), norm="pre", untie_r=True),
        xl_config(compressive.CompressiveConfig(0, 0, 2)), plain_transformer, exact=False),
    "models/recurrent": Case(recurrent, recurrent.RecurrentConfig(**SEGMENTED, tokens=2),
                             recurrent.RecurrentConfig(**SEGMENTED, tokens=0), plain_segments, exact=False, dead=KEY_BIAS),
    "models/recurrent_cached": Case(
        recurrent, recurrent.RecurrentConfig(**SEGMENTED, tokens=2, position="relative", cache=6, read_mem_from_cache=True),
        recurrent.RecurrentConfig(**SEGMENTED, tokens=0, position="relative"), plain_segments, exact=False, dead=KEY_BIAS),
    "models/associative": Case(associative, associative.AssociativeConfig(**SEGMENTED, tokens=2, key_dim=3),
                               associative.AssociativeConfig(**SEGMENTED, tokens=2, key_dim=3), plain_segments, exact=False,
                               dead=KEY_BIAS),
}
READ_IDS = (language_model, recurrent, associative, transformer_xl)
every_case = pytest.mark.parametrize("name", CASES)
HELPERS = {"memory/pieces"}  # no mechanism: a cut that mechanisms share


def test_every_mechanism_has_an_entry():
    package = Path(memtok_jax.__file__).parent
    found = set()
    for folder, prefix in ((package / "memory", "memory"), (package / "models" / "mixers", "mixers")):
        found |= {f"{prefix}/{path.stem}" for path in folder.iterdir()
                  if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists())}
    assert found - HELPERS == {name for name in CASES if not name.startswith("models/")}


@cache
def compiled(name: str):
    """One jit of `apply` for each case, shared by all tests."""
    case = CASES[name]
    return jit(lambda params, state, x, length: case.module.apply(params, state, x, case.cfg, length))


@cache
def material(name: str):
    """(params, a state that has seen seven tokens, x)."""
    case = CASES[name]
    params = random_params(case.module.specs(case.cfg), 0, np.float32)
    x = inputs(case, 1, T)
    state = case.module.init_state(params, case.cfg, B)
    return params, compiled(name)(params, state, inputs(case, 2, T), jnp.array([7, 5, 6, 12], jnp.int32))[1], x


def inputs(case: Case, seed: int, length: int):
    rng = np.random.default_rng(seed)
    if case.module in READ_IDS:
        return jnp.asarray(rng.integers(16, size=(B, length)), jnp.int32)
    return jnp.asarray(rng.standard_normal((B, length, 8)), jnp.float32)


def whole(length=T):
    return jnp.full((B,), length, jnp.int32)


def run(name, params, state, x, length):
    """Outputs of the tokens themselves, and the state."""
    y, state = compiled(name)(params, state, x, length)
    return y[:, CASES[name].head:y.shape[1] - CASES[name].tail], state


# --------------------------------------------------------------------------------------------------------- items 1 to 5

@every_case
def test_1_any_split_gives_the_same(name):
    """In one call; in single tokens; in ragged calls whose padding differs from row to row."""
    params, state, x = material(name)
    y, end = run(name, params, state, x, whole())
    single, ys = state, []
    for t in range(T):
        part, single = run(name, params, single, x[:, t:t + 1], whole(1))
        ys.append(part)
    assert_close(jnp.concatenate(ys, 1), y, 2e-5)
    assert_close(single, end, 2e-5)
    cuts, place = np.array([[3, 12], [7, 12], [0, 12], [12, 12]]), np.zeros(B, int)
    ragged, got = state, np.zeros(y.shape, y.dtype)
    for stop in cuts.T:
        index = np.minimum(place[:, None] + np.arange(T), T - 1)
        length = jnp.asarray(stop - place, jnp.int32)
        part, ragged = run(name, params, ragged, P.take_rows(x, jnp.asarray(index)), length)
        for b in range(B):
            got[b, place[b]:stop[b]] = part[b, :stop[b] - place[b]]
        place = stop
    assert_close(got, np.asarray(y), 2e-5)
    assert_close(ragged, end, 2e-5)


@every_case
def test_2_causal(name):
    """A changed last third leaves the outputs before it as they were, bit for bit."""
    params, state, x = material(name)
    other = jnp.concatenate([x[:, :8], x[:, 8:][:, ::-1]], axis=1)
    y, changed = run(name, params, state, x, whole())[0], run(name, params, state, other, whole())[0]
    assert_equal(y[:, :8], changed[:, :8])
    assert np.any(np.asarray(y[:, 8:]) != np.asarray(changed[:, 8:]))


@every_case
def test_3_state_keeps_its_structure(name):
    """Shapes and dtypes of `state_specs`, at the start and later; one compilation; jit changes nothing."""
    case = CASES[name]
    params, state, x = material(name)
    specs = P.abstract(case.module.state_specs(case.cfg, B))
    signature = lambda tree: jax.tree.map(lambda s: (s.shape, jnp.dtype(s.dtype)), tree)
    _, end = run(name, params, state, x, whole())
    for tree in (case.module.init_state(params, case.cfg, B), state, end):
        assert jax.tree.structure(tree) == jax.tree.structure(specs)
        assert signature(tree) == signature(specs)
    assert all(not leaf.weak_type for leaf in jax.tree.leaves(end))
    before = compiled(name)._cache_size()
    run(name, params, end, x, whole())
    assert compiled(name)._cache_size() == before
    assert case.module.specs(case.cfg).keys() == params.keys()


@pytest.mark.parametrize("name", ["memory/tokens", "memory/neural"])
def test_3_jit_changes_nothing(name):
    params, state, x = material(name)
    case = CASES[name]
    with jax.disable_jit():
        plain = case.module.apply(params, jax.tree.map(lambda s: s[:1], state), x[:1, :3], case.cfg)
    y, end = compiled(name)(params, state, x[:, :3], whole(3))
    assert_close(plain, jax.tree.map(lambda s: s[:1], (y, end)), 1e-5)


@every_case
def test_4_rows_are_independent(name):
    """Another row's tokens, or its reset, change no bit of this row."""
    case = CASES[name]
    params, state, x = material(name)
    y, end = run(name, params, state, x, whole())
    initial = case.module.init_state(params, case.cfg, B)
    specs = case.module.state_specs(case.cfg, B)
    reset = P.reset(state, jnp.array([False, True, False, False]), initial, specs)
    other_y, other_end = run(name, params, reset, x.at[1].set(x[0]), whole())
    keep = np.array([0, 2, 3])
    rows = lambda tree: P.map_rows(lambda s, axis: jnp.take(s, keep, axis), specs, tree)
    assert_equal(rows(reset), rows(state))
    assert_equal((other_y[keep], rows(other_end)), (y[keep], rows(end)))
    fresh_y, fresh_end = run(name, params, initial, x.at[1].set(x[0]), whole())
    one = lambda tree: P.map_rows(lambda s, axis: jnp.take(s, jnp.array([1]), axis), specs, tree)
    assert_equal((other_y[1], one(other_end)), (fresh_y[1], one(fresh_end)))


@every_case
def test_5_gradients_reach_every_parameter(name):
    """Through two calls, so that what is written in the first can be read in the second."""
    case = CASES[name]
    params, _, x = material(name)

    def loss(params):
        state = case.module.init_state(params, case.cfg, B)

        def call(state, x):
            y, state = case.module.apply(params, state, x, case.cfg)
            return state, (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()

        return jax.lax.scan(call, state, jnp.stack([x, x[:, ::-1]]))[1].sum()

    gradient = jit(jax.grad(loss))(params)
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradient) if not np.abs(g).max() > 1e-7]
    # Where mathematics gives zero, rounding may leave a little.
    assert set(dead) <= set(case.dead), f"no gradient reaches {dead}"
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


# -------------------------------------------------------------------------------------------------------- items 6 and 7

@every_case
def test_6_switched_off_is_the_plain_model(name):
    """No tokens, no past keys, no steps: exactly the model without that memory, from the start of a stream."""
    case = CASES[name]
    params = closed_steps(random_params(case.module.specs(case.off), 0, np.float32))
    x = inputs(case, 1, T)
    y, _ = jit(lambda p, x: case.module.apply(p, case.module.init_state(p, case.off, B), x, case.off))(params, x)
    expected = jit(lambda p, x: case.plain(p, x, case.off))(params, x)
    assert_close(y, expected, 0.0 if case.exact else 1e-6)


@every_case
def test_7_sharded_equals_unsharded(name):
    """Rows over `data`, heads over `tensor`, on four of eight devices."""
    case = CASES[name]
    params, state, x = material(name)
    mesh = sharding.make_mesh(2, 1, 2)
    place = lambda tree, specs: jax.device_put(tree, sharding.shardings(mesh, specs))
    state_specs = case.module.state_specs(case.cfg, B)
    with jax.set_mesh(mesh):
        out_shardings = (None, sharding.shardings(mesh, state_specs))
        step = jit(lambda p, s, x, n: case.module.apply(p, s, x, case.cfg, n), out_shardings=out_shardings)
        args = (place(params, case.module.specs(case.cfg)), place(state, state_specs),
                jax.device_put(x, sharding.rows(mesh)), jax.device_put(whole(), sharding.rows(mesh)))
        y, end = step(*args)
        text = step.lower(*args).compile().as_text() if name == "memory/neural" else ""
    expected, expected_end = compiled(name)(params, state, x, whole())
    assert_close((y, end), (expected, expected_end), 5e-5)  # float32 sums in another order
    if text:
        loops = loop_bodies(text)
        assert loops, "the chunks run in a loop"
        assert not [line for body in loops for line in body if COLLECTIVE.search(line)]


COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\(")


def loop_bodies(text: str) -> list[list[str]]:
    """Lines of every loop body of a compiled program, with the computations that it calls."""
    computations: dict[str, list[str]] = {}
    for line in text.splitlines():
        if head := re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computations[head[1]] = current = []
        elif line.startswith(" "):
            current.append(line)

    def reached(name: str) -> list[str]:
        lines = computations[name]
        called = {n for line in lines for n in re.findall(r"%([\w.\-]+)", line) if n in computations and n != name}
        return lines + [line for n in sorted(called) for line in reached(n)]

    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    return [reached(name) for name in sorted(bodies)]


def test_the_search_for_collectives_finds_one():
    """The same search on a loop that must communicate."""
    mesh = sharding.make_mesh(1, 1, 2)
    with jax.set_mesh(mesh):
        w = jax.device_put(jnp.ones((4, 4)), jax.NamedSharding(mesh, jax.P(None, "tensor")))
        step = jit(lambda w, x: jax.lax.scan(lambda x, _: (jnp.tanh(w @ x), None), x, None, length=5)[0])
        text = step.lower(w, jax.device_put(jnp.ones(4), jax.NamedSharding(mesh, jax.P("tensor")))).compile().as_text()
    assert any(COLLECTIVE.search(line) for body in loop_bodies(text) for line in body)
