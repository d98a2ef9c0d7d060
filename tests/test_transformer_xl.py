"""Transformer-XL and the Compressive Transformer: equal to a literal reference, in values and gradients, and their properties."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_cached as reference
from neural_cases import assert_close, assert_equal, cast, jit, random_params

from memtok_jax import params as P
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import relative, transformer_xl
from memtok_jax.models.protocol import functions_of
from memtok_jax.models.transformer_xl import TransformerXlConfig, for_training


def model(memory, **options) -> TransformerXlConfig:
    base = dict(vocabulary=16, width=8, layers=2, heads=2, head_dim=3, hidden=6)
    return TransformerXlConfig(**(base | options), memory=memory)


def some_ids(batch: int, length: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(16, size=(batch, length)), jnp.int32)


def setup(cfg, batch: int, dtype=np.float32):
    params = random_params(transformer_xl.specs(cfg), 0, dtype)
    # Initial weights are small: larger ones, so that every part of a score matters.
    params = jax.tree.map(lambda p: 3 * p if p.ndim > 1 else p, params)
    return params, cast(transformer_xl.init_state(params, cfg, batch), dtype)


apply = jit(transformer_xl.apply, static_argnums=3)


def in_calls(cfg, params, state, ids, lengths):
    """Logits of a stream that is read in calls of these lengths, and the last state."""
    out = []
    for part in jnp.split(ids, np.cumsum(lengths)[:-1], axis=1):
        logits, state = apply(params, state, part, cfg)
        out.append(logits)
    return jnp.concatenate(out, 1), state


# ------------------------------------------------------------------------------------------------------- the references

LENGTHS = (4, 4, 4, 4, 4)
REFERENCES = {  # memory, options, tokens of each call
    "xl": (XlConfig(5), dict(norm="pre", same_length="on", untie_r=True, clamp=4), (3, 7, 4)),
    "mean": (CompressiveConfig(4, 4, 2, "mean"), {}, LENGTHS),
    "max-1.5T": (CompressiveConfig(6, 3, 2, "max"), dict(norm="pre"), LENGTHS),
    "conv": (CompressiveConfig(4, 4, 2), dict(norm="pre"), LENGTHS),
    "conv-bptt": (CompressiveConfig(4, 3, 2, "conv", "bptt"), {}, LENGTHS),
    "conv-autoencoding": (CompressiveConfig(2, 3, 2, "conv", "autoencoding"), dict(untie_r=True), (3, 1, 6, 5)),
    "most_used": (CompressiveConfig(4, 4, 2, "most_used", block=4), {}, LENGTHS),
    "dilated": (CompressiveConfig(4, 4, 2, "dilated", block=4), dict(norm="pre"), LENGTHS),
}


def reference_options(cfg: TransformerXlConfig) -> reference.Options:
    m = cfg.memory
    more = {} if isinstance(m, XlConfig) else dict(compressed=m.compressed, rate=m.rate, unit=m.unit, compression=m.compression,
                                                   objective=m.objective)
    return reference.Options(cfg.heads, cfg.head_dim, m.length, **more, norm=cfg.norm, clamp=cfg.clamp,
                             reach=float("inf") if cfg.reach is None else cfg.reach)


# The others differ in one function of the compression, which tests/test_cached_memory.py proves alone.
QUICK = ("xl", "conv-autoencoding")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REFERENCES])
def test_equals_the_literal_reference(name):
    """Logits, the auxiliary loss and all gradients of one stream in float64, memories empty at first."""
    memory, options, lengths = REFERENCES[name]
    cfg = model(memory, **options)
    segments = np.split(np.asarray(some_ids(1, sum(lengths))), np.cumsum(lengths)[:-1], axis=1)
    with jax.enable_x64(True):
        params, state = setup(cfg, 1, np.float64)
        weights = jnp.asarray(np.random.default_rng(1).standard_normal((sum(lengths), 16)))

        def ours(params):
            def call(carry, part):
                logits, carry, seen = transformer_xl.run(params, carry, part, cfg)
                return carry, (logits[0], sum((v.sum() for v in seen.values()), jnp.zeros(())))

            if len(set(lengths)) == 1:
                logits, loss = jax.lax.scan(call, state, jnp.stack(segments))[1]
            else:
                carry, out = state, []
                for part in segments:
                    carry, one = call(carry, jnp.asarray(part))
                    out.append(one)
                logits, loss = zip(*out, strict=True)
            logits, loss = jnp.concatenate([*logits]), sum(loss)
            return (logits * weights).sum() + 3 * loss, (logits, loss)

        def theirs(params):
            logits, loss = reference.stream(params, [part[0].tolist() for part in segments], reference_options(cfg))
            return (logits * weights).sum() + 3 * loss, (logits, jnp.asarray(loss, jnp.float64))

        got, want = (jit(jax.grad(f, has_aux=True))(params) for f in (ours, theirs))
        assert_close(got, want, 1e-9)
        assert (want[1][1] > 1e-4) == ("attention" in str(memory) or "autoencoding" in str(memory))


def test_segments_equal_the_whole():
    """A cache as long as the stream, and any cut of 40 tokens, longer than the cache too where each sees a fixed number."""
    for memory, options in ((XlConfig(40), {}), (XlConfig(9), dict(same_length="on", clamp=6))):
        cfg = model(memory, **options)
        params, state = setup(cfg, 2)
        ids = some_ids(2, 40)
        whole, _ = apply(params, state, ids, cfg)
        for lengths in ((8,) * 5, (1,) * 24 + (16,)):
            assert_close(in_calls(cfg, params, state, ids, lengths)[0], whole, 2e-5)


# --------------------------------------------------------------------------------------------------- relative positions

@pytest.mark.parametrize("tokens, columns", [(1, 1), (1, 5), (3, 7), (6, 6)])
def test_shift_equals_gather(tokens, columns):
    """At every distance that is not negative."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((2, tokens, 2, 3)), jnp.float32)
    wr = jnp.asarray(rng.standard_normal((8, 2, 3)), jnp.float32)
    distance = relative.distances(tokens, columns)
    assert distance[0, columns - tokens] == 0 and distance[-1, 0] == columns - 1
    for clamp in (0, 2):
        shifted = relative.by_shift(q, wr, columns, clamp, "float32")
        gathered = relative.by_gather(q, wr, distance, clamp, "float32")
        assert_close(*(np.where(distance >= 0, scores, 0) for scores in (shifted, gathered)), 1e-5)


