"""`generate` is feeding a prompt and sampling after it, whatever the pieces."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference_models import fresh, load, session, tokens

from memtok_jax.inference import sample
from memtok_jax.inference.stream import NO_TOKEN

KEY = jax.random.key(1)


def by_steps(prompt, n, key, choose):
    """The same by recomputing everything for each token, for one row of the toy model."""
    model, params = load("toy")
    ids = list(prompt)
    for _ in range(n):
        logits, _ = model.apply(params, model.init_state(params, 1), jnp.asarray(ids)[None])
        ids.append(int(choose(logits[0, -1], jax.random.fold_in(key, len(ids)))))
    return ids[len(prompt):]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generate_equals_recomputing_everything(temperature, monkeypatch):
    model, params = load("toy")
    monkeypatch.setattr(sample, "TOKENS_PER_CALL", 4)
    prompt = tokens("toy")[:1, :7]
    out = sample.generate(model, params, prompt, 6, KEY, temperature)

    def choose(logits, key):
        return jax.random.categorical(key, logits / temperature) if temperature else jnp.argmax(logits)

    assert out.dtype == np.int32
    np.testing.assert_array_equal(out[0], by_steps(prompt[0], 6, jax.random.fold_in(KEY, 0), choose))


def test_prompts_of_different_length():
    model, params = load("toy")
    prompt = tokens("toy", length=20)
    together = sample.generate(model, params, prompt, 5, KEY, 1.0, length=[20, 1, 6])
    first = sample.generate(model, params, prompt[:1], 5, KEY, 1.0)
    np.testing.assert_array_equal(together[0], first[0])
    shorter = sample.generate(model, params, prompt[:2, :1], 5, KEY, 1.0)
    np.testing.assert_array_equal(together[1], shorter[1])


def test_decode_many_goes_on_where_it_ended():
    _, params = load("toy")
    run, last = session("toy"), np.array([1, 2, 3])
    shown = []
    whole, _, _ = sample.decode_many(run, params, fresh("toy"), last, 20, 1.0, shown.append)
    np.testing.assert_array_equal(np.concatenate(shown, 1), whole)
    first, last, stream = sample.decode_many(run, params, fresh("toy"), last, 10, 1.0)
    second, _, _ = sample.decode_many(run, params, stream, last, 10, 1.0)
    np.testing.assert_array_equal(np.concatenate([first, second], 1), whole)
    odd, _, _ = sample.decode_many(run, params, fresh("toy"), np.array([1, 2, 3]), 7, 1.0)
    np.testing.assert_array_equal(odd, whole[:, :7])


def test_it_ends_early_when_every_row_has_stopped():
    _, params = load("toy")
    run = session("toy", stop=tuple(range(session("toy").vocabulary)))
    shown = []
    ids, _, stream = sample.decode_many(run, params, fresh("toy"), np.array([1, 2, 3]), 1000, 1.0, shown.append)
    assert len(shown) == 1 and not np.asarray(stream.active).any()
    assert (ids[:, 0] >= 0).all() and (ids[:, 1:] == NO_TOKEN).all()


@pytest.mark.parametrize("prompt, n, length, words", [
    (np.zeros((2, 0), int), 4, None, "has no last token"),
    (np.zeros(3, int), 4, None, r"\[B, T\] is needed"),
    (np.zeros((2, 3), int), 0, None, "n=0"),
    (np.zeros((2, 3), int), 4, [3, 0], "a prompt of 0 tokens"),
    (np.zeros((2, 3), int), 4, [3, 4], "numbers from 0 to 3"),
    (np.full((2, 3), 99), 4, None, "token 99 is outside"),
    (np.full((2, 3), 1.5), 4, None, "tokens must be integers"),
], ids=["empty", "flat", "none", "short", "long", "token", "floats"])
def test_mistakes_are_named(prompt, n, length, words):
    model, params = load("toy")
    with pytest.raises(ValueError, match=words):
        sample.generate(model, params, prompt, n, KEY, 1.0, length=length)


def test_nothing_to_do_gives_nothing():
    model, params = load("toy")
    assert sample.generate(model, params, np.zeros((0, 4), int), 5, KEY, 1.0).shape == (0, 5)
    stream = fresh("toy")
    ids, last, after = sample.decode_many(session("toy"), params, stream, [1, 2, 3], 0, 1.0)
    assert ids.shape == (3, 0) and last == [1, 2, 3] and after is stream


def test_a_negative_temperature_is_refused_before_anything_is_compiled():
    model, params = load("toy")
    with pytest.raises(ValueError, match="temperature -1"):
        sample.generate(model, params, np.zeros((1, 4), int), 5, KEY, -1)
