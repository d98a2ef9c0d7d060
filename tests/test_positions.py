"""Loss by position and its controls, on streams and models whose numbers are known."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import copying_model
import jax
import numpy as np
import pytest
import toy_run
from model_cases import MODELS

from memtok_jax import sharding
from memtok_jax.config import UserError
from memtok_jax.data.text import TextConfig
from memtok_jax.evaluation import positions as at
from memtok_jax.evaluation import word_classes as wc
from memtok_jax.evaluation.options import PositionsConfig
from memtok_jax.evaluation.report import evaluate_run, result_file
from memtok_jax.evaluation.suites import positions as suite
from memtok_jax.models.protocol import bind
from memtok_jax.training.experiment import EvaluationConfig
from memtok_jax.training.run import train

N, PERIOD = 32, 16


def planted(streams: int = 3) -> at.Streams:
    """Streams whose second half is the first half again."""
    half = np.random.default_rng(0).integers(97, 123, (streams, N // 2 + 1))
    ids = np.concatenate([half[:, :-1], half[:, :-1], half[:, :1]], axis=1).astype(np.int32)
    return at.Streams(ids[:, :-1], ids[:, 1:])


@functools.cache
def copied(reset: int = 0, rows: int = 2, period: int = PERIOD) -> np.ndarray:
    """Bits of each token of the planted streams under the copying model."""
    model = bind(copying_model.CopyingConfig(period))
    params, mesh = model.init(jax.random.key(0)), sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        return at.losses(params, planted(), mesh, model=model, call_tokens=4, batch_tokens=8, rows=rows, reset=reset) / np.log(2)


def test_a_copy_costs_nothing_from_the_half_on():
    """8 bits of a uniform guess in the first half, none where the text repeats; the last of three streams fills a batch."""
    bits = copied()
    np.testing.assert_allclose(bits[:, :N // 2 - 1], 8, atol=1e-5)
    np.testing.assert_allclose(bits[:, N // 2:], 0, atol=1e-5)
    np.testing.assert_array_equal(copied(rows=3), bits)


def test_a_reset_carry_has_forgotten_and_the_first_piece_is_unchanged():
    """Reset every quarter, nothing is ever remembered for half the stream; a piece that is no multiple of a call works too."""
    for reset in (N // 4, 6):
        bits = copied(reset)
        np.testing.assert_allclose(bits, 8, atol=1e-5)
        np.testing.assert_array_equal(bits[:, :reset], copied()[:, :reset])


@pytest.mark.parametrize("name, reach", [("segment", 0), pytest.param("window", 4, marks=pytest.mark.slow)])
def test_a_reset_changes_nothing_beyond_what_attention_sees(name, reach):
    """A model without memory: equal everywhere (segments), or from `reach` tokens behind a border on (windows)."""
    model, tokens = bind(MODELS[name]), 12
    assert model.reach == 5 if reach else model.segment == 4
    ids = np.random.default_rng(1).integers(16, size=(2, 25)).astype(np.int32)
    params, mesh = model.init(jax.random.key(0)), sharding.make_mesh(1, 1, 1)
    scored = lambda **more: at.losses(params, at.Streams(ids[:, :-1], ids[:, 1:]), mesh, model=model, call_tokens=tokens,
                                      batch_tokens=tokens, rows=2, **more)
    with jax.set_mesh(mesh):
        own, reset = scored(), scored(reset=tokens)
    np.testing.assert_allclose(own[:, :tokens], reset[:, :tokens], rtol=0, atol=1e-5)
    np.testing.assert_allclose(own[:, tokens + reach:], reset[:, tokens + reach:], rtol=0, atol=1e-5)
    if reach:
        assert np.abs(own - reset)[:, tokens:tokens + reach].max() > 1e-4


def test_streams_cover_a_text_once_and_begin_at_random():
    cfg = lambda size: TextConfig(eval_bytes=size)
    streams = at.held_out_streams(cfg(1000), 300)
    assert streams.inputs.shape == (3, 300) and (streams.targets >= 0).all()
    np.testing.assert_array_equal(streams.inputs[:, 1:], streams.targets[:, :-1])
    np.testing.assert_array_equal(streams.inputs[1:, 0], streams.targets[:-1, -1])
    firsts = {at.held_out_streams(cfg(1000), 300, seed=seed).targets[0].tobytes() for seed in range(4)}
    assert len(firsts) > 1
    assert len(at.held_out_streams(cfg(1000), 100, most=4).inputs) == 4
    with pytest.raises(UserError, match="no held-out text has 2,000 tokens .evaluation.positions.tokens.; lower it, or raise"):
        at.held_out_streams(cfg(1000), 2000)


# ------------------------------------------------------------------------------------------------------------------ statistics

def test_bins_begin_at_the_segment_and_grow():
    assert at.edges(256, 64) == [0, 64, 91, 129, 182, 256]
    assert at.edges(10, 64) == [0, 10] and at.edges(4, 1) == [0, 1, 2, 3, 4]


def test_interval_holds_the_mean_as_often_as_it_says():
    """200 data sets of 40 streams around a mean of 1: about 95 % of the intervals hold it."""
    rng, drawn, inside = np.random.default_rng(0), at.draw_streams(40, 300), 0
    for _ in range(200):
        values = 1 + rng.normal(size=(40, 1)) + 0.1 * rng.normal(size=(40, 5))
        mean, low, high = at.mean_of(values, np.ones_like(values, bool), drawn)
        assert low < mean < high and mean == pytest.approx(values.mean())
        inside += low <= 1 <= high
    assert 0.88 < inside / 200 < 0.99


def test_mean_counts_tokens_and_one_stream_has_no_interval():
    values, counted = np.array([[1.0, 5.0], [2.0, 9.0]]), np.array([[True, True], [True, False]])
    mean, low, high = at.mean_of(values, counted, at.draw_streams(2, 50))
    assert mean == pytest.approx(8 / 3) and (low, high) == (2.0, 3.0)
    assert np.isnan(at.mean_of(values[:1], counted[:1], at.draw_streams(1, 50))[1:]).all()


def test_words_are_new_near_or_far():
    text = b"alpha(beta1); alpha = 17 to alphabet beta1"
    found = wc.of_bytes(np.frombuffer(text, np.uint8).astype(np.int32), far=12)
    shown = "".join(".nxF"[kind] for kind in found)
    assert shown[:5] == "nnnnn" and shown[6:11] == "nnnnn" and set(shown[14:19]) == {"x"}, "alpha again, 10 bytes behind its end"
    assert set(shown[28:36]) == {"n"} and set(shown[37:42]) == {"F"}, "alphabet is another word; beta1 stands 27 bytes back"
    assert set(shown[11:14] + shown[19:28] + shown[36]) == {"."}, "signs, numbers and words of two letters are no words"
    np.testing.assert_array_equal(wc.of_tokens(np.array([5, 6, 5, 7, 8, 6, -100]), far=3), [1, 1, 2, 1, 1, 3, 0])


def test_table_is_the_mean_of_its_bins_and_of_its_classes():
    rng = np.random.default_rng(0)
    own, other = rng.random((4, 40)), rng.random((4, 40))
    classes = rng.integers(0, 4, (4, 40)).astype(np.int8)
    lines = suite.table({"own": own, "reset": other}, classes, at.edges(40, 10), 50)
    bins, (total,) = [line for line in lines if "first" in line], [line for line in lines if line["tokens"] == "all"]
    assert sum(line["count"] for line in bins) == total["count"] == 160
    assert sum(line["count"] * line["own"] for line in bins) / 160 == pytest.approx(total["own"]) == pytest.approx(own.mean())
    assert sum(line["count"] * line["reset"][0] for line in bins) / 160 == pytest.approx((other - own).mean())
    (far,) = [line for line in lines if line["tokens"] == "far copies"]
    assert far["own"] == pytest.approx(own[classes == wc.FAR].mean())
    assert "| far copies |" in suite.page(lines, ["reset"], True)


# ------------------------------------------------------------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the toy model on a small text."""
    folder = tmp_path_factory.mktemp("positions")
    (folder / "words.txt").write_text("memory is what remains when the rest is gone. " * 200)
    assert train(toy_run.experiment(str(folder / "words.txt"), "optimizer.steps=2", "training.eval_every=0"), folder / "run") == 0
    return folder / "run"


