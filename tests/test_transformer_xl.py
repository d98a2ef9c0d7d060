"""Transformer-XL and the Compressive Transformer: equal to a literal reference, in values and gradients, and their properties.

That they do not depend on how a stream is cut is shown in tests/test_cuts_cached.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_cached as reference
from neural_cases import assert_close, assert_equal, jit, random_params

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import block, language_model
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers import cached
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.style import TRANSFORMER_XL

T = 4


def model(memory, same_length: str = "off", segment: int = T, **style) -> LanguageModelConfig:
    return LanguageModelConfig(vocabulary=16, width=8, layers=2, heads=2, head_dim=3, hidden=6, segment=segment,
                               pattern=(CachedConfig(memory, same_length),), style=replace(TRANSFORMER_XL, **style))


def some_ids(batch: int, length: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(16, size=(batch, length)), jnp.int32)


def setup(cfg, batch: int, dtype=np.float32):
    params = random_params(language_model.specs(cfg), 0, dtype)
    # Initial weights are small: larger ones, so that every part of a score matters.
    params = jax.tree.map(lambda p: 3 * p if p.ndim > 1 else p, params)
    return params, language_model.init_state(params, cfg, batch)


apply = jit(lambda params, state, ids, cfg: bind(cfg).apply(params, state, ids), static_argnums=3)
whole = jit(lambda params, state, ids, cfg: bind(cfg).apply(params, state, ids, whole=True), static_argnums=3)


def in_calls(cfg, params, state, ids, lengths, apply=apply):
    """Logits of a stream that is read in calls of these lengths, and the last state."""
    out = []
    for part in jnp.split(ids, np.cumsum(lengths)[:-1], axis=1):
        logits, state = apply(params, state, part, cfg)
        out.append(logits)
    return jnp.concatenate(out, 1), state


# ------------------------------------------------------------------------------------------------------- the references

LENGTHS = (T,) * 5
PRE, OWN = dict(order="pre"), dict(shared_position=False)
REFERENCES = {  # memory, options, tokens of each segment
    "xl": (XlConfig(5), dict(same_length="on", clamp=4, **PRE, **OWN), (3, 7, 4)),
    "compat": (XlConfig(4), dict(same_length="compat"), LENGTHS),
    "mean": (CompressiveConfig(4, 4, 2, "mean"), {}, LENGTHS),
    "max-1.5T": (CompressiveConfig(6, 3, 2, "max"), PRE, LENGTHS),
    "conv": (CompressiveConfig(4, 4, 2), PRE, LENGTHS),
    "conv-bptt": (CompressiveConfig(4, 3, 2, "conv", "bptt"), {}, LENGTHS),
    "conv-autoencoding": (CompressiveConfig(2, 3, 2, "conv", "autoencoding"), OWN, (3,) * 5),
    "most_used": (CompressiveConfig(4, 4, 2, "most_used", block=4), {}, LENGTHS),
    "dilated": (CompressiveConfig(4, 4, 2, "dilated", block=4), PRE, LENGTHS),
}


def reference_options(cfg: LanguageModelConfig) -> reference.Options:
    mixer, m = cfg.pattern[0], cfg.pattern[0].memory
    more = {} if isinstance(m, XlConfig) else dict(compressed=m.compressed, rate=m.rate, unit=m.unit, compression=m.compression,
                                                   objective=m.objective)
    reach = {"off": float("inf"), "on": m.slots, "compat": m.slots - 1}[mixer.same_length]
    return reference.Options(cfg.heads, cfg.head_dim, m.length, **more, order=cfg.style.order, clamp=cfg.style.clamp, reach=reach)


def read_segments(params, state, segments, cfg):
    """(logits [T, V], sum of the auxiliary losses) of segments of one stream.

    Equal ones come in one call that a count cuts, others in a call each that says where its segment ends.
    """
    model, total = bind(cfg), lambda stats: sum((v for v in stats.values()), jnp.zeros(()))
    if len({part.shape for part in segments}) == 1:
        logits, _, stats = model.run(params, state, jnp.asarray(np.concatenate(segments, axis=1)))
        return logits[0], len(segments) * total(stats)
    out, loss = [], 0.0
    for part in segments:
        logits, state, stats = model.run(params, state, jnp.asarray(part), Call(closes=jnp.array([True])))
        out, loss = [*out, logits[0]], loss + total(stats)
    return jnp.concatenate(out), loss


# The others differ in one function of the compression, which tests/test_cached_memory.py proves alone.
QUICK = ("xl", "conv-autoencoding")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REFERENCES])
def test_equals_the_literal_reference(name):
    """Logits, the auxiliary loss and all gradients of one stream in float64, memories empty at first."""
    memory, options, lengths = REFERENCES[name]
    cfg = model(memory, segment=max(lengths), **options)
    segments = np.split(np.asarray(some_ids(1, sum(lengths))), np.cumsum(lengths)[:-1], axis=1)
    with jax.enable_x64(True):
        params, state = setup(cfg, 1, np.float64)
        weights = jnp.asarray(np.random.default_rng(1).standard_normal((sum(lengths), 16)))

        def ours(params):
            logits, loss = read_segments(params, state, segments, cfg)
            return (logits * weights).sum() + 3 * loss, (logits, loss)

        def theirs(params):
            logits, loss = reference.stream(params, [part[0] for part in segments], reference_options(cfg))
            return (logits * weights).sum() + 3 * loss, (logits, jnp.asarray(loss, jnp.float64))

        got, want = (jit(jax.grad(f, has_aux=True))(params) for f in (ours, theirs))
        assert_close(got, want, 1e-9)
        assert (want[1][1] > 1e-4) == ("attention" in str(memory) or "autoencoding" in str(memory))


def test_segments_equal_the_whole():
    """With a cache as long as the stream, and with any cache where each token sees a fixed number: the segment has no effect."""
    for memory, options in ((XlConfig(24), {}), (XlConfig(9), dict(same_length="on", clamp=6))):
        cfg = model(memory, segment=24, **options)
        params, _ = setup(cfg, 2)
        logits = []
        for n in (24, 6, 1):
            cut = replace(cfg, segment=n)
            logits.append(whole(params, language_model.init_state(params, cut, 2), some_ids(2, 24), cut)[0])
        assert_close(logits[1:], logits[:1] * 2, 2e-5)


# --------------------------------------------------------------------------------------------------------- what is visible

@pytest.mark.parametrize("tokens", [4, 6])
def test_columns_that_a_token_sees(tokens):
    """Those that its output depends on: itself and n_m others with "on"; with "compat" the mask of the released code, rebuilt here
    from its source's words."""
    n, b = 4, model(XlConfig(4), segment=6, **OWN).backbone()
    params = random_params(cached.specs(CachedConfig(XlConfig(n)), b), 0, np.float32)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, n + tokens, b.width)), jnp.float32)

    @jit
    def influence(how, filled):
        def outputs(columns):
            state = cached.begin(params, x[0, :0], cfg, b, 1, {})[1]
            state = state._replace(memory=state.memory._replace(vectors=columns[:, :n], count=filled[None]))
            return cached.run(params, state, columns[:, n:], cfg, b, call, {})[0][0]

        call = Call(length=jnp.array([tokens]), closes=jnp.array([False]), slot=jnp.array([0]))
        masks = []
        for same_length in ("off", "on", "compat"):
            cfg = CachedConfig(XlConfig(n), same_length)
            masks.append(jnp.abs(jax.jacobian(outputs)(x)).max((1, 2, 4)) > 0)
        return jnp.stack(masks)[how]

    for filled in (4, 0, 2):
        visible = lambda how, filled=filled: np.asarray(influence(how, jnp.array(filled)))
        assert visible(0).sum(1).tolist() == [filled + i + 1 for i in range(tokens)]
        assert visible(1).sum(1).tolist() == [min(filled + i, n) + 1 for i in range(tokens)]
        # Over the filled columns only: hide what comes after, and what lies `shift` or more below the diagonal.
        columns = filled + tokens
        excess = columns - n
        shift = tokens - excess if excess > 0 else tokens
        hidden = np.triu(np.ones((tokens, columns)), 1 + filled) + np.tril(np.ones((tokens, columns)), -shift)
        np.testing.assert_array_equal(visible(2)[:, n - filled:], hidden == 0)


