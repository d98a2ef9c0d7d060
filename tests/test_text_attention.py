"""What is reported of a language model's attention is what the model computes."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import jit, random_params

from memtok_jax.analysis import text
from memtok_jax.analysis.attention import sink_rate
from memtok_jax.config import UserError
from memtok_jax.models import language_model as lm
from memtok_jax.models.mixers.ssm import SsmConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TITANS

T = 6
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, T)), jnp.int32)


def model(prefix=0, **style):
    """A model of two kinds of layers, and random parameters of it."""
    cfg = lm.LanguageModelConfig(11, 8, 4, (WindowConfig(T, sinks=2), WindowConfig(T + 3)), 4, prefix=prefix,
                                 style=replace(TITANS, **style))
    return cfg, random_params(lm.specs(cfg), 0, np.float32)


def look(params, cfg):
    return jit(lambda p: text.look(p, IDS, cfg))(params)


@pytest.mark.parametrize("options", [{}, dict(prefix=2, sink="logit", gate="head")], ids=["plain", "prefix, logit, gate"])
def test_the_last_hidden_state_gives_the_logits(options):
    cfg, params = model(**options)
    seen = look(params, cfg)
    want = jit(lambda p: lm.run(p, lm.init_state(p, cfg, 2), IDS, cfg)[0])(params)
    np.testing.assert_allclose(lm.logits(params, lm.finish(params, seen.hidden[-1], cfg), cfg), want, atol=2e-5)
    assert seen.weights.shape == (4, 2, 2, T, T) and seen.hidden.shape == (5, 2, T, 8)
    assert (np.triu(np.asarray(seen.weights), 1) == 0).all(), "no query sees a later token"


@pytest.mark.parametrize("options, columns", [({}, 0), (dict(sink="zero"), 1), (dict(prefix=3), 3), (dict(prefix=1, sink="kv"), 2)],
                         ids=str)
def test_equal_scores_share_evenly(options, columns):
    """With queries of zeros all columns get the same: of i tokens and n columns without a token each 1 / (i + n)."""
    cfg, params = model(**options)
    zero = lambda layer: {"window": layer["window"] | {"q": jax.tree.map(jnp.zeros_like, layer["window"]["q"])}}
    params = params | {"layers": tuple(layer | zero(layer) for layer in params["layers"])}
    seen = look(params, cfg)
    share = 1 / (np.arange(1, T + 1) + columns)
    np.testing.assert_allclose(seen.weights[..., 0], np.broadcast_to(share, (4, 2, 2, T)), rtol=1e-5)
    np.testing.assert_allclose(text.off_token_mass(seen.weights), (share * columns).mean(), rtol=1e-5, atol=1e-6)
    assert [sink_rate(seen.weights[:, 0], eps=share.mean() + more) for more in (-1e-3, 1e-3)] == [1, 0]


def test_the_largest_activation_is_found():
    hidden = np.random.default_rng(0).choice([-1.0, 1.0], (3, 5, 4, 7))
    hidden[2, :, 1, 6] = -50
    hidden[1, 0, 3, 2] = 1000
    assert text.massive_activations(jnp.asarray(hidden)) == (50.0, 2, 1), "one text of five decides nothing"


def test_what_cannot_be_looked_into_is_refused():
    cfg, params = model()
    with pytest.raises(UserError, match="a text of 6 tokens is longer than the window of 5"):
        text.look(params, IDS, replace(cfg, pattern=(WindowConfig(5),)))
    with pytest.raises(UserError, match="only models of window attention can be looked into"):
        text.look(params, IDS, replace(cfg, pattern=(SsmConfig(),)))