def test_signed_distances_turn_the_sines():
    """sin(-p f) = -sin(p f), and clamping is the same on both sides."""
    r = relative.sinusoids(jnp.array([3, -3, 7, -9, 5, -5]), 6, 5, jnp.float32)
    np.testing.assert_allclose(r[0], r[1] * jnp.array([-1, -1, -1, 1, 1, 1]), atol=1e-6)
    assert_equal(r[2:4], r[4:6])


@pytest.mark.parametrize("tokens, filled", [(4, 4), (4, 0), (4, 2), (2, 4), (6, 4), (1, 3)])
def test_columns_that_a_token_sees(tokens, filled):
    """Itself and n_m others with "on"; with "compat" the mask of the released code, rebuilt here from its source's words."""
    n = 4
    real = jnp.arange(n)[None] >= n - filled
    visible = lambda how: np.asarray(transformer_xl.visible_columns(real, tokens, model(XlConfig(n), same_length=how).reach)[0])
    count = lambda how: visible(how).sum(1).tolist()
    assert count("off") == [filled + i + 1 for i in range(tokens)]
    assert count("on") == [min(filled + i, n) + 1 for i in range(tokens)]
    # Over the filled columns only: hide what comes after, and what lies `shift` or more below the diagonal.
    columns = filled + tokens
    excess = columns - n
    shift = tokens - excess if excess > 0 else tokens
    hidden = np.triu(np.ones((tokens, columns)), 1 + filled) + np.tril(np.ones((tokens, columns)), -shift)
    np.testing.assert_array_equal(visible("compat")[:, n - filled:], hidden == 0)