# ----------------------------------------------------------------------------------------------------------- properties

def test_what_is_not_real_does_not_count():
    """A cache and an open segment full of numbers, but with counts of zero, are the empty ones, bit for bit."""
    for memory in (XlConfig(5), CompressiveConfig(4, 3, 2)):
        cfg = model(memory)
        params, state = setup(cfg, 2)
        rubbish = jax.tree.map(lambda s: s + 7 if s.dtype == jnp.float32 else s, state)
        ids = some_ids(2, 6)
        assert_equal(apply(params, rubbish, ids, cfg)[0], apply(params, state, ids, cfg)[0])


@pytest.mark.parametrize("memory", [XlConfig(6), CompressiveConfig(4, 3, 2), CompressiveConfig(4, 3, 2, "conv", "bptt")],
                         ids=["xl", "compressive", "bptt"])
def test_no_gradient_enters_the_segment_before(memory):
    """Inputs of a layer in earlier segments get exactly none, all those of the same segment get some."""
    cfg = model(memory, segment=6)
    params, state = setup(cfg, 1)
    one, carry = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (params["layers"][0], state.layers[0]))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 18, 8)), jnp.float32)
    call = Call(length=jnp.array([18]), slot=jnp.array([0]))

    def last(x):
        y = block.run(one, carry, x, cfg.pattern[0], cfg.backbone(), call, language_model.side_of(params))[0]
        return y[0, -1].sum()

    gradient = jit(jax.grad(last))(x)[0]
    assert not np.any(gradient[:12]) and np.all(np.abs(gradient[12:]).max(-1) > 1e-7)


