"""Embeddings and output layer in clusters: equal to the definition word by word, and to a plain softmax where they must be.

Equal to Hugging Face's too, see tests/test_peer_transfo_xl.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, random_params

from memtok_jax.config import UserError
from memtok_jax.models import adaptive
from memtok_jax.models.adaptive import AdaptiveConfig

WORDS, WIDTH = 11, 8
CONFIGS = {"one cluster": AdaptiveConfig(WORDS, WIDTH), "equal": AdaptiveConfig(WORDS, WIDTH, (4, 7)),
           "narrow": AdaptiveConfig(WORDS, WIDTH, (4, 7), 2)}


def by_definition(p, cfg: AdaptiveConfig, h):
    """p(w) of each word for one vector h, in the order in which the module's docstring says it."""
    ends = [0, *cfg.cutoffs, WORDS]
    row = lambda w: p["embedding"][w]
    if cfg.shrink > 1:
        row = lambda w: next(p["embedding"][i][w - ends[i]] for i in range(len(ends) - 1) if ends[i] <= w < ends[i + 1])
    seen = [h @ p["output_projection"].T] + [h @ m.T for m in p["projections"][1:]] if cfg.shrink > 1 else [h] * len(ends)
    score = lambda w, i: jnp.exp(row(w) @ seen[i] + p["output_bias"][w])
    heads = [score(w, 0) for w in range(ends[1])]
    heads += [jnp.exp(p["clusters"]["w"][i] @ seen[0] + p["clusters"]["b"][i]) for i in range(len(cfg.cutoffs))]
    out = [s / sum(heads) for s in heads[:ends[1]]]
    for i in range(1, len(ends) - 1):
        scores = [score(w, i) for w in range(ends[i], ends[i + 1])]
        out += [heads[ends[1] + i - 1] / sum(heads) * s / sum(scores) for s in scores]
    return jnp.stack(out)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_definition(name):
    """Probabilities of all words, which sum to one, embeddings of all words, and every gradient, in float64."""
    cfg = CONFIGS[name]
    with jax.enable_x64(True):
        p = random_params(adaptive.specs(cfg), 0, np.float64)
        h = jnp.asarray(np.random.default_rng(1).standard_normal((3, 1, WIDTH)))
        weight = jnp.asarray(np.random.default_rng(2).standard_normal((3, WORDS)))
        ids = jnp.arange(WORDS)[None]

        def ours(p):
            out = jax.nn.softmax(adaptive.logits(p, h, cfg))[:, 0]
            x = adaptive.embed(p, ids, cfg)[0]
            return (out * weight).sum() + jnp.sin(x).sum(), (out, x)

        def theirs(p):
            out = jnp.stack([by_definition(p, cfg, row) for row in h[:, 0]])
            x = p["embedding"]
            if cfg.shrink > 1:
                x = jnp.concatenate([table @ m for table, m in zip(p["embedding"], p["projections"], strict=True)])
            return (out * weight).sum() + jnp.sin(x).sum(), (out, x)

        got, want = (jax.grad(f, has_aux=True)(p) for f in (ours, theirs))
        assert_close(got, want, 1e-12)
        np.testing.assert_allclose(got[1][0].sum(-1), 1, rtol=1e-12)


def test_clusters_as_likely_as_their_words_are_a_plain_softmax():
    """Where the score of a cluster is the log-sum of what stands in it, the two stages are one softmax."""
    plain, cfg = CONFIGS["one cluster"], CONFIGS["equal"]
    p = random_params(adaptive.specs(cfg), 0, np.float32)
    h = jnp.asarray(np.random.default_rng(1).standard_normal((1, 1, WIDTH)), jnp.float32)
    scores = adaptive.logits(p, h, plain)[0, 0]
    sums = jnp.stack([jax.nn.logsumexp(scores[4:7]), jax.nn.logsumexp(scores[7:])])
    p["clusters"] = {"w": jnp.zeros((2, WIDTH)), "b": sums}
    assert_close(adaptive.logits(p, h, cfg)[0, 0], jax.nn.log_softmax(scores), 1e-5)


def test_tables_of_the_published_kind():
    """Cutoffs 20 and 50 of 100 words, 32 columns, div_val 2: tables of 20 x 32, 30 x 16 and 50 x 8."""
    specs = adaptive.specs(AdaptiveConfig(100, 32, (20, 50), 2))
    assert [s.shape for s in specs["embedding"]] == [(20, 32), (30, 16), (50, 8)]
    assert [s.shape for s in specs["projections"]] == [(32, 32), (16, 32), (8, 32)]


@pytest.mark.parametrize("options, message", [
    (dict(cutoffs=(7, 4)), r"cutoffs=\(7, 4\) must rise between 0 and vocabulary=11"),
    (dict(cutoffs=(4, 11)), "must rise"),
    (dict(cutoffs=(0, 4)), "must rise"),
    (dict(shrink=2), "shrink=2 needs clusters"),
    (dict(shrink=0), "shrink=0 must be at least 1"),
    (dict(cutoffs=(4, 7), shrink=3), "width=8 is not a multiple of 9, by which shrink=3 narrows the last of 3 clusters"),
], ids=str)
def test_config_names_the_mistake(options, message):
    with pytest.raises(UserError, match=message):
        AdaptiveConfig(WORDS, WIDTH, **options)
