"""Low-rank changes of projections: nothing at first, then only the factors learn, and merged weights compute the same."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import jit, random_params

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.data.text import TextConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.lora import LoraConfig, merged
from memtok_jax.models.mixers.repeated import RepeatedConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.sharding import make_mesh
from memtok_jax.training import machine, step
from memtok_jax.training.experiment import Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.optimizer import make_optimizer

INSIDE = LanguageModelConfig(vocabulary=12, width=16, layers=4, head_dim=4, kv_heads=2, hidden=16,
                             pattern=(WindowConfig(8), WindowConfig(4)))
ALL = LoraConfig(INSIDE, rank=2, alpha=6.0, targets=("q", "v", "o", "gate", "down"))
RATES = ("=0", "['lora']=10")
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 12)), jnp.int32)


def begun(cfg, seed: int = 1):
    """Initial parameters."""
    return jit(bind(cfg).init)(jax.random.key(seed))


def drawn(specs, dtype=jnp.float32):
    """Parameters without a special value."""
    return jit(lambda: random_params(specs, 0, dtype))()


def logits(cfg, params, ids=IDS):
    model = bind(cfg)
    return jit(lambda p, x: model.apply(p, model.init_state(p, len(x)), x)[0])(params, ids)


def test_nothing_changes_at_first():
    """With B at zero the logits are those of the model inside, to the bit; its own parameters are drawn as they were."""
    params = begun(ALL)
    np.testing.assert_array_equal(logits(ALL, params), logits(INSIDE, params["model"]))


def test_merged_weights_compute_the_same():
    """Every changed projection is W + (alpha / r) A B, and the model with these weights equals the one with factors (float64)."""
    with jax.enable_x64(True):
        params = drawn(bind(ALL).specs(), jnp.float64)
        whole = merged(params, ALL)
        np.testing.assert_allclose(logits(INSIDE, whole), logits(ALL, params), rtol=0, atol=1e-12)
        own, factors = params["model"]["layers"][1]["window"]["v"]["w"], params["lora"]["layers.1.window.v"]
        want = own + 3.0 * np.einsum("lir,lrgk->ligk", factors["low"], factors["high"])
        np.testing.assert_allclose(whole["layers"][1]["window"]["v"]["w"], want, rtol=0, atol=1e-14)
    same = jax.tree.map(np.array_equal, whole, params["model"])
    assert same["layers"][1]["window"]["k"]["w"] and same["words"]["embedding"]
    assert not same["layers"][0]["feed_forward"]["down"]["w"]


def test_layers_that_repeat_inside_a_pattern_are_changed_too():
    """Each repeat has factors of its own, and merged weights compute the same (float64)."""
    inside = replace(INSIDE, pattern=(WindowConfig(8), RepeatedConfig((WindowConfig(4),), 3)))
    cfg = LoraConfig(inside, rank=2, targets=("v",))
    assert bind(cfg).specs()["lora"]["layers.1.0.window.v"]["low"].shape == (1, 3, 16, 2)
    with jax.enable_x64(True):
        params = drawn(bind(cfg).specs(), jnp.float64)
        np.testing.assert_allclose(logits(inside, merged(params, cfg)), logits(cfg, params), rtol=0, atol=1e-12)


def test_a_model_around_a_model_is_changed_too():
    """Around RMT: nothing at first, and the loop over tokens takes the merged model inside."""
    inside = RmtConfig(replace(INSIDE, pattern=(SegmentConfig(),), segment=6), tokens=2)
    cfg = LoraConfig(inside, rank=2, targets=("segment.q", "up"))
    params = begun(cfg)
    np.testing.assert_array_equal(logits(cfg, params), logits(inside, params["model"]))
    other = drawn(bind(cfg).specs())
    own, state = jit(lambda p: bind(cfg).unstack(p, bind(cfg).init_state(p, 2))[1:])(other)
    found = jit(lambda p, s: bind(inside).apply(p, s, IDS)[0])(own, state)
    np.testing.assert_allclose(found, logits(cfg, other), rtol=0, atol=2e-5)


def experiment(**training) -> Experiment:
    return Experiment(ALL, TextConfig(sequence=8), OptimizerConfig(0.01, 20, 0, rates=RATES), TrainingConfig(4, **training))


def batch() -> step.Batch:
    ids = np.random.default_rng(1).integers(0, 11, (4, 9)).astype(np.int32)
    return step.Batch(jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:]), jnp.ones(4, bool))


def test_only_the_factors_learn():
    """Ten updates: the model inside keeps every bit and has no moments; the loss falls; the first gradient is that of B alone."""
    update = step.update_of(experiment(), bind(ALL))
    state = jit(lambda: step.init_train_state(update, jax.random.key(0)))()
    first, seen = state.params, batch()
    gradient = jit(lambda p, c: step.batch_gradient(p, c, seen, update)[0])(state.params, state.carry)
    largest = lambda tree: max(float(np.abs(x).max(initial=0)) for x in jax.tree.leaves(tree))
    assert largest(gradient["model"]) == 0 == max(largest(f["low"]) for f in gradient["lora"].values())
    assert all(np.abs(f["high"]).max() > 0 for f in gradient["lora"].values())
    run = jit(lambda s: step.train_step(s, seen, update))
    losses = []
    for _ in range(10):
        state, metrics = run(state)
        losses.append(float(metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, state.params["model"], first["model"])
    assert losses[-1] < losses[0] - 0.01 and all(np.abs(f["high"]).max() > 0 for f in state.params["lora"].values())
    moments = [x.size for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert sum(moments) == 2 * P.count(bind(ALL).specs()["lora"])
    assert machine.state_bytes(update) == 4 * (P.count(bind(ALL).specs()) + sum(moments) * 3 // 2) + P.size_bytes(
        bind(ALL).state_specs(4))


def test_rates_scale_and_freeze_as_updates_by_hand():
    """Adam with moments for the factors alone gives what Adam gives for a tree of the factors alone, ten times as fast."""
    specs = bind(ALL).specs()
    how = OptimizerConfig(0.01, 20, 0, weight_decay=0.1, rates=RATES)
    alone = OptimizerConfig(0.01, 20, 0, weight_decay=0.1)
    tx, other = make_optimizer(how, specs), make_optimizer(alone, specs["lora"])
    params = drawn(specs)
    move = lambda tx: jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])
    grads = jax.tree.map(np.cos, params)
    got, want = move(tx)(grads, params), move(other)(grads["lora"], params["lora"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 10 * b, rtol=1e-6), got["lora"], want)
    assert all(not np.any(x) for x in jax.tree.leaves(got["model"]))


def test_the_state_is_divided_over_a_mesh():
    """Factors lie as the projection they change; parameters that do not learn have no moments to divide."""
    update, mesh = step.update_of(experiment(), bind(ALL)), make_mesh(2, 2, 2)
    found = step.state_shardings(replace(update, model=bind(replace(ALL, targets=("down",)))), mesh)
    factors = found.params["lora"]["layers.0.feed_forward.down"]
    assert tuple(factors["low"].spec) == (None, "tensor", None) and tuple(factors["high"].spec) == (None, None, "fsdp")
    assert len([x for x in jax.tree.leaves(found.optimizer) if x.spec]) == 2 * len(jax.tree.leaves(found.params["lora"]))


@pytest.mark.parametrize("change, match", [
    (dict(rank=0), "lora.rank is 0; it must be at least 1"),
    (dict(alpha=0.0), "lora.alpha is 0.0; it must be above 0"),
    (dict(targets=()), "lora.targets is empty; it must name some of q, k, v"),
    (dict(targets=("window.qv",)), "lora.targets has 'window.qv'; its last part must be one of q, k"),
    (dict(targets=("q", "downs")), "'downs'; its last part must be one of .*; did you mean 'down'"),
    (dict(targets=("segment.q",)), "lora.targets has 'segment.q', which is no projection of the model, such as 0.feed"),
])
def test_wrong_options_are_told_in_a_line(change, match):
    with pytest.raises(UserError, match=match) as found:
        replace(ALL, **change)
    assert "\n" not in str(found.value)