def test_without_a_cache_segments_are_independent():
    cfg = model(XlConfig(0), segment=6)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 12)
    split, _ = in_calls(cfg, params, state, ids, (6, 6))
    alone, _ = apply(params, state, ids[:, 6:], cfg)
    assert_equal(split[:, 6:], alone)
    longer = replace(cfg, segment=12)
    assert np.abs(split - whole(params, language_model.init_state(params, longer, 2), ids, longer)[0])[:, 6:].max() > 1e-3


def test_no_compressed_slots_is_transformer_xl():
    """Exactly, with the same parameters."""
    plain, compressed = model(XlConfig(6), segment=5, **PRE), model(CompressiveConfig(6, 0, 3), segment=5, **PRE)
    params, state = setup(plain, 2)
    ids = some_ids(2, 20)
    got, want = (apply(params, s, ids, cfg)[0] for s, cfg in ((setup(compressed, 2)[1], compressed), (state, plain)))
    assert_equal(got, want)


def test_identity_compression_is_a_cache_of_both_lengths():
    plain, compressed = model(XlConfig(8)), model(CompressiveConfig(4, 4, 1, "mean"))
    params, state = setup(plain, 2)
    ids = some_ids(2, 20)
    got, want = (whole(params, s, ids, cfg)[0] for s, cfg in ((setup(compressed, 2)[1], compressed), (state, plain)))
    assert_close(got, want, 1e-6)


def test_the_auxiliary_loss_reaches_the_compression_alone():
    """With weight 0 and 1 of one program: every other gradient is bit-identical, and nothing else teaches the compression."""
    cfg = model(CompressiveConfig(4, 4, 2), **PRE)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 16)

    # Without any optimisation XLA makes NaN of this program's gradient, if the flags of conftest.py are set (jax 0.10.2).
    @partial(jit, compiler_options={"xla_backend_optimization_level": 1})
    def gradient(weight):
        def loss(params):
            logits, _, stats = bind(cfg).run(params, state, ids, Call(whole=True))
            return jnp.sin(logits).sum() + weight * stats["0.cached.auxiliary_loss"]

        return jax.grad(loss)(params)

    off, on = gradient(0.0), gradient(1.0)
    compression = [grads["layers"][0]["cached"].pop("memory") for grads in (off, on)]
    assert_equal(on, off)
    assert not any(np.any(g) for g in jax.tree.leaves(compression[0]))
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(compression[1]))