# ----------------------------------------------------------------------------------------------------------- properties

def test_what_is_not_real_does_not_count():
    """A cache full of numbers but with a count of zero is the empty cache, bit for bit."""
    for memory in (XlConfig(5), CompressiveConfig(4, 3, 2)):
        cfg = model(memory)
        params, state = setup(cfg, 2)
        rubbish = jax.tree.map(lambda s: s + 7 if s.dtype == jnp.float32 else s, state)
        ids = some_ids(2, 6)
        assert_equal(apply(params, rubbish, ids, cfg)[0], apply(params, state, ids, cfg)[0])


@pytest.mark.parametrize("memory", [XlConfig(6), CompressiveConfig(4, 3, 2), CompressiveConfig(4, 3, 2, "conv", "bptt")],
                         ids=["xl", "compressive", "bptt"])
def test_no_gradient_enters_the_segment_before(memory):
    """Inputs of a layer in the earlier call get exactly none, those of the same call get some."""
    cfg = model(memory)
    params, state = setup(cfg, 1)
    one, position = jax.tree.map(lambda p: p[0], params["layers"]), params["position"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, 6, 8)), jnp.float32)
    full = jnp.array([6])

    def last(x):
        carry = jax.tree.map(lambda s: s[0], state.layers)
        for part in x:
            y, carry, _ = transformer_xl.layer(one, position, carry, part, cfg, full)
        return y[0, -1].sum()

    gradient = jit(jax.grad(lambda x: last(jnp.unstack(x)[0:3])))(x)
    assert not np.any(gradient[:2]) and np.all(np.abs(gradient[2]).max(-1) > 1e-7)


def test_without_a_cache_segments_are_independent():
    cfg = model(XlConfig(0))
    params, state = setup(cfg, 2)
    ids = some_ids(2, 12)
    split, _ = in_calls(cfg, params, state, ids, (6, 6))
    alone, _ = apply(params, state, ids[:, 6:], cfg)
    assert_equal(split[:, 6:], alone)
    assert np.abs(split - apply(params, state, ids, cfg)[0])[:, 6:].max() > 1e-3


def test_no_compressed_slots_is_transformer_xl():
    """Exactly, with the same parameters."""
    plain, compressed = model(XlConfig(6), norm="pre"), model(CompressiveConfig(6, 0, 3), norm="pre")
    params, state = setup(plain, 2)
    other = setup(compressed, 2)[1]
    ids = some_ids(2, 20)
    for lengths in ((5,) * 4, (1, 7, 12)):
        assert_equal(in_calls(compressed, params, other, ids, lengths)[0], in_calls(plain, params, state, ids, lengths)[0])


def test_identity_compression_is_a_cache_of_both_lengths():
    plain, compressed = model(XlConfig(8)), model(CompressiveConfig(4, 4, 1, "mean"))
    params, state = setup(plain, 2)
    other = setup(compressed, 2)[1]
    ids = some_ids(2, 20)
    assert_close(in_calls(compressed, params, other, ids, (4,) * 5)[0], in_calls(plain, params, state, ids, (4,) * 5)[0], 1e-6)


@pytest.mark.slow
def test_training_mode_and_recomputation_change_nothing():
    """`aligned` and recomputed layers: the same loss, gradients and state, waiting rows aside."""
    cfg = model(CompressiveConfig(4, 4, 2, block=4))
    params, state = setup(cfg, 2)
    ids = some_ids(2, 16)

    def gradients(cfg):
        def loss(params):
            def segment(state, ids):
                logits, state, seen = transformer_xl.run(params, state, ids, cfg)
                return state, jnp.sin(logits).sum() + seen["auxiliary_loss"].sum()

            end, losses = jax.lax.scan(segment, state, jnp.stack(jnp.split(ids, 4, axis=1)))
            return losses.sum(), end

        return jit(jax.value_and_grad(loss, has_aux=True))(params)

    assert_close(gradients(replace(for_training(cfg, 4), remat="block")), gradients(cfg), 1e-5)


