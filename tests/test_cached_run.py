"""Cached models in the trainer and in evaluation: presets, the reported losses, a longer cache for the same parameters."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import config
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.style import TRANSFORMER_XL
from memtok_jax.training import metrics, optimizer, step
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.run import train


@pytest.mark.parametrize("name, millions", [("transformer_xl:wt103_base", 151), ("transformer_xl:wt103_large", 285),
                                            ("transformer_xl:enwik8_base", 41), ("transformer_xl:enwik8_large", 277)])
def test_presets_have_the_published_size(name, millions):
    """Parameters as the papers count them; nothing is allocated."""
    exp = config.load(name)
    assert round(P.count(bind(exp.model).specs()) / 1e6) == millions


@pytest.mark.parametrize("name", ["transformer_xl", "compressive", "compressive:mean", "compressive:enwik8", "compressive:pg19"])
def test_presets_fit_their_segment(name):
    exp = config.load(name)
    assert exp.call_tokens % bind(exp.model).call_tokens == 0
    assert exp.model.segment % exp.model.pattern[0].memory.unit == 0, "no row of the memory waits in training"
    assert config.from_json(config.to_json(exp)) == exp


def tiny(source: str) -> Experiment:
    """The compressive preset on a small text, cut down."""
    exp = config.load("compressive", (
        "model.width=8", "model.head_dim=4", "model.hidden=8", "model.layers=1", "model.segment=8",
        "model.pattern.0.memory.length=8", "model.pattern.0.memory.compressed=4", "data.sequence=32", "data.eval_bytes=100",
        "training.call_tokens=8", "training.batch=2", "training.data=1", "evaluation.batch=2", "optimizer.steps=4",
        "optimizer.warmup_steps=1", "training.log_every=1", "training.sample_tokens=0", "training.checkpoint_every=2",
        "training.eval_every=0"))
    return replace(exp, data=replace(exp.data, source=source))


def test_train_and_evaluate_with_a_longer_cache(tmp_path, capsys):
    """The compression has a loss of its own in the metrics; eval takes another cache, and nothing that changes parameters."""
    text, workdir = tmp_path / "words.txt", tmp_path / "run"
    text.write_text("memory is what remains when the rest is gone. " * 60)
    assert train(tiny(str(text)), workdir) == 0
    records = metrics.read(workdir)
    own = metrics.column(records, "train/auxiliary_loss")[1]
    assert len(own) == 4 and all(value > 0 for value in own)
    short, long = (evaluate_run(workdir, changes, lambda line: None)["eval/loss"]
                   for changes in ((), ("model.pattern.0.memory.length=24", "model.style.clamp=12")))
    assert np.isfinite(long) and short != long
    with pytest.raises(UserError, match="config.model.layers is 1 in .* cannot change to 2"):
        evaluate_run(workdir, ("model.layers=2",), print)


def test_one_update_moves_the_compression_by_its_own_loss_alone():
    """In the trainer: without its objective, the convolution gets no gradient, and all others keep theirs."""
    model = lambda objective: LanguageModelConfig(
        vocabulary=16, width=8, layers=1, head_dim=4, hidden=8, segment=4, style=TRANSFORMER_XL,
        pattern=(CachedConfig(CompressiveConfig(4, 4, 2, objective=objective)),))
    base = config.load("compressive")
    grads = []
    for objective in ("attention", "none"):
        exp = replace(base, model=model(objective),
                      data=replace(base.data, sequence=16), training=replace(base.training, batch=2, call_tokens=4))
        update = step.update_of(exp, bind(exp.model))
        state = step.init_train_state(update, jax.random.key(0))
        ids = jnp.asarray(np.random.default_rng(0).integers(16, size=(2, 16)), jnp.int32)
        batch = step.Batch(ids, ids, jnp.array([True, True]))
        grads.append(jax.jit(lambda s, b, u=update: step.batch_gradient(s.params, s.carry, b, u)[0])(state, batch))
    own = [g["layers"][0]["cached"].pop("memory") for g in grads]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), *grads)
    assert all(np.any(g) for g in jax.tree.leaves(own[0])) and not any(np.any(g) for g in jax.tree.leaves(own[1]))


def test_the_auxiliary_gradient_is_clipped_by_itself():
    """However large it is, the other parameters move as they would without it, and it is held to the same bound."""
    exp = config.load("compressive")
    leaves_of = lambda model: jax.tree.leaves(bind(model).specs(), is_leaf=lambda node: isinstance(node, P.ParamSpec))
    leaves = leaves_of(exp.model)
    assert {s.auxiliary for s in leaves} == {True, False}
    memory = replace(exp.model.pattern[0].memory, objective="bptt")
    bptt = replace(exp.model, pattern=(CachedConfig(memory),))
    assert not any(s.auxiliary for s in leaves_of(bptt))
    tx = optimizer.clip(0.5, leaves)
    rng = np.random.default_rng(0)
    grads = [jnp.asarray(rng.standard_normal(s.shape), jnp.float32) for s in leaves]
    louder = [1000 * g if s.auxiliary else g for s, g in zip(leaves, grads, strict=True)]
    one, other = (tx.update(g, tx.init(g))[0] for g in (grads, louder))
    norm = lambda tree, auxiliary: np.sqrt(sum(np.square(g).sum() for s, g in zip(leaves, tree, strict=True)
                                               if s.auxiliary == auxiliary))
    for spec, a, b in zip(leaves, one, other, strict=True):
        if not spec.auxiliary:
            np.testing.assert_array_equal(a, b)
    for auxiliary in (False, True):
        np.testing.assert_allclose([norm(one, auxiliary), norm(other, auxiliary)], 0.5, rtol=1e-5)