def test_scan_equals_loop():
    """Calls in a scan, as the trainer makes them, and calls one by one, as a session makes them."""
    cfg = model(CompressiveConfig(4, 3, 2, "dilated"))
    params, state = setup(cfg, 2)
    ids = some_ids(2, 20)
    looped, end = in_calls(cfg, params, state, ids, (T,) * 5, whole)
    scan = jit(lambda state, ids: jax.lax.scan(lambda s, i: bind(cfg).apply(params, s, i, whole=True)[::-1], state, ids))
    scanned_end, scanned = scan(state, jnp.stack(jnp.split(ids, 5, axis=1)))
    assert_close(jnp.concatenate(jnp.unstack(scanned), 1), looped, 1e-6)
    assert_close(scanned_end, end, 1e-6)


def test_a_longer_cache_takes_the_same_parameters():
    """Training and evaluation may differ in the cache: one field, the same shapes, other logits once the short cache is full."""
    short, long = model(XlConfig(4)), model(XlConfig(12), clamp=6)
    assert P.first_difference(P.abstract(language_model.specs(short)), P.abstract(language_model.specs(long))) == ""
    params, state = setup(short, 1)
    long = replace(long, style=short.style)
    ids = some_ids(1, 16)
    a, b = (whole(params, s, ids, cfg)[0] for s, cfg in ((state, short), (setup(long, 1)[1], long)))
    assert_close(a[:, :8], b[:, :8], 1e-5)
    assert np.abs(a[:, 8:] - b[:, 8:]).max() > 1e-3


def test_shapes_and_dtypes():
    """Logits and the loss are float32 whatever the compute dtype; the carry keeps its shapes."""
    cfg = replace(model(CompressiveConfig(4, 4, 2)), dtype="bfloat16")
    own = bind(cfg)
    params = P.abstract(own.specs())
    state = jax.eval_shape(lambda p: own.init_state(p, 3), params)
    logits, end, stats = jax.eval_shape(own.run, params, state, jax.ShapeDtypeStruct((3, 4), jnp.int32))
    assert logits.shape == (3, 4, 16) and logits.dtype == np.float32
    assert stats["0.cached.auxiliary_loss"].dtype == np.float32
    assert jax.tree.map(lambda s: (s.shape, s.dtype), end) == jax.tree.map(lambda s: (s.shape, s.dtype), state)
    assert state.layers[0]["cached"].memory.recent.vectors.dtype == jnp.bfloat16


def test_facts_of_a_model():
    """A training call is whole segments; a token sees its segment without the memory."""
    cfg = model(CompressiveConfig(4, 4, 2), segment=6)
    assert (cfg.call_tokens, cfg.reach, cfg.segment) == (6, 6, 6)


@pytest.mark.parametrize("make, message", [
    (lambda: replace(model(XlConfig(4)), layers=0), "layers is 0; it must be at least 1"),
    (lambda: replace(model(XlConfig(4)), width=7), "width=7 must be even"),
    (lambda: model(XlConfig(4), order="none"), "order is 'none'; it must be one of pre, post"),
    (lambda: CachedConfig(XlConfig(0), "compat"), "hides a token from itself"),
    (lambda: CachedConfig(XlConfig(4), "onn"), "cached.same_length is 'onn'; it must be one of off, on, compat"),
    (lambda: CachedConfig(None), "cached.memory is None; it must be one of XlConfig, CompressiveConfig"),
    (lambda: model(XlConfig(4), clamp=-1), "clamp is -1"),
    (lambda: model(XlConfig(4), positions="table"), "has no row for earlier segments"),
    (lambda: model(XlConfig(4), segment=0), "cached layers need segments"),
    (lambda: replace(model(XlConfig(4)), dtype="float16"), "dtype is 'float16'"),
], ids=["layers", "width", "order", "compat", "same_length", "memory", "clamp", "positions", "segment", "dtype"])
def test_config_names_the_mistake(make, message):
    with pytest.raises(UserError, match=message):
        make()