def test_the_auxiliary_loss_reaches_the_compression_alone():
    """With weight 0 and 1 of one program: every other gradient is bit-identical, and nothing else teaches the compression."""
    cfg = for_training(model(CompressiveConfig(4, 4, 2), norm="pre"), 4)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 16)

    @jit
    def gradient(weight):
        def loss(params):
            def segment(state, ids):
                logits, state, seen = transformer_xl.run(params, state, ids, cfg)
                return state, jnp.sin(logits).sum() + weight * seen["auxiliary_loss"].sum()

            return jax.lax.scan(segment, state, jnp.stack(jnp.split(ids, 4, axis=1)))[1].sum()

        return jax.grad(loss)(params)

    off, on = gradient(0.0), gradient(1.0)
    compression = [grads["layers"].pop("memory") for grads in (off, on)]
    assert_equal(on, off)
    assert not any(np.any(g) for g in jax.tree.leaves(compression[0]))
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(compression[1]))


def test_scan_equals_loop():
    cfg = for_training(model(CompressiveConfig(4, 3, 2, "dilated")), 4)
    params, state = setup(cfg, 2)
    ids = some_ids(2, 20)
    looped, end = in_calls(cfg, params, state, ids, (4,) * 5)
    scan = jit(lambda state, ids: jax.lax.scan(lambda s, i: transformer_xl.apply(params, s, i, cfg)[::-1], state, ids))
    scanned_end, scanned = scan(state, jnp.stack(jnp.split(ids, 5, axis=1)))
    assert_close(jnp.concatenate(jnp.unstack(scanned), 1), looped, 1e-6)
    assert_close(scanned_end, end, 1e-6)


def test_a_longer_cache_takes_the_same_parameters():
    """Training and evaluation may differ in the cache: one field, the same shapes, other logits once the short cache is full."""
    short, long = model(XlConfig(4)), model(XlConfig(12), clamp=6)
    assert jax.tree.map(lambda s: s.shape, P.abstract(transformer_xl.specs(short))) == jax.tree.map(
        lambda s: s.shape, P.abstract(transformer_xl.specs(long)))
    params, state = setup(short, 1)
    ids = some_ids(1, 16)
    a, _ = in_calls(short, params, state, ids, (4,) * 4)
    b, _ = in_calls(replace(long, clamp=0), params, setup(long, 1)[1], ids, (4,) * 4)
    assert_close(a[:, :8], b[:, :8], 1e-5)
    assert np.abs(a[:, 8:] - b[:, 8:]).max() > 1e-3


def test_shapes_and_dtypes():
    """Logits are float32 whatever the compute dtype; the trainer finds the functions by the config's name."""
    cfg = model(CompressiveConfig(4, 4, 2), dtype="bfloat16")
    assert functions_of(cfg) is transformer_xl
    params = P.abstract(transformer_xl.specs(cfg))
    state = jax.eval_shape(lambda: transformer_xl.init_state(None, cfg, 3))
    logits, end, seen = jax.eval_shape(lambda p, s, i: transformer_xl.run(p, s, i, cfg), params, state,
                                       jax.ShapeDtypeStruct((3, 4), jnp.int32))
    assert logits.shape == (3, 4, 16) and logits.dtype == np.float32 and seen["auxiliary_loss"].dtype == np.float32
    assert jax.tree.map(lambda s: (s.shape, s.dtype), end) == jax.tree.map(lambda s: (s.shape, s.dtype), state)
    assert state.layers.recent.rows.dtype == jnp.bfloat16


@pytest.mark.parametrize("options, message", [
    (dict(layers=0), "layers=0 must be at least 1"),
    (dict(width=7), "width=7 must be even"),
    (dict(norm="none"), "norm='none' must be one of 'post', 'pre'"),
    (dict(same_length="compat", memory=XlConfig(0)), "hides a token from itself"),
    (dict(memory=None), "memory=None must be one of XlConfig, CompressiveConfig"),
    (dict(clamp=-1), "clamp=-1"),
    (dict(dtype="float16"), "dtype='float16'"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(ValueError, match=message):
        replace(model(XlConfig(4)), **options)
