"""LMM, MAC, MAG, MAL and window attention: equal to loops over tokens, and no token sees the future."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_layers as ref
from neural_cases import assert_close, cast, jit, random_params

from memtok_jax.memory import neural
from memtok_jax.memory.neural import features
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.models import block
from memtok_jax.models.config import BRANCHES, LanguageModelConfig
from memtok_jax.models.mixers import attention, lmm, mac, mag


def block_config(kind: str, **options):
    memory = NeuralMemoryConfig(head_dim=4, chunk=2, expansion=2, conv=2, step_max=0.1, step_bias=0.0)
    base = dict(width=8, layers=1, pattern=(kind,), head_dim=4, hidden=8, window=3, segment=6,
                prefix=0 if kind == "lmm" else 2, memory=memory)
    return LanguageModelConfig(**(base | options)).block(kind)


def somewhere(module, cfg, batch, seed, dtype):
    """A state in the middle of chunk and segment: random arrays, one token in every open unit."""
    rng = np.random.default_rng(seed)
    zero = module.init_state(random_params(module.specs(cfg), 0, dtype), cfg, batch)
    drawn = lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), dtype)
    draw = lambda s: jnp.ones(s.shape, s.dtype) if s.dtype == jnp.int32 else drawn(s)
    return jax.tree.map(draw, zero)


# ------------------------------------------------------------------------------------ against loops over single tokens

@pytest.mark.parametrize(("module", "retrieved"), [(attention, 0), (lmm, 0), (mag, 0), (mac, 0), (mac, 3)],
                         ids=["attention", "lmm", "mag", "mac", "mac-questions"])
def test_mixer_equals_a_loop_over_tokens(module, retrieved):
    """Two and a half segments from the start of a stream, in float64, with two prefix tokens in place."""
    name = module.__name__.split(".")[-1]
    with jax.enable_x64(True):
        cfg = block_config(name, segment=4, retrieved=retrieved)
        params = random_params(module.specs(cfg), 1, np.float64)
        state = cast(module.init_state(params, cfg, 1), np.float64)
        rng = np.random.default_rng(2)
        kept = rng.standard_normal((2, 2, 2, 4))
        if name != "lmm":
            state = state._replace(prefix=type(state.prefix)(*(jnp.asarray(p)[None] for p in kept)))
        u = rng.standard_normal((10, 8))
        y, _ = jit(module.apply, static_argnums=3)(params, state, jnp.asarray(u)[None], cfg)
        plain = jax.tree.map(np.asarray, params)
        expected = {"attention": lambda: ref.window_attention(plain, kept, u, cfg.window, cfg.rope_base) @ plain["wo"],
                    "lmm": lambda: ref.lmm(plain, u, cfg),
                    "mag": lambda: ref.mag(plain, kept, u, cfg),
                    "mac": lambda: ref.mac(plain, kept, u, cfg)}[name]()
    # Rotary angles are float32 in the package.
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=1e-12 if name == "lmm" else 3e-7)


# ---------------------------------------------------------------------------------------------------------- causality

def influence(module, cfg):
    """[T, T]: largest derivative of output t with respect to input s; two segments of three chunks, mid-stream."""
    params = random_params(module.specs(cfg), 3, np.float32)
    state = somewhere(module, cfg, 1, 4, np.float32)
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.standard_normal((1, 12, cfg.width)), jnp.float32)
    direction = jnp.asarray(rng.standard_normal(cfg.width), jnp.float32)
    jacobian = jit(jax.jacrev(lambda x: module.apply(params, state, x, cfg)[0][0] @ direction))(x)
    return np.abs(jacobian).max(axis=(1, 3))


def future(reach):
    """The part of `influence` that must be zero."""
    return np.triu(reach, 1)


@pytest.mark.parametrize("kind", BRANCHES)
def test_no_output_depends_on_a_later_token(kind):
    """The derivative is exactly zero, and each token reaches itself and the next."""
    reach = influence(block, block_config(kind))
    assert np.all(future(reach) == 0)
    assert np.all(np.diag(reach) > 1e-3) and np.all(np.diag(reach, -1) > 1e-7)
    if kind not in ("attention",):
        assert np.all(reach[np.tril_indices(12)] > 0), "the memory carries every earlier token"


def test_learned_questions_ask_for_earlier_segments_only():
    """Their answers are seen by all tokens of a segment; causal all the same, and each question gets a gradient."""
    cfg = block_config("mac", retrieved=3)
    assert np.all(future(influence(mac, cfg)) == 0)
    params = random_params(mac.specs(cfg), 3, np.float32)
    u = jnp.asarray(np.random.default_rng(5).standard_normal((1, 12, cfg.width)), jnp.float32)

    def last(questions):
        own = params | {"questions": questions}
        return mac.apply(own, mac.init_state(own, cfg, 1), u, cfg)[0][0, -1].sum()

    assert np.abs(jit(jax.grad(last))(params["questions"])).max(axis=(1, 2)).min() > 1e-6


def test_learned_questions_do_not_depend_on_the_cut():
    """One call equals tokens one by one, and whole segments at once (`aligned`)."""
    cfg = block_config("mac", retrieved=2, segment=4)
    params = random_params(mac.specs(cfg), 3, np.float32)
    u = jnp.asarray(np.random.default_rng(5).standard_normal((1, 8, cfg.width)), jnp.float32)
    apply = jit(mac.apply, static_argnums=3)
    state = mac.init_state(params, cfg, 1)
    whole, end = apply(params, state, u, cfg)
    aligned, aligned_end = apply(params, state, u, replace(cfg, aligned=True))
    pieces = []
    for t in range(8):
        y, state = apply(params, state, u[:, t:t + 1], cfg)
        pieces.append(y)
    assert_close((jnp.concatenate(pieces, axis=1), state), (whole, end), 1e-4)
    assert_close((aligned, aligned_end), (whole, end), 1e-4)


def retrieved_fully_visible(monkeypatch):
    """The figure of the paper: every query sees all retrieved vectors of its segment."""
    causal = mac.visible_keys
    monkeypatch.setattr(mac, "visible_keys", lambda p, s: causal(p, s).at[:, :, :s].set(True))


def read_at_the_end_of_the_segment(monkeypatch):
    """Equation 25 read loosely."""
    honest = neural.run

    def run(params, state, x, cfg, length=None, **view):
        _, after, seen = honest(params, state, x, cfg, length, **view)
        q, _ = neural.query(params, x, state.conv[:, :, 2], cfg, length)
        return neural.reads_at(params, after.weights, q, cfg).reshape(x.shape), after, seen

    monkeypatch.setattr(neural, "run", run)


def pooled_gates(monkeypatch):
    """One gate for all tokens, the mean of theirs."""
    honest = features.gates
    mean = lambda g: jnp.broadcast_to(g.mean(1, keepdims=True), g.shape)
    monkeypatch.setattr(features, "gates", lambda *a: features.Gates(*map(mean, honest(*a))))


def centred_convolution(monkeypatch):
    """A convolution that reaches one token ahead."""
    honest = features.causal_conv
    monkeypatch.setattr(features, "causal_conv", lambda x, *a: honest(jnp.roll(x, -1, axis=1), *a))


LEAKS = (retrieved_fully_visible, read_at_the_end_of_the_segment, pooled_gates, centred_convolution)


@pytest.mark.parametrize("leak", [pytest.param(f, id=f.__name__, marks=() if n < 2 else pytest.mark.slow)
                                  for n, f in enumerate(LEAKS)])
def test_the_causality_test_sees_every_known_leak(leak, monkeypatch):
    """Each mistake that is easy to make in MAC must turn up in the part that has to be zero."""
    leak(monkeypatch)
    assert future(influence(mac, block_config("mac"))).max() > 1e-4
