"""LMM, MAC, MAG, MAL, window and segment attention: equal to loops over tokens, and no token sees the future."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_layers as ref
from neural_cases import cast, jit, random_params

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.memory.neural import features
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.models import attention, block
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.in_turn import InTurnConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TITANS, Backbone

MEMORY = NeuralMemoryConfig(head_dim=4, chunk=2, expansion=2, conv=2, step_max=0.1, step_bias=0.0)
LMM, WINDOW, MAC = LmmConfig(MEMORY), WindowConfig(3), MacConfig(memory=MEMORY)
MIXERS = {"window": WINDOW, "segment": SegmentConfig(), "lmm": LMM, "mag": MagConfig(3, memory=MEMORY), "mac": MAC,
          "mac_questions": MacConfig(retrieved=3, memory=MEMORY)}


def backbone(segment: int, prefix: int = 2) -> Backbone:
    return Backbone(TITANS, width=8, layers=1, heads=2, head_dim=4, hidden=8, segment=segment, prefix=prefix)


def call_of(x, slot: int = 0) -> Call:
    return Call(length=P.full_length(x), slot=jnp.full((len(x),), slot, jnp.int32))


# ------------------------------------------------------------------------------------ against loops over single tokens

@pytest.mark.parametrize("name", MIXERS)
def test_mixer_equals_a_loop_over_tokens(name):
    """Two and a half segments from the start of a stream, in float64, with two prefix tokens in place."""
    with jax.enable_x64(True):
        cfg, b = MIXERS[name], backbone(segment=4)
        params = random_params(cfg.module.specs(cfg, b), 1, np.float64)
        state = cast(cfg.module.begin(params, jnp.zeros((2, 8)), cfg, b, 1, {})[1], np.float64)
        rng = np.random.default_rng(2)
        kept = rng.standard_normal((2, 2, 2, 4))
        if name != "lmm":
            state = state._replace(prefix=attention.Prefix(*(jnp.asarray(p)[None] for p in kept)))
        u = rng.standard_normal((10, 8))
        y = jit(lambda p, s, x: cfg.module.run(p, s, x, cfg, b, call_of(x), {})[0])(params, state, jnp.asarray(u)[None])
        plain, base = jax.tree.map(np.asarray, params), b.style.rope_base
        attend = lambda u, window: ref.window_attention(plain, kept, u, window, base) @ plain["o"]["w"]
        expected = {"window": lambda: attend(u, cfg.window), "lmm": lambda: ref.lmm(plain, u, cfg),
                    "segment": lambda: np.concatenate([attend(u[n:n + 4], 4) for n in (0, 4, 8)]),
                    "mag": lambda: ref.mag(plain, kept, u, cfg, base)}
        expected = expected.get(name, lambda: ref.mac(plain, kept, u, cfg, 4, base))()
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- causality

TOKENS, SEGMENT = 12, 6
LAYERS = MIXERS | {"mal": (LMM, WINDOW), "in_turn": InTurnConfig((LMM, WINDOW))}


def somewhere(layer, b: Backbone, seed: int):
    """A carry in the middle of chunk and segment: random arrays, one token in every open unit."""
    rng = np.random.default_rng(seed)
    values = lambda s: np.ones(s.shape) if s.dtype == jnp.int32 else 0.3 * rng.standard_normal(s.shape)
    return jax.tree.map(lambda s: jnp.asarray(values(s), s.dtype), P.abstract(block.state_specs(layer, b, 1)))


def influence(layer) -> np.ndarray:
    """[T, T]: largest derivative of output t of a layer with respect to input s; three segments, of which the first is open."""
    b = backbone(SEGMENT, prefix=0 if layer == LMM else 2)
    params, state = random_params(block.specs(layer, b), 3, np.float32), somewhere(layer, b, 4)
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.standard_normal((1, TOKENS, 8)), jnp.float32)
    direction = jnp.asarray(rng.standard_normal(8), jnp.float32)
    run = lambda x: block.run(params, state, x, layer, b, call_of(x, slot=1), {})[0][0] @ direction
    return np.abs(jit(jax.jacrev(run))(x)).max(axis=(1, 3))


def past_of(name: str) -> np.ndarray:
    """bool[T, T]: what each token may depend on: its window, its segment, or with a memory everything before it."""
    t, s = np.indices((TOKENS, TOKENS))
    near = {"window": t - s < 3, "segment": (t + 1) // SEGMENT == (s + 1) // SEGMENT}
    return (s <= t) & near.get(name, True)


@pytest.mark.parametrize("name", LAYERS)
def test_a_token_depends_on_its_past_and_nothing_else(name):
    """The zero pattern of the derivative, exactly: nothing later, and every token that window, segment or memory hold."""
    np.testing.assert_array_equal(influence(LAYERS[name]) > 0, past_of(name))


def test_each_learned_question_gets_a_gradient():
    """From the segments behind the first; there the memory has something to say."""
    cfg, b = MIXERS["mac_questions"], backbone(SEGMENT)
    params = random_params(cfg.module.specs(cfg, b), 3, np.float32)
    u = jnp.asarray(np.random.default_rng(5).standard_normal((1, TOKENS, 8)), jnp.float32)

    def last(questions):
        own = params | {"questions": questions}
        state = cfg.module.begin(own, jnp.zeros((2, 8)), cfg, b, 1, {})[1]
        return cfg.module.run(own, state, u, cfg, b, call_of(u), {})[0][0, -1].sum()

    assert np.abs(jit(jax.grad(last))(params["questions"])).max(axis=(1, 2)).min() > 1e-6


def retrieved_fully_visible(monkeypatch):
    """The figure of the paper: every query sees all retrieved vectors of its segment, which are the first half of the keys."""
    honest = attention.at_places

    def at_places(params, q, k, v, visible, *rest, **options):
        return honest(params, q, k, v, visible.at[..., :visible.shape[-1] // 2].set(True), *rest, **options)

    monkeypatch.setattr(attention, "at_places", at_places)


def read_at_the_end_of_the_segment(monkeypatch):
    """Equation 25 read loosely."""
    honest = neural.run

    def run(params, state, x, cfg, length=None, **view):
        _, after, stats = honest(params, state, x, cfg, length, **view)
        q, _ = neural.query(params, x, state.conv[:, :, 2], cfg, length)
        return neural.reads_at(params, after.weights, q, cfg).reshape(x.shape), after, stats

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
    assert influence(MAC)[~past_of("mac")].max() > 1e-4