def test_the_command_writes_table_figure_and_numbers(run):
    """Against itself a run differs by nothing; against its reset self it does. The result of the run's own suite stays."""
    (run / "eval.json").write_text("own")
    options = ("evaluation.positions.tokens=96", "evaluation.positions.reset=16", f"evaluation.positions.against={run}")
    said = []
    result = evaluate_run(run, options, said.append, "positions")
    whole = json.loads((run / "positions.json").read_text())
    assert json.loads((run / "eval_positions.json").read_text()) == json.loads(json.dumps(result))
    assert (run / "eval.json").read_text() == "own" and "eval_positions.json" in said[-1]
    assert [result_file(suite, "text") for suite in ("text", "task")] == ["eval.json", "eval_task.json"]
    assert result["eval/against_minus_own"] == 0 and result["eval/reset_minus_own"] != 0
    assert whole["streams"] == 4 and whole["lines"][0]["tokens"] == "0 to 15" and whole["lines"][0]["reset"] == [0, 0, 0]
    assert (run / "positions.png").stat().st_size > 1000 and "| all " in (run / "positions.md").read_text()
    assert result["eval/bits_per_byte"] == pytest.approx(sum(n["count"] * n["own"] for n in whole["lines"] if "first" in n) / 384)


def test_mistakes_are_one_line(run, tmp_path):
    with pytest.raises(UserError, match="is not a run directory: there is no config.json"):
        evaluate_run(run, ("evaluation.positions.tokens=96", f"evaluation.positions.against={tmp_path}"), print, "positions")
    with pytest.raises(UserError, match="suite 'positions' judges a model of text, and this run is on task:recall"):
        evaluate_run(run, ("data=task:recall",), print, "positions")
    with pytest.raises(UserError, match="evaluation.positions.tokens is 1; it must be at least 2"):
        replace(EvaluationConfig(), positions=PositionsConfig(tokens=1))
