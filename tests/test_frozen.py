"""Frozen memories: a model that does not use its memory is not changed, one that does is, and forgetting does not undo it."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import LMM, MAG, MEMORY, MODELS, model, some_ids
from toy_model import ToyConfig

from memtok_jax import config
from memtok_jax.evaluation.frozen import can_freeze, frozen
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.evaluation.score import Score
from memtok_jax.memory import neural
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Memory, bind
from memtok_jax.training import metrics, report
from memtok_jax.training.run import train

HAVE_ONE = {"lmm", "mac", "mac_questions", "mag", "mal", "xl_below_mag", "rmt_around_mag"}


def test_models_with_a_neural_memory_are_known():
    assert {name for name, cfg in MODELS.items() if can_freeze(cfg)} == HAVE_ONE
    assert not can_freeze(ToyConfig()) and frozen(MODELS["rmt"]) is not None and frozen(MODELS["rmt"]) == MODELS["rmt"]


def test_parameters_and_carry_are_those_of_the_model():
    for name in HAVE_ONE:
        ours, still = bind(MODELS[name]), bind(frozen(MODELS[name]))
        for of in (lambda m: m.specs(), lambda m: m.state_specs(2)):
            shapes = lambda m, of=of: jax.tree.map(lambda s: s.shape, of(m), is_leaf=lambda s: hasattr(s, "axes"))
            assert shapes(ours) == shapes(still)


@pytest.mark.parametrize("forget_to", [pytest.param("init", marks=pytest.mark.slow), "zero"])
def test_every_read_is_at_the_initial_weights(forget_to):
    """What is read after many writes is f at the learned initial weights, to the bit."""
    cfg = neural.NeuralMemoryConfig(width=4, head_dim=4, chunk=4, expansion=2, conv=2, step_max=0.3, forget_to=forget_to,
                                    forget_range=(0.5, 0.5))
    still = Memory(neural, frozen(cfg))
    params, x = still.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 12, 4))
    fresh = still.init_state(params, 2)
    y, after = still.apply(params, fresh, x)
    np.testing.assert_allclose(y, neural.read(params, fresh, x, cfg), rtol=0, atol=1e-6)
    assert max(float(jnp.abs(w).max()) for w in jax.tree.leaves((after.weights, after.surprise))) < 1e-25
    moved = Memory(neural, cfg).apply(params, fresh, x)[0]
    assert float(jnp.abs(moved - y).max()) > 1e-2, "the writes of this memory do something"


@functools.cache
def _logits(cfg, scale: float) -> np.ndarray:
    """Logits of a model whose memory's contribution is multiplied by `scale`."""
    bound = bind(cfg)
    params = bound.init(jax.random.key(0))

    def scaled(path, leaf):
        return scale * leaf if "norm_memory" in jax.tree_util.keystr(path) else leaf

    params = jax.tree_util.tree_map_with_path(scaled, params)
    return np.asarray(bound.run(params, bound.init_state(params, 2), some_ids(2, 12), Call())[0])


@pytest.mark.slow
def test_a_memory_that_is_not_used_is_worth_nothing():
    """MAG that adds its memory, with the weight of the memory at zero: frozen and not frozen are the same numbers."""
    cfg = model(type(MAG)(window=3, combine="sum", memory=MEMORY), segment=0)
    np.testing.assert_array_equal(_logits(cfg, 0.0), _logits(frozen(cfg), 0.0))
    assert np.abs(_logits(cfg, 1.0) - _logits(frozen(cfg), 1.0)).max() > 1e-4


def test_a_tuple_of_branches_is_frozen_too():
    cfg = frozen(model((LMM,), segment=0))
    assert cfg.pattern[0][0].memory.step_max == 1e-30


# ------------------------------------------------------------------------------------------------------------------- the report

def test_the_report_takes_one_more_pass_and_only_where_there_is_something_to_freeze(monkeypatch):
    """One scoring of all held-out data with the frozen model; none for a model without a neural memory, and for a task."""
    passes = []

    def scored(experiment, model, params, mesh, cfg, rows, most=0):
        passes.append((model.cfg, most))
        return Score(nats=1000.0, correct=1, count=500, positions=(), bytes=500)

    monkeypatch.setattr(report, "score_data", scored)
    text = config.load("titans_mag")
    found = report.without_writes(text, bind(text.model), {}, None)
    assert found == {"eval/frozen_bits_per_byte": pytest.approx(2 / np.log(2))} and passes == [(frozen(text.model), 0)]
    for name in ("transformer", "recall:mag"):
        other = config.load(name)
        assert report.without_writes(other, bind(other.model), {}, None) == {}
    assert len(passes) == 1


@pytest.mark.slow
def test_a_run_reports_its_memory_frozen(tmp_path, capsys):
    """In the report, in the metrics and in eval.json; the two streams of evaluation are the same in both."""
    (tmp_path / "words.txt").write_text("memory is what remains when the rest is gone. " * 200)
    tiny = config.load("titans_lmm", (
        f"data={tmp_path / 'words.txt'}", "model.width=8", "model.head_dim=4", "model.hidden=8", "data.sequence=64",
        "data.eval_bytes=256", "training.batch=2", "training.data=1", "evaluation.batch=2", "optimizer.steps=3",
        "optimizer.warmup_steps=1", "training.sample_tokens=0", "training.eval_every=0", "training.checkpoint_every=0",
        *(f"model.pattern.{n}.memory.{change}" for n in (0, 1) for change in ("head_dim=4", "chunk=16", "step_max=0.3"))))
    assert train(tiny, tmp_path / "run") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "memory frozen" in line]
    (written,) = metrics.column(metrics.read(tmp_path / "run"), "eval/frozen_bits_per_byte")[1]
    own = metrics.column(metrics.read(tmp_path / "run"), "eval/bits_per_byte")[1][-1]
    assert f"{written:.4f}" in line and written != own
    result = evaluate_run(tmp_path / "run", ("evaluation.streams=2",), print)
    assert result["eval/frozen_bits_per_byte"] == pytest.approx(written, rel=1e-5)
    saved = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert saved["eval/frozen_bits_per_byte"] == result["eval/frozen_bits_per_byte"]
