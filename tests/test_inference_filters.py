"""What sampling options leave of the probabilities, against loops over every token in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax.inference import filters, host
from memtok_jax.inference import stream as F
from memtok_jax.inference.filters import Sampling

V, B = 7, 4
APPLY = jax.jit(filters.final_logits)


def reference(logits, past, o: Sampling) -> np.ndarray:
    """Probabilities [V] of one row by the rules as they are written. past: ids of the stream, oldest first."""
    logits = [float(z) for z in logits]
    window = past[-o.repetition_window:] if o.repetition_window else past
    for i in set(window):
        logits[i] = logits[i] / o.repetition_penalty if logits[i] > 0 else logits[i] * o.repetition_penalty
    best_first = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if o.temperature == 0:
        return np.eye(len(logits))[best_first[0]]
    weights = [np.exp((z - max(logits)) / o.temperature) for z in logits]
    kept = best_first[:o.top_k] if o.top_k else best_first
    total, so_far, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if so_far < o.top_p * total or o.top_p == 1:
            nucleus.append(i)
        so_far += weights[i]
    kept = [i for i in nucleus if weights[i] >= o.min_p * max(weights)]
    out = np.zeros(len(logits))
    for i in kept:
        out[i] = weights[i]
    return out / out.sum()


def seen_of(pasts):
    seen = np.zeros((len(pasts), V), np.int32)
    for row, past in enumerate(pasts):
        for place, i in enumerate(past, 1):
            seen[row, i] = place
    return seen


def probabilities(logits, pasts, options: Sampling) -> np.ndarray:
    """All rows at once by the package; exact, nothing is drawn."""
    t = jnp.array([len(past) for past in pasts], jnp.int32)
    arrays = host.sampling(options, len(pasts))
    out = np.asarray(APPLY(jnp.asarray(logits, jnp.float32), jnp.asarray(seen_of(pasts)), t, arrays), np.float64)
    greedy = np.eye(V)[out.argmax(1)]
    soft = np.exp(out - out.max(1, keepdims=True))
    return np.where(np.asarray(arrays.temperature)[:, None] > 0, soft / soft.sum(1, keepdims=True), greedy)


def random_case(seed):
    r = np.random.RandomState(seed)
    logits = np.round(r.randn(B, V) * 3, 2).astype(np.float32)
    pasts = [list(r.randint(0, V, r.randint(0, 9))) for _ in range(B)]
    pick = lambda values: [values[i] for i in r.randint(0, len(values), B)]  # noqa: E731
    return logits, pasts, Sampling(pick([0.0, 0.3, 1.0, 2.5]), pick([0, 1, 3, V, 99]), pick([1.0, 0.05, 0.5, 0.93]),
                                   pick([0.0, 0.02, 0.3, 1.0]), pick([1.0, 1.3, 0.6, 4.0]), pick([0, 1, 3, 50]))


@pytest.mark.parametrize("seed", range(60))
def test_mixed_options_are_the_rules(seed):
    logits, pasts, options = random_case(seed)
    found = probabilities(logits, pasts, options)
    for row in range(B):
        wanted = reference(logits[row], pasts[row], Sampling(*(field[row] for field in options)))
        np.testing.assert_allclose(found[row], wanted, rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(found[row] > 0, wanted > 0)


@pytest.mark.parametrize("options", [
    Sampling(top_k=1), Sampling(top_k=3), Sampling(top_p=0.6), Sampling(min_p=0.3), Sampling(repetition_penalty=2.0),
    Sampling(repetition_penalty=2.0, repetition_window=2), Sampling(0.5, top_p=1e-6), Sampling(0.0, top_k=2), Sampling(min_p=1.0),
    Sampling(top_k=4, top_p=0.7)], ids=str)
def test_single_options_are_the_rules(options):
    logits, pasts, _ = random_case(3)
    found = probabilities(logits, pasts, options)
    for row in range(B):
        np.testing.assert_allclose(found[row], reference(logits[row], pasts[row], options), rtol=2e-5, atol=1e-6)


def test_equal_logits_leave_the_lower_ids():
    logits = np.zeros((1, V), np.float32)
    np.testing.assert_allclose(probabilities(logits, [[]], Sampling(top_k=3))[0], [1 / 3] * 3 + [0] * 4, rtol=1e-6)
    np.testing.assert_allclose(probabilities(logits, [[]], Sampling(top_p=2 / 7 + 0.01))[0], [1 / 3] * 3 + [0] * 4, rtol=1e-6)


def test_options_that_are_off_change_no_bit_whatever_the_neighbours_ask():
    """Also the tail of a nearly certain distribution, which sums in float32 do not see."""
    logits = np.array([[30.0, 0.0, -1.0, -20.0, -60.0, 1.0, 2.0]] * 2, np.float32)
    options = host.sampling(Sampling([1.0, 0.7], [0, 2], [1.0, 0.5], [0.0, 0.1], [1.0, 2.0], [0, 3]), 2)
    out = np.asarray(APPLY(logits, jnp.asarray(seen_of([[1, 2]] * 2)), jnp.array([2, 2]), options))
    np.testing.assert_array_equal(out[0], logits[0])
    assert np.isinf(out[1]).any()


def test_tiny_temperatures_are_finite_and_take_the_largest():
    logits, pasts, _ = random_case(5)
    for temperature in (1e-30, 1e-7, 1e-4):
        np.testing.assert_allclose(probabilities(logits, pasts, Sampling(temperature)), np.eye(V)[logits.argmax(1)], atol=1e-6)


def test_words_without_probability_stay_so():
    logits = np.array([[-np.inf, 1.0, -np.inf, 0.0, -1.0, -np.inf, -2.0]], np.float32)
    found = probabilities(logits, [[1, 2]], Sampling(top_k=6, top_p=0.99, min_p=0.01, repetition_penalty=1.2))
    assert np.isfinite(found).all() and not found[0, [0, 2, 5]].any()


def test_samples_follow_what_the_options_leave():
    """Drawn tokens, over many rows of equal logits, are those of the exact probabilities."""
    n, options = 4000, Sampling(0.7, top_k=4, min_p=0.05, repetition_penalty=1.5)
    logits, pasts, _ = random_case(1)
    stream = F.Stream((), jnp.full(n, len(pasts[0]), jnp.int32), jax.random.key_data(F.row_keys(jax.random.key(0), n)),
                      jnp.ones(n, bool), jnp.asarray(np.repeat(seen_of(pasts[:1]), n, 0)), *(F.Score(0, 0, 0),) * 2)
    drawn = F.sample(jnp.asarray(np.repeat(logits[:1], n, 0)), stream, host.sampling(options, n))
    wanted = reference(logits[0], pasts[0], options)
    np.testing.assert_allclose(np.bincount(drawn, minlength=V) / n, wanted, atol=0.03)
    assert not np.bincount(drawn, minlength=V)[wanted == 0].any()
