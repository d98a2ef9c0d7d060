"""The one softmax of the package and its positions: equal to what their definitions say, pair by pair, in float64."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, jit

from memtok_jax.models import attend as attend_module
from memtok_jax.models import positions
from memtok_jax.models.attend import Front, Sink, attend, flat
from memtok_jax.models.positions import Places
from memtok_jax.models.style import TITANS, TRANSFORMER_XL, Backbone

B, T, S, H, K, D = 2, 3, 4, 2, 6, 8


def numbers(seed: int, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


# ------------------------------------------------------------------------------------------------------------- the softmax

SHAPES = dict(q=(B, T, H, K), k=(B, S, H, K), v=(B, S, H, K), bias=(B, H, T, S), front_q=(B, T, H, K), front_k=(B, 2, H, K),
              front_v=(B, 2, H, K), pinned_q=(B, T, H, K), pinned_k=(B, 3, H, K), pinned_v=(B, 3, H, K), pinned_bias=(B, H, T, 3),
              sink_score=(B, H, T, 2), sink_v=(2, H, K))
PINNED = np.random.default_rng(4).integers(2, size=(B, T, 3)).astype(bool)
VISIBLE = np.random.default_rng(3).integers(2, size=(B, T, S)).astype(bool) | (np.arange(S) == 1)


def dense(a: dict, b: int, t: int, h: int) -> tuple[jax.Array, jax.Array]:
    """(y [K], weight [S]) of one query: exponentials of all columns that it sees, over their sum."""
    scale = K ** -0.5
    scores = list(a["sink_score"][b, h, t]) if "sink_score" in a else []
    values = list(a["sink_v"][:, h]) if "sink_v" in a else [jnp.zeros(K)] * len(scores)
    if "front_q" in a:
        scores += [a["front_q"][b, t, h] @ row * scale for row in a["front_k"][b, :, h]]
        values += list(a["front_v"][b, :, h])
    for s in range(3 if "pinned_q" in a else 0):
        score = (a["pinned_q"][b, t, h] @ a["pinned_k"][b, s, h] + a["pinned_bias"][b, h, t, s]) * scale
        scores.append(score if PINNED[b, t, s] else -jnp.inf)
        values.append(a["pinned_v"][b, s, h])
    for s in range(S):
        score = (a["q"][b, t, h] @ a["k"][b, s, h] + (a["bias"][b, h, t, s] if "bias" in a else 0)) * scale
        scores.append(score if VISIBLE[b, t, s] else -jnp.inf)
        values.append(a["v"][b, s, h])
    e = jnp.exp(jnp.stack(scores))
    return (e @ jnp.stack(values)) / e.sum(), (e / e.sum())[-S:]


@pytest.mark.parametrize("parts", [(), ("bias", "sink"), ("front", "pinned", "bias", "sink", "sink_v")], ids="+".join)
def test_attend_equals_the_dense_softmax(parts):
    """Outputs, weights and all gradients, with and without each kind of column."""
    chosen = lambda name: name in "qkv" or name in parts or name.partition("_")[0] in parts and name != "sink_v"
    with jax.enable_x64(True):
        a = numbers(0, **{name: shape for name, shape in SHAPES.items() if chosen(name)})
        w = numbers(1, y=(B, T, H, K), weight=(B, H, T, S))
        total = lambda y, weight: ((y * w["y"]).sum() + (weight * w["weight"]).sum(), (y, weight))

        def ours(a):
            fronts = (Front(a["front_q"], a["front_k"], a["front_v"]),) if "front" in parts else ()
            if "pinned" in parts:
                pinned = (a["pinned_q"], a["pinned_k"], a["pinned_v"], jnp.asarray(PINNED), a["pinned_bias"])
                fronts += (Front(*pinned),)
            sink = Sink(a["sink_score"], a.get("sink_v")) if "sink" in parts else None
            return total(*attend(a["q"], a["k"], a["v"], jnp.asarray(VISIBLE), bias=a.get("bias"), fronts=fronts, sink=sink))

        def theirs(a):
            each = [[[dense(a, b, t, h) for h in range(H)] for t in range(T)] for b in range(B)]
            y = jnp.stack([jnp.stack([jnp.stack([y for y, _ in heads]) for heads in tokens]) for tokens in each])
            weight = jnp.stack([jnp.stack([jnp.stack([w for _, w in heads]) for heads in tokens]) for tokens in each])
            return total(y, jnp.swapaxes(weight, 1, 2))

        got, want = (jit(jax.value_and_grad(f, has_aux=True))(a) for f in (ours, theirs))
        assert_close(got, want, 1e-13)


def test_a_query_that_sees_nothing_gets_the_mean_of_all_values():
    with jax.enable_x64(True):
        a = numbers(0, q=(B, T, H, K), k=(B, S, H, K), v=(B, S, H, K))
        y, weight = attend(**a, visible=jnp.zeros((B, T, S), bool))
        np.testing.assert_allclose(weight, 1 / S)
        np.testing.assert_allclose(y, jnp.broadcast_to(a["v"].mean(1, keepdims=True), y.shape), atol=1e-15)
        assert flat(y).shape == (B, T, H * K)


def test_half_precision_scores_are_float32():
    a = {name: x.astype(jnp.bfloat16) for name, x in numbers(0, q=(B, T, H, K), k=(B, S, H, K), v=(B, S, H, K)).items()}
    y, weight = attend(**a)
    assert y.dtype == jnp.bfloat16 and weight.dtype == jnp.float32
    scores = np.einsum("bthk,bshk->bhts", *(np.asarray(a[n], np.float32) for n in "qk")) * K ** -0.5
    np.testing.assert_allclose(weight, jax.nn.softmax(scores), rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_query_to_many_keys_equals_the_general_form(monkeypatch, groups):
    """The product of all heads with all groups: outputs, weights and gradients, whatever the sizes of groups and values."""
    with jax.enable_x64(True):
        a = numbers(5, q=(B, 3, 1, 4, K), k=(B, 3, 9, groups, K), v=(B, 3, 9, groups, 5), y=(B, 3, 1, 4, 5), w=(B, 3, 4, 1, 9))
        visible = jnp.arange(9) != 4

        def loss(q, k, v):
            y, weight = attend(q, k, v, visible[None, None, None])
            return (y * a["y"]).sum() + (weight * a["w"]).sum(), (y, weight)

        found = []
        for many in (10, 9):
            monkeypatch.setattr(attend_module, "MANY", many)
            found.append(jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(a["q"], a["k"], a["v"]))
        assert_close(*found, 1e-12)


# ------------------------------------------------------------------------------------------------------------------ rotary

def test_rotary_positions_are_exact_in_float64():
    """Each pair of features is one complex number, times exp(i p base^(-2n/K)); a score depends on the difference alone."""
    with jax.enable_x64(True):
        x = numbers(0, x=(B, S, H, K))["x"]
        position = np.array([[0, 3, 700, 5000], [1, 2, 64, 4321]])
        got = np.asarray(positions.rotate(x, jnp.asarray(position), 100.0))
        pairs = np.asarray(x[..., :K // 2]) + 1j * np.asarray(x[..., K // 2:])
        turned = pairs * np.exp(1j * position[..., None, None] * 100.0 ** (-2 * np.arange(K // 2) / K))
        np.testing.assert_allclose(got[..., :K // 2] + 1j * got[..., K // 2:], turned, atol=2e-12)
        score = lambda at: (positions.rotate(x, jnp.asarray(at), 100.0) * positions.rotate(x, jnp.asarray(at - 2), 100.0)).sum(-1)
        np.testing.assert_allclose(score(position), score(position + 900), atol=1e-11)


# ---------------------------------------------------------------------------------------------------------------- relative

def backbone(clamp: int = 0) -> Backbone:
    return Backbone(replace(TRANSFORMER_XL, clamp=clamp), width=D, layers=1, heads=H, head_dim=K, hidden=D)


PAIRS = [(1, 1), (1, 5), (3, 7), (6, 6), (4, 5), (2, 9)]


@pytest.mark.parametrize("tokens, columns", PAIRS)
def test_shifts_move_each_distance_to_its_pair(tokens, columns):
    """Entries that name their row and distance: every pair (query, column) gets the entry of its own distance."""
    distance = columns - tokens + np.arange(tokens)[:, None] - np.arange(columns)[None]
    want = 1000 * np.arange(tokens)[:, None] + distance
    table = lambda nearest: 1000 * jnp.arange(tokens)[:, None] + jnp.arange(columns - 1, nearest - 1, -1)[None]
    np.testing.assert_array_equal(positions.shift_ahead(table(1 - tokens)[None], columns)[0], want)
    behind = np.asarray(positions.shift(table(0)))
    np.testing.assert_array_equal(behind[distance >= 0], want[distance >= 0])


@pytest.mark.parametrize("tokens, columns", PAIRS[1:4])
def test_scores_by_distance_equal_a_lookup(tokens, columns):
    """By shift and at any places, with and without a limit: (q_i + v) . W R_(i - j), written for each pair."""
    with jax.enable_x64(True):
        a = numbers(0, q=(B, tokens, H, K), w=(D, H, K))
        for clamp in (0, 2):
            b, places = backbone(clamp), positions.last(tokens, columns)
            distance = np.asarray(places.query)[:, None] - np.asarray(places.key)[None]
            assert distance[0, columns - tokens] == 0 and distance[-1, 0] == columns - 1
            p = np.clip(distance, -clamp, clamp) if clamp else distance
            angle = p[..., None] * 10000.0 ** (-2 * np.arange(D // 2) / D)
            r = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
            want = np.einsum("bthk,tsd,dhk->bhts", a["q"], r, a["w"])
            ahead, past = (positions.scores_of_last({"w": a["w"]}, a["q"], columns, how, b) for how in (True, False))
            np.testing.assert_allclose(ahead, want, atol=1e-12)
            np.testing.assert_allclose(np.where(distance >= 0, past, 0), np.where(distance >= 0, want, 0), atol=1e-12)
            rows = Places(*(jnp.stack([at + 5 * row for row in range(B)]) for at in places))
            np.testing.assert_allclose(positions.scores_at({"w": a["w"]}, a["q"], rows, b), want, atol=1e-12)


def test_signed_distances_turn_the_sines():
    """sin(-p f) = -sin(p f), and clamping is the same on both sides."""
    r = positions.sinusoids(jnp.array([3, -3, 7, -9, 5, -5]), 6, 5, jnp.float32)
    np.testing.assert_allclose(r[0], r[1] * jnp.array([-1, -1, -1, 1, 1, 1]), atol=1e-6)
    np.testing.assert_array_equal(r[2:4], r[4:6])


# ------------------------------------------------------------------------------------------------------------------- ALiBi

def test_slopes_of_heads():
    """The geometric sequences of the paper for 8 heads; those of its released code for numbers that are no power of two."""
    np.testing.assert_array_equal(positions.slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(positions.slopes(16), 2.0 ** (-np.arange(1, 17) / 2))
    np.testing.assert_allclose(positions.slopes(6), 2.0 ** -np.array([2, 4, 6, 8, 1, 3.0]))
    np.testing.assert_allclose(positions.slopes(3), 2.0 ** -np.array([4, 8, 2.0]))
    assert [len(positions.slopes(n)) for n in range(1, 20)] == list(range(1, 20))


def test_linear_biases_are_the_distance_times_the_slope():
    """In the weights: behind the scale, a step back costs a head its slope."""
    b = Backbone(replace(TITANS, positions="alibi"), width=D, layers=1, heads=H, head_dim=K, hidden=D)
    places = Places(jnp.array([[3, 9]]), jnp.array([[0, 3, 10]]))
    bias = np.asarray(positions.linear_bias(places, b, jnp.float32))[0] * K ** -0.5
    np.testing.assert_allclose(bias, -np.array([2.0 ** -4, 2.0 ** -8])[:, None, None] * np.array([[3, 0, 7], [9, 6, 1]]), rtol=1e-6)
